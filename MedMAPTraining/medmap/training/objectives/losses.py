"""Losses that several objectives share: overlap, cross-entropy, distillation, prototypes,
divergences.

Logits and features are [B, K, *S] with two or three spatial axes, labels [B, *S] class indices.
Half precision is computed in float32; float64 stays. Switches follow the papers that each objective
names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, one_hot

from medmap.networks.blocks import LINEAR_MODE, at_least_float32


def one_hot_classes(label: Tensor, classes: int) -> Tensor:
    """[B, *S] class indices -> [B, K, *S] float32."""
    return one_hot(label, classes).movedim(-1, 1).float()


def dice_loss(
    probability: Tensor,
    target: Tensor,
    *,
    background: bool = True,
    squared: bool = False,
    over_batch: bool = True,
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Tensor:
    """Mean over classes of 1 - (2 sum p t + smooth) / (sum p^q + sum t^q + smooth + eps), q = 2
    where ``squared``.

    Args:
        probability, target: [B, K, *S]; the target is one-hot, or soft for distillation.
        background: whether class 0 counts.
        squared: V-Net's denominator (Milletari et al., 3DV 2016), ProtoKD's and SMU-Net's.
        over_batch: sum over the batch before the quotient, else one quotient a sample.
        smooth: with 0 a class that is absent from the target costs a constant 1 (RFNet's lineage).
        eps: keeps an empty class from dividing by zero.
    """
    p = at_least_float32(probability)
    t = at_least_float32(target)
    if not background:
        p = p[:, 1:]
        t = t[:, 1:]
    axes = tuple(range(2, probability.ndim))
    if over_batch:
        axes = (0, *axes)
    overlap = (p * t).sum(axes)
    if squared:
        size = p.square() + t.square()
    else:
        size = p + t
    denominator = size.sum(axes) + smooth + eps
    quotient = (2 * overlap + smooth) / denominator
    return (1 - quotient).mean()


def class_weights(label: Tensor, classes: int) -> Tensor:
    """1 - (voxels of the class / voxels), per sample: [B, *S] -> [B, K] (the lineage's weighted
    cross-entropy).
    """
    share = one_hot_classes(label, classes).flatten(2).mean(2)
    return 1 - share


def weighted_cross_entropy(
    logits: Tensor, label: Tensor, weights: Tensor | None = None, *, clip: float = 0.0
) -> Tensor:
    """Mean over voxels of -w_c log p_c for the true class c.

    Args:
        logits: [B, K, *S].
        label: [B, *S].
        weights: [K] or [B, K]; None: ``class_weights`` of these labels.
        clip: smallest p whose log is taken, as the lineage clips at 0.005: the gradient is then
            exactly zero wherever the true class has less, so hard voxels teach nothing. 0 takes the
            log-softmax.
    """
    logp = at_least_float32(logits).log_softmax(1)
    if clip:
        logp = logp.exp().clamp(clip, 1).log()
    batch, classes = logits.shape[:2]
    if weights is None:
        w = class_weights(label, classes)
    else:
        w = at_least_float32(weights).expand(batch, classes)
    # Of every voxel: log p and weight of its true class.
    truth = logp.gather(1, label[:, None])[:, 0]
    flat_weights = w.gather(1, label.flatten(1))
    voxel_weights = flat_weights.reshape(label.shape)
    return -(voxel_weights * truth).mean()


def cross_entropy_and_dice(
    logits: Tensor,
    label: Tensor,
    *,
    clip: float = 0.0,
    class_weighted: bool = True,
    **dice: Any,
) -> Tensor:
    """``weighted_cross_entropy`` + ``dice_loss`` of the softmax: what every method of the RFNet
    lineage trains on.

    ``class_weighted=False`` weighs all classes alike: with the lineage's weights a voxel of the
    background counts a fraction of a tumor's, so that small tumors are drawn several times too
    large until the network is sure of its boundaries.
    """
    target = one_hot_classes(label, logits.shape[1])
    probability = at_least_float32(logits).softmax(1)
    weights = None
    if not class_weighted:
        weights = torch.ones(logits.shape[1], device=logits.device)
    entropy = weighted_cross_entropy(logits, label, weights, clip=clip)
    return entropy + dice_loss(probability, target, **dice)


def resize_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """[B, *S] -> [B, *size], nearest neighbor."""
    if label.shape[1:] == torch.Size(size):
        return label
    channel = label[:, None].float()
    resized = interpolate(channel, size=tuple(size), mode="nearest")
    return resized[:, 0].long()


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """[B, K, *S] -> [B, K, *size], linear."""
    if logits.shape[2:] == torch.Size(size):
        return logits
    mode = LINEAR_MODE[logits.ndim - 2]
    return interpolate(logits, size=tuple(size), mode=mode, align_corners=False)


def soft_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    *,
    weight: Tensor | None = None,
    over_classes: str = "sum",
    squared_temperature: bool = False,
    entropy: bool = False,
    reverse: bool = False,
    per_sample: bool = False,
    clip: float = 0.0,
) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)), per voxel, then the (weighted) mean over
    voxels and samples.

    The teacher receives no gradient.

    Args:
        student, teacher: logits [B, K, *S].
        temperature: T.
        weight: [B, *S] weight of a voxel: sum(w KL) / sum(w), zero where all weights are (PMKL's
            mask).
        over_classes: ``sum``, or ``mean`` for the K times smaller mean over all elements (ProtoKD,
            PASSION).
        squared_temperature: times T², which keeps gradients comparable between temperatures (Hinton
            et al., 2015).
        entropy: the cross-entropy H(teacher, student) instead, same gradient (PMKL).
        reverse: KL(student || teacher) instead (PASSION's paper).
        per_sample: [B], the mean over each sample's voxels; without a weight.
        clip: smallest probability (PASSION's 0.005).
    """
    log_student = _soft_log(student, temperature, clip)
    log_teacher = _soft_log(teacher.detach(), temperature, clip)
    # log p and log q of KL(p || q).
    log_p = log_teacher
    log_q = log_student
    if reverse:
        log_p = log_student
        log_q = log_teacher
    ratio = -log_q if entropy else log_p - log_q
    divergence = (log_p.exp() * ratio).sum(1)
    if over_classes == "mean":
        divergence = divergence / student.shape[1]
    if squared_temperature:
        divergence = divergence * temperature**2
    if weight is not None:
        total = weight.sum()
        mean = (weight * divergence).sum() / total.clamp(min=1e-12)
        return torch.where(total > 0, mean, torch.zeros_like(total))
    if per_sample:
        return divergence.flatten(1).mean(1)
    return divergence.mean()


def _soft_log(logits: Tensor, temperature: float, clip: float) -> Tensor:
    log_probability = (at_least_float32(logits) / temperature).log_softmax(1)
    if clip:
        return log_probability.exp().clamp(clip, 1).log()
    return log_probability


def class_means(
    feature: Tensor, label: Tensor, classes: int, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Prototypes: the mean feature of every class of a sample.

    Args:
        feature: [B, C, *S].
        label: [B, *S].
        classes: K.
        eps: added to the number of voxels.

    Returns:
        [B, K, C], zero for a class that a sample lacks; and [B, K] bool, True where it has it.
    """
    member = one_hot_classes(label, classes).flatten(2)
    voxels = feature.flatten(2)
    count = member.sum(2)
    # [K, N] times [N, C]: the sum of the features of every class.
    total = matrix_product(member, voxels.mT)
    means = total / (count[..., None] + eps)
    return means, count > 0


def similarity_maps(feature: Tensor, means: Tensor, eps: float = 1e-5) -> Tensor:
    """Cosine similarity of every voxel's feature to every prototype; [B, C, *S] and [B, K, C] ->
    [B, K, *S].
    """
    directions = normalize(means, dim=2, eps=eps)
    flat_feature = at_least_float32(feature).flatten(2)
    voxels = normalize(flat_feature, dim=1, eps=eps)
    # The product of unit vectors is the cosine of their angle.
    maps = matrix_product(directions, voxels)
    batch, classes = means.shape[:2]
    return maps.reshape(batch, classes, *feature.shape[2:])


def matrix_product(one: Tensor, other: Tensor) -> Tensor:
    """one @ other in float32 or more, which autocast would make bfloat16."""
    shared = torch.promote_types(one.dtype, other.dtype)
    dtype = torch.promote_types(shared, torch.float32)
    with torch.autocast(one.device.type, enabled=False):
        return one.to(dtype) @ other.to(dtype)


def consistency_ramp(progress: float, length: float = 1.0) -> float:
    """exp(-5 (1 - t)²), t = progress / length up to 1 (Laine and Aila, ICLR 2017); ACN and SMU-Net
    weigh with it.
    """
    t = 1.0
    if length > 0:
        t = min(progress / length, 1.0)
    return math.exp(-5 * (1 - t) ** 2)
