"""From logits to classes on the working grid.

Connected components of the tumor are found once, and once more where some were removed. Two kinds
are excluded from the result: small ones beside a large one, and those of low confidence. A modality
can be bright on one side because of the coil that received it; the network then finds tumor there,
but with less confidence than where there is one. How confident it is of true tumors depends on the
modalities that it sees, and so does the threshold (chosen by ``MedMAPTraining/experiments/``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medmap.errors import InternalError
from medmap.postprocess.components import find_components, low_confidence
from medmap.postprocess.decoding import decode, most_probable
from medmap.postprocess.spec import NO_THRESHOLDS, ConfidenceSpec, PostprocessSpec
from medmap.preprocess import Prepared
from medmap.task import Task


@dataclass(frozen=True)
class Prediction:
    """What a network gave for one modality subset, and what of it is no part of the result.

    Attributes:
        logits: [C, D, H, W], background first, as the network gave them.
        classes: [D, H, W] int64, as ``spec`` decodes them where nothing is excluded, 0 elsewhere.
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
        spec: how classes are decoded, and which components are small.
        confidence: the thresholds.

    Raises:
        InternalError: a logit is NaN or infinite.
    """
    _require_finite(logits)
    if spec.by_region:
        classes = decode(torch.softmax(logits.float(), 0), spec, task)
    else:
        # The largest logit is the largest probability, too; computing it would take longer.
        classes = most_probable(logits)
    excluded = ~prepared.brain
    suppressed = None
    threshold = confidence.minimum.get(task.subset_key(subset), 0.0)
    if threshold > 0 or spec.min_component_ml > 0:
        is_tumor = (classes > 0) & prepared.brain
        components = find_components(is_tumor, prepared.grid.voxel_ml, spec)
        excluded |= components.is_small[components.numbers]
        if threshold > 0:
            is_low = low_confidence(logits, components, threshold)
            if is_low.any():
                suppressed = is_low[components.numbers]
                excluded |= suppressed
                # Components are halved from the corner of their common box. Without the suppressed
                # ones the box is another, and parts that a gap had joined may stand alone.
                is_tumor = (classes > 0) & ~excluded
                components = find_components(is_tumor, prepared.grid.voxel_ml, spec)
                excluded |= components.is_small[components.numbers]
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


def final_classes(
    prediction: Prediction, prepared: Prepared, spec: PostprocessSpec, task: Task
) -> Tensor:
    """[D, H, W] classes after regions below their minimum volume gave way to the next class."""
    classes = prediction.classes
    absent = _classes_below_minimum(classes, prepared, spec, task)
    if not absent:
        return classes
    if spec.by_region:
        # What is absent counts for no region, so voxels of other classes can change, too.
        return decode(probabilities(prediction, prepared, spec, task), spec, task)
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
