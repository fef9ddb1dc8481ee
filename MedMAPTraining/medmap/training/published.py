"""Recipes by name: one for each row of the papers' tables, written down in ``recipes/tables``.

A table is a JSON file. ``parts`` are fragments of recipes by name; a row merges some of them, and may stand for several
recipes: ``for`` lists values by placeholder, and ``{placeholder}`` in the row's texts takes each of them in turn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from medmap.errors import BundleError, MissingInputError, UsageError
from medmap.training.recipe import Recipe


@dataclass(frozen=True)
class PublishedRow:
    """A recipe and the row that it reproduces.

    Attributes:
        name: by which ``medmap train`` finds it.
        recipe: what to train.
        source: paper and table.
        published: Dice in percent by what the table calls it, empty where the paper has none or it is not known here.
        cost: computation, and what that means in time.
        notes: what is misprinted, unknown or cannot be reproduced.
        teacher: the row whose bundle ``--teacher`` takes, or "".
    """

    name: str
    recipe: Recipe
    source: str
    published: dict[str, float | str] = field(default_factory=dict)
    cost: str = ""
    notes: tuple[str, ...] = ()
    teacher: str = ""


def recipes_folder() -> Path:
    """Where recipes lie: beside the package in a checkout, else where the package was installed.

    Raises:
        MissingInputError: neither is there.
    """
    places = (
        Path(__file__).resolve().parents[2] / "recipes",
        Path(sys.prefix) / "share/medmap/recipes",
    )
    for place in places:
        if place.is_dir():
            return place
    raise MissingInputError(
        "The folder of recipes is not beside this MedMAP.", "Name a recipe by its file."
    )


def published_rows(folder: Path | None = None) -> dict[str, PublishedRow]:
    """Every row of every table, by name. Raises BundleError for a table that is not understood."""
    rows: dict[str, PublishedRow] = {}
    folder = folder or recipes_folder() / "tables"
    shared = json.loads((folder / "parts.json").read_text(encoding="utf-8"))["parts"]
    for path in sorted(folder.glob("*.json")):
        table = json.loads(path.read_text(encoding="utf-8"))
        parts = {**shared, **table.get("parts", {})}
        for row in (row for entry in table.get("rows", []) for row in _expanded(entry)):
            try:
                made = _row(row, parts, table)
            except (KeyError, TypeError) as error:
                raise BundleError(
                    f"A row of {path.name} is not understood ({error}).", "Correct it."
                ) from error
            if made.name in rows:
                raise BundleError(f"Two recipes are named {made.name}.", "Rename one.")
            rows[made.name] = made
    return rows


def find_recipe(named: str | Path) -> tuple[Recipe, PublishedRow | None]:
    """A recipe by its file, or by the name of a published row or of a file in ``recipes/``.

    Raises:
        MissingInputError: there is neither.
        BundleError: it is not understood.
    """
    path = Path(named)
    if path.suffix == ".json" or path.exists():
        return Recipe.read(path), None
    rows = published_rows()
    if str(named) in rows:
        row = rows[str(named)]
        return row.recipe, row
    for path in (
        recipes_folder() / f"{named}.json",
        recipes_folder() / "networks" / f"{named}.json",
    ):
        if path.is_file():
            return Recipe.read(path), None
    raise MissingInputError(
        f"There is no recipe {named}.", "See medmap recipes, or name a JSON file."
    )


def find_split(named: str | Path) -> Path:
    """A split file by its path, or by the name of one in ``recipes/splits``. Raises MissingInputError."""
    path = Path(named)
    if path.exists():
        return path
    known = {p.stem: p for p in sorted((recipes_folder() / "splits").glob("*.json"))}
    if str(named) not in known:
        raise MissingInputError(
            f"There is no split {named}.", f"Name a file, or one of {', '.join(known)}."
        )
    return known[str(named)]


def _expanded(entry: Mapping) -> Iterator[dict]:
    """The rows that an entry stands for."""
    values = entry.get("for", {})
    for chosen in product(*values.values()):
        filled = dict(zip(values, chosen, strict=True))
        yield {key: _fill(value, filled) for key, value in entry.items() if key != "for"}


def _fill(value: object, filled: Mapping[str, str]) -> object:
    if isinstance(value, str):
        for name, text in filled.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, list):
        return [_fill(item, filled) for item in value]
    return (
        {key: _fill(item, filled) for key, item in value.items()}
        if isinstance(value, dict)
        else value
    )


def _row(row: Mapping, parts: Mapping, table: Mapping) -> PublishedRow:
    merged: dict = {}
    for name in row["use"]:
        merged = merge(merged, parts[name])
    merged = merge(merged, row.get("set", {}))
    cost, notes = merged.pop("cost", ""), merged.pop("notes", [])
    notes = (*notes, *row.get("notes", []), *table.get("notes", []))
    published = table.get("published", {}).get(row["name"], {})
    source = f"{table['source']}, {row['table']}"
    teacher = row.get("teacher", "")
    recipe = Recipe.from_dict(
        {**merged, "about": _about(source, row, published, cost, notes, teacher)}
    )
    return PublishedRow(row["name"], recipe, source, published, cost, notes, teacher)


def _about(
    source: str, row: Mapping, published: Mapping, cost: str, notes: tuple[str, ...], teacher: str
) -> str:
    numbers = ", ".join(f"{name} {value}" for name, value in published.items())
    unknown = (
        "No figure of it is published."
        if "not in the paper" in source
        else "Its figures are not copied here."
    )
    lines = [f"{row['title']} ({source}).", f"Published: {numbers}." if numbers else unknown]
    lines += [f"Teacher: {teacher}."] if teacher else []
    return " ".join([*lines, *([f"Cost: {cost}"] if cost else []), *notes])


def merge(base: Mapping, over: Mapping) -> dict:
    """``over`` on ``base``: dicts are merged key by key, ``notes`` are joined, everything else is replaced."""
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
            f"Train it first (medmap train {row.teacher} ...), then name its bundle with --teacher.",
        )
