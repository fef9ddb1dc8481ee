"""The skeleton that ShaSpec and MCKD share: a weight-standardized ResNet-50 with ASPP, and a
decoder over modalities.

Fixed by the published description: ResNet-50 bottleneck stages of 64/128/256/320 planes
(256/512/1024/1280 channels) with 3, 4, 6, 3 blocks, a 7-wide stem with stride (1, 2, 2) and
max-pooling; 1x1 1280 -> 256 and atrous spatial pyramid pooling (Chen et al., DeepLabv3, 2017,
section 3.3) with rates 1, 2, 4, 8 and an image-pool branch; a decoder that concatenates the
modalities' 256-channel bottlenecks, with transposed 2-wide convolutions to 256, 128, 64, 32
channels and 1x1 skips over the concatenated modalities; affine instance norm, LeakyReLU(0.01),
weight standardization (Qiao et al., 2019, Eq. 2-4).

What the description leaves open, the counted parameters (43.7 M, 187.7 M) and operations (754 and
1379 GFLOP at 80x160x160) settle, and this file agrees with both to their last digit: the branch of
rate 1 is one voxel wide, a decoder level ends in one block of two 3-wide convolutions, the stride
of a stage is in its 3-wide convolution. Chosen here, since neither count tells: post-norm blocks; a
norm after up-sampling plus skip (standardized weights have no gain: the sum would grow with the
root of the fan-in); plain weights where no norm follows (image pool, head) and in the transposed
convolutions. The image-pool branch has no norm, since an instance norm over one voxel erases it.

What belongs to one modality is computed once per modality: a 1x1 convolution over concatenated
modalities is a sum of one term each, so the skips' terms are part of ``encode``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmap.errors import BundleError
from medmap.networks.base import (
    Backbone,
    Features,
    Output,
    encoded_only,
    modality_taps,
    requested,
)
from medmap.networks.blocks import CONV, LINEAR_MODE, NORM, per_sample

CONVOLVE = {2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance for each output channel (Qiao et al., 2019, Eq. 2-4); [O, I, *K]
    -> same.
    """
    within_channel = tuple(range(1, weight.ndim))
    variance, mean = torch.var_mean(weight, dim=within_channel, keepdim=True, correction=0)
    scale = torch.rsqrt(variance + eps)
    return (weight - mean) * scale


class StandardizedConv(nn.Module):
    """Bias-free convolution whose weight is standardized; [B, I, *S] -> [B, O, *S / stride]."""

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int | Sequence[int] = 1,
        dilation: int = 1,
    ):
        super().__init__()
        self.stride = stride
        self.dilation = dilation
        self.padding = dilation * (kernel // 2)
        shape = (outputs, inputs, *(kernel,) * dims)
        self.weight = nn.Parameter(torch.empty(shape))
        # The start of LeakyReLU(0.01) networks (He et al., ICCV 2015, Eq. 15); its scale does not
        # matter, since the weight is standardized.
        nn.init.kaiming_normal_(self.weight, a=0.01)
        self.convolve = CONVOLVE[dims]

    def forward(self, x: Tensor) -> Tensor:
        # Standardized at every step, so that the optimizer moves the raw weight and its scale is
        # free.
        weight = standardize(self.weight)
        return self.convolve(x, weight, None, self.stride, self.padding, self.dilation)


class ModalityTermConv(nn.Module):
    """The term of one modality in a 1x1 convolution over the concatenated modalities.

    The weight is that of the whole convolution, [O, M * I, 1, ...], standardized as a whole.
    Without a bias, the term of a zero (absent) modality is zero.
    """

    def __init__(self, dims: int, modalities: int, inputs: int, outputs: int):
        super().__init__()
        self.inputs = inputs
        shape = (outputs, modalities * inputs, *(1,) * dims)
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_normal_(self.weight, a=0.01)
        self.convolve = CONVOLVE[dims]

    def forward(self, x: Tensor, modality: int) -> Tensor:
        """x [B, I, *S] -> [B, O, *S]; the sum over modalities is the convolution."""
        # Standardized as a whole: over one modality's columns alone the terms would not add up.
        weight = standardize(self.weight)
        first = modality * self.inputs
        own_columns = weight[:, first : first + self.inputs]
        return self.convolve(x, own_columns)


def conv_norm(
    dims: int, inputs: int, outputs: int, kernel: int = 1, act: bool = True, **options: Any
) -> nn.Sequential:
    """Standardized convolution -> affine instance norm (-> LeakyReLU)."""
    layers: list[nn.Module] = [
        StandardizedConv(dims, inputs, outputs, kernel, **options),
        NORM[dims](outputs, affine=True),
    ]
    if act:
        layers.append(nn.LeakyReLU(0.01, inplace=True))
    return nn.Sequential(*layers)


class Shortcut(nn.Module):
    """``act(shortcut(x) + body(x))``; the residual form of all blocks here."""

    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.shortcut(x) + self.body(x))


