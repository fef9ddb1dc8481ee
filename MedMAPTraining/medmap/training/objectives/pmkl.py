"""PMKL: a teacher's output where it knows better, and embeddings that agree, for a student of few
modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, cross_entropy, normalize

from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Group
from medmap.training.objectives.dedicated import Distilling, tap_channels
from medmap.training.objectives.losses import (
    class_weights,
    dice_loss,
    one_hot_classes,
    soft_kl,
    weighted_cross_entropy,
)

POOL: dict[int, Callable[..., Tensor]] = {2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}


class PMKL(Distilling):
    """L = Dice + WCE + regional L_rkd + contrastive L_ckd (Chen et al., "Learning with Privileged
    Multimodal Knowledge for Unimodal Segmentation", IEEE TMI 2022).

    L_rkd is the cross-entropy between the softened outputs (T, without the factor T²), averaged
    over voxels with the weight ``knowledge_map``. L_ckd (Hadsell et al., margin 1) draws the
    embeddings of the same patch together and pushes those of different ones apart; it is zero for a
    batch of one.

    The released code embeds the last decoder feature through a pool of stride 1 and a layer of 35
    million weights, for teacher and student each, which can hardly be meant. Here the feature is
    pooled to ``pool`` voxels a side; 1 is global pooling. Its weight decay (1e-5 / 2 |kernels|²) is
    the optimizer's: biases and norms have none.

    Args:
        temperature: that softens both outputs.
        regional, contrastive: weights.
        margin: distance beyond which different patches need not be pushed.
        pool: voxels a side that the decoder feature is pooled to.
        clip: smallest probability whose logarithm counts in WCE; 0.005 as released, which leaves
            the voxels that are furthest from right without a gradient.
    """

    def __init__(
        self,
        context: Context,
        temperature: float = 10.0,
        regional: float = 0.5,
        contrastive: float = 0.5,
        margin: float = 1.0,
        pool: int = 1,
        clip: float = 0.0,
    ):
        super().__init__(context, ("decoder",))
        self.temperature = temperature
        self.regional = regional
        self.contrastive = contrastive
        self.margin = margin
        self.clip = clip
        dims = self.student.spatial_dims
        student_channels = tap_channels(self.student, "decoder")
        teacher_channels = tap_channels(self.teacher.network, "decoder")
        self.student_head = EmbeddingHead(dims, student_channels, pool)
        self.teacher_head = EmbeddingHead(dims, teacher_channels, pool)

    def groups(self) -> dict[str, Group]:
        """``main``: the student and both heads."""
        kernels = []
        biases_and_norms = []
        for parameter in self.parameters():
            if parameter.ndim > 1:
                kernels.append(parameter)
            else:
                biases_and_norms.append(parameter)
        return {"main": Group(kernels, undecayed=biases_and_norms)}

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        student, teacher = self.both(batch)
        logits = student.logits.float()
        teacher_logits = teacher.logits.float()
        classes = logits.shape[1]
        target = one_hot_classes(batch.label, classes)
        rarity = batch_weights(batch.label, classes)
        # Distilled only where the teacher knows better than the student.
        knowledge = knowledge_map(logits, teacher_logits, batch.label)
        regional = soft_kl(logits, teacher_logits, self.temperature, weight=knowledge, entropy=True)
        student_embedding = self.student_head(student.taps["decoder"].float())
        teacher_embedding = self.teacher_head(teacher.taps["decoder"].float())
        dice = dice_loss(logits.softmax(1), target, squared=True)
        entropy = weighted_cross_entropy(logits, batch.label, rarity, clip=self.clip)
        contrastive = contrastive_loss(student_embedding, teacher_embedding, self.margin)
        losses = {
            "dice": dice,
            "cross_entropy": entropy,
            "regional": self.regional * regional,
            "contrastive": self.contrastive * contrastive,
        }
        yield "main", losses


class EmbeddingHead(nn.Module):
    """[B, C, *S] -> pooled -> 32 -> ReLU -> 16, of length 1: [B, 16]."""

    def __init__(self, dims: int, channels: int, pool: int):
        super().__init__()
        self.pool = (pool,) * dims
        inputs = channels * pool**dims
        self.layers = nn.Sequential(
            nn.Linear(inputs, 32),
            nn.ReLU(),
            nn.Linear(32, 16),
        )

    def forward(self, feature: Tensor) -> Tensor:
        pool = POOL[len(self.pool)]
        pooled = pool(feature, self.pool)
        embedding = self.layers(pooled.flatten(1))
        return normalize(embedding, dim=1)


def batch_weights(label: Tensor, classes: int) -> Tensor:
    """[K] ``class_weights`` of all samples of a batch together."""
    return class_weights(label.reshape(1, -1), classes)[0]


@torch.no_grad()
def knowledge_map(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """[B, *S] weights: how much better the teacher knows a voxel, ReLU(CE_student - CE_teacher),
    zero where it errs.
    """
    student_entropy = cross_entropy(student, label, reduction="none")
    teacher_entropy = cross_entropy(teacher, label, reduction="none")
    advantage = (student_entropy - teacher_entropy).relu()
    teacher_is_right = teacher.argmax(1) == label
    return advantage * teacher_is_right


def contrastive_loss(one: Tensor, other: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over all pairs of d² (same sample) or max(0, margin - d)² (different ones); embeddings
    [B, E], B > 1.
    """
    if len(one) < 2:
        return one.sum() * 0
    differences = one[:, None] - other[None]
    squares = differences.square().sum(2)
    # The root's slope is infinite at zero, where teacher and student agree.
    distance = squares.clamp_min(1e-12).sqrt()
    is_pair = torch.eye(len(one), dtype=torch.bool, device=one.device)
    attraction = distance.square()
    repulsion = (margin - distance).relu().square()
    return torch.where(is_pair, attraction, repulsion).mean()
