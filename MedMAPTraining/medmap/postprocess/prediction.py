"""From logits to classes on the working grid.

Connected components of the tumor are found once, and once more where some were removed. Two kinds
are excluded from the result: small ones beside a large one, and those of low confidence. A modality
can be bright on one side because of the coil that received it; the network then finds tumor there,
but with less confidence than where there is one. How confident it is of true tumors depends on the
modalities that it sees, and so does the threshold (chosen by ``MedMAPTraining/experiments/``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmap.boxes import bounding_box
from medmap.errors import InternalError
from medmap.postprocess.components import find_components, low_confidence
from medmap.postprocess.decoding import decode, most_probable
from medmap.postprocess.spec import (
    NO_OFFSETS,
    NO_THRESHOLDS,
    ConfidenceSpec,
    OffsetSpec,
    PostprocessSpec,
)
from medmap.preprocess import Prepared
from medmap.task import Task
from medmap.tensors import to_array

Box = tuple[slice, ...]
"""Three slices: a part of the working grid."""

ROUNDING = 1e-3
"""Logits that differ by less may be compared the other way round as probabilities."""


@dataclass(frozen=True)
class Prediction:
    """What a network gave for one modality subset, and what of it is no part of the result.

    Attributes:
        logits: [C, D, H, W], background first, as the network gave them.
        classes: [D, H, W] int64, as ``spec`` decodes them where nothing is excluded, 0 elsewhere.
        excluded: [D, H, W] bool: outside the brain, small components, low-confidence components.
        suppressed: [D, H, W] bool, the low-confidence components; None where there is none.
        suppressed_ml: their volume.
        box: outside of it, everything is background by a margin; None where everything is.
        offsets: [C] what the bundle adds to the logits where classes are decided; None for
            nothing. Probabilities and confidence are the network's own.
    """

    logits: Tensor
    classes: Tensor
    excluded: Tensor
    suppressed: Tensor | None = None
    suppressed_ml: float = 0.0
    box: Box | None = None
    offsets: Tensor | None = None

    @property
    def decisive_logits(self) -> Tensor:
        """[C, D, H, W] logits by which classes are decided."""
        return _sum(self.logits, self.offsets)


def predict(
    logits: Tensor,
    prepared: Prepared,
    subset: Sequence[str],
    task: Task,
    spec: PostprocessSpec,
    confidence: ConfidenceSpec = NO_THRESHOLDS,
    offsets: OffsetSpec = NO_OFFSETS,
) -> Prediction:
    """Decide what of a network's output is part of the result.

    Args:
        logits: [C, D, H, W] on ``prepared.grid``, background first.
        prepared: the case.
        subset: modalities that the logits come from; they choose the offsets and the confidence
            threshold.
        task: names the subset.
        spec: how classes are decoded, and which components are small.
        confidence: the thresholds.
        offsets: what is added to the logits where classes are decided.

    Raises:
        InternalError: a logit is NaN or infinite.
    """
    _require_finite(logits)
    classes = torch.zeros(prepared.brain.shape, dtype=torch.int64)
    excluded = ~prepared.brain
    constants = _offsets_of(offsets, subset, task)
    box = tumor_box(_sum(logits, constants), prepared.brain)
    if box is None:
        return Prediction(logits, classes, excluded, offsets=constants)
    # A tumor fills a few of a hundred voxels: nothing else is looked at from here on.
    tumor_logits = logits[(slice(None), *box)]
    classes[box] = _decoded_logits(_sum(tumor_logits, constants), spec, task)
    key = task.subset_key(subset)
    threshold = confidence.minimum.get(key, 0.0)
    suppressed = None
    suppressed_ml = 0.0
    if threshold > 0 or spec.min_component_ml > 0:
        voxel_ml = prepared.grid.voxel_ml
        is_tumor = (classes[box] > 0) & prepared.brain[box]
        is_removed, is_low = _removed_components(tumor_logits, is_tumor, voxel_ml, spec, threshold)
        excluded[box] |= is_removed
        # What was removed for its low confidence is reported, so that a reader can look at it.
        if is_low is not None:
            suppressed = torch.zeros_like(excluded)
            suppressed[box] = is_low
            suppressed_ml = float(is_low.sum()) * voxel_ml
    classes.masked_fill_(excluded, 0)
    return Prediction(logits, classes, excluded, suppressed, suppressed_ml, box, constants)


def _offsets_of(offsets: OffsetSpec, subset: Sequence[str], task: Task) -> Tensor | None:
    """[C] what is added to the logit of each class for a subset; None for nothing."""
    by_label = offsets.by_subset.get(task.subset_key(subset), {})
    if not any(by_label.values()):
        return None
    # The background, which comes first, is what the others are compared with.
    by_class = [0.0]
    for label in task.labels:
        by_class.append(by_label.get(label.name, 0.0))
    return torch.tensor(by_class)


def _sum(logits: Tensor, offsets: Tensor | None) -> Tensor:
    """[C, *S] logits plus the [C] offset of each class."""
    if offsets is None:
        return logits
    spatial_ones = [1] * (logits.dim() - 1)
    by_class = offsets.to(logits).reshape(-1, *spatial_ones)
    return logits + by_class


def tumor_box(logits: Tensor, brain: Tensor) -> Box | None:
    """The box around all brain voxels that can be tumor, whatever the decoding; None without any.

    All C - 1 tumor classes together are at most C - 1 times as probable as the strongest of them.

    Args:
        logits: [C, D, H, W], background first.
        brain: [D, H, W] bool.
    """
    strongest = logits[1]
    for other in logits[2:]:
        strongest = torch.maximum(strongest, other)
    # Classes may win together where none wins alone: n equal ones by log n.
    tumor_classes = len(logits) - 1
    margin = math.log(tumor_classes) + ROUNDING
    is_strong = strongest > logits[0] - margin
    is_candidate = is_strong & brain
    return bounding_box(to_array(is_candidate))


def _decoded_logits(logits: Tensor, spec: PostprocessSpec, task: Task) -> Tensor:
    """[C, *S] logits -> [*S] classes."""
    if spec.by_region:
        return decode(torch.softmax(logits.float(), 0), spec, task)
    # The largest logit is the largest probability, too; computing it would take longer.
    return most_probable(logits)


def _removed_components(
    logits: Tensor, is_tumor: Tensor, voxel_ml: float, spec: PostprocessSpec, threshold: float
) -> tuple[Tensor, Tensor | None]:
    """[*S] bool: voxels of small and of low-confidence components, and of the latter alone.

    The latter are None where there are none.
    """
    components = find_components(is_tumor, voxel_ml, spec)
    is_removed = components.is_small[components.numbers]
    if threshold <= 0:
        return is_removed, None
    low_numbers = low_confidence(logits, components, threshold)
    if not low_numbers.any():
        return is_removed, None
    is_low = low_numbers[components.numbers]
    is_removed |= is_low
    # Components are halved from the corner of their common box. Without the suppressed ones the
    # box is another, and parts that a gap had joined may stand alone.
    components = find_components(is_tumor & ~is_removed, voxel_ml, spec)
    is_removed |= components.is_small[components.numbers]
    return is_removed, is_low


def _require_finite(logits: Tensor) -> None:
    """Whether the sum is: one NaN or infinity suffices, and testing every voxel is slower."""
    if torch.isfinite(logits.sum()):
        return
    # Finite logits may add up to more than float32 holds.
    if not torch.isfinite(logits.sum(dtype=torch.float64)):
        raise InternalError(
            "The network's output is not finite.",
            "Report this with the bundle's name and the device.",
        )


def probabilities(
    prediction: Prediction,
    prepared: Prepared,
    spec: PostprocessSpec,
    task: Task,
    box: Box | None = None,
) -> Tensor:
    """[C, D, H, W] class probabilities of the network on the working grid, or on a box of it.

    What is excluded is background with certainty; the classes of regions below their minimum volume
    have probability 0.
    """
    if box is None:
        box = (slice(None),) * 3
    return _probabilities_of(None, prediction, prepared, spec, task, box)


def decisive_probabilities(
    prediction: Prediction,
    prepared: Prepared,
    spec: PostprocessSpec,
    task: Task,
    box: Box,
) -> Tensor:
    """As ``probabilities``, with the bundle's offsets: what ``decode`` decides by."""
    return _probabilities_of(prediction.offsets, prediction, prepared, spec, task, box)


