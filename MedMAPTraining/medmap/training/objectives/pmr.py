"""PMR: the modality that lags behind is drawn to class prototypes, the one that leads is held back at first.

Fan, Xu, Wang, Wang, Guo: "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023; for segmentation as
PASSION (Shi et al., ACM MM 2024) compares with it. That code holds a loss function which its training never calls, so
this is written from the description of the method: a re-implementation, not a reproduction.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medmap.errors import UsageError
from medmap.networks import Backbone
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context
from medmap.training.objectives.losses import class_means, one_hot_classes, resize_label
from medmap.training.objectives.self_distillation import Students, decode_together, encode_present
from medmap.training.objectives.sls import SharedLatentSpace


class PMR(SharedLatentSpace):
    """L = L_fuse + alpha * sum_m b_m L_pce^m - entropy * sum_m g_m H_m.

    * A modality's feature is that of the fused decoder with this modality alone (tap ``decoder``); its classifier is
      softmax(-|f - c_k|) with the modality's class prototypes c_k.
    * Prototypes are means over an epoch, new ones mixed as ``momentum`` * old + (1 - momentum) * new (0.2 and 0.8 as
      released); before the end of the first epoch there are none, and nothing is added. ``own_prototypes`` takes the
      means of the sample itself, as PASSION's function does.
    * Strength s_m: probability of the true class, mean over the voxels of each class, then over the classes (the
      background would decide otherwise), then over samples.
    * L_pce: cross-entropy of that classifier, averaged in the same way. b_m = clip(rho_m - 1, 0, 1), rho_m the mean
      strength of the others over s_m; with two modalities the paper's ratio.
    * H_m: entropy of that classifier of the leading modalities, g_m = clip(1 / rho_m - 1, 0, 1), only during the first
      ``entropy_share`` of the training. From the paper; its released code has no such term.

    Per epoch are logged ``strength_<modality>``.

    Args:
        context: the network and the length of an epoch.
        alpha, entropy: weights.
        entropy_share: share of the training with the entropy term.
        momentum: of the prototypes.
        own_prototypes: of each sample instead of the epoch's.
        deep, deep_decay, clip: of the fused loss, see ``SharedLatentSpace``; 1/2, 1/4, ... as PASSION has it.

    Raises:
        UsageError: the network has no ``decoder`` tap.
    """

    def __init__(
        self,
        context: Context,
        alpha: float = 1.0,
        entropy: float = 1.0,
        entropy_share: float = 0.1,
        momentum: float = 0.2,
        own_prototypes: bool = False,
        deep: float = 0.5,
        deep_decay: float = 0.5,
        clip: float = 0.0,
    ):
        if "decoder" not in context.backbone.provides:
            raise UsageError(
                f"PMR cannot train {type(context.backbone).__name__}.",
                "Use a network with the tap 'decoder'.",
            )
        super().__init__(context, separate=0.0, deep=deep, deep_decay=deep_decay, clip=clip)
        self.alpha, self.entropy, self.entropy_share = alpha, entropy, entropy_share
        self.momentum, self.own_prototypes = momentum, own_prototypes
        self.names, self.classes = context.task.modality_names, context.task.num_classes
        self.backbone.skip = frozenset({"separate"})
        shape = (len(self.names), self.classes)
        # The width of the decoder is known once it has run; buffers of width 0 until then would not resume.
        width = decoder_width(context.backbone)
        for name, size in (
            ("prototypes", (*shape, width)),
            ("sums", (*shape, width)),
            ("known", shape),
        ):
            self.register_buffer(name, torch.zeros(size))
        for name, size in (("counts", shape), ("strength_sum", shape[:1]), ("seen", shape[:1])):
            self.register_buffer(name, torch.zeros(size))

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        features, students = encode_present(self.backbone, batch), Students.of(batch.present)
        fused, alone = decode_together(
            self.backbone, features, batch.present, students, ("decoder",)
        )
        losses = self.fused(fused, batch)
        if len(students):
            feature = alone.taps["decoder"].float()
            label = resize_label(batch.label, feature.shape[2:])[students.sample]
            means, there = class_means(feature, label, self.classes)
            self._collect(means.detach(), there, students)
            prototypes, usable = means.detach(), there
            if not self.own_prototypes:
                prototypes = self.prototypes[students.modality]
                usable = there & (self.known[students.modality] > 0)
            if usable.any():
                logp = prototype_log_probability(feature, prototypes, usable)
                losses |= self._rebalance(logp, label, usable, students, batch.present, progress)
        yield "main", losses

    def _rebalance(
        self,
        logp: Tensor,
        label: Tensor,
        usable: Tensor,
        students: Students,
        present: Tensor,
        progress: float,
    ) -> dict[str, Tensor]:
        """The two terms, from log-probabilities [R, K, *S] and the classes [R, K] that each student is judged by."""
        truth = one_hot_classes(label, self.classes)
        strength = students.table(mean_over_classes(logp.detach().exp(), truth, usable), present)
        had = students.table(usable.any(1).float(), present)
        self.strength_sum += strength.sum(0)
        self.seen += had.sum(0)
        ratio = imbalance(strength.sum(0) / had.sum(0).clamp(min=1))
        behind = (ratio - 1).clamp(0, 1)[students.modality]
        ahead = torch.where(
            ratio > 0, 1 / ratio.clamp(min=1e-6) - 1, torch.zeros_like(ratio)
        ).clamp(0, 1)
        # Means over the samples that have students, whose number their students do not change.
        samples = (had.sum(1) > 0).sum().clamp(min=1)
        losses = {
            "prototype": self.alpha
            * (behind * -mean_over_classes(logp, truth, usable)).sum()
            / samples
        }
        if progress < self.entropy_share:
            spread = -(logp.exp() * logp).sum(1).flatten(1).mean(1)
            losses["entropy"] = -self.entropy * (ahead[students.modality] * spread).sum() / samples
        return losses

    def _collect(self, means: Tensor, there: Tensor, students: Students) -> None:
        self.sums.index_add_(0, students.modality, means * there[..., None])
        self.counts.index_add_(0, students.modality, there.float())

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Renew the prototypes; returns every modality's strength."""
        fresh = self.sums / self.counts.clamp(min=1)[..., None]
        kept = torch.where(self.known > 0, self.momentum, 0.0)[..., None]
        mixed = kept * self.prototypes + (1 - kept) * fresh
        self.prototypes = torch.where(self.counts[..., None] > 0, mixed, self.prototypes)
        self.known = ((self.known > 0) | (self.counts > 0)).float()
        strength = self.strength_sum / self.seen.clamp(min=1)
        for buffer in (self.sums, self.counts, self.strength_sum, self.seen):
            buffer.zero_()
        return {f"strength_{name}": float(strength[m]) for m, name in enumerate(self.names)}


