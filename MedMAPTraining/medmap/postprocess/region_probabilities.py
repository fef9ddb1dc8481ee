"""Probabilities of regions on the grid of the user's scan."""

from __future__ import annotations

import numpy as np

from medmap.postprocess.prediction import Prediction, probabilities
from medmap.postprocess.spec import PostprocessSpec
from medmap.preprocess import Prepared
from medmap.resampling import to_grid
from medmap.task import Task
from medmap.tensors import to_array


def region_probabilities(
    prediction: Prediction, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> dict[str, np.ndarray]:
    """Probability of each region at each voxel of the reference scan.

    A region's probability is the sum over its labels. What was removed from the result has
    probability 0. A threshold of one half gives about the label map where the bundle has no logit
    offsets for the subset (``OffsetSpec``); offsets move decisions, not probabilities.

    Args:
        prediction: one subset's prediction on the working grid.
        prepared: the case, which knows the way back to the scan's grid.
        spec: of the bundle.
        task: labels and regions.

    Returns:
        [I, J, K] float32 in 0..1 by region, on ``prepared.reference_grid``; 0 outside the crop.
    """
    by_class = probabilities(prediction, prepared, spec, task)
    orientation = prepared.orientation
    results = {}
    for region in task.regions:
        members = list(task.region_classes(region.name))
        # Classes exclude each other: probabilities add up.
        probability = to_array(by_class[members].sum(0))
        moved = to_grid(probability, prepared.grid, orientation.canonical)
        restored = orientation.restore(to_array(moved))
        # Interpolation may leave 0..1 by a rounding error.
        bounded = restored.clip(0, 1)
        results[region.name] = np.ascontiguousarray(bounded, dtype=np.float32)
    return results
