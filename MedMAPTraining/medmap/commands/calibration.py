"""Calibration and uncertainty scores of label maps that have probabilities beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medmap.commands.result_names import probability_name
from medmap.errors import InputDataError
from medmap.evaluation.calibration import (
    Reliability,
    UncertaintyScores,
    pooled,
    reliability,
    scored_voxels,
    uncertainty_of,
    uncertainty_scores,
)
from medmap.evaluation.store import CALIBRATION, RELIABILITY
from medmap.io.atomic import write_bytes, write_json
from medmap.io.nifti import read_nifti
from medmap.metrics import region_masks
from medmap.report.reliability import reliability_diagram
from medmap.task import Task
from medmap.volume import Grid


@dataclass(frozen=True)
class RegionCalibration:
    """One region over all cases.

    Attributes:
        diagram: all voxels of all cases together.
        uncertainty: means over cases.
        cases: number of cases.
    """

    diagram: Reliability
    uncertainty: UncertaintyScores
    cases: int

    @property
    def expected_calibration_error(self) -> float:
        """Of all voxels together."""
        return self.diagram.expected_calibration_error


def probability_files(prediction: Path, case: str, task: Task) -> dict[str, Path]:
    """Probability maps beside a label map, by region: all of them, or none.

    They are called ``probability_WT.nii.gz`` in a folder of the case, or
    ``<case>_probability_WT.nii.gz``.
    """
    files = {}
    for region in task.regions:
        name = probability_name(region.name)
        for candidate in (prediction.parent / f"{case}_{name}", prediction.parent / name):
            if candidate.is_file():
                files[region.name] = candidate
                break
    if len(files) < len(task.regions):
        return {}
    return files


class Calibrations:
    """Collects the calibration of one case after the other."""

    def __init__(self, task: Task):
        self.task = task
        self._diagrams: dict[str, list[Reliability]] = {}
        self._scores: dict[str, list[UncertaintyScores]] = {}

    def add(
        self,
        files: Mapping[str, Path],
        prediction: np.ndarray,
        reference: np.ndarray,
        grid: Grid,
    ) -> None:
        """Score the probabilities of a case.

        Args:
            files: probability map by region.
            prediction: [I, J, K] label values.
            reference: [I, J, K] label values.
            grid: of both; the probabilities must lie on it.

        Raises:
            InputDataError: a map lies on another grid, or holds no probabilities.
        """
        predicted = region_masks(prediction, self.task)
        references = region_masks(reference, self.task)
        for region, path in files.items():
            volume = read_nifti(path, modality="probability")
            same_shape = volume.grid.shape == grid.shape
            # Half a millimeter: tools round affines when they write files.
            if not same_shape or volume.grid.distance(grid) > 0.5:
                raise InputDataError(
                    f"{path.name} lies on another grid than the reference.",
                    "Write probabilities on the grid of the reference.",
                )
            probability = volume.array
            reference_mask = references[region]
            scored = scored_voxels(reference_mask, probability)
            diagram = reliability(probability[scored], reference_mask[scored])
            uncertainty = uncertainty_of(probability)
            scores = uncertainty_scores(predicted[region], reference_mask, uncertainty, scored)
            self._diagrams.setdefault(region, []).append(diagram)
            self._scores.setdefault(region, []).append(scores)

    def result(self) -> dict[str, RegionCalibration]:
        """By region; empty without any case."""
        results = {}
        for region, diagrams in self._diagrams.items():
            rows = [tuple(asdict(entry).values()) for entry in self._scores[region]]
            # Fields keep their order: a mean of rows has a mean for each field.
            mean_row = [float(value) for value in np.mean(rows, axis=0)]
            means = UncertaintyScores(*mean_row)
            results[region] = RegionCalibration(pooled(diagrams), means, len(diagrams))
        return results


def write_calibration(folder: Path, results: Mapping[str, RegionCalibration]) -> None:
    """Write ``calibration.json`` and ``reliability.png``."""
    content = {}
    for region, result in results.items():
        content[region] = {
            "cases": result.cases,
            "expected_calibration_error": result.expected_calibration_error,
            "qu_brats": asdict(result.uncertainty),
            "bins": {
                "voxels": result.diagram.voxels.tolist(),
                "probability": result.diagram.probability.tolist(),
                "frequency": result.diagram.frequency.tolist(),
            },
        }
    write_json(folder / CALIBRATION, content)
    diagrams = {region: result.diagram for region, result in results.items()}
    write_bytes(folder / RELIABILITY, reliability_diagram(diagrams))
