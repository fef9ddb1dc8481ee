"""Recipes by name: one for each row of the papers' tables, written down in ``recipes/tables``.

A file there holds the rows of one paper. ``parts`` are fragments of recipes by name; a row merges
some of them, and may stand for several recipes: ``for`` lists values by placeholder, and
``{placeholder}`` in the row's texts takes each of them in turn. What the papers print is in
``recipes/papers`` (``medmap.training.printed``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from medmap.errors import BundleError, MissingInputError, UsageError
from medmap.training.printed import printed_tables, published_means, recipes_folder
from medmap.training.recipe import Recipe


@dataclass(frozen=True)
class PublishedRow:
    """A recipe and the row that it reproduces.

    Attributes:
        name: by which ``medmap train`` finds it.
        recipe: what to train.
        source: paper and table.
        published: means that the paper prints, Dice in percent, by subset and region; every figure
            is in the printed tables.
        cost: computation, and what that means in time.
        petaflop: of one network's training; 0 where it is not estimated.
        notes: what is misprinted, unknown or cannot be reproduced.
        teacher: the row whose bundle is the teacher, or "".
        fields: the recipe's fields that the table states.
    """

    name: str
    recipe: Recipe
    source: str
    published: dict[str, float] = field(default_factory=dict)
    cost: str = ""
    petaflop: float = 0.0
    notes: tuple[str, ...] = ()
    teacher: str = ""
    fields: Mapping = field(default_factory=dict)


def published_rows(folder: Path | None = None) -> dict[str, PublishedRow]:
    """Every row of every table, by name. Raises BundleError for a table that is not understood."""
    rows: dict[str, PublishedRow] = {}
    means: dict[str, dict[str, float]] = {}
    if folder is None:
        means = published_means(printed_tables())
        folder = recipes_folder() / "tables"
    shared = json.loads((folder / "parts.json").read_text(encoding="utf-8"))["parts"]
    for path in sorted(folder.glob("*.json")):
        table = json.loads(path.read_text(encoding="utf-8"))
        parts = {**shared, **table.get("parts", {})}
        entries: list[dict] = []
        for entry in table.get("rows", []):
            entries.extend(_expanded(entry))
        for entry in entries:
            try:
                row = _row(entry, parts, table, means.get(entry["name"], {}))
            except (KeyError, TypeError) as error:
                raise BundleError(
                    f"A row of {path.name} is not understood ({error}).", "Correct it."
                ) from error
            if row.name in rows:
                raise BundleError(f"Two recipes are named {row.name}.", "Rename one.")
            rows[row.name] = row
    return rows


def find_recipe(named: str | Path) -> tuple[Recipe, PublishedRow | None]:
    """A recipe by its file, or by the name of a published row or of a file in ``recipes/``.

    Raises:
        MissingInputError: there is neither.
        BundleError: it is not understood.
    """
    path = Path(named)
    if path.suffix != ".json" and not path.exists():
        row = published_rows().get(str(named))
        if row is not None:
            return row.recipe, row
    recipe = Recipe.read(_recipe_path(named))
    return recipe, None


def row_name(named: str | Path) -> str:
    """The name of the published row that ``find_recipe`` would give; "" for another recipe."""
    _, row = find_recipe(named)
    return row.name if row is not None else ""


def _recipe_path(named: str | Path) -> Path:
    """The file of a recipe. Raises MissingInputError where the name stands for none."""
    path = Path(named)
    if path.suffix == ".json" or path.exists():
        return path
    for folder in (recipes_folder(), recipes_folder() / "networks"):
        if (folder / f"{named}.json").is_file():
            return folder / f"{named}.json"
    raise MissingInputError(
        f"There is no recipe {named}.", "See medmap recipes, or name a JSON file."
    )


def recipe_fields(named: str | Path) -> Mapping:
    """The fields that a recipe states itself, without those that have their defaults.

    Raises as ``find_recipe``.
    """
    _, row = find_recipe(named)
    if row is not None:
        return row.fields
    return json.loads(_recipe_path(named).read_text(encoding="utf-8"))


def find_split(named: str | Path) -> Path:
    """A split file by its path, or by the name of one in ``recipes/splits``.

    Raises:
        MissingInputError: there is neither.
    """
    path = Path(named)
    if path.exists():
        return path
    splits = {p.stem: p for p in sorted((recipes_folder() / "splits").glob("*.json"))}
    if str(named) not in splits:
        raise MissingInputError(
            f"There is no split {named}.", f"Name a file, or one of {', '.join(splits)}."
        )
    return splits[str(named)]


def _expanded(entry: Mapping) -> Iterator[dict]:
    """The rows that an entry stands for."""
    values = entry.get("for", {})
    for chosen in product(*values.values()):
        filled = dict(zip(values, chosen, strict=True))
        row = {}
        for key, value in entry.items():
            if key != "for":
                row[key] = _fill(value, filled)
        yield row


def _fill(value: object, filled: Mapping[str, str]) -> object:
    if isinstance(value, str):
        for name, text in filled.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, list):
        return [_fill(item, filled) for item in value]
    if isinstance(value, dict):
        return {key: _fill(item, filled) for key, item in value.items()}
    return value


def _row(row: Mapping, parts: Mapping, table: Mapping, published: dict[str, float]) -> PublishedRow:
    merged: dict = {}
    for name in row["use"]:
        merged = merge(merged, parts[name])
    merged = merge(merged, row.get("set", {}))
    cost = merged.pop("cost", "")
    petaflop = merged.pop("petaflop", 0.0)
    notes = (*merged.pop("notes", []), *row.get("notes", []), *table.get("notes", []))
    source = f"{table['source']}, {row['table']}"
    teacher = row.get("teacher", "")
    sentences = [f"{row['title']} ({source})."]
    if published:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in published.items())
        sentences.append(f"Published: {figures}.")
    if teacher:
        sentences.append(f"Teacher: {teacher}.")
    if cost:
        sentences.append(f"Cost: {cost}")
    about = " ".join([*sentences, *notes])
    recipe = Recipe.from_dict({**merged, "about": about})
    return PublishedRow(
        row["name"], recipe, source, published, cost, petaflop, notes, teacher, merged
    )


def merge(base: Mapping, over: Mapping) -> dict:
    """``over`` on ``base``: dicts are merged by key, ``notes`` joined, all else replaced."""
    merged = dict(base)
    for key, value in over.items():
        if key == "notes":
            merged[key] = [*merged.get(key, []), *value]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def require_teacher(row: PublishedRow | None, given: object) -> None:
    """Raises UsageError where a published row needs a teacher and none is given."""
    if row is not None and row.teacher and given is None:
        raise UsageError(
            f"The recipe {row.name} distils from a teacher, {row.teacher}.",
            f"Train {row.teacher} first, then name its bundle.",
            option="teacher",
        )
