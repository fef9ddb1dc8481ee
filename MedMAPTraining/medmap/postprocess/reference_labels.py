"""From the working grid to labels on the grid of the user's scan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medmap.foreground import bounding_box
from medmap.postprocess.decoding import decode
from medmap.postprocess.prediction import Prediction, final_classes, probabilities
from medmap.postprocess.spec import NO_POSTPROCESSING, PostprocessSpec
from medmap.preprocess import Prepared
from medmap.resampling import covering_box, part_of_grid, paste, resample_linear
from medmap.task import Task
from medmap.volume import Grid

SLAB = 32
"""Planes of the reference grid that are interpolated at a time."""


def label_map(
    prediction: Prediction, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> np.ndarray:
    """The label map of a prediction on the reference scan's grid.

    Where the working lattice is the reference's own, classes are copied voxel for voxel. Otherwise
    the probabilities are interpolated and then decoded, which keeps borders smoother than
    interpolating labels.

    Returns:
        [I, J, K] label values of the task's files, of ``Task.label_dtype``.
    """
    if prepared.offset is None:
        probability = probabilities(prediction, prepared, spec, task)
        return labels_on_reference(probability, prepared, task, spec)
    classes = final_classes(prediction, prepared, spec, task)
    return _copied(classes, prepared.offset, prepared, task)


def labels_on_reference(
    probability: Tensor, prepared: Prepared, task: Task, spec: PostprocessSpec = NO_POSTPROCESSING
) -> np.ndarray:
    """The label at each voxel of the reference scan.

    Args:
        probability: [C, D, H, W] on the working grid.
        prepared: the case.
        task: gives the label values.
        spec: how classes are decoded; by default the most probable is taken.

    Returns:
        [I, J, K] of ``Task.label_dtype``.
    """
    if prepared.offset is not None:
        return _copied(decode(probability, spec, task), prepared.offset, prepared, task)
    canonical = prepared.orientation.canonical
    classes = _interpolated_classes(probability, prepared.grid, canonical, spec, task)
    return _label_values(classes, prepared, task)


def _copied(classes: Tensor, offset: np.ndarray, prepared: Prepared, task: Task) -> np.ndarray:
    """Label values from classes on a working grid that shares the reference's lattice."""
    shape = prepared.orientation.canonical.shape
    return _label_values(paste(classes, -offset, shape), prepared, task)


def _label_values(classes: Tensor, prepared: Prepared, task: Task) -> np.ndarray:
    values = np.array(task.label_values(), task.label_dtype)
    return np.ascontiguousarray(prepared.orientation.restore(values[classes.numpy()]))


def _interpolated_classes(
    probability: Tensor, working: Grid, reference: Grid, spec: PostprocessSpec, task: Task
) -> Tensor:
    """[I, J, K] class at each reference voxel; slab by slab, to save memory.

    A point between voxels can only be tumor if one of them is nearly so: best + sum of the tumor's
    probabilities above 1 (by region: their sum above one half), which is convex. So only the box
    around such voxels is interpolated.
    """
    # Background is sampled as 1 - tumor: outside the working grid everything sampled is 0, hence
    # background.
    tumor = probability[1:]
    classes = torch.zeros(reference.shape, dtype=torch.int64)
    if spec.by_region:
        may_be_tumor = tumor.sum(0) > 0.5 - 1e-4
    else:
        may_be_tumor = tumor.amax(0) + tumor.sum(0) > 1 - 1e-4
    box = bounding_box(may_be_tumor.numpy())
    if box is None:
        return classes
    rows, *plane = covering_box(box, working, reference)
    # Three classes on a grid of 0.5 mm would take 0.9 GB at once.
    for start in range(rows.start, rows.stop, SLAB):
        part = (slice(start, min(start + SLAB, rows.stop)), *plane)
        slab = resample_linear(tumor, working, part_of_grid(reference, part))
        background = 1 - slab.sum(0, keepdim=True)
        classes[part] = decode(torch.cat([background, slab]), spec, task)
    return classes
