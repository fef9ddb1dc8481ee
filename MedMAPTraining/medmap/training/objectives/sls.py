"""Shared-latent-space training as published: one network for all subsets, with every auxiliary output that it has.

RFNet (Ding et al., ICCV 2021), mmFormer (Zhang et al., MICCAI 2022) and M2FTrans (Shi et al., JBHI 2024) add one
segmentation per modality alone and one per level; U-HVED, Robust-MSeg and ShaSpec have losses of their own, which this
adds for the networks that offer them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medmap.networks import Backbone, Output
from medmap.networks.blocks import mask_absent
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Objective
from medmap.training.objectives.losses import (
    cross_entropy_and_dice,
    resize_label,
    resize_logits,
)


class SharedLatentSpace(Objective):
    """L = L_fuse + separate * sum_m L_m + deep * sum_l L_l + the network's own, each L = CE_w + Dice.

    CE_w weighs a class by 1 - its share of the sample's voxels; Dice counts the background and sums over the batch.
    The lineage's code takes the log of clipped probabilities and up-samples probabilities of coarse levels to full
    size; here the log-softmax is taken (``clip=0.005`` is theirs) and logits are up-sampled.

    Published: fused loss only from epoch 20 (RFNet), none (mmFormer), with the deep levels (M2FTrans:
    ``deep_from_start=False``).

    The lineage masks *features*: encoders see complete cases, and the separate decoder learns from all modalities of
    them. ``hide=True`` does so (with the missingness ``full``); otherwise each sample shows what the missingness
    leaves and nothing else is learned from, which is the only honest way where scans are truly missing.

    Args:
        context: the network and the length of an epoch.
        separate: weight of the sum of the modalities' own segmentations.
        deep: weight of the sum of the levels' segmentations.
        deep_decay: factor from one level to the next coarser one; 1 is the lineage's, 0.5 nnU-Net's and PASSION's.
        region_fusion_start_epoch: up to this epoch the fused loss is left out, so that encoders settle first.
        deep_from_start: whether the deep levels learn before that epoch.
        hide: draw the subset that the fusion sees here, uniformly, and learn separately from all that is there.
        clip: see ``medmap.training.objectives.losses.weighted_cross_entropy``.
        divergence, reconstruction: weights of U-HVED's and Robust-MSeg's own losses.
        shared, domain: weights of ShaSpec's own losses.
    """

    def __init__(
        self,
        context: Context,
        separate: float = 1.0,
        deep: float = 1.0,
        deep_decay: float = 1.0,
        region_fusion_start_epoch: int = 0,
        deep_from_start: bool = True,
        hide: bool = False,
        clip: float = 0.0,
        divergence: float = 0.1,
        reconstruction: float = 0.1,
        shared: float = 0.1,
        domain: float = 0.02,
    ):
        super().__init__()
        self.backbone, self.steps_in_all, self.epoch_steps = (
            context.backbone,
            context.steps,
            context.epoch_steps,
        )
        self.separate, self.deep, self.deep_decay, self.clip = separate, deep, deep_decay, clip
        self.start, self.deep_from_start, self.hide = (
            region_fusion_start_epoch,
            deep_from_start,
            hide,
        )
        self.weights = {
            "divergence": divergence,
            "reconstruction": reconstruction,
            "shared": shared,
            "domain": domain,
        }
        if hide:  # the separate decoder then takes what is hidden from the fusion as well
            self.backbone.skip = frozenset({"separate"})
        subsets = [context.task.presence(subset) for subset in context.task.subsets()]
        self.register_buffer("subsets", torch.tensor(subsets), persistent=False)

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        output, shown = self._hidden(batch) if self.hide else (self._forward(batch), batch.present)
        started = round(progress * self.steps_in_all) // self.epoch_steps >= self.start
        losses = self.fused(output, batch, started, started or self.deep_from_start)
        if output.aux.get("separate"):
            losses["separate"] = self.separate * self._separate(output.aux["separate"], batch)
        auxiliary = self.backbone.auxiliary_losses(output, batch.image, batch.present, shown)
        for name, value in auxiliary.items():
            losses[name] = self.weights[name] * value
        yield "main", losses

    def fused(
        self, output: Output, batch: Batch, final: bool = True, deep: bool = True
    ) -> dict[str, Tensor]:
        """The losses of the fused output (zero unless ``final``) and of its levels, weighted."""
        losses = {"segmentation": self._loss(output.logits, batch.label) * float(final)}
        for level, logits in enumerate(output.aux.get("deep", []) if deep else [], 1):
            weight = self.deep * self.deep_decay ** (level - 1)
            losses[f"deep{level}"] = weight * self._loss(
                resize_logits(logits, batch.label.shape[1:]), batch.label
            )
        return losses

    def deploy(self) -> Backbone:
        """The backbone itself."""
        return self.backbone

    def _forward(self, batch: Batch) -> Output:
        return self.backbone(batch.image, batch.present, known=batch.modalities)

    def _hidden(self, batch: Batch) -> tuple[Output, Tensor]:
        """Encode all that is there, let the fusion see a random subset of it, the separate decoder everything."""
        network, features = self.backbone, []
        for m in range(network.modalities):
            here = batch.present[:, m]
            encoded = network.encode(mask_absent(batch.image[:, m : m + 1], here), m)
            features.append([mask_absent(level, here) for level in encoded])
        chosen = torch.randint(len(self.subsets), batch.present.shape[:1]).to(batch.present.device)
        shown = self.subsets[chosen] & batch.present
        shown = torch.where(shown.any(1, keepdim=True), shown, batch.present)
        hidden = [[mask_absent(level, shown[:, m]) for level in f] for m, f in enumerate(features)]
        output = network.decode(hidden, shown)
        output.aux["separate"] = network.separately(features)
        return output, shown

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy_and_dice(logits, label, clip=self.clip)

    def _separate(self, predictions: list[Tensor | None], batch: Batch) -> Tensor:
        """Sum over the modalities of the loss of the samples that have them."""
        total = batch.image.new_zeros(())
        for logits, here in zip(predictions, batch.present.unbind(1), strict=True):
            if logits is not None and here.any():
                label = resize_label(batch.label, logits.shape[2:])
                total = total + self._loss(logits[here], label[here]) * here.float().mean()
        return total
