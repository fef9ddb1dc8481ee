"""Scores of every modality subset of one case, each modality encoded once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np

from medmap.bundle.format import CARD, METADATA, SUMS, verify_bundle
from medmap.bundle.loading import Bundle
from medmap.errors import InputDataError, MissingInputError
from medmap.evaluation.lesions import LesionRule, lesion_scores
from medmap.evaluation.surfaces import normalized_surface_distance, surface_distances
from medmap.inference import segment_subsets
from medmap.io.atomic import write_text
from medmap.io.cases import Case
from medmap.io.labels import read_case_labels
from medmap.metrics import RegionScore, compare, region_masks
from medmap.task import Region, Task
from medmap.volume import Grid, Volume


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one region of one subset of one case; what is not defined is nan.

    Attributes:
        case, subset, region: names; ``subset`` is a ``Task.subset_key``.
        dice: 0..1; empty masks as in ``medmap.metrics``.
        dice_rule: the same after the minimum-volume rule: a prediction below
            ``Region.min_volume_mm3`` counts as empty. The rule changes the scores of that region
            only; where the region has none, the two are equal.
        hd95_mm, hd95_rule_mm: 95 % Hausdorff distance without and with the rule; empty masks as in
            ``medmap.metrics``.
        sensitivity, precision: without the rule; see ``medmap.metrics``.
        prediction_ml, reference_ml: volumes; 0 means an empty mask.
        diagonal_mm: diagonal of the labels' grid, the usual penalty for an undefined HD95
            (373.13 mm on BraTS's grid).
        volume_error_ml: prediction minus reference.
        nsd: normalized surface distance, 0..1; nan where it was not asked for, as all that follow.
        lesion_dice, lesion_hd95_mm: lesion-wise scores (``medmap.evaluation.lesions``).
        lesions, missed_lesions, false_lesions: their numbers.
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
    volume_error_ml: float = math.nan
    nsd: float = math.nan
    lesion_dice: float = math.nan
    lesion_hd95_mm: float = math.nan
    lesions: float = math.nan
    missed_lesions: float = math.nan
    false_lesions: float = math.nan


@dataclass(frozen=True)
class FurtherScores:
    """Scores that are computed where they are asked for: they cost as much as all others together.

    Attributes:
        lesions: rule of the lesion-wise scores; None leaves them out.
        tolerance_mm: of the normalized surface distance; None leaves it out.
    """

    lesions: LesionRule | None = None
    tolerance_mm: float | None = None


NO_FURTHER_SCORES = FurtherScores()


def settings_text(further: FurtherScores) -> str:
    """What a stored case was scored with; empty for the plain scores."""
    if further == NO_FURTHER_SCORES:
        return ""
    return json.dumps(asdict(further), sort_keys=True)


@dataclass(frozen=True)
class ScoredCase:
    """A case, every subset of its modalities segmented and scored.

    Attributes:
        rows: the scores, in the order of subsets and regions.
        volumes: the scans by modality name, each on its own grid.
        reference: the reference labels.
        predictions: predicted labels [I, J, K] by subset key, on the reference's grid.
    """

    rows: list[ScoreRow]
    volumes: dict[str, Volume]
    reference: Volume
    predictions: dict[str, np.ndarray]


def supported_subsets(bundle: Bundle, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Subsets of these modalities that the bundle supports, in the order of the field's tables.

    Modalities that the bundle was never trained with are in none of them.
    """
    available = set(names) & set(bundle.modalities)
    supported = []
    for subset in bundle.task.table_order():
        if available.issuperset(subset) and bundle.find_entry(subset):
            supported.append(subset)
    return supported


