"""From logits to a label map on the grid of the user's scan. torch and numpy only.

Connected components of the tumor are found once, and once more where some were removed. Two kinds
are excluded from the result: small ones beside a large one, and those of low confidence. A modality
can be bright on one side because of the coil that received it; the network then finds tumor there,
but with less confidence than where there is one. How confident it is of true tumors depends on the
modalities that it sees, and so does the threshold (chosen by ``MedMAPTraining/experiments/``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor

from medmap.errors import BundleError, InternalError
from medmap.foreground import bounding_box
from medmap.preprocess import Prepared
from medmap.resampling import paste, resample_linear
from medmap.task import Task
from medmap.volume import Grid

QUANTILE = 0.9
"""Of the probabilities in a component: above its uncertain border, below a few certain voxels."""

SLAB = 32
"""Planes of the reference grid that are interpolated at a time."""

_EARLIER_FIELDS = {
    "island_ml": "min_component_ml",
    "island_share": "min_component_fraction",
    "small_regions": "min_region_multiple",
}
"""Names of the fields in bundles and recipes of before version 0.2; both are read."""


@dataclass(frozen=True)
class PostprocessSpec:
    """What is done to a network's output; stored in the bundle.

    Attributes:
        min_component_ml: connected components of tumor smaller than this, in ml, are excluded ...
        min_component_fraction: ... if they are also smaller than this share of the largest
            component. 0 excludes nothing: a small lesion that stands alone is never excluded.
        min_region_multiple: a region of less than this multiple of the task's minimum volume
            (``Region.min_volume_mm3``) counts as absent, and its voxels get the next most probable
            class: 0.4 is 200 mm³ for ET, as in the winning entry of BraTS 2020 (Isensee et al.,
            arXiv 2011.00848, section 3.3). 0 keeps every region.
    """

    min_component_ml: float = 0.0
    min_component_fraction: float = 0.0
    min_region_multiple: float = 0.0

    def to_dict(self) -> dict:
        """Plain JSON-ready form."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping) -> PostprocessSpec:
        """Rebuild; raises BundleError for unknown keys, since an unknown step cannot be honored."""
        try:
            named = current_postprocess(data)
            return PostprocessSpec(**{key: float(value) for key, value in named.items()})
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"Invalid post-processing in the bundle's metadata ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error


def current_postprocess(data: Mapping) -> dict:
    """Plain data of a ``PostprocessSpec`` under the field names of today."""
    return {_EARLIER_FIELDS.get(key, key): value for key, value in data.items()}


def earlier_postprocess(data: Mapping) -> dict:
    """The plain form of a ``PostprocessSpec`` under the field names of before version 0.2."""
    current_names = {current: earlier for earlier, current in _EARLIER_FIELDS.items()}
    return {current_names[key]: value for key, value in data.items()}


