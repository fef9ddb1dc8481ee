"""Parts that RFNet, mmFormer and M2FTrans have in common. Shapes are [B, C, *S] with two or three
spatial axes S.

RFNet (Ding et al., ICCV 2021) set the pattern: one residual encoder per modality, one decoder that
all modalities share as an auxiliary task, and at every level a fusion of the concatenated
modalities by 1-, 3- and 1-wide convolutions. mmFormer (Zhang et al., MICCAI 2022) uses it with the
normalization in front of the convolution, M2FTrans (Shi et al., JBHI 2024) with one more level.
Instance normalization has neither weights nor running statistics, LeakyReLU has slope 0.2, padding
reflects, convolutions have a bias (the published parameter counts contain it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medmap.networks.base import Backbone, Features, Output, encoded_only, requested
from medmap.networks.blocks import CONV, NORM, residual_levels, upsample

SLOPE = 0.2


def upsample_aligned(x: Tensor, scale: int = 2) -> Tensor:
    """Linear up-sampling whose corner voxels keep their place, as this family has it; [B, C, *S] ->
    [B, C, *scale*S].

    Other networks do not align corners: the result then depends on the size of the window.
    """
    return upsample(x, scale, align_corners=True)


class LineageConv(nn.Module):
    """conv -> IN -> LReLU(0.2), or with ``pre_norm`` IN -> LReLU(0.2) -> conv; [B, inputs, *S] ->
    [B, outputs, *S].

    With an even size, ``stride`` 2 halves it. Reflection needs at least two voxels along every
    axis.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        pre_norm: bool = False,
    ):
        super().__init__()
        padding = (kernel - 1) // 2
        mode: Literal["reflect", "zeros"] = "zeros"
        if padding:
            mode = "reflect"
        self.pre_norm = pre_norm
        self.conv = CONV[dims](
            inputs, outputs, kernel, stride=stride, padding=padding, padding_mode=mode
        )
        self.norm = NORM[dims](inputs if pre_norm else outputs)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm:
            activated = self.act(self.norm(x))
            return self.conv(activated)
        convolved = self.conv(x)
        return self.act(self.norm(convolved))


class ModalitySumConv(nn.Module):
    """``LineageConv`` of width 1 over the concatenation of M modalities, as the sum of one term per
    modality.

    The same function and the same weights ([outputs, M * channels, 1, ...], in task order) as
    concatenating and convolving; but a modality left out costs nothing, and gives the same bits as
    one that is zero: normalization and LeakyReLU keep zero at zero, and so does a convolution
    without its bias, which is added once at the end.
    """

    def __init__(
        self, dims: int, modalities: int, channels: int, outputs: int, *, pre_norm: bool = False
    ):
        super().__init__()
        normed_channels = outputs
        if pre_norm:
            normed_channels = channels
        self.pre_norm = pre_norm
        self.conv = CONV[dims](modalities * channels, outputs, 1)
        self.norm = NORM[dims](normed_channels)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, features: Sequence[Tensor | None]) -> Tensor:
        """features: one [B, channels, *S] per modality, zero for samples without it, None where no
        sample has it.
        """
        if not self.pre_norm:
            total = sum_over_modalities(self.conv, features)
            return self.act(self.norm(total))
        activated: list[Tensor | None] = []
        for feature in features:
            if feature is None:
                activated.append(None)
            else:
                activated.append(self.act(self.norm(feature)))
        return sum_over_modalities(self.conv, activated)


def sum_over_modalities(conv: nn.Conv2d | nn.Conv3d, features: Sequence[Tensor | None]) -> Tensor:
    """A zero-padded convolution of stride 1 over the concatenation of M equally wide features; ->
    [B, outputs, *S].

    One term per modality, added in task order, None counting as zero; the bias is added once.
    Raises ValueError where all features are None.
    """
    function = {4: nn.functional.conv2d, 5: nn.functional.conv3d}[conv.weight.ndim]
    total: Tensor | None = None
    for modality, feature in enumerate(features):
        if feature is None:
            continue
        channels = feature.shape[1]
        first = modality * channels
        weight = conv.weight[:, first : first + channels]
        term = function(feature, weight, padding=conv.padding)
        total = term if total is None else total + term
    if total is None:
        raise ValueError("at least one modality is needed")
    if conv.bias is None:
        return total
    bias = conv.bias.reshape(1, -1, *(1,) * (total.ndim - 2))
    return total + bias.to(total.dtype)


class LevelFusion(nn.Module):
    """Fuse one level: 1-wide over M concatenated modalities -> ``hidden``, 3-wide, 1-wide ->
    ``outputs``.

    mmFormer and M2FTrans: hidden = outputs = channels. RFNet: see ``rfnet``.
    """

    def __init__(
        self,
        dims: int,
        modalities: int,
        channels: int,
        hidden: int | None = None,
        outputs: int | None = None,
        *,
        pre_norm: bool = False,
    ):
        super().__init__()
        hidden = hidden or channels
        outputs = outputs or channels
        self.first = ModalitySumConv(dims, modalities, channels, hidden, pre_norm=pre_norm)
        self.second = LineageConv(dims, hidden, hidden, pre_norm=pre_norm)
        self.third = LineageConv(dims, hidden, outputs, kernel=1, pre_norm=pre_norm)

    def forward(self, features: Sequence[Tensor | None]) -> Tensor:
        """features as for ``ModalitySumConv`` -> [B, outputs, *S]; with a bias in it, so not zero
        where they are.
        """
        return self.third(self.second(self.first(features)))


