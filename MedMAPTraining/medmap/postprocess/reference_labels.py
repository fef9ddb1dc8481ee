"""From the working grid to labels on the grid of the user's scan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medmap.boxes import bounding_box, widened_box
from medmap.postprocess.decoding import decode
from medmap.postprocess.prediction import Prediction, decisive_probabilities, final_classes
from medmap.postprocess.spec import NO_POSTPROCESSING, PostprocessSpec
from medmap.preprocess import Prepared
from medmap.resampling import covering_box, part_of_grid, paste, resample_linear
from medmap.task import Task
from medmap.tensors import from_array, to_array
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
    box = prediction.box
    if box is None:
        return np.zeros(prepared.reference_grid.shape, task.label_dtype)
    if prepared.offset is not None:
        classes = final_classes(prediction, prepared, spec, task)
        start = np.array([side.start for side in box])
        offset_of_box = prepared.offset - start
        return _copied(classes, offset_of_box, prepared, task)
    # Between the voxels of the box and their neighbors interpolation needs the neighbors, too.
    wide = widened_box(box, prepared.grid.shape)
    probability = decisive_probabilities(prediction, prepared, spec, task, wide)
    working = part_of_grid(prepared.grid, wide)
    canonical = prepared.orientation.canonical
    labels = interpolated_labels(probability, working, canonical, spec, task)
    return _turned_back(labels, prepared)


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
        # One lattice: no interpolation, so that the labels stay what the network gave.
        classes = decode(probability, spec, task)
        return _copied(classes, prepared.offset, prepared, task)
    canonical = prepared.orientation.canonical
    labels = interpolated_labels(probability, prepared.grid, canonical, spec, task)
    return _turned_back(labels, prepared)


def _copied(classes: Tensor, offset: np.ndarray, prepared: Prepared, task: Task) -> np.ndarray:
    """Label values from classes on a grid that shares the reference's lattice.

    ``offset`` is the index in that grid of the first voxel of the reference.
    """
    values = _label_values(classes, task)
    reference_shape = prepared.orientation.canonical.shape
    pasted = paste(values, -offset, reference_shape)
    return _turned_back(pasted, prepared)


def _label_values(classes: Tensor, task: Task) -> Tensor:
    """Classes -> values of the task's label files."""
    values = from_array(np.array(task.label_values(), task.label_dtype))
    return values[classes]


def _turned_back(labels: Tensor, prepared: Prepared) -> np.ndarray:
    """Labels with axes closest to RAS -> the axis order of the reference grid."""
    return np.ascontiguousarray(prepared.orientation.restore(to_array(labels)))


def interpolated_labels(
    probability: Tensor, working: Grid, reference: Grid, spec: PostprocessSpec, task: Task
) -> Tensor:
    """Label values at each voxel of another grid; slab by slab, to save memory.

    A point between voxels can only be tumor if one of them is nearly so: best + sum of the tumor's
    probabilities above 1 (by region: their sum above one half), which is convex. So only the box
    around such voxels is interpolated.

    Args:
        probability: [C, D, H, W], background first.
        working: their grid; outside of it everything is background.
        reference: [I, J, K], the grid of the result.
        spec: how classes are decoded.
        task: gives the label values.

    Returns:
        [I, J, K] of ``Task.label_dtype``.
    """
    # Background is sampled as 1 - tumor: outside the working grid everything sampled is 0, hence
    # background.
    tumor = probability[1:]
    dtype = _label_values(torch.zeros(0, dtype=torch.int64), task).dtype
    labels = torch.zeros(reference.shape, dtype=dtype)
    may_be_tumor = _may_be_tumor(tumor, spec)
    box = bounding_box(to_array(may_be_tumor))
    if box is None:
        return labels
    rows, *plane = covering_box(box, working, reference)
    # Three classes on a grid of 0.5 mm would take 0.9 GB at once.
    for start in range(rows.start, rows.stop, SLAB):
        stop = min(start + SLAB, rows.stop)
        part = (slice(start, stop), *plane)
        slab = resample_linear(tumor, working, part_of_grid(reference, part))
        background = 1 - slab.sum(0, keepdim=True)
        classes = decode(torch.cat([background, slab]), spec, task)
        labels[part] = _label_values(classes, task)
    return labels


def _may_be_tumor(tumor: Tensor, spec: PostprocessSpec) -> Tensor:
    """[D, H, W] bool: voxels next to which a point can be tumor; tumor [C - 1, D, H, W]."""
    total = tumor.sum(0)
    # 1e-4 for the rounding of interpolation.
    if spec.by_region:
        return total > 0.5 - 1e-4
    return tumor.amax(0) + total > 1 - 1e-4
