"""3D U-Net as PMKL has it: the student for one set of modalities, and the gated teacher with one
encoder a modality.

Chen et al., "Learning with Privileged Multimodal Knowledge for Unimodal Segmentation", IEEE TMI
2022. The teacher is the segmentation branch of Robust-MSeg (Chen et al., "Robust Multimodal Brain
Tumor Segmentation via Feature Disentanglement and Gated Fusion", MICCAI 2019), not the
stacked-channel U-Net of the PMKL paper's Fig. 1: that is what the released code loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from medmap.errors import BundleError
from medmap.networks.base import (
    Backbone,
    Features,
    Output,
    encoded_only,
    level_of_each,
    modality_taps,
    requested,
)
from medmap.networks.blocks import CONV, NORM, residual_levels
from medmap.networks.fixed_subset import FixedSubset
from medmap.networks.resnet_aspp_encoder import fill_absent, mean_of_present_maps
from medmap.networks.rfnet_blocks import sum_over_modalities

WIDTHS = (16, 32, 64, 128)


class UNetConv(nn.Sequential):
    """Convolution with bias and reflected border -> affine instance normalization ->
    LeakyReLU(0.2).

    Reflection needs at least two voxels along every axis, so windows at least twice the stride.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        padding = (kernel - 1) // 2
        mode: Literal["reflect", "zeros"] = "zeros"
        if padding:
            mode = "reflect"
        super().__init__(
            CONV[dims](inputs, outputs, kernel, stride=stride, padding=padding, padding_mode=mode),
            NORM[dims](outputs, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
        )


class UNetEncoder(nn.Module):
    """[B, inputs, *S] -> per level [B, widths[l], *S / 2**l].

    A level is three convolutions of which the first has stride 2 (from the second level on); its
    output is the sum of the first and the third.
    """

    def __init__(self, dims: int, inputs: int, widths: Sequence[int]):
        super().__init__()
        self.first = nn.ModuleList()
        self.body = nn.ModuleList()
        for level, width in enumerate(widths):
            stride = 2 if level else 1
            self.first.append(UNetConv(dims, inputs, width, stride=stride))
            second = UNetConv(dims, width, width)
            third = UNetConv(dims, width, width)
            self.body.append(nn.Sequential(second, third))
            inputs = width

    def forward(self, x: Tensor) -> Features:
        return residual_levels(x, self.first, self.body)


class UNetDecoder(nn.Module):
    """Levels, fine to coarse -> [B, widths[0], *S].

    A step is: nearest-neighbor up-sampling, a 3-wide convolution that halves the channels,
    concatenation with the skip, a 3-wide convolution that halves them again, a 1-wide one.
    """

    def __init__(self, dims: int, widths: Sequence[int]):
        super().__init__()
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        for fine, coarse in pairwise(widths):
            self.up.append(UNetConv(dims, coarse, fine))
            # The skip is concatenated to as many raised channels.
            wide = UNetConv(dims, 2 * fine, fine)
            narrow = UNetConv(dims, fine, fine, kernel=1)
            self.merge.append(nn.Sequential(wide, narrow))

    def forward(self, levels: Features) -> Tensor:
        x = levels[-1]
        ups = reversed(self.up)
        merges = reversed(self.merge)
        skips = reversed(levels[:-1])
        for up, merge, skip in zip(ups, merges, skips, strict=True):
            enlarged = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
            raised = up(enlarged)
            x = merge(torch.cat([raised, skip], 1))
        return x


class GatedFusion(nn.Module):
    """Fuse one level of all modalities by spatial gates (Robust-MSeg, "gated fusion").

    A 3-wide convolution with instance normalization over the concatenated modalities gives one map
    per modality; its sigmoid weighs that modality; a 1-wide convolution maps the concatenated
    result back to the channels of one.

    Both convolutions are sums over modalities, and so cost nothing for those that are absent.
    """

    def __init__(self, dims: int, modalities: int, channels: int):
        super().__init__()
        conv = CONV[dims]
        norm = NORM[dims]
        concatenated = modalities * channels
        self.border = (1, 1) * dims
        self.gate = conv(concatenated, modalities, 3)
        self.gate_norm = norm(modalities, affine=True)
        self.mix = conv(concatenated, channels, 1)
        self.mix_norm = norm(channels, affine=True)
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, features: Sequence[Tensor | None]) -> Tensor:
        """features: one [B, C, *S] per modality, zero for samples without it, None where no sample
        has it -> the same.
        """
        padded: list[Tensor | None] = []
        for feature in features:
            if feature is None:
                padded.append(None)
            else:
                # Reflected here: the sum over modalities does not pad, and zeros would mark the
                # border.
                padded.append(nn.functional.pad(feature, self.border, mode="reflect"))
        gates = self.gate_norm(sum_over_modalities(self.gate, padded)).sigmoid()
        gated: list[Tensor | None] = []
        for modality, feature in enumerate(features):
            if feature is None:
                gated.append(None)
            else:
                gate = gates[:, modality : modality + 1]
                gated.append(feature * gate)
        mixed = sum_over_modalities(self.mix, gated)
        return self.act(self.mix_norm(mixed))


