"""Robust-MSeg: gated fusion of what each modality shows, kept apart from how it looks.

Chen, Dou, Jin, Chen, Qin, Heng: "Robust Multimodal Brain Tumor Segmentation via Feature
Disentanglement and Gated Fusion", MICCAI 2019. Content is what ``GatedUNet`` encodes, fuses and
segments; a style code of eight numbers per modality must, with the fused content, be enough to draw
that modality's image again. Style and drawing exist in training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from medmap.networks.auxiliary import reconstruction_errors, sum_of_means
from medmap.networks.base import Features, Output, requested
from medmap.networks.blocks import CONV, NORM
from medmap.networks.unet import WIDTHS, GatedUNet


class StyleEncoder(nn.Module):
    """[B, 1, *S] -> [B, 2 * style, 1, ...]: mean and log variance of the style.

    A 7-wide convolution, four 4-wide ones of stride 2 (the first two double the channels), ReLU,
    global mean, 1-wide. Without normalization, which would take the style away. Needs windows of at
    least 16.
    """

    def __init__(self, dims: int, width: int, style: int):
        super().__init__()
        conv = CONV[dims]
        channels = (width, 2 * width, 4 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = [conv(1, width, 7, padding=3), nn.ReLU()]
        for inputs, outputs in pairwise(channels):
            layers.append(conv(inputs, outputs, 4, stride=2, padding=1))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.head = conv(channels[-1], 2 * style, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.layers(image)
        space = tuple(range(2, x.ndim))
        return self.head(x.mean(dim=space, keepdim=True))


class AdaptiveResidualBlock(nn.Module):
    """Two 3-wide convolutions, each with adaptive instance normalization (Huang and Belongie, ICCV
    2017, Eq. 8).
    """

    def __init__(self, dims: int, channels: int):
        super().__init__()
        conv = CONV[dims]
        self.first = conv(channels, channels, 3, padding=1)
        self.second = conv(channels, channels, 3, padding=1)
        # Without weights: scale and shift come from the style.
        self.norm = NORM[dims](channels)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """x [B, C, *S]; scale (around one) and shift [B, C, 1, ...]."""
        gain = 1 + scale
        first = self.norm(self.first(x)) * gain + shift
        activated = first.relu()
        second = self.norm(self.second(activated)) * gain
        return x + second + shift


class ImageDecoder(nn.Module):
    """Fused content at the deepest level and a style -> the image of one modality [B, 1, *S].

    Four residual blocks whose normalization the style sets, then up-sampling to full resolution by
    nearest neighbors and 5-wide convolutions that halve the channels, with layer normalization and
    ReLU, and a 7-wide convolution.
    """

    def __init__(self, dims: int, channels: int, ups: int, style: int, hidden: int = 128):
        super().__init__()
        self.describe = nn.Sequential(
            nn.Linear(style, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.scale = nn.Linear(hidden, channels)
        self.shift = nn.Linear(hidden, channels)
        self.blocks = nn.ModuleList(AdaptiveResidualBlock(dims, channels) for _ in range(4))
        conv = CONV[dims]
        layers: list[nn.Module] = []
        for _ in range(ups):
            half = max(1, channels // 2)
            layers.append(nn.Upsample(scale_factor=2))
            layers.append(conv(channels, half, 5, padding=2))
            # One group is layer normalization over channels and space: unlike instance
            # normalization it keeps the contrast between channels that the style has set.
            layers.append(nn.GroupNorm(1, half))
            layers.append(nn.ReLU())
            channels = half
        layers.append(conv(channels, 1, 7, padding=3))
        self.up = nn.Sequential(*layers)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """content [B, channels, *s], style [B, style] -> [B, 1, *S]."""
        described = self.describe(style)
        dims = content.ndim - 2
        shape = (len(described), -1, *(1,) * dims)
        scale = self.scale(described).reshape(shape)
        shift = self.shift(described).reshape(shape)
        for block in self.blocks:
            content = block(content, scale, shift)
        return self.up(content)


class RobustMSeg(GatedUNet):
    """Robust-MSeg: 6.65 M parameters at inference, 37.5 M in training (37,476,344), as the released
    code has.

    ``reconstruct=False`` builds the 6,650,292 of inference alone, which is ``GatedUNet``. The
    widths inside style encoder (32), style network (128, one pair of scale and shift for all
    blocks) and image decoders (each up-sampling halves) are inferred: they give the released count.

    In training ``encode`` gives a further entry, the style's mean and log variance, before the
    last: first and last stay the levels that they are in evaluation. Auxiliary outputs in training:
    ``reconstruction``, all M images [B, 1, *S] in task order from the *fused* content; and
    ``divergence``, one [B] per modality, the style's KL from N(0, 1) (zero where absent, None where
    not encoded). The published loss is weighted CE + Dice + 0.1 * sum of L1 of the reconstructions
    + 0.1 * sum of divergences.

    The released code encodes the style of dropped modalities in training as well. Here nothing
    absent is read: its style is drawn from N(0, 1), which is what zero mean and zero log variance
    mean.

    Args:
        modalities, classes, spatial_dims, widths: see ``GatedUNet``.
        reconstruct: build the parts that only training uses.
        style_width: first width of the style encoder.
        style: length of the style code.
    """

    provides: frozenset[str] = GatedUNet.provides

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        widths: Sequence[int] = WIDTHS,
        reconstruct: bool = True,
        style_width: int = 32,
        style: int = 8,
    ):
        super().__init__(modalities, classes, spatial_dims, widths)
        self.style_length = style
        count = modalities if reconstruct else 0
        self.style_encoders = nn.ModuleList(
            StyleEncoder(spatial_dims, style_width, style) for _ in range(count)
        )
        self.image_decoders = nn.ModuleList(
            ImageDecoder(spatial_dims, widths[-1], len(widths) - 1, style) for _ in range(count)
        )

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> levels at strides 1, 2, 4, 8; in training [..., style [B, 16, 1, ...],
        deepest level].
        """
        levels = super().encode(image, modality)
        if self._draws():
            levels.insert(-1, self.style_encoders[modality](image))
        return levels

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Gated fusion and decoding, in training also the drawing; see ``Backbone.decode``."""
        if not self._draws():
            return super().decode(features, present, want)
        content: list[Features | None] = []
        for levels in features:
            if levels is None:
                content.append(None)
            else:
                # The style stands in front of the deepest level; see ``encode``.
                content.append([*levels[:-2], levels[-1]])
        output = super().decode(content, present, [*want, "bottleneck"])
        fused = output.taps["bottleneck"]
        reconstructions = []
        divergences: list[Tensor | None] = []
        for levels, decoder in zip(features, self.image_decoders, strict=True):
            # Zero mean and log variance are N(0, 1): what stands for the style of an absent scan.
            mean = log_variance = fused.new_zeros(()).float()
            if levels is None:
                divergences.append(None)
            else:
                mean, log_variance = levels[-2].flatten(1).float().chunk(2, 1)
                divergences.append(style_divergence(mean, log_variance))
            style = self._sample_style(mean, log_variance, fused)
            reconstructions.append(decoder(fused, style))
        aux = {"reconstruction": reconstructions, "divergence": divergences}
        return Output(output.logits, requested(output.taps, want), aux)

    def _sample_style(self, mean: Tensor, log_variance: Tensor, fused: Tensor) -> Tensor:
        """mean + sigma * N(0, 1): [B, style], in the type of the fused content."""
        size = (len(fused), self.style_length)
        noise = torch.randn(size, device=fused.device)
        deviation = (log_variance / 2).exp()
        style = mean + deviation * noise
        return style.to(fused.dtype)

    def auxiliary_losses(
        self, output: Output, image: Tensor, present: Tensor, fused: Tensor
    ) -> dict[str, Tensor]:
        """``divergence`` of the styles and ``reconstruction`` (L1), each summed over modalities."""
        if not output.aux:
            return {}
        # Every image is decoded from the fused content, also those that are absent: none is None.
        reconstructions = cast(list[Tensor], output.aux["reconstruction"])
        errors = reconstruction_errors(reconstructions, image, present, power=1)
        return {
            "divergence": sum_of_means(output.aux["divergence"], fused),
            "reconstruction": sum_of_means(errors, present),
        }

    def _draws(self) -> bool:
        return self.training and len(self.image_decoders) > 0


def style_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), mean over the code: [B, style] twice -> [B]; zero for
    zeros.
    """
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
    return divergence.mean(1)
