"""PMR: the modality that lags behind is drawn to class prototypes, the one that leads is held back
at first.

Fan, Xu, Wang, Wang, Guo: "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023;
for segmentation as PASSION (Shi et al., ACM MM 2024) compares with it. That code holds a loss
function which its training never calls, so this is written from the description of the method: a
re-implementation, not a reproduction.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medmap.errors import UsageError
from medmap.networks import Backbone
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context
from medmap.training.objectives.dedicated import tap_channels
from medmap.training.objectives.losses import class_means, one_hot_classes, resize_label
from medmap.training.objectives.self_distillation import Students, decode_together, encode_batch
from medmap.training.objectives.sls import SharedLatentSpace


class PMR(SharedLatentSpace):
    """L = L_fuse + alpha * sum_m b_m L_pce^m - entropy * sum_m g_m H_m.

    * A modality's feature is that of the fused decoder with this modality alone (tap ``decoder``);
      its classifier is softmax(-|f - c_k|) with the modality's class prototypes c_k.
    * Prototypes are means over an epoch, new ones mixed as ``momentum`` * old + (1 - momentum) *
      new (0.2 and 0.8 as released); before the end of the first epoch there are none, and nothing
      is added. ``own_prototypes`` takes the means of the sample itself, as PASSION's function does.
    * Strength s_m: probability of the true class, mean over the voxels of each class, then over the
      classes (the background would decide otherwise), then over samples.
    * L_pce: cross-entropy of that classifier, averaged in the same way. b_m = clip(rho_m - 1, 0,
      1), rho_m the mean strength of the others over s_m; with two modalities the paper's ratio.
    * H_m: entropy of that classifier of the leading modalities, g_m = clip(1 / rho_m - 1, 0, 1),
      only during the first ``entropy_share`` of the training. From the paper; its released code has
      no such term.

    Per epoch are logged ``strength_<modality>``.

    Args:
        context: the network and the length of an epoch.
        alpha, entropy: weights.
        entropy_share: share of the training with the entropy term.
        momentum: of the prototypes.
        own_prototypes: of each sample instead of the epoch's.
        deep, deep_decay, clip, class_weighted: of the fused loss, see ``SharedLatentSpace``; 1/2,
            1/4, ... as PASSION has it.

    Raises:
        UsageError: the network has no ``decoder`` tap.
    """

    prototypes: Tensor
    sums: Tensor
    known: Tensor
    counts: Tensor
    strength_sum: Tensor
    seen: Tensor

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
        class_weighted: bool = True,
    ):
        if "decoder" not in context.backbone.provides:
            raise UsageError(
                f"PMR cannot train {type(context.backbone).__name__}.",
                "Use a network with the tap 'decoder'.",
            )
        super().__init__(
            context,
            separate=0.0,
            deep=deep,
            deep_decay=deep_decay,
            clip=clip,
            class_weighted=class_weighted,
        )
        self.alpha = alpha
        self.entropy = entropy
        self.entropy_share = entropy_share
        self.momentum = momentum
        self.own_prototypes = own_prototypes
        self.names = context.task.modality_names
        self.classes = context.task.num_classes
        self.backbone.skip = frozenset({"separate"})
        modalities = len(self.names)
        shape = (modalities, self.classes)
        # The width of the decoder is known once it has run; buffers of width 0 until then would not
        # resume.
        width = decoder_width(context.backbone)
        self.register_buffer("prototypes", torch.zeros(*shape, width))
        self.register_buffer("sums", torch.zeros(*shape, width))
        self.register_buffer("known", torch.zeros(shape))
        self.register_buffer("counts", torch.zeros(shape))
        self.register_buffer("strength_sum", torch.zeros(modalities))
        self.register_buffer("seen", torch.zeros(modalities))

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        features = encode_batch(self.backbone, batch)
        students = Students.of(batch.present)
        taps = ("decoder",)
        fused, single = decode_together(self.backbone, features, batch.present, students, taps)
        losses = self.fused(fused, batch)
        if len(students):
            feature = single.taps["decoder"].float()
            label = resize_label(batch.label, feature.shape[2:])[students.sample]
            means, has_class = class_means(feature, label, self.classes)
            means = means.detach()
            self._collect(means, has_class, students)
            if self.own_prototypes:
                prototypes = means
                usable = has_class
            else:
                # A class without a prototype yet has nothing to be compared with.
                prototypes = self.prototypes[students.modality]
                has_prototype = self.known[students.modality] > 0
                usable = has_class & has_prototype
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
        """The two terms, from log-probabilities [R, K, *S] and the classes [R, K] that each student
        is judged by.
        """
        target = one_hot_classes(label, self.classes)
        probability = mean_over_classes(logp.detach().exp(), target, usable)
        strength = students.table(probability, present)
        judged = students.table(usable.any(1).float(), present)
        strengths = strength.sum(0)
        numbers = judged.sum(0)
        self.strength_sum += strengths
        self.seen += numbers
        mean_strength = strengths / numbers.clamp(min=1)
        ratio = imbalance(mean_strength)
        # A modality weaker than the others (ratio above 1) is pulled to its prototypes ...
        behind = (ratio - 1).clamp(0, 1)[students.modality]
        # Means over the samples that have students, whose number their students do not change.
        has_students = judged.sum(1) > 0
        samples = has_students.sum().clamp(min=1)
        entropy = -mean_over_classes(logp, target, usable)
        pull = (behind * entropy).sum()
        losses = {"prototype": self.alpha * pull / samples}
        if progress < self.entropy_share:
            # ... and a stronger one is held back early on, by a bonus for undecided outputs.
            lead = 1 / ratio.clamp(min=1e-6) - 1
            ahead = torch.where(ratio > 0, lead, torch.zeros_like(ratio)).clamp(0, 1)
            entropies = -(logp.exp() * logp).sum(1)
            spread = entropies.flatten(1).mean(1)
            held_back = (ahead[students.modality] * spread).sum()
            losses["entropy"] = -self.entropy * held_back / samples
        return losses

    def _collect(self, means: Tensor, has_class: Tensor, students: Students) -> None:
        counted_means = means * has_class[..., None]
        self.sums.index_add_(0, students.modality, counted_means)
        self.counts.index_add_(0, students.modality, has_class.float())

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Renew the prototypes; returns every modality's strength."""
        self._renew_prototypes()
        strength = self.strength_sum / self.seen.clamp(min=1)
        for buffer in (self.sums, self.counts, self.strength_sum, self.seen):
            buffer.zero_()
        pairs = zip(self.names, strength.tolist(), strict=True)
        return {f"strength_{name}": value for name, value in pairs}

    def _renew_prototypes(self) -> None:
        """Move the prototypes toward the means of the epoch."""
        means = self.sums / self.counts.clamp(min=1)[..., None]
        # A class without a prototype yet takes the epoch's mean as it is.
        has_prototype = self.known > 0
        momentum = torch.where(has_prototype, self.momentum, 0.0)[..., None]
        mixed = momentum * self.prototypes + (1 - momentum) * means
        # Classes that the epoch did not show keep theirs.
        renewed = self.counts > 0
        self.prototypes = torch.where(renewed[..., None], mixed, self.prototypes)
        self.known = (has_prototype | renewed).float()


