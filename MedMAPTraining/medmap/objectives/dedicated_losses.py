"""Losses that dedicated methods share, over a whole batch.

Probabilities and one-hot references are [B, C, *S], labels [B, *S] class indices. Figures are float32: products of
matrices are kept out of autocast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize, one_hot


def encode_label(label: Tensor, classes: int) -> Tensor:
    """[B, *S] class indices -> [B, classes, *S] float32 of zeros and ones."""
    return one_hot(label, classes).movedim(-1, 1).float()


def dice_losses(probability: Tensor, target: Tensor, top: float = 0.0, bottom: float = 1e-7) -> Tensor:
    """[C] losses 1 - (2 sum pg + top) / (sum p² + sum g² + bottom), sums over the batch and space (V-Net's Dice).

    The target may be soft. A class that neither has costs 1 with ``top`` 0, as published, and sends no gradient.
    """
    axes = (0, *range(2, probability.ndim))
    overlap = (probability * target).sum(axes)
    sizes = probability.square().sum(axes) + target.square().sum(axes)
    return 1 - (2 * overlap + top) / (sizes + bottom)


def class_weights(label: Tensor, classes: int) -> Tensor:
    """[classes] weights 1 - N_c / N, N_c the voxels of a class in the batch: rare classes count for more."""
    counts = torch.bincount(label.flatten(), minlength=classes).float()
    return 1 - counts / counts.sum()


def weighted_cross_entropy(logits: Tensor, label: Tensor, floor: float | None = None) -> Tensor:
    """Cross-entropy with ``class_weights``, a scalar.

    Args:
        logits: [B, C, *S] float32.
        floor: probabilities are not taken below it, and the mean is over voxels (0.005 in PMKL and what descends from
            it); None: no floor, and the mean is weighted (ProtoKD, as torch does it).
    """
    weights = class_weights(label, logits.shape[1])
    if floor is None:
        return cross_entropy(logits, label, weight=weights)
    chosen = log_softmax(logits, 1).gather(1, label[:, None])[:, 0]
    return -(weights[label] * chosen.clamp_min(math.log(floor))).mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """[B, *S] cross-entropy H(softmax(teacher / T), softmax(student / T)) of each voxel; logits [B, C, *S]."""
    return -((teacher / temperature).softmax(1) * log_softmax(student / temperature, 1)).sum(1)


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """[B, *S] KL(softmax(teacher / T) || softmax(student / T)) over the channels of each voxel; [B, C, *S] both."""
    target = log_softmax(teacher / temperature, 1)
    return (target.exp() * (target - log_softmax(student / temperature, 1))).sum(1)


def class_means(feature: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Prototypes: the mean feature of each class in each sample.

    Args:
        feature: [B, F, *S].
        target: [B, C, *S] one-hot.

    Returns:
        [B, C, F] means (zero for a class that a sample lacks), and [B, C] bool: which classes a sample has.
    """
    mask, flat = target.flatten(2), feature.flatten(2)
    size = mask.sum(2)
    return matrix_product(mask, flat.mT) / size.clamp_min(1)[..., None], size > 0


def prototype_maps(feature: Tensor, means: Tensor) -> Tensor:
    """[B, C, *S] cosine similarity of every voxel's feature [B, F, *S] to the prototypes [B, C, F] of its sample."""
    directions, voxels = normalize(means, dim=2, eps=1e-5), normalize(feature.flatten(2), dim=1, eps=1e-5)
    return matrix_product(directions, voxels).reshape(*means.shape[:2], *feature.shape[2:])


def matrix_product(one: Tensor, other: Tensor) -> Tensor:
    """one @ other in float32, whatever autocast would have."""
    with torch.autocast(one.device.type, enabled=False):
        return one.float() @ other.float()


def ramp_up(epoch: float, length: float, height: float) -> float:
    """height * exp(-5 (1 - min(epoch, length) / length)²): the consistency weight of Laine and Aila, ICLR 2017."""
    return height * math.exp(-5 * (1 - min(epoch, length) / length) ** 2)
