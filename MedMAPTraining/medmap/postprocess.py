"""From the network's answer back to a label map on the grid that the user's scan came on. torch and numpy only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medmap.errors import InternalError
from medmap.geometry import canonical_grid, restore_orientation, sample
from medmap.preprocess import Prepared, place
from medmap.task import Task
from medmap.volume import Grid


def probabilities(logits: Tensor, prepared: Prepared) -> Tensor:
    """Class probabilities on the working grid; outside the head everything is background.

    Args:
        logits: [C, D, H, W] on ``prepared.grid``, background first.
        prepared: gives the head.

    Raises:
        InternalError: a logit is NaN or infinite.
    """
    if not torch.isfinite(logits).all():
        raise InternalError("The network's answer is not finite.", "Report this with the bundle's name and the device.")
    result = torch.softmax(logits.float(), 0)
    outside = ~prepared.brain
    result[0].masked_fill_(outside, 1.0)
    result[1:].masked_fill_(outside, 0.0)
    return result


def labels_on_reference(probability: Tensor, prepared: Prepared, task: Task) -> np.ndarray:
    """[C, D, H, W] probabilities -> [I, J, K] uint8 label values (BraTS: 0, 1, 2, 4) on the reference scan's grid.

    Where the working lattice is the reference's own, classes are copied voxel for voxel. Otherwise the probabilities
    are interpolated and the most probable class is taken, which keeps borders smoother than interpolating labels.
    """
    values = torch.tensor(task.label_values(), dtype=torch.uint8)
    canonical = canonical_grid(prepared.reference_grid)
    offset = np.linalg.solve(prepared.grid.affine[:3, :3], prepared.grid.affine[:3, 3] - canonical.affine[:3, 3])
    start = np.round(offset).astype(int)
    if _same_lattice(canonical, prepared.grid, start):
        classes = place(probability.argmax(0), start, canonical.shape)
    else:
        classes = _sampled_classes(probability, prepared.grid, canonical)
    return np.ascontiguousarray(restore_orientation(values[classes].numpy(), prepared.reference_grid))


def _same_lattice(canonical: Grid, working: Grid, start: np.ndarray) -> bool:
    affine = canonical.affine.copy()
    affine[:3, 3] += canonical.affine[:3, :3] @ start
    moved = Grid(working.shape, affine)
    return moved.distance(working) < 0.1 * working.spacing.min()


def _sampled_classes(probability: Tensor, working: Grid, reference: Grid) -> Tensor:
    """[I, J, K] most probable class at each reference voxel; slab by slab, so that memory stays small."""
    # Background is sampled as 1 - tumour: outside the working grid everything sampled is 0, hence background.
    tumour = probability[1:]
    classes = torch.zeros(reference.shape, dtype=torch.int64)
    for start in range(0, reference.shape[0], 32):
        stop = min(start + 32, reference.shape[0])
        affine = reference.affine.copy()
        affine[:3, 3] += reference.affine[:3, 0] * start
        slab = sample(tumour, working, Grid((stop - start, *reference.shape[1:]), affine))
        best, index = slab.max(0)
        classes[start:stop] = torch.where(best > 1 - slab.sum(0), index + 1, 0)
    return classes
