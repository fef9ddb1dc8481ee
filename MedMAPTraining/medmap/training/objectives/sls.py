"""Shared-latent-space training as published: one network for all subsets, with every auxiliary
output that it has.

RFNet (Ding et al., ICCV 2021), mmFormer (Zhang et al., MICCAI 2022) and M2FTrans (Shi et al., JBHI
2024) add one segmentation per modality alone and one per level; U-HVED, Robust-MSeg and ShaSpec
have losses of their own, which this adds for the networks that offer them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from medmap.networks import Backbone, Output
from medmap.networks.base import Features
from medmap.networks.blocks import mask_absent
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Objective
from medmap.training.objectives.losses import (
    cross_entropy_and_dice,
    resize_label,
    resize_logits,
)


class SharedLatentSpace(Objective):
    """L = L_fuse + separate * sum_m L_m + deep * sum_l L_l + the network's own, each L = CE_w +
    Dice.

    CE_w weighs a class by 1 - its share of the sample's voxels; Dice counts the background and sums
    over the batch. The lineage's code takes the log of clipped probabilities and up-samples
    probabilities of coarse levels to full size; here the log-softmax is taken (``clip=0.005`` is
    theirs) and logits are up-sampled.

    Published: fused loss only from epoch 20 (RFNet), none (mmFormer), with the deep levels
    (M2FTrans: ``deep_from_start=False``).

    The lineage masks *features*: encoders see complete cases, and the separate decoder learns from
    all modalities of them. ``hide=True`` does so (with the missingness ``full``); otherwise each
    sample shows what the missingness leaves and nothing else is learned from, which is the only
    honest way where scans are truly missing.

    Args:
        context: the network and the length of an epoch.
        separate: weight of the sum of the modalities' own segmentations.
        deep: weight of the sum of the levels' segmentations.
        deep_decay: factor from one level to the next coarser one; 1 is the lineage's, 0.5 nnU-Net's
            and PASSION's.
        region_fusion_start_epoch: up to this epoch the fused loss is left out, so that encoders
            settle first.
        deep_from_start: whether the deep levels learn before that epoch.
        hide: draw the subset that the fusion sees here, uniformly, and learn separately from all
            that is there.
        clip: see ``medmap.training.objectives.losses.weighted_cross_entropy``.
        class_weighted: False weighs all classes alike, see
            ``medmap.training.objectives.losses.cross_entropy_and_dice``.
        divergence, reconstruction: weights of U-HVED's and Robust-MSeg's own losses.
        shared, domain: weights of ShaSpec's own losses.
    """

    subsets: Tensor

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
        class_weighted: bool = True,
        divergence: float = 0.1,
        reconstruction: float = 0.1,
        shared: float = 0.1,
        domain: float = 0.02,
    ):
        super().__init__()
        self.backbone = context.backbone
        self.total_steps = context.steps
        self.epoch_steps = context.epoch_steps
        self.separate = separate
        self.deep = deep
        self.deep_decay = deep_decay
        self.clip = clip
        self.class_weighted = class_weighted
        self.start = region_fusion_start_epoch
        self.deep_from_start = deep_from_start
        self.hide = hide
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
        if self.hide:
            output, fused = self._forward_hidden(batch)
        else:
            output = self.backbone(batch.image, batch.present, known=batch.modalities)
            fused = batch.present
        step = round(progress * self.total_steps)
        epoch = step // self.epoch_steps
        settled = epoch >= self.start
        with_levels = settled or self.deep_from_start
        losses = self.fused(output, batch, settled, with_levels)
        if output.aux.get("separate"):
            separate = self._separate(output.aux["separate"], batch)
            losses["separate"] = self.separate * separate
        auxiliary = self.backbone.auxiliary_losses(output, batch.image, batch.present, fused)
        for name, value in auxiliary.items():
            losses[name] = self.weights[name] * value
        yield "main", losses

    def fused(
        self, output: Output, batch: Batch, final: bool = True, deep: bool = True
    ) -> dict[str, Tensor]:
        """The losses of the fused output (zero unless ``final``) and of its levels, weighted."""
        # Zero and not left out: what only the fused loss trains gets a gradient of zero, as
        # published.
        segmentation = self._loss(output.logits, batch.label)
        losses = {"segmentation": segmentation * float(final)}
        if not deep:
            return losses
        size = batch.label.shape[1:]
        deep_logits = output.aux.get("deep", [])
        for level, logits in enumerate(deep_logits, 1):
            weight = self.deep * self.deep_decay ** (level - 1)
            full_size = resize_logits(cast(Tensor, logits), size)
            loss = self._loss(full_size, batch.label)
            losses[f"deep{level}"] = weight * loss
        return losses

    def deploy(self) -> Backbone:
        """The backbone itself."""
        return self.backbone

    def _forward_hidden(self, batch: Batch) -> tuple[Output, Tensor]:
        """Encode everything; show the fusion a random subset, the separate decoder everything.

        Returns:
            The output, and [B, M] bool what the fusion was shown.
        """
        network = self.backbone
        features = network.encode_present(batch.image, batch.present)
        # Drawn on the CPU: the same subsets on every device.
        chosen = torch.randint(len(self.subsets), batch.present.shape[:1])
        drawn = self.subsets[chosen.to(batch.present.device)]
        subset = drawn & batch.present
        # A draw that leaves nothing of what the sample has shows all of it.
        subset = torch.where(subset.any(1, keepdim=True), subset, batch.present)
        visible: list[Features | None] = []
        for modality, levels in enumerate(features):
            is_visible = subset[:, modality]
            # All modalities were encoded above, for the separate decoder: none is None.
            encoded = cast(Features, levels)
            visible.append([mask_absent(level, is_visible) for level in encoded])
        output = network.decode(visible, subset)
        output.aux["separate"] = network.separately(features)
        return output, subset

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy_and_dice(
            logits, label, clip=self.clip, class_weighted=self.class_weighted
        )

    def _separate(self, predictions: Sequence[Tensor | None], batch: Batch) -> Tensor:
        """Sum over the modalities of the loss of the samples that have them."""
        total = batch.image.new_zeros(())
        for logits, available in zip(predictions, batch.present.unbind(1), strict=True):
            if logits is None or not available.any():
                continue
            label = resize_label(batch.label, logits.shape[2:])
            loss = self._loss(logits[available], label[available])
            # A mean over the whole batch, of which the others count zero.
            share = available.float().mean()
            total = total + loss * share
        return total
