"""Classes from probabilities: the most probable class of a voxel, or region by region."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medmap.errors import BundleError
from medmap.postprocess.spec import PostprocessSpec
from medmap.task import Task


def decode(probability: Tensor, spec: PostprocessSpec, task: Task) -> Tensor:
    """[C, *S] probabilities, background first -> [*S] int64 classes, as ``spec`` has it."""
    if spec.by_region:
        return decode_by_region(probability, nested_regions(task))
    return most_probable(probability)


def most_probable(probability: Tensor) -> Tensor:
    """The class of each voxel: ``argmax(0)``, several times faster across this memory layout.

    Args:
        probability: [C, D, H, W] probabilities or logits.

    Returns:
        [D, H, W] int64.
    """
    best = probability[0].clone()
    classes = torch.zeros(best.shape, dtype=torch.int64)
    for n, candidate in enumerate(probability[1:], 1):
        # Strictly: of equal classes the first one counts, as for argmax.
        is_better = candidate > best
        classes.masked_fill_(is_better, n)
        torch.maximum(best, candidate, out=best)
    return classes


def decode_by_region(probability: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """Decide region by region, from the outermost to the innermost.

    A voxel belongs to a region if the region is more probable than what surrounds it. The classes
    of a region add up: a core that may enhance or not, .3 to .3, beside edema of .4 is core. The
    most probable class would be edema, which is why the core disappears where T1ce is missing.
    Regions instead of classes: Isensee et al., nnU-Net for Brain Tumor Segmentation, BraTS 2020,
    arXiv 2011.00848, section 3.1.

    Args:
        probability: [C, *S], background first; only proportions matter.
        regions: class indices of each region, every one within the one before.

    Returns:
        [*S] int64 classes.
    """
    # A voxel is tumor where the tumor classes together outweigh the background, even if none of
    # them does so alone.
    outermost = regions[0]
    background = [index for index in range(len(probability)) if index not in outermost]
    inner_share = _sum_over(probability, outermost)
    outer_share = _sum_over(probability, background)
    is_inside = inner_share > outer_share
    classes = torch.zeros(probability.shape[1:], dtype=torch.int64)
    _fill(classes, ~is_inside, probability, background)
    # A few of a hundred voxels are tumor: only these are compared further.
    tumor_probability = probability[:, is_inside]
    classes[is_inside] = _decode_inside(tumor_probability, regions)
    return classes


def _decode_inside(probability: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """[C, N] probabilities of voxels in the outermost region -> [N] classes."""
    voxels = probability.shape[1:]
    classes = torch.zeros(voxels, dtype=torch.int64)
    is_undecided = torch.ones(voxels, dtype=torch.bool)
    surrounding = regions[0]
    for region in regions[1:]:
        # Only what surrounds the region directly: what lies farther out is decided already.
        outside = [index for index in surrounding if index not in region]
        inner_share = _sum_over(probability, region)
        outer_share = _sum_over(probability, outside)
        is_inside = inner_share > outer_share
        _fill(classes, is_undecided & ~is_inside, probability, outside)
        is_undecided &= is_inside
        surrounding = region
    _fill(classes, is_undecided, probability, surrounding)
    return classes


def _sum_over(probability: Tensor, members: Sequence[int]) -> Tensor:
    """[C, *S] -> [*S] summed over some classes."""
    total = probability[members[0]]
    for index in members[1:]:
        total = total + probability[index]
    return total


def _fill(classes: Tensor, mask: Tensor, probability: Tensor, members: Sequence[int]) -> None:
    """Set the masked voxels to the most probable of some classes."""
    if len(members) == 1:
        classes.masked_fill_(mask, members[0])
        return
    indices = torch.tensor(members)
    candidates = probability[:, mask][indices]
    most_probable_member = candidates.argmax(0)
    classes[mask] = indices[most_probable_member]


def nested_regions(task: Task) -> list[tuple[int, ...]]:
    """Class indices of a task's regions, from the outermost to the innermost.

    Raises:
        BundleError: a region does not lie within the one before.
    """
    regions = [task.region_classes(region.name) for region in task.regions]
    regions.sort(key=len, reverse=True)
    surrounding = set(range(task.num_classes))
    for region in regions:
        if not set(region) < surrounding:
            raise BundleError(
                f"The regions of the task {task.name} are not nested.",
                "Decode it by class: without by_region in the post-processing.",
            )
        surrounding = set(region)
    return regions