@dataclass(frozen=True)
class ConfidenceSpec:
    """Confidence thresholds of a bundle; stored in it.

    The confidence of a connected component is the 90th percentile, over its voxels, of the
    probability of any tumor class.

    Attributes:
        minimum: by modality subset (``Task.subset_key``), the confidence below which a component is
            excluded from the result; subsets that are not named have no threshold.
    """

    minimum: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain JSON-ready form."""
        return {"minimum": dict(self.minimum)}

    @staticmethod
    def from_dict(data: Mapping) -> ConfidenceSpec:
        """Rebuild; raises BundleError for unknown fields: an unknown step cannot be honored.

        Bundles of before version 0.2 spell the key ``least``.
        """
        try:
            unknown = set(data) - {"minimum", "least"}
            if unknown:
                raise TypeError(f"unknown key {', '.join(sorted(unknown))}")
            thresholds = dict(data.get("minimum", data.get("least", {})))
            return ConfidenceSpec({str(key): float(value) for key, value in thresholds.items()})
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"Invalid confidence thresholds in the bundle's metadata ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error


NO_POSTPROCESSING = PostprocessSpec()
NO_THRESHOLDS = ConfidenceSpec()


@dataclass(frozen=True)
class Components:
    """The connected components of a tumor.

    Attributes:
        numbers: [D, H, W] int64, 0 background, 1 .. n.
        is_small: [n + 1] bool: components that ``PostprocessSpec`` excludes.
    """

    numbers: Tensor
    is_small: Tensor


@dataclass(frozen=True)
class Prediction:
    """What a network gave for one modality subset, and what of it is no part of the result.

    Attributes:
        logits: [C, D, H, W], background first, as the network gave them.
        classes: [D, H, W] int64, the most probable class where nothing is excluded, 0 elsewhere.
        excluded: [D, H, W] bool: outside the brain, small components, low-confidence components.
        suppressed: [D, H, W] bool, the low-confidence components; None where there is none.
        suppressed_ml: their volume.
    """

    logits: Tensor
    classes: Tensor
    excluded: Tensor
    suppressed: Tensor | None = None
    suppressed_ml: float = 0.0


def predict(
    logits: Tensor,
    prepared: Prepared,
    subset: Sequence[str],
    task: Task,
    spec: PostprocessSpec,
    confidence: ConfidenceSpec = NO_THRESHOLDS,
) -> Prediction:
    """Decide what of a network's output is part of the result.

    Args:
        logits: [C, D, H, W] on ``prepared.grid``, background first.
        prepared: the case.
        subset: modalities that the logits come from; they choose the confidence threshold.
        task: names the subset.
        spec: which components are small.
        confidence: the thresholds.

    Raises:
        InternalError: a logit is NaN or infinite.
    """
    _require_finite(logits)
    classes = most_probable(logits)
    excluded = ~prepared.brain
    suppressed = None
    threshold = confidence.minimum.get(task.subset_key(subset), 0.0)
    if threshold > 0 or spec.min_component_ml > 0:
        found = find_components((classes > 0) & prepared.brain, prepared.grid.voxel_ml, spec)
        excluded |= found.is_small[found.numbers]
        if threshold > 0:
            is_low = _low_confidence(logits, found, threshold)
            if is_low.any():
                suppressed = is_low[found.numbers]
                excluded |= suppressed
                # Components are halved from the corner of their common box. Without the suppressed
                # ones the box is another, and parts that a gap had joined may stand alone.
                remaining = (classes > 0) & ~excluded
                rest = find_components(remaining, prepared.grid.voxel_ml, spec)
                excluded |= rest.is_small[rest.numbers]
    suppressed_ml = 0.0
    if suppressed is not None:
        suppressed_ml = float(suppressed.sum()) * prepared.grid.voxel_ml
    classes.masked_fill_(excluded, 0)
    return Prediction(logits, classes, excluded, suppressed, suppressed_ml)


def _require_finite(logits: Tensor) -> None:
    """Whether the sum is: one NaN or infinity suffices, and testing every voxel is slower."""
    if not torch.isfinite(logits.sum(dtype=torch.float64)):
        raise InternalError(
            "The network's output is not finite.",
            "Report this with the bundle's name and the device.",
        )


def most_probable(probability: Tensor) -> Tensor:
    """The class of each voxel: ``argmax(0)``, several times faster across this memory layout.

    Args:
        probability: [C, D, H, W] probabilities or logits.

    Returns:
        [D, H, W] int64.
    """
    best = probability[0].clone()
    classes = torch.zeros(best.shape, dtype=torch.int64)
    for n in range(1, len(probability)):
        is_better = probability[n] > best
        classes.masked_fill_(is_better, n)
        torch.maximum(best, probability[n], out=best)
    return classes


def tumor_probability(logits: Tensor) -> Tensor:
    """[C, ...] -> [...] probability of any class but background, which is the first."""
    return torch.sigmoid(logits[1:].logsumexp(0) - logits[0])


def find_components(mask: Tensor, voxel_ml: float, spec: PostprocessSpec) -> Components:
    """The connected components of a [D, H, W] bool mask, and which of them are small."""
    numbers = components(mask)
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
    order = torch.argsort(probability)
    owners = owners[order]
    probability = probability[order]
    confidence = {}
    for number in torch.nonzero(counts).flatten().tolist():
        ordered = probability[owners == number]
        confidence[number] = float(ordered[int(QUANTILE * len(ordered))])
    return confidence


def _low_confidence(logits: Tensor, found: Components, threshold: float) -> Tensor:
    """[n + 1] bool: components below the threshold."""
    is_low = torch.zeros_like(found.is_small)
    for number, confidence in component_confidence(logits, found).items():
        is_low[number] = confidence < threshold
    return is_low


def components(mask: Tensor) -> Tensor:
    """Number the connected components of a [D, H, W] bool mask.

    Components that a gap of less than about two voxels parts count as one: the mask is halved
    first, for speed. Every voxel repeatedly takes the largest number among its neighbors, and then
    the number of the voxel of that number, which doubles the reach each time: a dozen rounds do,
    without SciPy, which inference must not need.

    Returns:
        [D, H, W] int64, 0 background, 1..n in no particular order.
    """
    result = torch.zeros(mask.shape, dtype=torch.int64)
    box = bounding_box(mask.numpy())
    if box is None:
        return result
    inner = mask[box]
    halved = torch.nn.functional.max_pool3d(inner[None, None].float(), 2, ceil_mode=True)[0, 0]
    coarse = halved > 0
    own_numbers = torch.arange(1, coarse.numel() + 1).reshape(coarse.shape)
    number = torch.where(coarse, own_numbers, 0)
    while True:
        spread = torch.where(coarse, _largest_around(number), 0)
        jumped = torch.where(coarse, spread.flatten()[(spread - 1).clamp_min(0)], 0)
        if torch.equal(jumped, number):
            break
        number = jumped
    consecutive = torch.unique(number, return_inverse=True)[1]
    if number.min() > 0:
        # Without any background the first component would be number 0.
        consecutive = consecutive + 1
    fine = consecutive
    for axis in range(3):
        fine = fine.repeat_interleave(2, axis)
    inner_box = tuple(slice(size) for size in inner.shape)
    result[box] = torch.where(inner, fine[inner_box], 0)
    return result


def _largest_around(number: Tensor) -> Tensor:
    """The largest of the 27 numbers around each voxel; [D, H, W] int64 >= 0, axis by axis."""
    for axis in range(3):
        size = number.shape[axis]
        edge = torch.zeros_like(number.narrow(axis, 0, 1))
        padded = torch.cat([edge, number, edge], axis)
        neighbors = torch.maximum(padded.narrow(axis, 0, size), padded.narrow(axis, 2, size))
        number = torch.maximum(number, neighbors)
    return number


def probabilities(
    prediction: Prediction, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> Tensor:
    """[C, D, H, W] class probabilities of the result on the working grid.

    What is excluded is background with certainty; the classes of regions below their minimum volume
    have probability 0.
    """
    result = torch.softmax(prediction.logits.float(), 0)
    result[0].masked_fill_(prediction.excluded, 1.0)
    result[1:].masked_fill_(prediction.excluded, 0.0)
    absent = _classes_below_minimum(prediction.classes, prepared, spec, task)
    if absent:
        result[absent] = 0.0
        result /= result.sum(0).clamp_min(1e-12)
    return result


def label_map(
    prediction: Prediction, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> np.ndarray:
    """The label map of a prediction on the reference scan's grid.

    Where the working lattice is the reference's own, classes are copied voxel for voxel. Otherwise
    the probabilities are interpolated and the most probable class is taken, which keeps borders
    smoother than interpolating labels.

    Returns:
        [I, J, K] label values of the task's files, of ``Task.label_dtype``.
    """
    if prepared.offset is None:
        probability = probabilities(prediction, prepared, spec, task)
        return labels_on_reference(probability, prepared, task)
    classes = _final_classes(prediction, prepared, spec, task)
    return _copied(classes, prepared.offset, prepared, task)


def labels_on_reference(probability: Tensor, prepared: Prepared, task: Task) -> np.ndarray:
    """The most probable label at each voxel of the reference scan.

    Args:
        probability: [C, D, H, W] on the working grid.
        prepared: the case.
        task: gives the label values.

    Returns:
        [I, J, K] of ``Task.label_dtype``.
    """
    if prepared.offset is not None:
        return _copied(most_probable(probability), prepared.offset, prepared, task)
    canonical = prepared.orientation.canonical
    classes = _interpolated_classes(probability, prepared.grid, canonical)
    return _label_values(classes, prepared, task)


def _copied(classes: Tensor, offset: np.ndarray, prepared: Prepared, task: Task) -> np.ndarray:
    """Label values from classes on a working grid that shares the reference's lattice."""
    shape = prepared.orientation.canonical.shape
    return _label_values(paste(classes, -offset, shape), prepared, task)


