"""``medmap evaluate --predictions``: score label maps of any program against reference labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medmap.commands.calibration import (
    Calibrations,
    RegionCalibration,
    probability_files,
    write_calibration,
)
from medmap.commands.label_map_pairs import Pair, find_pairs
from medmap.errors import Cancelled, InputDataError, MissingInputError
from medmap.evaluation import ScoreRow, Store, Summary, summarize
from medmap.evaluation.scoring import (
    NO_FURTHER_SCORES,
    FurtherScores,
    labels_hash,
    score_labels,
    settings_text,
    write_rows,
)
from medmap.evaluation.store import ABOUT, recorded_weights
from medmap.io.atomic import check_output
from medmap.io.cases import Case
from medmap.io.content import sha256_of
from medmap.io.labels import with_conventions
from medmap.io.nifti import read_nifti
from medmap.progress import Cancel, Progress
from medmap.resampling import canonical_grid, resample_nearest
from medmap.task import Task
from medmap.task.conventions import LabelReading
from medmap.volume import Grid, Volume

SAME_VOXELS = 0.5
"""Grids whose corners are closer than this, in voxels, hold the same voxels: each has one nearest
voxel in the other grid."""


@dataclass(frozen=True)
class MapOptions:
    """Options of ``medmap evaluate --predictions``; see its help.

    Attributes:
        subset: modalities that the maps were made from; empty for all of the task.
        further: lesion-wise scores and the normalized surface distance.
        title: what the predictions are called in tables; empty for the folder's name.
        convention: of the values of all label maps; empty: recognize it, for predictions and
            references separately.
    """

    output: Path | None = None
    table: Path | None = None
    subset: tuple[str, ...] = ()
    further: FurtherScores = NO_FURTHER_SCORES
    data_statement: str = "not stated"
    title: str = ""
    overwrite: bool = False
    convention: str = ""


@dataclass(frozen=True)
class ScoredMaps:
    """Result of scoring a folder of label maps.

    Attributes:
        rows: every score.
        summary: the tables.
        warnings: what a user has to know.
        labels: what the values of the label maps mean, and why.
        calibration: by region, of the cases that have probabilities; empty where none has.
    """

    rows: list[ScoreRow]
    summary: Summary
    warnings: list[str]
    labels: str = ""
    calibration: dict[str, RegionCalibration] = field(default_factory=dict)


@dataclass(frozen=True)
class _Readings:
    """What the values of the predictions and of the references mean."""

    predictions: LabelReading
    references: LabelReading

    @property
    def statement(self) -> str:
        """For reports."""
        predictions = self.predictions.statement
        references = self.references.statement
        if predictions == references:
            return references
        return f"References: {references} Predictions: {predictions}"


def score_maps(
    predictions: Path,
    labels: Path,
    task: Task,
    options: MapOptions,
    progress: Progress,
    cancel: Cancel,
) -> ScoredMaps:
    """Score every label map of a folder that has a reference.

    Raises:
        MissingInputError: a folder does not exist or holds no label map.
        InputDataError: a reference has no prediction, or a pair cannot be scored; nothing is
            written, because a table over fewer cases would be another table.
        OutputError: folder or CSV cannot be written, or the folder holds another
            evaluation; nothing was scored.
        Cancelled: ``cancel`` returned True.
    """
    pairs, warnings = find_pairs(predictions, labels, task)
    identity = _identity(pairs, task, options)
    _check_outputs(identity, options)
    readings = _readings(pairs, task, options.convention)
    collected = _Collected(Calibrations(task), warnings)
    faults = []
    for number, pair in enumerate(pairs):
        if cancel():
            raise Cancelled(f"Stopped after {number} of {len(pairs)} cases.")
        progress(number / len(pairs), f"{pair.case} ({number + 1} of {len(pairs)})")
        try:
            _score_pair(pair, readings, task, options, collected)
        except (InputDataError, MissingInputError) as error:
            faults.append(f"{pair.case}: {error.cause}")
    if faults:
        examples = " ".join(faults[:3])
        raise InputDataError(
            f"{len(faults)} of {len(pairs)} cases could not be scored. {examples}",
            "Correct or remove them and run again.",
        )
    rows = collected.rows
    summary = replace(summarize(rows, task, options.data_statement), part="")
    _write(predictions, identity, summary, collected, readings.statement, task, options)
    calibration = collected.calibrations.result()
    if calibration and options.output:
        write_calibration(options.output, calibration)
    return ScoredMaps(rows, summary, warnings, readings.statement, calibration)


@dataclass(frozen=True)
class _Collected:
    """What one case after the other adds.

    Attributes:
        calibrations: of cases that have probabilities.
        warnings: what a user has to know.
        rows: scores.
        hashes: ``labels_hash`` of the references by case.
    """

    calibrations: Calibrations
    warnings: list[str]
    rows: list[ScoreRow] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)


def _score_pair(
    pair: Pair, readings: _Readings, task: Task, options: MapOptions, collected: _Collected
) -> None:
    """Read, compare and collect one case. Raises InputDataError or MissingInputError."""
    reference = _read(pair.reference, "seg", readings.references, pair.case, task)
    prediction = _read(pair.prediction, "prediction", readings.predictions, pair.case, task)
    labels = _on_grid(prediction, reference, pair.case, collected.warnings)
    files = probability_files(pair.prediction, pair.case, task)
    if files:
        collected.calibrations.add(files, labels, reference.array, reference.grid)
    collected.rows.extend(
        score_labels(
            labels,
            reference.array,
            task,
            reference.grid,
            case=pair.case,
            subset=task.subset_key(options.subset or task.modality_names),
            further=options.further,
        )
    )
    collected.hashes[pair.case] = labels_hash(reference.array)


def _readings(pairs: Sequence[Pair], task: Task, chosen: str) -> _Readings:
    """Conventions of both sides: programs often write other values than the challenge does."""
    predictions = [Case(pair.case, {}, pair.prediction) for pair in pairs]
    references = []
    for pair in pairs:
        references.append(Case(pair.case, {}, pair.reference, convention=pair.convention))
    # Decided apart: predictions and references may come from different releases.
    _, predictions_reading = with_conventions(predictions, task, chosen)
    _, references_reading = with_conventions(references, task, chosen)
    return _Readings(predictions_reading, references_reading)


def _read(path: Path, title: str, reading: LabelReading, case: str, task: Task) -> Volume:
    """A label map as values of the task. Raises InputDataError for fractions and other values."""
    volume = read_nifti(path, modality=title)
    convention = reading.conventions[case]
    labels = convention.to_task(volume.array, task, volume.name)
    return replace(volume, array=labels)


def _on_grid(prediction: Volume, reference: Volume, case: str, warnings: list[str]) -> np.ndarray:
    """The predicted labels on the reference's grid.

    Raises:
        InputDataError: the map lies elsewhere in space, or does not cover the reference's labels.
    """
    if _same_voxels(prediction.grid, reference.grid):
        return resample_nearest(prediction.array, prediction.grid, reference.grid)
    if prediction.grid.shape == reference.grid.shape:
        # Of equal shape but elsewhere: one of the headers was lost, and all scores would be 0.
        distance = prediction.grid.distance(reference.grid)
        raise InputDataError(
            f"The map of {case} has the shape of its reference but lies up to {distance:.1f} mm "
            "away from it.",
            "Correct the header of one of the two.",
        )
    covered = resample_nearest(
        np.ones(prediction.grid.shape, np.int16), prediction.grid, reference.grid
    )
    outside = np.count_nonzero(reference.array[covered == 0])
    if outside:
        raise InputDataError(
            f"The map of {case} does not cover {outside} labeled voxels of its reference.",
            "Give a map of the whole image.",
        )
    warnings.append(
        f"The map of {case} lies on another grid than its reference: nearest voxels were compared."
    )
    return resample_nearest(prediction.array, prediction.grid, reference.grid)


def _same_voxels(a: Grid, b: Grid) -> bool:
    """Whether two grids hold the same voxels, in whatever order of axes they are stored."""
    first = canonical_grid(a)
    second = canonical_grid(b)
    if first.shape != second.shape:
        return False
    tolerance_mm = SAME_VOXELS * float(first.spacing.min())
    return first.distance(second) < tolerance_mm


def _write(
    predictions: Path,
    identity: str,
    summary: Summary,
    collected: _Collected,
    label_statement: str,
    task: Task,
    options: MapOptions,
) -> None:
    if options.output:
        store = Store(options.output, identity, overwrite=options.overwrite)
        about = {
            "bundle": options.title or predictions.absolute().name,
            "weights": "",
            "network": "",
            "data": options.data_statement,
            "part": "",
            "labels": collected.hashes,
            "label_convention": label_statement,
        }
        store.finish(about, task, collected.rows, summary)
    if options.table:
        write_rows(options.table, collected.rows)


def _check_outputs(identity: str, options: MapOptions) -> None:
    """Refuse outputs that cannot be written, before anything is scored. Raises OutputError."""
    if options.output:
        recorded_weights(options.output, identity, overwrite=options.overwrite)
        # The folder is not made yet: cases that cannot be scored leave nothing behind.
        if options.output.is_dir():
            check_output(options.output / ABOUT, overwrite=True)
        else:
            check_output(options.output)
    if options.table:
        check_output(options.table, overwrite=True)


def _identity(pairs: Sequence[Pair], task: Task, options: MapOptions) -> str:
    """Hash of what the scores depend on.

    An output folder takes the same evaluation again, and refuses others.
    """
    files = []
    for pair in pairs:
        prediction_hash = sha256_of(pair.prediction)
        reference_hash = sha256_of(pair.reference)
        files.append([pair.case, prediction_hash, reference_hash])
    settings = [settings_text(options.further), options.convention, list(options.subset)]
    text = json.dumps([task.to_dict(), settings, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
