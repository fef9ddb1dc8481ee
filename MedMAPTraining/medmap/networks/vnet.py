"""V-Net as ProtoKD has it, for one set of modalities.

Wang et al., "Prototype Knowledge Distillation for Medical Segmentation with Missing Modality",
ICASSP 2023: teacher and student are this network and differ in their input channels only. Unlike
the V-Net of Milletari et al. (3DV 2016) it has 3-wide convolutions, no residual connections and
additive skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from medmap.errors import BundleError
from medmap.networks.base import Output, requested
from medmap.networks.blocks import CONV, NORM
from medmap.networks.fixed_subset import FixedSubset

TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: dict[str, Mapping[int, type[nn.Module]]] = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": NORM,
}


class VNet(FixedSubset):
    """Five levels of plain convolutions; strided ones lead down, transposed ones up, and skips are
    added.

    9,447,396 parameters with four input channels and four classes (the released code: 9.45 M). That
    its strided and transposed convolutions have no bias, like the others, was inferred (720
    parameters that normalization would undo).

    Args:
        modalities, classes, spatial_dims, inputs, replicate, modality_channels: see
            ``FixedSubset``.
        widths: channels of the levels at strides 1, 2, 4, ...
        depths: convolutions of the levels on the way down; on the way up they are the same, without
            the coarsest.
        norm: ``batch`` as published. ``instance`` is a deviation: batch statistics mix samples that
            have different modalities and are poor for the one or two patches that fit a GPU.
    """

    provides: frozenset[str] = frozenset({"bottleneck", "decoder"})

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        inputs: Sequence[int] | None = None,
        replicate: int = 1,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        depths: Sequence[int] = (1, 2, 3, 3, 3),
        norm: str = "batch",
        modality_channels: int = 1,
    ):
        super().__init__(modalities, classes, spatial_dims, inputs, replicate, modality_channels)
        if norm not in NORMS:
            raise BundleError(
                f"The normalization '{norm}' is unknown.", f"Use {' or '.join(NORMS)}."
            )
        if len(widths) != len(depths):
            raise BundleError(
                f"{len(widths)} widths do not fit {len(depths)} depths.",
                "Give one of each per level.",
            )
        self.stride = 2 ** (len(widths) - 1)
        dims = spatial_dims
        normalization = NORMS[norm][dims]
        # A strided convolution brings the channels of a level to the width of the next, so that
        # only the first stage has inputs of another width.
        stages = zip((self.channels, *widths[1:]), widths, depths, strict=True)
        self.down_stages = nn.ModuleList()
        for stage_inputs, width, depth in stages:
            self.down_stages.append(_stage(dims, normalization, stage_inputs, width, depth))
        self.downs = nn.ModuleList()
        for fine, coarse in pairwise(widths):
            down = CONV[dims](fine, coarse, 2, stride=2, bias=False)
            self.downs.append(_block(normalization, down))
        self.ups = nn.ModuleList()
        for fine, coarse in pairwise(widths):
            up = TRANSPOSED[dims](coarse, fine, 2, stride=2, bias=False)
            self.ups.append(_block(normalization, up))
        self.up_stages = nn.ModuleList()
        for width, depth in zip(widths[:-1], depths[:-1], strict=True):
            self.up_stages.append(_stage(dims, normalization, width, width, depth))
        self.head = CONV[dims](widths[0], classes, 1)

    def segment(self, image: Tensor, want: Sequence[str] = ()) -> Output:
        """[B, channels, *S] -> logits [B, classes, *S].

        Taps: ``bottleneck`` [B, widths[-1], *S / stride] and ``decoder`` [B, widths[0], *S],
        ProtoKD's feature of which prototypes are made.
        """
        x = self.down_stages[0](image)
        skips = []
        for down, stage in zip(self.downs, self.down_stages[1:], strict=True):
            skips.append(x)
            x = stage(down(x))
        taps = {"bottleneck": x}
        ups = reversed(self.ups)
        stages = reversed(self.up_stages)
        for up, stage, skip in zip(ups, stages, reversed(skips), strict=True):
            # Added as in the released code; the original V-Net concatenates.
            x = stage(up(x) + skip)
        taps["decoder"] = x
        logits = self.head(x)
        return Output(logits, requested(taps, want))


def _block(normalization: type[nn.Module], convolution: nn.Module) -> nn.Sequential:
    """A convolution without bias -> affine normalization -> ReLU."""
    norm = normalization(convolution.out_channels, affine=True)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))


def _stage(
    dims: int, normalization: type[nn.Module], inputs: int, width: int, depth: int
) -> nn.Sequential:
    """``depth`` 3-wide convolutions; [B, inputs, *S] -> [B, width, *S]."""
    blocks = []
    for _ in range(depth):
        convolution = CONV[dims](inputs, width, 3, padding=1, bias=False)
        blocks.append(_block(normalization, convolution))
        inputs = width
    return nn.Sequential(*blocks)