def _label_values(classes: Tensor, prepared: Prepared, task: Task) -> np.ndarray:
    values = np.array(task.label_values(), task.label_dtype)
    return np.ascontiguousarray(prepared.orientation.restore(values[classes.numpy()]))


def _final_classes(
    prediction: Prediction, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> Tensor:
    """[D, H, W] classes after regions below their minimum volume have given way to the next class.

    The largest logit is the largest probability, too; so none is computed, which would take longer
    than everything else here.
    """
    classes = prediction.classes
    absent = _classes_below_minimum(classes, prepared, spec, task)
    if not absent:
        return classes
    classes = classes.clone()
    is_absent = torch.isin(classes, torch.tensor(absent))
    candidates = prediction.logits[:, is_absent].float()
    candidates[absent] = -torch.inf
    classes[is_absent] = candidates.argmax(0)
    return classes


def _classes_below_minimum(
    classes: Tensor, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> list[int]:
    """Classes of the regions that are there, but in less than their minimum volume."""
    absent: list[int] = []
    for region in task.regions:
        minimum_mm3 = spec.min_region_multiple * region.min_volume_mm3
        if minimum_mm3 <= 0:
            continue
        members = []
        for index, label in enumerate(task.labels, 1):
            if label.name in region.labels:
                members.append(index)
        voxels = sum(int((classes == index).sum()) for index in members)
        volume_mm3 = voxels * prepared.grid.voxel_ml * 1000
        if 0 < volume_mm3 < minimum_mm3:
            absent += members
    return absent


def _interpolated_classes(probability: Tensor, working: Grid, reference: Grid) -> Tensor:
    """[I, J, K] most probable class at each reference voxel; slab by slab, to save memory.

    A point between voxels can only be tumor if one of them is nearly so: best + sum of the tumor's
    probabilities above 1, which is convex. So only the box around such voxels is interpolated.
    """
    # Background is sampled as 1 - tumor: outside the working grid everything sampled is 0, hence
    # background.
    tumor = probability[1:]
    classes = torch.zeros(reference.shape, dtype=torch.int64)
    may_be_tumor = tumor.amax(0) + tumor.sum(0) > 1 - 1e-4
    box = bounding_box(may_be_tumor.numpy())
    if box is None:
        return classes
    rows, *plane = _covering_box(box, working, reference)
    for start in range(rows.start, rows.stop, SLAB):
        part = (slice(start, min(start + SLAB, rows.stop)), *plane)
        slab = resample_linear(tumor, working, _part_of(reference, part))
        best, index = slab.max(0)
        classes[part] = torch.where(best > 1 - slab.sum(0), index + 1, 0)
    return classes


def _part_of(grid: Grid, box: tuple[slice, ...]) -> Grid:
    """The grid of a box of voxels."""
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    i, j, k = (side.stop - side.start for side in box)
    return Grid((i, j, k), affine)


def _covering_box(box: tuple[slice, ...], working: Grid, reference: Grid) -> tuple[slice, ...]:
    """The part of the reference grid within a voxel of a box of the working grid."""
    sides = [(side.start - 1, side.stop) for side in box]
    corners = np.array([(*corner, 1) for corner in product(*sides)])
    positions = (np.linalg.solve(reference.affine, working.affine) @ corners.T)[:3]
    low = np.floor(positions.min(1)).astype(int)
    high = np.ceil(positions.max(1)).astype(int) + 1
    covering = []
    for start, stop, size in zip(low, high, reference.shape, strict=True):
        covering.append(slice(max(int(start), 0), max(min(int(stop), size), 0)))
    return tuple(covering)
