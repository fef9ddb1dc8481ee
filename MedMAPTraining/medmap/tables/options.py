"""Options of ``medmap table``, and folders and files by data set on its command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medmap.errors import MissingInputError, UsageError
from medmap.training.splits import read_folds


@dataclass(frozen=True)
class TableOptions:
    """Options of ``medmap table``; see its help.

    Attributes:
        data: folder of cases by data set (``brats2018``); under "" the folder of all others.
        output: folder of runs, bundles, evaluations and the table; tables may share it.
        only: names of runs or titles of rows that are made; empty makes all.
        steps: of every training, instead of the recipe's.
        settings: fields of every recipe, by dotted name.
        folds: file of folds by data set, "" for all others: each run is trained and scored once for
            each fold, in ``fold_0`` and so on, and figures are means over the folds.
        rehearsal: small networks and patches, few steps: everything runs, nothing is learned.
        devices: one job at a time on each.
        ray: address of a Ray cluster; None stays on this machine.
        precision, workers: of the trainings, as ``medmap train`` has them.
    """

    data: Mapping[str, Path]
    output: Path
    only: tuple[str, ...] = ()
    steps: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    folds: Mapping[str, Path] = field(default_factory=dict)
    rehearsal: bool = False
    devices: tuple[str, ...] = ("auto",)
    ray: str | None = None
    precision: str = "auto"
    workers: int = 0


def parse_data(values: Sequence[str]) -> dict[str, Path]:
    """``FOLDER`` and ``SET=FOLDER`` by data set, "" for a plain folder.

    Raises:
        UsageError: a data set is named twice.
        MissingInputError: a folder does not exist.
    """
    return _by_data_set(values, "folder", "data")


def parse_folds(values: Sequence[str]) -> dict[str, Path]:
    """``FILE`` and ``SET=FILE`` of folds by data set, "" for a plain file.

    Raises:
        UsageError: a data set is named twice, or a file has no folds.
        MissingInputError: a file does not exist.
        InputDataError: a file's folds are not understood.
    """
    files = _by_data_set(values, "file", "folds")
    for path in files.values():
        if read_folds(path) is None:
            raise UsageError(
                f"{path.name} has no folds.", "Make folds of the cases first.", option="folds"
            )
    return files


def _by_data_set(values: Sequence[str], kind: str, option: str) -> dict[str, Path]:
    """Paths by data set; ``kind`` names what they are in messages."""
    paths: dict[str, Path] = {}
    for value in values:
        data_set, separator, text = value.partition("=")
        # A path may have the sign in its name.
        if not separator or Path(value).exists():
            data_set, text = "", value
        if data_set in paths:
            raise UsageError(
                f"Two {kind}s are given for {data_set or 'all data sets'}.",
                f"Write SET={kind.upper()} for each.",
            )
        if not Path(text).exists():
            raise MissingInputError(f"There is no {kind} {text}.", "Check its path.", option=option)
        paths[data_set] = Path(text)
    return paths
