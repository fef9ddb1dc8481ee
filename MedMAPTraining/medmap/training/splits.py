"""Which case belongs to training, validation and test, read from a file.

Models are chosen on validation; test is scored once. ``note_scored`` keeps that honest:
every scoring of test is written down beside the split file, and whoever scores the same
weights again gets a warning.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError, UsageError

Split = dict[str, tuple[str, ...]]
"""Names of cases by part: ``train``, ``val``, ``test``."""

_ALIASES = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}


def read_split(path: str | os.PathLike, fold: int | None = None) -> Split:
    """Read a split, or one fold of a file of folds.

    Three kinds of file hold a split: JSON (``{"train": ["Case_1", ...], "val": [...], "test":
    [...]}``), CSV with the columns ``case`` and ``part``, and a list of one name a line, whose part
    is the file's name (``test.txt``). Files of folds: see ``read_folds``.

    Args:
        path: the file.
        fold: number of the fold, from 0; None for a file without folds.

    Raises:
        MissingInputError: there is no such file.
        InputDataError: it is none of these, is empty, or a case is in two parts or twice in one.
        UsageError: the file has folds and none is chosen, or the fold does not exist.
    """
    path = Path(path)
    folds = read_folds(path)
    if folds is not None:
        if fold is None:
            raise UsageError(
                f"{path.name} has {len(folds)} folds.", "Choose one, or all of them.", option="fold"
            )
        if fold not in range(len(folds)):
            raise UsageError(
                f"{path.name} has no fold {fold}.",
                f"Choose one from 0 to {len(folds) - 1}.",
                option="fold",
            )
        return folds[fold]
    if fold is not None:
        raise UsageError(
            f"{path.name} has no folds.",
            "Train without one, or make folds of the cases first.",
            option="fold",
        )
    return _checked(_parsed(path), path)


def read_folds(path: str | os.PathLike) -> list[Split] | None:
    """The folds of a cross-validation, or None for a file of another kind.

    Understood are ``{"folds": [{"train": [...], "val": [...]}, ...], "test": [...]}`` (``medmap
    split``) and nnU-Net's ``splits_final.json``, a list of such folds. ``test`` belongs to each.

    Raises:
        MissingInputError: there is no such file.
        InputDataError: a fold is not understood, is empty, or names a case twice.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        return None
    try:
        content = json.loads(_text_of(path))
    except ValueError:
        return None
    test: Sequence[str] = ()
    if isinstance(content, dict) and "folds" in content:
        test = content.get("test", ())
        content = content["folds"]
    elif not isinstance(content, list):
        return None
    try:
        folds = []
        for number, entry in enumerate(content):
            parts = {"train": entry["train"], "val": entry["val"]}
            if test:
                parts["test"] = test
            folds.append(_checked(parts, Path(f"fold {number} of {path.name}")))
    except (KeyError, TypeError) as error:
        raise InputDataError(
            f"The folds of {path.name} are not understood ({error}).",
            'Write [{"train": [names], "val": [names]}, ...].',
        ) from error
    if not folds:
        raise InputDataError(f"{path.name} has no fold.", "Make the folds again.")
    return folds


def _parsed(path: Path) -> Mapping[str, Sequence[str]]:
    """Names by part, as the file has them. Raises MissingInputError or InputDataError."""
    parsers = {".json": _from_json, ".csv": _from_csv}
    parse = parsers.get(path.suffix.lower(), _from_list)
    text = _text_of(path)
    try:
        return parse(text, path)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputDataError(
            f"The split {path.name} is not understood ({error}).",
            'Write {"train": [names], "val": [names], "test": [names]}, '
            "or a CSV with the columns case and part.",
        ) from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(
            f"The split {path.name} cannot be read.", "Check its path."
        ) from error


def _checked(parts: Mapping[str, Sequence[str]], path: Path) -> Split:
    """A split under the standard names of its parts. Raises InputDataError for a repeated name."""
    split = {}
    for part, names in parts.items():
        standard_name = _ALIASES.get(part.lower(), part.lower())
        split[standard_name] = tuple(str(name) for name in names)
    counts: Counter[str] = Counter()
    for names in split.values():
        counts.update(names)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise InputDataError(
            f"{len(repeated)} cases of {path.name} are named twice, such as {repeated[0]}.",
            "Every case belongs to one part.",
        )
    if not counts:
        raise InputDataError(f"The split {path.name} names no case.", "Add the names of the cases.")
    return split


def part_of(split: Mapping[str, Sequence[str]], part: str) -> tuple[str, ...]:
    """The cases of one part. Raises UsageError when the split has no such part."""
    if part not in split:
        raise UsageError(
            f"The split has no part '{part}'.", f"Use one of {', '.join(sorted(split))}."
        )
    return tuple(split[part])


def ledger(split: str | os.PathLike) -> Path:
    """The file beside a split in which scorings of its test part are written down."""
    return Path(split).with_suffix(".scored.jsonl")


def earlier_scorings(split: str | os.PathLike, identity: str) -> list[dict]:
    """What is written down about earlier scorings of the test part by the same weights."""
    try:
        lines = ledger(split).read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError):
        return []
    scorings = []
    for entry in entries:
        if isinstance(entry, dict) and entry.get("weights") == identity:
            scorings.append(entry)
    return scorings


def note_scored(split: str | os.PathLike, *, bundle: str, identity: str, cases: int) -> dict:
    """Write down that the test part is being scored, and return the entry.

    Args:
        split: the split file; the entry goes to ``<name>.scored.jsonl`` beside it.
        bundle: the bundle's name and version.
        identity: hash of what computes the result (``medmap.evaluation.identity``).
        cases: how many cases.

    Raises:
        OSError: the folder of the split cannot be written.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {
        "when": when,
        "bundle": bundle,
        "weights": identity,
        "part": "test",
        "cases": cases,
    }
    with ledger(split).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    return entry


def _from_json(text: str, path: Path) -> dict[str, list[str]]:
    parts = {}
    for part, names in json.loads(text).items():
        # Texts about the split stand beside its parts.
        if not isinstance(names, str):
            parts[part] = list(names)
    return parts


def _from_csv(text: str, path: Path) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for row in csv.DictReader(io.StringIO(text), skipinitialspace=True):
        part = row["part"].strip()
        case = row["case"].strip()
        parts.setdefault(part, []).append(case)
    return parts


def _from_list(text: str, path: Path) -> dict[str, list[str]]:
    names = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            names.append(line.strip())
    return {path.stem: names}
