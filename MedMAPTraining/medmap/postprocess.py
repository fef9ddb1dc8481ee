"""From the network's answer back to a label map on the grid that the user's scan came on. torch and numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from medmap.errors import BundleError, InternalError
from medmap.foreground import bounding_box
from medmap.preprocess import Prepared, place
from medmap.resampling import canonical_grid, resample_linear, restore_orientation
from medmap.task import Task
from medmap.volume import Grid


@dataclass(frozen=True)
class PostprocessSpec:
    """What is done to a bundle's answer; stored in the bundle.

    Attributes:
        island_ml: pieces of tumor smaller than this, in ml, are dropped ...
        island_share: ... if they are also smaller than this share of the largest piece. 0 drops nothing: a small
            lesion that stands alone is never dropped.
        small_regions: a region of less than this multiple of the task's small-region rule (``Region.min_volume_mm3``) is
            taken for none, and its voxels get the next most probable class: 0.4 is 200 mm³ for ET, as in the winning
            entry of BraTS 2020 (Isensee et al., arXiv 2011.00848, §3.3). 0 keeps all.
    """

    island_ml: float = 0.0
    island_share: float = 0.0
    small_regions: float = 0.0

    def to_dict(self) -> dict:
        """Plain JSON-ready form."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping) -> PostprocessSpec:
        """Rebuild; raises BundleError for unknown keys, since an unknown step cannot be honored."""
        try:
            return PostprocessSpec(**{key: float(value) for key, value in data.items()})
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"The bundle's postprocessing is not understood ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error


def probabilities(logits: Tensor, prepared: Prepared, spec: PostprocessSpec, task: Task) -> Tensor:
    """Class probabilities on the working grid; outside the head, and on islands, everything is background.

    Args:
        logits: [C, D, H, W] on ``prepared.grid``, background first.
        prepared: gives the head.
        spec: which islands and regions to drop.
        task: names the regions.

    Raises:
        InternalError: a logit is NaN or infinite.
    """
    _require_finite(logits)
    result = torch.softmax(logits.float(), 0)
    classes = most_probable(result)
    outside = _dropped(classes, prepared, spec)
    result[0].masked_fill_(outside, 1.0)
    result[1:].masked_fill_(outside, 0.0)
    gone = _too_small(classes.masked_fill_(outside, 0), prepared, spec, task)
    if gone:
        result[gone] = 0.0
        result /= result.sum(0).clamp_min(1e-12)
    return result


def most_probable(probability: Tensor) -> Tensor:
    """[C, D, H, W] -> [D, H, W] int64, as ``argmax(0)``, which is several times slower across this memory layout."""
    best = probability[0].clone()
    classes = torch.zeros(best.shape, dtype=torch.int64)
    for n in range(1, len(probability)):
        better = probability[n] > best
        classes.masked_fill_(better, n)
        torch.maximum(best, probability[n], out=best)
    return classes


def islands(mask: Tensor, voxel_ml: float, spec: PostprocessSpec) -> Tensor:
    """The pieces of a [D, H, W] bool mask that ``spec`` drops, as a mask."""
    dropped = torch.zeros_like(mask)
    box = bounding_box(mask.numpy())
    if box is not None:
        pieces = components(mask[box])
        small = islands_among(pieces, voxel_ml, spec)
        if small.any():
            dropped[box] = mask[box] & small[pieces]
    return dropped


def islands_among(pieces: Tensor, voxel_ml: float, spec: PostprocessSpec) -> Tensor:
    """[n + 1] bool: which of the pieces numbered 0 (background) to n are islands that ``spec`` drops."""
    sizes = torch.bincount(pieces.flatten())
    sizes[0] = 0
    return (sizes * voxel_ml < spec.island_ml) & (sizes < spec.island_share * sizes.max())


