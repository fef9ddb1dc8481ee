"""PMKL: a teacher's output where it knows better, and embeddings that agree, for a student of few modalities."""

from __future__ import annotations

from collections.abc import Iterator

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

POOL = {2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}


class PMKL(Distilling):
    """L = Dice + WCE + regional L_rkd + contrastive L_ckd (Chen et al., "Learning with Privileged Multimodal Knowledge
    for Unimodal Segmentation", IEEE TMI 2022).

    L_rkd is the cross-entropy between the softened outputs (T, without the factor T²), averaged over voxels with the
    weight ``knowledge_map``. L_ckd (Hadsell et al., margin 1) draws the embeddings of the same patch together and
    pushes those of different ones apart; it is zero for a batch of one.

    The released code embeds the last decoder feature through a pool of stride 1 and a layer of 35 million weights, for
    teacher and student each, which can hardly be meant. Here the feature is pooled to ``pool`` voxels a side; 1 is
    global pooling. Its weight decay (1e-5 / 2 |kernels|²) is the optimizer's: biases and norms have none.

    Args:
        temperature: that softens both outputs.
        regional, contrastive: weights.
        margin: distance beyond which different patches need not be pushed.
        pool: voxels a side that the decoder feature is pooled to.
        clip: smallest probability whose logarithm counts in WCE; 0.005 as released, which leaves the voxels that are
            furthest from right without a gradient.
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
        self.temperature, self.regional, self.contrastive = temperature, regional, contrastive
        self.margin, self.clip = margin, clip
        dims = self.student.spatial_dims
        self.student_head = EmbeddingHead(dims, tap_channels(self.student, "decoder"), pool)
        self.teacher_head = EmbeddingHead(dims, tap_channels(self.teacher.network, "decoder"), pool)

    def groups(self) -> dict[str, Group]:
        """``main``: the student and both heads."""
        kernels = [p for p in self.parameters() if p.ndim > 1]
        return {"main": Group(kernels, undecayed=[p for p in self.parameters() if p.ndim <= 1])}

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        student, teacher = self.both(batch)
        logits, taught = student.logits.float(), teacher.logits.float()
        target, rarity = (
            one_hot_classes(batch.label, logits.shape[1]),
            batch_weights(batch.label, logits.shape[1]),
        )
        known = knowledge_map(logits, taught, batch.label)
        regional = soft_kl(logits, taught, self.temperature, weight=known, entropy=True)
        embedded = self.student_head(student.taps["decoder"].float())
        goal = self.teacher_head(teacher.taps["decoder"].float())
        yield (
            "main",
            {
                "dice": dice_loss(logits.softmax(1), target, squared=True),
                "cross_entropy": weighted_cross_entropy(
                    logits, batch.label, rarity, clip=self.clip
                ),
                "regional": self.regional * regional,
                "contrastive": self.contrastive * contrastive_loss(embedded, goal, self.margin),
            },
        )


class EmbeddingHead(nn.Module):
    """[B, C, *S] -> pooled -> 32 -> ReLU -> 16, of length 1: [B, 16]."""

    def __init__(self, dims: int, channels: int, pool: int):
        super().__init__()
        self.pool = (pool,) * dims
        self.layers = nn.Sequential(
            nn.Linear(channels * pool**dims, 32), nn.ReLU(), nn.Linear(32, 16)
        )

    def forward(self, feature: Tensor) -> Tensor:
        return normalize(self.layers(POOL[len(self.pool)](feature, self.pool).flatten(1)), dim=1)


def batch_weights(label: Tensor, classes: int) -> Tensor:
    """[K] ``class_weights`` of all samples of a batch together."""
    return class_weights(label.reshape(1, -1), classes)[0]


@torch.no_grad()
def knowledge_map(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """[B, *S] weights: how much better the teacher knows a voxel, ReLU(CE_student - CE_teacher), zero where it errs."""
    better = (
        cross_entropy(student, label, reduction="none")
        - cross_entropy(teacher, label, reduction="none")
    ).relu()
    return better * (teacher.argmax(1) == label)


def contrastive_loss(one: Tensor, other: Tensor, margin: float = 1.0) -> Tensor:
    """Mean over all pairs of d² (same sample) or max(0, margin - d)² (different ones); embeddings [B, E], B > 1."""
    if len(one) < 2:
        return one.sum() * 0
    distance = (one[:, None] - other[None]).square().sum(2).clamp_min(1e-12).sqrt()
    same = torch.eye(len(one), dtype=torch.bool, device=one.device)
    return torch.where(same, distance.square(), (margin - distance).relu().square()).mean()