def identity(bundle: str | Path) -> str:
    """SHA-256 of what computes a bundle's results: weights and specifications, but not its card.

    A bundle whose card was updated is still the same model.

    Raises:
        BundleError: a file of the bundle was altered.
    """
    hashes = verify_bundle(bundle)
    for name in (METADATA, CARD, SUMS):
        hashes.pop(name, None)
    metadata_file = Path(bundle) / METADATA
    metadata = json.loads(metadata_file.read_text(encoding="utf-8"))
    # The card describes the model and changes no result.
    specification = dict(metadata["medmap"])
    specification.pop("card", None)
    # Sorted: the same specification in another order is the same model.
    content = json.dumps([hashes, specification], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def score_case(
    case: Case,
    bundle: Bundle,
    device: str = "cpu",
    further: FurtherScores = NO_FURTHER_SCORES,
) -> ScoredCase:
    """Segment every subset of a case's modalities and score it.

    Args:
        case: with reference labels.
        bundle: the bundle.
        device: a torch device.
        further: scores beside Dice, HD95 and volumes.

    Raises:
        InputDataError: the case has no reference labels, or they lie on the grid of none of its
            modalities.
    """
    reference = read_case_labels(case, bundle.task)
    volumes = case.read(bundle.task.modality_names)
    drawn_on = _modality_on_grid(volumes, reference.grid)
    if drawn_on is None:
        raise InputDataError(
            f"The labels of {case.case_id} lie on the grid of none of its modalities.",
            "Resample them to one modality's grid.",
        )
    subsets = supported_subsets(bundle, list(volumes))
    predictions = segment_subsets(volumes, bundle, subsets, reference=drawn_on, device=device)
    rows = []
    for subset, labels in predictions.items():
        rows += score_labels(
            labels,
            reference.array,
            bundle.task,
            reference.grid,
            case=case.case_id,
            subset=subset,
            further=further,
        )
    return ScoredCase(rows, volumes, reference, predictions)


def labels_hash(labels: np.ndarray) -> str:
    """Hash of a label map's voxels; files that store the same labels differently share it."""
    # The shape, too: the same voxels in another shape are another label map.
    digest = hashlib.sha256(str(labels.shape).encode())
    little_endian = np.ascontiguousarray(labels, dtype="<i2")
    digest.update(little_endian.tobytes())
    return digest.hexdigest()


def check_same_labels(ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Refuse to compare scores against different references.

    Args:
        ours, theirs: ``labels_hash`` by case; cases that one of them lacks are not checked.

    Raises:
        InputDataError: a case's reference differs.
    """
    common = [case for case in ours if ours[case] and theirs.get(case)]
    differing = [case for case in common if ours[case] != theirs[case]]
    if differing:
        examples = ", ".join(differing[:3])
        raise InputDataError(
            f"The reference labels of {examples} ({len(differing)} of "
            f"{len(common)} cases) differ between the two evaluations.",
            "Score both on the same reference labels.",
        )


def _modality_on_grid(volumes: Mapping[str, Volume], grid: Grid) -> str | None:
    """The first modality whose voxels lie within half a millimeter of the grid's."""
    for name, volume in volumes.items():
        if volume.grid.distance(grid) < 0.5:
            return name
    return None


def score_labels(
    prediction: np.ndarray,
    reference: np.ndarray,
    task: Task,
    grid: Grid,
    *,
    case: str,
    subset: str,
    further: FurtherScores = NO_FURTHER_SCORES,
) -> list[ScoreRow]:
    """One row for each region from two label maps [I, J, K] on one grid.

    Errors are those of ``metrics.compare``.
    """
    # BraTS' penalty for an undefined distance: no two voxels of a scan lie farther apart.
    size_mm = np.array(grid.shape) * grid.spacing
    diagonal_mm = float(np.linalg.norm(size_mm))
    scores = compare(prediction, reference, task, grid)
    rows = []
    for region in task.regions:
        rows.append(_row(case, subset, region, scores[region.name], diagonal_mm))
    if further == NO_FURTHER_SCORES:
        return rows
    prediction_masks = region_masks(prediction, task)
    reference_masks = region_masks(reference, task)
    complete = []
    for row in rows:
        masks = (prediction_masks[row.region], reference_masks[row.region])
        complete.append(_with_further_scores(row, masks, grid, further))
    return complete


def _with_further_scores(
    row: ScoreRow, masks: tuple[np.ndarray, np.ndarray], grid: Grid, further: FurtherScores
) -> ScoreRow:
    """The row with the scores that were asked for, from the masks of prediction and reference."""
    prediction, reference = masks
    spacing = tuple(map(float, grid.spacing))
    if further.tolerance_mm is not None:
        distances = surface_distances(prediction, reference, spacing)
        row = replace(row, nsd=normalized_surface_distance(distances, further.tolerance_mm))
    if further.lesions is not None:
        lesions = lesion_scores(prediction, reference, spacing, further.lesions)
        row = replace(
            row,
            lesion_dice=lesions.dice,
            lesion_hd95_mm=lesions.hd95_mm,
            lesions=lesions.lesions,
            missed_lesions=lesions.missed,
            false_lesions=lesions.false_positives,
        )
    return row


def _row(
    case: str, subset: str, region: Region, score: RegionScore, diagonal_mm: float
) -> ScoreRow:
    dice_rule = score.dice
    hd95_rule_mm = score.hd95_mm
    if 0 < 1000 * score.prediction_ml < region.min_volume_mm3:
        # Score the prediction as if it were empty: the table in ``medmap.metrics``.
        if score.reference_ml == 0:
            dice_rule = 1.0
            hd95_rule_mm = 0.0
        else:
            dice_rule = 0.0
            hd95_rule_mm = math.nan
    return ScoreRow(
        case=case,
        subset=subset,
        region=region.name,
        dice=score.dice,
        dice_rule=dice_rule,
        hd95_mm=score.hd95_mm,
        hd95_rule_mm=hd95_rule_mm,
        sensitivity=score.sensitivity,
        precision=score.precision,
        prediction_ml=score.prediction_ml,
        reference_ml=score.reference_ml,
        diagonal_mm=diagonal_mm,
        volume_error_ml=score.prediction_ml - score.reference_ml,
    )


def write_rows(path: str | Path, rows: Sequence[ScoreRow]) -> None:
    """Write rows as CSV, atomically; an undefined score is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(ScoreRow)]
    writer.writerow(names)
    for row in rows:
        cells = [_cell(value) for value in astuple(row)]
        writer.writerow(cells)
    write_text(path, buffer.getvalue())


def read_rows(path: str | Path) -> list[ScoreRow]:
    """Read what ``write_rows`` wrote.

    Raises MissingInputError, or InputDataError for a file of another kind.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row_from(entry) for entry in csv.DictReader(file)]
    except FileNotFoundError as error:
        raise MissingInputError(
            f"There are no scores {path}.", "Give the output folder of medmap evaluate."
        ) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputDataError(
            f"{path.name} is not a table of scores ({error}).",
            "Give the scores.csv of medmap evaluate.",
        ) from error


def row_from(entry: Mapping[str, str | float | None]) -> ScoreRow:
    """A row from plain values by name; empty and None mean undefined."""
    values: dict = {}
    for column in fields(ScoreRow):
        if column.name not in entry and column.default is not MISSING:
            # Evaluations of earlier versions lack the later columns.
            continue
        value = entry[column.name]
        if column.name in ("case", "subset", "region"):
            values[column.name] = str(value)
        elif value is None or value == "":
            values[column.name] = math.nan
        else:
            values[column.name] = float(value)
    return ScoreRow(**values)


def _cell(value: str | float) -> str | float:
    """A cell with every digit: a paired test would take a rounding for a difference."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    return value