def components(mask: Tensor) -> Tensor:
    """Number the connected pieces of a [D, H, W] bool mask: int64, 0 background, 1..n in no particular order.

    Pieces that a gap of less than about two voxels parts count as one: the mask is halved first, for speed. Every
    voxel repeatedly takes the largest number among its neighbors, and then the number of the voxel of that number,
    which doubles the reach each time: a dozen rounds do, without SciPy, which inference must not need.
    """
    result = torch.zeros(mask.shape, dtype=torch.int64)
    box = bounding_box(mask.numpy())
    if box is None:
        return result
    inner = mask[box]
    coarse = torch.nn.functional.max_pool3d(inner[None, None].float(), 2, ceil_mode=True)[0, 0] > 0
    number = torch.where(coarse, torch.arange(1, coarse.numel() + 1).reshape(coarse.shape), 0)
    while True:
        spread = torch.where(coarse, _largest_around(number), 0)
        jumped = torch.where(coarse, spread.flatten()[(spread - 1).clamp_min(0)], 0)
        if torch.equal(jumped, number):
            break
        number = jumped
    numbered = torch.unique(number, return_inverse=True)[1]
    numbered = numbered + int(
        number.min() > 0
    )  # without any background the first piece would be number 0
    fine = numbered.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    result[box] = torch.where(inner, fine[tuple(slice(n) for n in inner.shape)], 0)
    return result


def _largest_around(number: Tensor) -> Tensor:
    """The largest of the 27 numbers around each voxel; [D, H, W] int64 >= 0, axis by axis."""
    for axis in range(3):
        after, before = (torch.zeros_like(number.narrow(axis, 0, 1)) for _ in range(2))
        padded = torch.cat([before, number, after], axis)
        size = number.shape[axis]
        number = torch.maximum(
            number, torch.maximum(padded.narrow(axis, 0, size), padded.narrow(axis, 2, size))
        )
    return number


def label_map(logits: Tensor, prepared: Prepared, spec: PostprocessSpec, task: Task) -> np.ndarray:
    """[C, D, H, W] logits -> [I, J, K] label values on the reference scan's grid.

    As ``labels_on_reference(probabilities(...))``. Where nothing is interpolated the largest logit decides, which is
    the largest probability, too: then no probability is computed, which takes longer than all the rest of this.

    Raises:
        InternalError: a logit is NaN or infinite.
    """
    start = _shared_lattice(prepared)
    if start is None:
        return labels_on_reference(probabilities(logits, prepared, spec, task), prepared, task)
    _require_finite(logits)
    classes = most_probable(logits)
    classes.masked_fill_(_dropped(classes, prepared, spec), 0)
    gone = _too_small(classes, prepared, spec, task)
    if gone:
        where = torch.isin(classes, torch.tensor(gone))
        rest = logits[:, where].float()
        rest[gone] = -torch.inf
        classes[where] = rest.argmax(0)
    return _as_values(
        place(classes, start, canonical_grid(prepared.reference_grid).shape), prepared, task
    )


def _require_finite(logits: Tensor) -> None:
    """A single NaN or infinity makes the sum not finite; asking every voxel takes several times as long."""
    if not torch.isfinite(logits.sum(dtype=torch.float64)):
        raise InternalError(
            "The network's answer is not finite.",
            "Report this with the bundle's name and the device.",
        )


def _dropped(classes: Tensor, prepared: Prepared, spec: PostprocessSpec) -> Tensor:
    """[D, H, W] bool: outside the head, or on islands."""
    outside = ~prepared.brain
    if spec.island_ml > 0:
        outside |= islands((classes > 0) & prepared.brain, prepared.grid.voxel_ml, spec)
    return outside


def _too_small(classes: Tensor, prepared: Prepared, spec: PostprocessSpec, task: Task) -> list[int]:
    """Indices of the classes of regions that are found, but in less than ``spec`` asks for."""
    gone: list[int] = []
    for region in task.regions:
        least = spec.small_regions * region.min_volume_mm3
        if least > 0:
            members = [n for n, label in enumerate(task.labels, 1) if label.name in region.labels]
            found = sum(int((classes == n).sum()) for n in members)
            gone += members if 0 < found * prepared.grid.voxel_ml * 1000 < least else []
    return gone