def prototype_log_probability(feature: Tensor, prototypes: Tensor, usable: Tensor) -> Tensor:
    """log softmax(-|f - c_k|) over the usable classes, 0 for the others.

    Args:
        feature: [R, C, *S].
        prototypes: [R, K, C].
        usable: [R, K] bool.
    """
    voxels = feature.float().flatten(2)
    centers = prototypes.float()
    # |f - c|² = |c|² - 2 c f + |f|², so that no difference of every voxel to every class is kept.
    center_squares = centers.square().sum(2)[..., None]
    voxel_squares = voxels.square().sum(1)[:, None]
    squared = center_squares - 2 * torch.bmm(centers, voxels) + voxel_squares
    # The root has an infinite slope at zero; -inf would make 0 * inf of the gradient.
    distance = squared.clamp(min=1e-8).sqrt()
    counted = usable[..., None]
    logits = torch.where(counted, -distance, torch.full_like(squared, -1e9))
    logp = logits.log_softmax(1)
    logp = torch.where(counted, logp, torch.zeros_like(logp))
    return logp.reshape(*logp.shape[:2], *feature.shape[2:])


def mean_over_classes(values: Tensor, truth: Tensor, usable: Tensor) -> Tensor:
    """Mean over each class's voxels, then over the usable classes; values, truth [R, K, *S], usable
    [R, K] -> [R].
    """
    voxels = truth.flatten(2).sum(2).clamp(min=1)
    class_sum = (values * truth).flatten(2).sum(2)
    class_mean = class_sum / voxels
    number = usable.sum(1).clamp(min=1)
    return (class_mean * usable).sum(1) / number


def imbalance(strength: Tensor) -> Tensor:
    """rho_m: mean strength of the other modalities over that of m; [M] -> [M], 1 where there is
    nothing to compare.
    """
    measured = strength > 0
    number = measured.sum()
    mean_of_others = (strength.sum() - strength) / (number - 1).clamp(min=1)
    ratio = mean_of_others / strength.clamp(min=1e-6)
    comparable = measured & (number > 1)
    return torch.where(comparable, ratio, torch.ones_like(strength))


def decoder_width(network: Backbone) -> int:
    """Channels of the tap ``decoder``, from a run on the smallest window."""
    return tap_channels(network, "decoder")
