"""RFNet: region-aware fusion of whatever modalities are present.

Ding, Yu, Yang: "RFNet: Region-aware Fusion Network for Incomplete Multi-modal Brain Tumor
Segmentation", ICCV 2021. Which modality tells most depends on the region: so each level first
predicts coarse region probabilities (PRM) and then weights the modalities separately in every
region (RFM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medmap.networks.base import (
    Features,
    Output,
    encoded_only,
    level_of_each,
    modality_taps,
)
from medmap.networks.blocks import CONV, per_sample
from medmap.networks.rfnet_blocks import (
    SLOPE,
    LevelFusion,
    LineageBackbone,
    LineageConv,
    ResidualEncoder,
    SeparateDecoder,
    UpBlock,
    up_blocks,
)

Level = Sequence[Tensor | None]
"""One level of the encoders: one [B, C, *S] per modality, zero for samples without it, None where
no sample has it.
"""


class RegionPrediction(nn.Module):
    """Probability map prediction (PRM) of one level: which region is where, as far as this level
    can tell.

    The fused modalities ([1-wide M*C -> C/4, 3-wide, 1-wide -> C]), beside the decoder's feature
    except at the deepest level, -> 1-wide ``hidden`` -> 1-wide ``classes`` logits. PRM and RFM see
    the same level.
    """

    def __init__(
        self, dims: int, modalities: int, classes: int, channels: int, hidden: int, deepest: bool
    ):
        super().__init__()
        embedded = max(1, channels // 4)
        reduced = channels
        if not deepest:
            # The decoder's feature stands beside the embedded modalities.
            reduced = 2 * channels
        self.embed = LevelFusion(dims, modalities, channels, hidden=embedded, outputs=channels)
        self.reduce = LineageConv(dims, reduced, hidden, kernel=1)
        self.head = CONV[dims](hidden, classes, 1)

    def forward(self, level: Level, decoded: Tensor | None) -> Tensor:
        """The level and the decoder's feature [B, C, *S] (None at the deepest level) -> logits [B,
        classes, *S].
        """
        x = self.embed(level)
        if decoded is not None:
            x = torch.cat([decoded, x], 1)
        reduced = self.reduce(x)
        return self.head(reduced)


class RegionFusion(nn.Module):
    """Region-aware fusion (RFM) of one level.

    With p_k the probability of region k, per region k and modality m: R_mk = Y_m * p_k; from the
    region's means (mean R_mk / (mean p_k + 1e-7) for all m, beside mean p_k) two layers and a
    sigmoid give a weight a_mk; F_k = sum_m a_mk R_mk. [F_k over regions] is fused to C/2 channels,
    [Y_m over modalities] to the other C/2.

    The means are those of the whole window, so the result depends on the window's size, as
    published.
    """

    def __init__(self, dims: int, modalities: int, classes: int, channels: int, hidden: int):
        super().__init__()
        self.weights = nn.ModuleList(
            nn.Sequential(
                nn.Linear(modalities * channels + 1, hidden),
                nn.LeakyReLU(SLOPE),
                nn.Linear(hidden, modalities),
            )
            for _ in range(classes)
        )
        half = channels // 2
        self.regions = LevelFusion(dims, classes, channels, channels, channels - half)
        self.shortcut = LevelFusion(dims, modalities, channels, channels, half)

    def forward(self, level: Level, probability: Tensor) -> Tensor:
        """The level and region probabilities [B, classes, *S] -> [B, C, *S]."""
        weights = self._modality_weights(level, probability)
        regions = []
        for region in range(len(self.weights)):
            total = self._weighted_sum(level, weights[:, region])
            # p_k does not depend on the modality: multiplied once, after the sum.
            share = probability[:, region : region + 1]
            regions.append(share.to(total.dtype) * total)
        by_region = self.regions(regions)
        by_modality = self.shortcut(level)
        return torch.cat([by_region, by_modality], 1)

    def _modality_weights(self, level: Level, probability: Tensor) -> Tensor:
        """a_mk for every sample: [B, classes, M], in [0, 1]."""
        described = self._region_means(level, probability)
        weights = []
        for region, mlp in enumerate(self.weights):
            scores = mlp(described[:, region])
            weights.append(scores.sigmoid())
        return torch.stack(weights, 1)

    @staticmethod
    def _region_means(level: Level, probability: Tensor) -> Tensor:
        """What describes every region: [B, classes, M*C + 1].

        The mean of R_mk over the voxels, relative to that of p_k, for all modalities; then the mean
        of p_k.
        """
        share = probability.float().flatten(2)
        mean = share.mean(2)
        voxels = share.shape[2]
        # Divided before the sum over voxels, not after it: the sum then stays in the range of half
        # precision.
        share = share / (mean[..., None] + 1e-7) / voxels
        example = next(feature for feature in level if feature is not None)
        channels = example.shape[1]
        absent = example.new_zeros(*mean.shape, channels)
        means = []
        for feature in level:
            if feature is None:
                means.append(absent)
            else:
                # A matrix product takes all regions' means in one pass over the feature.
                values = feature.flatten(2).transpose(1, 2)
                means.append(torch.bmm(share.to(feature.dtype), values))
        means.append(mean[..., None].to(example.dtype))
        return torch.cat(means, 2)

    @staticmethod
    def _weighted_sum(level: Level, weights: Tensor) -> Tensor:
        """sum_m a_m Y_m; weights [B, M] -> [B, C, *S]. Maps of absent modalities are zero."""
        total: Tensor | None = None
        for modality, feature in enumerate(level):
            if feature is None:
                continue
            term = per_sample(weights[:, modality], feature).to(feature.dtype) * feature
            total = term if total is None else total + term
        if total is None:
            raise ValueError("at least one modality is needed")
        return total


class RFNet(LineageBackbone):
    """RFNet with 8.98 M parameters (8,984,960; four modalities and classes), as published and
    released.

    ``widths=(8, 16, 32, 64)`` is the narrower variant of PASSION (Shi et al., MM 2024): 2.38 M
    (2,381,792).

    Auxiliary outputs in training: ``deep``, the region logits of every level, finest (full
    resolution) first; ``separate``, each modality segmented alone by the decoder that all share.
    The released code up-samples the *softmax* of the former before its loss; here the logits are
    given at their own size and the objective decides. Region probabilities are detached before they
    weight anything: only their own loss trains the PRM. The released fusion takes the number of
    classes for that of modalities (both are four); here they are independent.

    Args:
        modalities: number of modalities M.
        classes: number of classes (regions), background included.
        spatial_dims: 2 or 3.
        widths: channels at strides 1, 2, 4, ...
        region_hidden: channels between the two layers of the PRM.
        weight_hidden: channels between the two layers that give a modality its weight.
        modality_channels: of every modality's input; more than one behind a stem.
    """

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128),
        region_hidden: int = 16,
        weight_hidden: int = 128,
        modality_channels: int = 1,
    ):
        super().__init__()
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.stride = 2 ** (len(widths) - 1)
        dims = spatial_dims
        deepest = len(widths) - 1
        self.encoders = nn.ModuleList(
            ResidualEncoder(dims, widths, inputs=modality_channels) for _ in range(modalities)
        )
        self.separate = SeparateDecoder(dims, classes, widths)
        self.predictions = nn.ModuleList(
            RegionPrediction(dims, modalities, classes, width, region_hidden, level == deepest)
            for level, width in enumerate(widths)
        )
        self.fusions = nn.ModuleList(
            RegionFusion(dims, modalities, classes, width, weight_hidden) for width in widths
        )
        self.ups = up_blocks(dims, widths)
        self.head = CONV[dims](widths[0], classes, 1)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> levels at strides 1, 2, 4, 8."""
        return self.encoders[modality](image)

    def separately(self, features: Sequence[Features | None]) -> list[Tensor | None]:
        """Segmentations from each modality alone; see ``Backbone.separately``."""
        return self.separate.each(features)

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Region-aware fusion from the deepest level up; see ``Backbone.decode``.

        ``present`` is not looked at: what is absent is zero in every term, and its weight
        multiplies zero.
        """
        deep: list[Tensor] = []
        fused: list[Tensor] = []
        x: Tensor | None = None
        for level in reversed(range(len(self.fusions))):
            maps = level_of_each(features, level)
            decoded = None
            if x is not None:
                decoded = self._up_block(level).raise_(x)
            regions = self.predictions[level](maps, decoded)
            # Detached: only their own loss trains the region probabilities.
            fusion = self.fusions[level](maps, regions.softmax(1).detach())
            deep.insert(0, regions)
            fused.insert(0, fusion)
            if decoded is None:
                x = fusion
            else:
                x = self._up_block(level).merge(decoded, fusion)
        taps = {
            **modality_taps(encoded_only(features)),
            "bottleneck": fused[-1],
            "decoder": x,
        }
        return self.output(self.head(x), deep, taps, features, want)

    def _up_block(self, level: int) -> UpBlock:
        return cast(UpBlock, self.ups[level])