def _as_values(classes: Tensor, prepared: Prepared, task: Task) -> np.ndarray:
    values = np.array(task.label_values(), task.label_dtype)
    return np.ascontiguousarray(
        restore_orientation(values[classes.numpy()], prepared.reference_grid)
    )


def _shared_lattice(prepared: Prepared) -> np.ndarray | None:
    """[3] where the working grid starts in the reference's canonical one, if they are one lattice; else None."""
    canonical = canonical_grid(prepared.reference_grid)
    offset = np.linalg.solve(
        prepared.grid.affine[:3, :3], prepared.grid.affine[:3, 3] - canonical.affine[:3, 3]
    )
    start = np.round(offset).astype(int)
    return start if _same_lattice(canonical, prepared.grid, start) else None


def labels_on_reference(probability: Tensor, prepared: Prepared, task: Task) -> np.ndarray:
    """[C, D, H, W] probabilities -> [I, J, K] label values (``Task.label_dtype``) on the reference scan's grid.

    Where the working lattice is the reference's own, classes are copied voxel for voxel. Otherwise the probabilities
    are interpolated and the most probable class is taken, which keeps borders smoother than interpolating labels.
    """
    canonical, start = canonical_grid(prepared.reference_grid), _shared_lattice(prepared)
    if start is not None:
        classes = place(most_probable(probability), start, canonical.shape)
    else:
        classes = _sampled_classes(probability, prepared.grid, canonical)
    return _as_values(classes, prepared, task)


def _same_lattice(canonical: Grid, working: Grid, start: np.ndarray) -> bool:
    affine = canonical.affine.copy()
    affine[:3, 3] += canonical.affine[:3, :3] @ start
    moved = Grid(working.shape, affine)
    return moved.distance(working) < 0.1 * working.spacing.min()


def _sampled_classes(probability: Tensor, working: Grid, reference: Grid) -> Tensor:
    """[I, J, K] most probable class at each reference voxel; slab by slab, so that memory stays small.

    A point between voxels can only be tumor if one of them is nearly so: best + sum of the tumor's probabilities
    above 1, which is convex. So only the box around such voxels is interpolated.
    """
    # Background is sampled as 1 - tumor: outside the working grid everything sampled is 0, hence background.
    tumor = probability[1:]
    classes = torch.zeros(reference.shape, dtype=torch.int64)
    box = bounding_box((tumor.amax(0) + tumor.sum(0) > 1 - 1e-4).numpy())
    if box is None:
        return classes
    rows, *plane = _covering(box, working, reference)
    for start in range(rows.start, rows.stop, 32):
        part = (slice(start, min(start + 32, rows.stop)), *plane)
        affine = reference.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [s.start for s in part]
        slab = resample_linear(tumor, working, Grid(tuple(s.stop - s.start for s in part), affine))
        best, index = slab.max(0)
        classes[part] = torch.where(best > 1 - slab.sum(0), index + 1, 0)
    return classes


def _covering(box: tuple[slice, ...], working: Grid, reference: Grid) -> tuple[slice, ...]:
    """The part of the reference's grid that a box of the working grid, with a voxel around it, reaches."""
    corners = np.array([(*corner, 1) for corner in product(*((s.start - 1, s.stop) for s in box))])
    at = (np.linalg.solve(reference.affine, working.affine) @ corners.T)[:3]
    low, high = np.floor(at.min(1)).astype(int), np.ceil(at.max(1)).astype(int) + 1
    limits = zip(low, high, reference.shape, strict=True)
    return tuple(slice(max(int(a), 0), max(min(int(b), n), 0)) for a, b, n in limits)