def prototype_log_probability(feature: Tensor, prototypes: Tensor, usable: Tensor) -> Tensor:
    """log softmax(-|f - c_k|) over the usable classes, 0 for the others.

    Args:
        feature: [R, C, *S].
        prototypes: [R, K, C].
        usable: [R, K] bool.
    """
    flat, c = feature.float().flatten(2), prototypes.float()
    squared = c.square().sum(2)[..., None] - 2 * torch.bmm(c, flat) + flat.square().sum(1)[:, None]
    # The root has an infinite slope at zero; -inf would make 0 * inf of the gradient.
    logits = torch.where(
        usable[..., None], -squared.clamp(min=1e-8).sqrt(), torch.full_like(squared, -1e9)
    )
    logp = logits.log_softmax(1)
    logp = torch.where(usable[..., None], logp, torch.zeros_like(logp))
    return logp.reshape(*logp.shape[:2], *feature.shape[2:])


def mean_over_classes(values: Tensor, truth: Tensor, usable: Tensor) -> Tensor:
    """Mean over each class's voxels, then over the usable classes; values, truth [R, K, *S], usable [R, K] -> [R]."""
    each = (values * truth).flatten(2).sum(2) / truth.flatten(2).sum(2).clamp(min=1)
    return (each * usable).sum(1) / usable.sum(1).clamp(min=1)


def imbalance(strength: Tensor) -> Tensor:
    """rho_m: mean strength of the other modalities over that of m; [M] -> [M], 1 where there is nothing to compare."""
    there = strength > 0
    others = (strength.sum() - strength) / (there.sum() - 1).clamp(min=1)
    comparable = there & (there.sum() > 1)
    return torch.where(comparable, others / strength.clamp(min=1e-6), torch.ones_like(strength))


@torch.no_grad()
def decoder_width(network: Backbone) -> int:
    """Channels of the tap ``decoder``, from a run on the smallest window."""
    was, size = network.training, (2 * network.stride,) * network.spatial_dims
    present = torch.ones(1, network.modalities, dtype=torch.bool)
    network.eval()
    width = (
        network(torch.zeros(1, network.modalities, *size), present, ("decoder",))
        .taps["decoder"]
        .shape[1]
    )
    network.train(was)
    return width
