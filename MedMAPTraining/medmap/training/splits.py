"""Which case belongs to training, validation and test: read from a file, so that everybody scores the same ones.

Models are chosen on validation; test is scored once. ``note_scored`` keeps that honest: every scoring of test is
written down beside the split file, and whoever scores the same weights again is told.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError, UsageError

Split = dict[str, tuple[str, ...]]
"""Names of cases by part: ``train``, ``val``, ``test``."""

_ALIASES = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}


def read_split(path: str | os.PathLike) -> Split:
    """Read a split.

    Three kinds of file are understood: JSON (``{"train": ["Case_1", ...], "val": [...], "test": [...]}``), CSV with the
    columns ``case`` and ``part``, and a list of one name a line, whose part is the file's name (``test.txt``).

    Raises:
        MissingInputError: there is no such file.
        InputDataError: it is none of these, is empty, or a case is in two parts or twice in one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(
            f"The split {path.name} cannot be read.", "Check the path given with --split."
        ) from error
    try:
        found = {".json": _from_json, ".csv": _from_csv}.get(path.suffix.lower(), _from_list)(
            text, path
        )
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputDataError(
            f"The split {path.name} is not understood ({error}).",
            'Write {"train": [names], "val": [names], "test": [names]}, or a CSV with the columns case and part.',
        ) from error
    split = {
        _ALIASES.get(part.lower(), part.lower()): tuple(map(str, names))
        for part, names in found.items()
    }
    names = [name for part in split.values() for name in part]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputDataError(
            f"{len(twice)} cases of {path.name} are named twice, such as {twice[0]}.",
            "Every case belongs to one part.",
        )
    if not names:
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
    return [
        entry for entry in entries if isinstance(entry, dict) and entry.get("weights") == identity
    ]


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
    entry = {"when": when, "bundle": bundle, "weights": identity, "part": "test", "cases": cases}
    with ledger(split).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    return entry


def _from_json(text: str, path: Path) -> dict:
    data = json.loads(text)
    return {part: list(names) for part, names in data.items() if not isinstance(names, str)}


def _from_csv(text: str, path: Path) -> dict:
    found: dict[str, list[str]] = {}
    for row in csv.DictReader(io.StringIO(text), skipinitialspace=True):
        found.setdefault(row["part"].strip(), []).append(row["case"].strip())
    return found


def _from_list(text: str, path: Path) -> dict:
    return {
        path.stem: [
            line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")
        ]
    }