def bottleneck(dims: int, inputs: int, planes: int, stride: int) -> Shortcut:
    """Widths 1, 3 (strided), 1 to 4 * planes (He et al., CVPR 2016, Fig. 5); a projection where
    shapes differ.
    """
    outputs = 4 * planes
    body = nn.Sequential(
        conv_norm(dims, inputs, planes),
        conv_norm(dims, planes, planes, 3, stride=stride),
        conv_norm(dims, planes, outputs, act=False),
    )
    shortcut: nn.Module = nn.Identity()
    if inputs != outputs or stride != 1:
        shortcut = conv_norm(dims, inputs, outputs, act=False, stride=stride)
    return Shortcut(body, shortcut)


def basic(dims: int, channels: int) -> Shortcut:
    """Two 3-wide convolutions and an identity."""
    body = nn.Sequential(
        conv_norm(dims, channels, channels, 3), conv_norm(dims, channels, channels, 3, act=False)
    )
    return Shortcut(body, nn.Identity())


@dataclass(frozen=True)
class Widths:
    """Channels of the skeleton.

    Attributes:
        stem: channels of the stem.
        planes: inner channels of the stages, fine to coarse; a stage gives four times as many.
        features: channels of the bottleneck F, and of each ASPP branch.
        decoder: channels of the decoder's levels, fine to coarse; as many as stages.
    """

    stem: int
    planes: tuple[int, ...]
    features: int
    decoder: tuple[int, ...]

    @classmethod
    def scaled(cls, width: float, stages: int) -> Widths:
        """The published channels times ``width`` (1 = published), for the first ``stages`` of the
        four stages.
        """

        def channels(published: int) -> int:
            return max(2, round(published * width))

        planes = (64, 128, 256, 320)[:stages]
        return cls(
            channels(64),
            tuple(map(channels, planes)),
            channels(256),
            tuple(channels(32 * 2**n) for n in range(stages)),
        )

    @property
    def skips(self) -> tuple[int, ...]:
        """Channels of the skips: the stem's, then all stages' but the last."""
        return (self.stem, *(4 * planes for planes in self.planes[:-1]))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling; [B, F, *S] -> [B, F, *S]."""

    def __init__(self, dims: int, channels: int, rates: Sequence[int] = (1, 2, 4, 8)):
        super().__init__()
        self.branches = nn.ModuleList(
            conv_norm(dims, channels, channels, 1 if rate == 1 else 3, dilation=rate)
            for rate in rates
        )
        self.pool = nn.Sequential(
            CONV[dims](channels, channels, 1, bias=False), nn.LeakyReLU(0.01, inplace=True)
        )
        self.merge = conv_norm(dims, (len(rates) + 1) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        views = [branch(x) for branch in self.branches]
        # The window's mean is one more view: what no dilated kernel reaches.
        pooled = self.pool(x.mean(axes, keepdim=True))
        views.append(pooled.expand_as(x))
        stacked = torch.cat(views, 1)
        return self.merge(stacked)


class ResNetASPP(nn.Module):
    """Encoder of one single-channel scan.

    [B, 1, *S] -> the skips (stem at ``stem_stride``, then stages at 2, 4, 8, ... times that) and
    the bottleneck [B, F, *S / (stem_stride * 2**stages)].
    """

    def __init__(
        self, dims: int, widths: Widths, blocks: Sequence[int], stem_stride: Sequence[int]
    ):
        super().__init__()
        self.stem = conv_norm(dims, 1, widths.stem, 7, stride=tuple(stem_stride))
        self.pool = POOL[dims](3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        inputs = widths.stem
        for level, planes in enumerate(widths.planes):
            # The first stage follows a pool that has halved the size already.
            stride = 1 if level == 0 else 2
            stage = [bottleneck(dims, inputs, planes, stride)]
            inputs = 4 * planes
            for _ in range(blocks[level] - 1):
                stage.append(bottleneck(dims, inputs, planes, stride=1))
            self.stages.append(nn.Sequential(*stage))
        self.reduce = conv_norm(dims, inputs, widths.features)
        self.aspp = ASPP(dims, widths.features)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.stem(x)
        skips = [x]
        x = self.pool(x)
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        deepest = skips.pop()
        return skips, self.aspp(self.reduce(deepest))


class Decoder(nn.Module):
    """Bottlenecks of all modalities and the sum of the skips' terms -> logits at the image's
    resolution.
    """

    def __init__(
        self, dims: int, modalities: int, classes: int, widths: Widths, stem_stride: Sequence[int]
    ):
        super().__init__()
        self.terms = nn.ModuleList()
        for inputs, outputs in zip(widths.skips, widths.decoder, strict=True):
            self.terms.append(ModalityTermConv(dims, modalities, inputs, outputs))
        coarser = (*widths.decoder[1:], modalities * widths.features)
        transposed = TRANSPOSED[dims]
        self.ups = nn.ModuleList()
        for inputs, outputs in zip(coarser, widths.decoder, strict=True):
            self.ups.append(transposed(inputs, outputs, 2, stride=2, bias=False))
        self.norms = nn.ModuleList(NORM[dims](width, affine=True) for width in widths.decoder)
        self.blocks = nn.ModuleList(basic(dims, width) for width in widths.decoder)
        self.act = nn.LeakyReLU(0.01, inplace=True)
        self.head = CONV[dims](widths.decoder[0], classes, 1)
        self.stem_stride = tuple(float(n) for n in stem_stride)

    def project(self, skips: Sequence[Tensor], modality: int) -> Features:
        """What one modality adds to each level, fine to coarse."""
        pairs = zip(self.terms, skips, strict=True)
        return [term(skip, modality) for term, skip in pairs]

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """x [B, M * F, *s] and the summed terms, fine to coarse -> logits [B, classes, *S], last
        features.
        """
        for level in reversed(range(len(self.ups))):
            raised = self.ups[level](x)
            # Normalized after the sum: standardized weights have no gain, and it would grow.
            merged = self.norms[level](raised + skips[level])
            x = self.blocks[level](self.act(merged))
        # The image's resolution is that in front of the strided stem.
        logits = functional.interpolate(
            self.head(x),
            scale_factor=self.stem_stride,
            mode=LINEAR_MODE[x.ndim - 2],
            align_corners=False,
        )
        return logits, x


class ResNetASPPBackbone(Backbone):
    """What ShaSpec and MCKD have in common: the options, the decoder, and the taps.

    ``stride`` is 32 as published. Windows must be larger than that along some axis: an instance
    norm needs two voxels.

    Raises:
        BundleError: the number of stages or of strides cannot be.
    """

    provides: frozenset[str] = frozenset({"stem", "mod_bottleneck", "bottleneck", "decoder"})

    def __init__(
        self,
        modalities: int,
        classes: int,
        spatial_dims: int,
        width: float,
        blocks: Sequence[int],
        stem_stride: Sequence[int] | None,
    ):
        super().__init__()
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.blocks = tuple(blocks)
        published_stride = (1, 2, 2)
        if stem_stride is None:
            self.stem_stride = published_stride[-spatial_dims:]
        else:
            self.stem_stride = tuple(stem_stride)
        if not 1 <= len(self.blocks) <= 4 or len(self.stem_stride) != spatial_dims:
            raise BundleError(
                f"{len(self.blocks)} stages and {len(self.stem_stride)} strides of the stem "
                "do not make this network.",
                f"Give one to four numbers as 'blocks' and {spatial_dims} as 'stem_stride'.",
            )
        # Behind the stem a pool, and every stage but the first, halves the size: 2**stages.
        self.stride = max(self.stem_stride) * 2 ** len(blocks)
        self.widths = Widths.scaled(width, len(blocks))
        self.decoder = Decoder(spatial_dims, modalities, classes, self.widths, self.stem_stride)

    def decode_filled(
        self,
        filled: Sequence[Tensor],
        features: Sequence[Features | None],
        want: Sequence[str],
    ) -> Output:
        """Decode the bottlenecks of all modalities and the skips of those that were encoded.

        Args:
            filled: one [B, F, *s] a modality, absent ones filled in.
            features: as ``Backbone.decode`` takes them; the skips' terms come first.
            want: names of the taps.
        """
        bottleneck = torch.cat(list(filled), 1)
        skips = sum_levels(features, len(self.blocks))
        logits, decoded = self.decoder(bottleneck, skips)
        taps = {
            **modality_taps(encoded_only(features)),
            "bottleneck": bottleneck,
            "decoder": decoded,
        }
        return Output(logits, requested(taps, want))

    def encoder(self) -> ResNetASPP:
        """A new encoder with this network's options."""
        return ResNetASPP(self.spatial_dims, self.widths, self.blocks, self.stem_stride)


