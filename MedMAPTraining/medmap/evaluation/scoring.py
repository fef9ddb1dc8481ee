"""Scores of every subset of one case, each scan encoded once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from medmap.bundle.loading import CARD, METADATA, SUMS, Bundle, verify_bundle
from medmap.errors import InputDataError
from medmap.inference import segment_subsets
from medmap.io.atomic import write_text
from medmap.io.cohorts import Case
from medmap.io.nifti import read_nifti
from medmap.metrics import RegionScore, compare
from medmap.task import Region, Task
from medmap.volume import Grid, Volume


@dataclass(frozen=True)
class Row:
    """One region of one subset of one case; what is not defined is nan.

    Attributes:
        case, subset, region: names; ``subset`` is a ``Task.subset_key``.
        dice: 0..1; both empty 1, one empty 0.
        dice_rule: the same after the small-region rule: a prediction below ``Region.least_mm3`` counts as empty. The
            rule changes the scores of that region only; where the region has none, the two are equal.
        hd95_mm, hd95_rule_mm: 95 % Hausdorff distance without and with the rule; both empty 0, one empty nan.
        sensitivity, precision: without the rule; see ``medmap.metrics``.
        prediction_ml, reference_ml: volumes; 0 tells an empty mask.
        diagonal_mm: diagonal of the labels' grid, the usual penalty for an undefined HD95 (373.13 mm on BraTS's grid).
    """

    case: str
    subset: str
    region: str
    dice: float
    dice_rule: float
    hd95_mm: float
    hd95_rule_mm: float
    sensitivity: float
    precision: float
    prediction_ml: float
    reference_ml: float
    diagonal_mm: float


def supported_subsets(bundle: Bundle, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The subsets of the given scans that the bundle has a network for, in the order of the field's tables."""
    return [s for s in bundle.task.table_order() if set(s) <= set(names) and bundle.find_entry(s)]


def identity(bundle: str | Path) -> str:
    """SHA-256 of what computes a bundle's results: weights and specifications, but not its card.

    A bundle whose card was updated is still the same model. Raises BundleError for an altered bundle.
    """
    hashes = {
        name: digest
        for name, digest in verify_bundle(bundle).items()
        if name not in (METADATA, CARD, SUMS)
    }
    own = json.loads((Path(bundle) / METADATA).read_text(encoding="utf-8"))["medmap"]
    content = json.dumps(
        [hashes, {key: value for key, value in own.items() if key != "card"}], sort_keys=True
    )
    return hashlib.sha256(content.encode()).hexdigest()


def score_case(
    case: Case, bundle: Bundle, device: str = "cpu"
) -> tuple[list[Row], dict[str, Volume], Volume, dict[str, np.ndarray]]:
    """Segment every subset of a case's scans and score it.

    Returns:
        The rows; the scans by name; the reference labels; the predicted labels by subset, on the reference's grid.

    Raises:
        InputDataError: the case has no reference labels, or they lie on the grid of none of its scans.
    """
    if case.label is None:
        raise InputDataError(
            f"The case {case.case_id} has no reference labels.", "Add <case>_seg.nii.gz."
        )
    volumes = case.read(bundle.task.modality_names)
    truth = read_nifti(case.label, modality="seg")
    drawn_on = [name for name, v in volumes.items() if v.grid.distance(truth.grid) < 0.5]
    if not drawn_on:
        raise InputDataError(
            f"The labels of {case.case_id} lie on the grid of none of its scans.",
            "Resample them to one scan's grid.",
        )
    subsets = supported_subsets(bundle, list(volumes))
    predicted = segment_subsets(volumes, bundle, subsets, reference=drawn_on[0], device=device)
    rows = []
    for subset, labels in predicted.items():
        rows += score_labels(
            labels, truth.array, bundle.task, truth.grid, case=case.case_id, subset=subset
        )
    return rows, volumes, truth, predicted


def score_labels(
    prediction: np.ndarray, reference: np.ndarray, task: Task, grid: Grid, *, case: str, subset: str
) -> list[Row]:
    """One row a region from two label maps [I, J, K] on one grid; errors as ``metrics.compare``."""
    diagonal = float(np.linalg.norm(np.array(grid.shape) * grid.spacing))
    scores = compare(prediction, reference, task, grid)
    return [_row(case, subset, region, scores[region.name], diagonal) for region in task.regions]


def _row(case: str, subset: str, region: Region, score: RegionScore, diagonal: float) -> Row:
    dice, hd95 = score.dice, score.hd95_mm
    if 0 < 1000 * score.prediction_ml < region.least_mm3:
        dice, hd95 = (1.0, 0.0) if score.reference_ml == 0 else (0.0, math.nan)
    return Row(
        case=case,
        subset=subset,
        region=region.name,
        dice=score.dice,
        dice_rule=dice,
        hd95_mm=score.hd95_mm,
        hd95_rule_mm=hd95,
        sensitivity=score.sensitivity,
        precision=score.precision,
        prediction_ml=score.prediction_ml,
        reference_ml=score.reference_ml,
        diagonal_mm=diagonal,
    )


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, atomically; an undefined score is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([field.name for field in fields(Row)])
    writer.writerows([_cell(value) for value in astuple(row)] for row in rows)
    write_text(path, buffer.getvalue())


def read_rows(path: str | Path) -> list[Row]:
    """Read what ``write_rows`` wrote. Raises InputDataError for any other file."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row_from(entry) for entry in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputDataError(
            f"{path.name} is not a table of scores ({error}).",
            "Give the scores.csv of medmap evaluate.",
        ) from error


def row_from(entry: Mapping[str, str | float | None]) -> Row:
    """A row from plain values by name; empty and None mean undefined."""
    texts = ("case", "subset", "region")
    numbers = {f.name: entry[f.name] for f in fields(Row) if f.name not in texts}
    return Row(
        **{name: str(entry[name]) for name in texts},
        **{
            name: math.nan if value in ("", None) else float(value)
            for name, value in numbers.items()
        },
    )


def _cell(value: str | float) -> str | float:
    if isinstance(value, str):
        return value
    return (
        "" if math.isnan(value) else value
    )  # every digit: a paired test takes a rounding for a difference