class ResidualEncoder(nn.Module):
    """One modality: [B, inputs, *S] -> one [B, widths[l], *S / 2**l] per level.

    A level is ``x = first(x); x + third(second(x))`` with 3-wide convolutions; ``first`` has stride
    2 from the second level on. With ``pre_norm`` the very first convolution is a plain one: the
    image is normalized already.
    """

    def __init__(
        self, dims: int, widths: Sequence[int], *, pre_norm: bool = False, inputs: int = 1
    ):
        super().__init__()
        self.first = nn.ModuleList()
        self.body = nn.ModuleList()
        for level, width in enumerate(widths):
            if level == 0 and pre_norm:
                self.first.append(CONV[dims](inputs, width, 3, padding=1, padding_mode="reflect"))
            else:
                stride = 1 if level == 0 else 2
                self.first.append(
                    LineageConv(dims, inputs, width, stride=stride, pre_norm=pre_norm)
                )
            convs = (LineageConv(dims, width, width, pre_norm=pre_norm) for _ in range(2))
            self.body.append(nn.Sequential(*convs))
            inputs = width

    def forward(self, x: Tensor) -> Features:
        return residual_levels(x, self.first, self.body)


class UpBlock(nn.Module):
    """From one level to the next finer one: up-sample and halve (``raise_``), then merge with the
    skip (``merge``).

    ``raise_``: [B, coarse, *S] -> [B, fine, *2S] by linear up-sampling and a 3-wide convolution;
    ``merge``: [B, fine, *S] with the skip [B, fine, *S] -> [B, fine, *S] by a 3-wide and a 1-wide
    convolution.
    """

    def __init__(self, dims: int, coarse: int, fine: int, *, pre_norm: bool = False):
        super().__init__()
        # The skip is concatenated, so the merging convolution reads twice the channels.
        merged = 2 * fine
        self.up = LineageConv(dims, coarse, fine, pre_norm=pre_norm)
        self.mix = LineageConv(dims, merged, fine, pre_norm=pre_norm)
        self.out = LineageConv(dims, fine, fine, kernel=1, pre_norm=pre_norm)

    def raise_(self, x: Tensor) -> Tensor:
        return self.up(upsample_aligned(x))

    def merge(self, x: Tensor, skip: Tensor) -> Tensor:
        stacked = torch.cat([x, skip], 1)
        return self.out(self.mix(stacked))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.merge(self.raise_(x), skip)


def up_blocks(dims: int, widths: Sequence[int], *, pre_norm: bool = False) -> nn.ModuleList:
    """One ``UpBlock`` between neighboring levels, fine to coarse."""
    blocks = nn.ModuleList()
    for fine, coarse in pairwise(widths):
        blocks.append(UpBlock(dims, coarse, fine, pre_norm=pre_norm))
    return blocks


class SeparateDecoder(nn.Module):
    """The U-Net decoder that all modalities share: it segments from one modality's encoder features
    alone.

    An auxiliary task of training only; it keeps every encoder useful by itself.
    """

    def __init__(self, dims: int, classes: int, widths: Sequence[int], *, pre_norm: bool = False):
        super().__init__()
        self.ups = up_blocks(dims, widths, pre_norm=pre_norm)
        self.head = CONV[dims](widths[0], classes, 1)

    def forward(self, features: Features) -> Tensor:
        """One encoder's levels, fine to coarse -> logits [B, classes, *S]."""
        x = features[-1]
        skips = reversed(features[:-1])
        coarse_to_fine = zip(reversed(self.ups), skips, strict=True)
        for up, skip in coarse_to_fine:
            x = up(x, skip)
        return self.head(x)

    def each(self, features: Sequence[Features | None]) -> list[Tensor | None]:
        """Logits of every modality (``Output.aux["separate"]``), None where it was not encoded.

        One call on the stacked batch: nothing here couples samples, and the number of launched
        kernels is that of one.
        """
        encoded = encoded_only(features)
        levels_of_all = zip(*encoded, strict=True)
        stacked = [torch.cat(level) for level in levels_of_all]
        logits = self.forward(stacked).chunk(len(encoded))
        remaining = iter(logits)
        separate: list[Tensor | None] = []
        for levels in features:
            if levels is None:
                separate.append(None)
            else:
                separate.append(next(remaining))
        return separate


class LineageBackbone(Backbone):
    """What RFNet, mmFormer, and M2FTrans give besides their logits: deep ones, and separate ones.

    A subclass gives ``separately``.
    """

    provides: frozenset[str] = frozenset(
        {"stem", "mod_bottleneck", "bottleneck", "decoder", "deep", "mod_logits"}
    )

    def output(
        self,
        logits: Tensor,
        deep: Sequence[Tensor],
        taps: Mapping[str, Any],
        features: Sequence[Features | None],
        want: Sequence[str],
    ) -> Output:
        """The output with the taps that were asked for, and in training what losses need.

        Args:
            logits: [B, classes, *S].
            deep: logits of every supervised level, finest first.
            taps: the other taps, by name.
            features: as ``Backbone.decode`` takes them.
            want: names of the taps.
        """
        separate: list[Tensor | None] = []
        if self.computes_separate(want):
            separate = self.separately(features)
        every_tap = {**taps, "deep": deep, "mod_logits": separate}
        aux: dict[str, list[Tensor | None]] = {}
        if self.training:
            aux = {"deep": list(deep), "separate": separate}
        return Output(logits, requested(every_tap, want), aux)