def sum_levels(features: Sequence[Features | None], levels: int) -> list[Tensor]:
    """Sum each of the first ``levels`` levels over the modalities that were encoded."""
    encoded = encoded_only(features)
    totals = list(encoded[0][:levels])
    for terms in encoded[1:]:
        for level, term in enumerate(terms[:levels]):
            totals[level] = totals[level] + term
    return totals


def mean_of_present_maps(maps: Sequence[Tensor | None], present: Tensor) -> Tensor:
    """Mean over the present modalities; maps: [B, F, *s], zero where absent, None where not
    encoded; present [B, M].
    """
    encoded = [value for value in maps if value is not None]
    total = encoded[0]
    for value in encoded[1:]:
        total = total + value
    # Absent maps are zero, so the sum is that of the present ones; a sample without any has 0.
    count = present.sum(1).clamp(min=1).to(total.dtype)
    return total / per_sample(count, total)


def first_present_map(maps: Sequence[Tensor | None], present: Tensor) -> Tensor:
    """The map of the first present modality in task order; arguments as in
    ``mean_of_present_maps``.
    """
    # The running count is 1 from the first present modality up to the second.
    first = present & (present.cumsum(1) == 1)
    example = next(value for value in maps if value is not None)
    chosen = torch.zeros_like(example)
    for modality, value in enumerate(maps):
        if value is None:
            continue
        is_first = per_sample(first[:, modality], value)
        chosen = torch.where(is_first, value, chosen)
    return chosen


FILLS = {"mean": mean_of_present_maps, "first": first_present_map}


def fill_absent(maps: Sequence[Tensor | None], filling: Tensor, present: Tensor) -> list[Tensor]:
    """Maps with ``filling`` where the modality is absent; every entry [B, F, *s]."""
    filled = []
    for modality, value in enumerate(maps):
        if value is None:
            filled.append(filling)
        else:
            available = per_sample(present[:, modality], filling)
            filled.append(torch.where(available, value, filling))
    return filled