def _probabilities_of(
    offsets: Tensor | None,
    prediction: Prediction,
    prepared: Prepared,
    spec: PostprocessSpec,
    task: Task,
    box: Box,
) -> Tensor:
    excluded = prediction.excluded[box]
    # The box first: a tumor fills a few of a hundred voxels.
    logits = _sum(prediction.logits[(slice(None), *box)], offsets)
    # float32: a softmax in half precision would not add up to one.
    result = torch.softmax(logits.float(), 0)
    result[0].masked_fill_(excluded, 1.0)
    result[1:].masked_fill_(excluded, 0.0)
    absent = _classes_below_minimum(prediction, prepared, spec, task)
    if absent:
        result[absent] = 0.0
        total = result.sum(0)
        result /= total.clamp_min(1e-12)
    return result


def final_classes(
    prediction: Prediction, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> Tensor:
    """[*S] classes in the prediction's box, after regions below their minimum volume gave way to
    the next class; empty without a box.
    """
    if prediction.box is None:
        return prediction.classes[:0, :0, :0]
    classes = prediction.classes[prediction.box]
    absent = _classes_below_minimum(prediction, prepared, spec, task)
    if not absent:
        return classes
    if spec.by_region:
        # What is absent counts for no region, so voxels of other classes can change, too.
        probability = decisive_probabilities(prediction, prepared, spec, task, prediction.box)
        return decode(probability, spec, task)
    classes = classes.clone()
    is_absent = torch.isin(classes, torch.tensor(absent))
    absent_logits = prediction.logits[(slice(None), *prediction.box)][:, is_absent]
    candidates = _sum(absent_logits.float(), prediction.offsets)
    candidates[absent] = -torch.inf
    classes[is_absent] = candidates.argmax(0)
    return classes


def _classes_below_minimum(
    prediction: Prediction, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> list[int]:
    """Classes of the regions that are there, but in less than their minimum volume."""
    if prediction.box is None or spec.min_region_multiple <= 0:
        return []
    classes = prediction.classes[prediction.box]
    counts = torch.bincount(classes.flatten(), minlength=task.num_classes).tolist()
    absent: list[int] = []
    for region in task.regions:
        minimum_mm3 = spec.min_region_multiple * region.min_volume_mm3
        members = list(task.region_classes(region.name))
        voxels = sum(counts[index] for index in members)
        volume_mm3 = voxels * prepared.grid.voxel_ml * 1000
        if 0 < volume_mm3 < minimum_mm3:
            absent += members
    return absent
