"""Connected components of a tumor: which are small, and how confident the network is of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medmap.boxes import bounding_box
from medmap.postprocess.spec import PostprocessSpec
from medmap.tensors import to_array

QUANTILE = 0.9
"""Of the probabilities in a component: above its uncertain border, below a few certain voxels."""


@dataclass(frozen=True)
class Components:
    """The connected components of a tumor.

    Attributes:
        numbers: [D, H, W] int64, 0 background, 1 .. n.
        is_small: [n + 1] bool: components that ``PostprocessSpec`` excludes.
    """

    numbers: Tensor
    is_small: Tensor


def find_components(mask: Tensor, voxel_ml: float, spec: PostprocessSpec) -> Components:
    """The connected components of a [D, H, W] bool mask, and which of them are small."""
    numbers = number_components(mask)
    return Components(numbers, small_components(numbers, voxel_ml, spec))


def small_components(numbers: Tensor, voxel_ml: float, spec: PostprocessSpec) -> Tensor:
    """[n + 1] bool: which of the components numbered 0 (background) to n ``spec`` excludes."""
    sizes = torch.bincount(numbers.flatten())
    sizes[0] = 0
    is_below_volume = sizes * voxel_ml < spec.min_component_ml
    is_below_fraction = sizes < spec.min_component_fraction * sizes.max()
    is_small = is_below_volume & is_below_fraction
    is_small[0] = False
    return is_small


def component_confidence(logits: Tensor, found: Components) -> dict[int, float]:
    """The confidence of each component that is not small, by its number.

    Args:
        logits: [C, D, H, W].
        found: the components of the voxels that are most probably tumor.

    Returns:
        The 90th percentile of ``tumor_probability`` over the component's voxels.
    """
    counts = ~found.is_small
    counts[0] = False
    is_counted = counts[found.numbers]
    owners = found.numbers[is_counted]
    probability = tumor_probability(logits[:, is_counted])
    # Sorted once for all components; each then has its values in order.
    order = torch.argsort(probability)
    owners = owners[order]
    probability = probability[order]
    confidence = {}
    for number in torch.nonzero(counts).flatten().tolist():
        ordered = probability[owners == number]
        confidence[number] = float(ordered[int(QUANTILE * len(ordered))])
    return confidence


def low_confidence(logits: Tensor, found: Components, threshold: float) -> Tensor:
    """[n + 1] bool: components below the threshold."""
    is_low = torch.zeros_like(found.is_small)
    confidences = component_confidence(logits, found)
    for number, confidence in confidences.items():
        is_low[number] = confidence < threshold
    return is_low


def number_components(mask: Tensor) -> Tensor:
    """Number the connected components of a [D, H, W] bool mask.

    Components that a gap of less than about two voxels parts count as one: the mask is halved
    first, for speed. Every voxel repeatedly takes the largest number among its neighbors, and then
    the number of the voxel of that number, which doubles the reach each time: a dozen rounds do,
    without SciPy, which inference must not need.

    Returns:
        [D, H, W] int64, 0 background, 1..n in no particular order.
    """
    result = torch.zeros(mask.shape, dtype=torch.int64)
    box = bounding_box(to_array(mask))
    if box is None:
        return result
    inner = mask[box]
    halved = torch.nn.functional.max_pool3d(inner[None, None].float(), 2, ceil_mode=True)[0, 0]
    number = _spread_numbers(halved > 0)
    consecutive = torch.unique(number, return_inverse=True)[1]
    if number.min() > 0:
        # Without any background the first component would be number 0.
        consecutive = consecutive + 1
    fine = consecutive
    for axis in range(3):
        fine = fine.repeat_interleave(2, axis)
    # An odd size was rounded up by the halving.
    inner_box = tuple(slice(size) for size in inner.shape)
    result[box] = torch.where(inner, fine[inner_box], 0)
    return result


def _spread_numbers(mask: Tensor) -> Tensor:
    """The largest voxel number of its component at every voxel of a mask; 0 elsewhere."""
    # A voxel's number is its position plus one, so that a number leads back to its voxel.
    own_numbers = torch.arange(1, mask.numel() + 1).reshape(mask.shape)
    number = torch.where(mask, own_numbers, 0)
    while True:
        spread = torch.where(mask, _largest_around(number), 0)
        # The voxel whose number it is may know a larger one already.
        leader = (spread - 1).clamp_min(0)
        jumped = torch.where(mask, spread.flatten()[leader], 0)
        if torch.equal(jumped, number):
            return number
        number = jumped


def _largest_around(number: Tensor) -> Tensor:
    """The largest of the 27 numbers around each voxel; [D, H, W] int64 >= 0, axis by axis."""
    for axis in range(3):
        size = number.shape[axis]
        edge = torch.zeros_like(number.narrow(axis, 0, 1))
        padded = torch.cat([edge, number, edge], axis)
        before = padded.narrow(axis, 0, size)
        after = padded.narrow(axis, 2, size)
        neighbors = torch.maximum(before, after)
        number = torch.maximum(number, neighbors)
    return number


def tumor_probability(logits: Tensor) -> Tensor:
    """[C, ...] -> [...] probability of any class but background, which is the first."""
    return torch.sigmoid(logits[1:].logsumexp(0) - logits[0])