class UNet(FixedSubset):
    """Residual 3D U-Net for one set of modalities: PMKL's student, and the plain U-Net of MedMAP's
    own students.

    2,056,292 parameters with four input channels and four classes (the released code: 2.06 M, with
    the five classes of BraTS 2015). PMKL's student of T1ce is ``inputs=[1], replicate=4``: it
    repeats the scan into four channels.

    Args:
        modalities, classes, spatial_dims, inputs, replicate, modality_channels: see
            ``FixedSubset``.
        widths: channels of the levels at strides 1, 2, 4, ...
    """

    provides: frozenset[str] = frozenset({"bottleneck", "decoder"})

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        inputs: Sequence[int] | None = None,
        replicate: int = 1,
        widths: Sequence[int] = WIDTHS,
        modality_channels: int = 1,
    ):
        super().__init__(modalities, classes, spatial_dims, inputs, replicate, modality_channels)
        self.stride = 2 ** (len(widths) - 1)
        self.encoder = UNetEncoder(spatial_dims, self.channels, widths)
        self.decoder = UNetDecoder(spatial_dims, widths)
        self.head = CONV[spatial_dims](widths[0], classes, 1)
        initialize(self)

    def segment(self, image: Tensor, want: Sequence[str] = ()) -> Output:
        """[B, channels, *S] -> logits [B, classes, *S]; taps ``bottleneck`` and ``decoder`` ([B,
        widths[0], *S]).
        """
        levels = self.encoder(image)
        x = self.decoder(levels)
        taps = {"bottleneck": levels[-1], "decoder": x}
        return Output(self.head(x), requested(taps, want))


class GatedUNet(Backbone):
    """The U-Net with one encoder per modality and gated fusion at every level: PMKL's teacher, for
    any subset.

    6,650,292 parameters with four modalities and four classes (the released code: 6.65 M, with five
    classes). Whether the fusion's last convolution is followed by normalization and LeakyReLU, as
    every other one is, was inferred (480 parameters).

    Args:
        modalities, classes, spatial_dims: see ``SubsetUNet``.
        widths: channels of the levels at strides 1, 2, 4, ...
        modality_channels: of every modality's input; more than one behind a stem.
        fill: ``mean`` puts the mean of the present bottlenecks in the place of an absent one, as
            MCKD does, before they are fused; ``none`` leaves it out.

    Raises:
        BundleError: there is no such fill.
    """

    provides: frozenset[str] = frozenset({"stem", "mod_bottleneck", "bottleneck", "decoder"})

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        widths: Sequence[int] = WIDTHS,
        modality_channels: int = 1,
        fill: str = "none",
    ):
        super().__init__()
        if fill not in ("none", "mean"):
            raise BundleError(
                f"GatedUNet cannot fill absent bottlenecks by '{fill}'.", "Use none or mean."
            )
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.fill = fill
        self.stride = 2 ** (len(widths) - 1)
        self.encoders = nn.ModuleList(
            UNetEncoder(spatial_dims, modality_channels, widths) for _ in range(modalities)
        )
        self.fusions = nn.ModuleList(
            GatedFusion(spatial_dims, modalities, width) for width in widths
        )
        self.decoder = UNetDecoder(spatial_dims, widths)
        self.head = CONV[spatial_dims](widths[0], classes, 1)
        initialize(self)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> levels at strides 1, 2, 4, ..."""
        return self.encoders[modality](image)

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Fuse every level and decode; see ``Backbone.decode``."""
        fused = []
        deepest = len(self.fusions) - 1
        for level, fusion in enumerate(self.fusions):
            maps = level_of_each(features, level)
            if level == deepest and self.fill == "mean":
                filling = mean_of_present_maps(maps, present)
                maps = list(fill_absent(maps, filling, present))
            fused.append(fusion(maps))
        x = self.decoder(fused)
        taps = {
            **modality_taps(encoded_only(features)),
            "bottleneck": fused[-1],
            "decoder": x,
        }
        return Output(self.head(x), requested(taps, want))


def initialize(network: nn.Module) -> None:
    """PMKL's start: kernels from a normal distribution with σ = 0.01 cut at 2σ, biases zero."""
    for module in network.modules():
        if not isinstance(module, (nn.Conv2d, nn.Conv3d)):
            continue
        nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
