"""U-HeMIS: fuse any subset of modalities by the mean and the variance of their features.

HeMIS (Havaei et al., MICCAI 2016) in the shape of a U-Net, the baseline of Dorent et al.,
"Hetero-Modal Variational Encoder-Decoder for Joint Modality Completion and Segmentation", MICCAI
2019. The encoder and decoder are those of U-HVED, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medmap.networks.base import (
    Backbone,
    Features,
    Output,
    encoded_only,
    encoded_positions,
    level_of_encoded,
    modality_taps,
    requested,
)
from medmap.networks.blocks import CONV, NORM, mask_absent, per_sample, upsample

POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class NormActConv(nn.Sequential):
    """IN (affine) -> LeakyReLU(0.01) -> 3-wide convolution without bias; [B, inputs, *S] -> [B,
    outputs, *S].
    """

    def __init__(self, dims: int, inputs: int, outputs: int):
        super().__init__(
            NORM[dims](inputs, affine=True),
            nn.LeakyReLU(0.01),
            CONV[dims](inputs, outputs, 3, padding=1, bias=False),
        )


class HemisEncoder(nn.Module):
    """One modality: a 1-wide convolution, then two ``NormActConv`` per level, max-pooling between
    levels.

    [B, 1, *S] -> one [B, outputs[l], *S / 2**l] per level. The first convolution needs no bias: a
    normalization follows.
    """

    def __init__(self, dims: int, widths: Sequence[int], outputs: Sequence[int]):
        super().__init__()
        self.stem = CONV[dims](1, widths[0], 1, bias=False)
        self.blocks = nn.ModuleList()
        inputs = widths[0]
        for width, output in zip(widths, outputs, strict=True):
            first = NormActConv(dims, inputs, width)
            second = NormActConv(dims, width, output)
            self.blocks.append(nn.Sequential(first, second))
            inputs = output
        self.pool = POOL[dims](2)

    def forward(self, x: Tensor) -> Features:
        x = self.stem(x)
        levels = []
        for level, block in enumerate(self.blocks):
            x = block(x if level == 0 else self.pool(x))
            levels.append(x)
        return levels


class HemisDecoder(nn.Module):
    """Up-sample, concatenate the skip, two ``NormActConv`` of which the second halves the channels;
    1-wide head.

    Args:
        dims: 2 or 3.
        widths: of the encoder; a level decodes with the width of the encoder's next finer one times
            two.
        skips: channels of the fused levels, fine to coarse.
        outputs: channels of the result.
    """

    def __init__(self, dims: int, widths: Sequence[int], skips: Sequence[int], outputs: int):
        super().__init__()
        self.blocks = nn.ModuleList()
        inputs = skips[-1]
        coarse_to_fine = zip(reversed(widths[1:]), reversed(skips[:-1]), strict=True)
        for width, skip in coarse_to_fine:
            merged = width // 2
            halved = merged // 2
            first = NormActConv(dims, inputs + skip, merged)
            second = NormActConv(dims, merged, halved)
            self.blocks.append(nn.Sequential(first, second))
            inputs = halved
        self.head = CONV[dims](inputs, outputs, 1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fused levels, fine to coarse -> ([B, outputs, *S], the feature in front of the head [B,
        C, *S]).
        """
        x = levels[-1]
        skips = reversed(levels[:-1])
        for block, skip in zip(self.blocks, skips, strict=True):
            raised = upsample(x)
            x = block(torch.cat([raised, skip], 1))
        return self.head(x), x


class HemisBackbone(Backbone):
    """What U-HeMIS and U-HVED have in common: an encoder per modality, and the level sizes.

    Args:
        modalities, classes, spatial_dims, widths: see ``UHeMIS``.
        outputs: channels of a modality's features at every level.
    """

    provides: frozenset[str] = frozenset({"stem", "mod_bottleneck", "bottleneck", "decoder"})

    def __init__(
        self,
        modalities: int,
        classes: int,
        spatial_dims: int,
        widths: Sequence[int],
        outputs: Sequence[int],
    ):
        super().__init__()
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.stride = 2 ** (len(widths) - 1)
        self.encoders = nn.ModuleList(
            HemisEncoder(spatial_dims, widths, outputs) for _ in range(modalities)
        )

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> a modality's features at strides 1, 2, 4, 8."""
        return self.encoders[modality](image)


class UHeMIS(HemisBackbone):
    """U-HeMIS with 0.57 M parameters (565,892; four modalities and classes), as the released code
    has.

    At every level the present modalities are summarized by the mean and the variance (n in the
    denominator; zero for a single modality) of their features, in any number and order. The slope
    of the LeakyReLU, the affine normalization and the alignment of the up-sampling are inferred:
    the parameter count fits them.

    Args:
        modalities: number of modalities M.
        classes: number of classes, background included.
        spatial_dims: 2 or 3.
        widths: even channel numbers at strides 1, 2, 4, ...; a modality's features have half of
            them.
    """

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        widths: Sequence[int] = (8, 16, 32, 64),
    ):
        halves = [width // 2 for width in widths]
        super().__init__(modalities, classes, spatial_dims, widths, halves)
        # Mean and variance of the halves stand side by side.
        moments = [2 * half for half in halves]
        self.decoder = HemisDecoder(spatial_dims, widths, moments, classes)

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Mean and variance of what is present, then one U-Net decoder; see ``Backbone.decode``."""
        encoded = encoded_only(features)
        positions = encoded_positions(features)
        available = present[:, positions]
        fused = []
        for level in range(len(encoded[0])):
            maps = level_of_encoded(encoded, level)
            # Moments, not a concatenation: their size does not depend on the number of modalities.
            fused.append(mean_and_variance(maps, available))
        logits, decoded = self.decoder(fused)
        taps = {
            **modality_taps(encoded),
            "bottleneck": fused[-1],
            "decoder": decoded,
        }
        return Output(logits, requested(taps, want))


def mean_and_variance(features: Sequence[Tensor], present: Tensor) -> Tensor:
    """Moments over the present modalities (HeMIS, Eq. 1-2, with n in the denominator of the
    variance).

    Args:
        features: N tensors [B, C, *S], zero where absent.
        present: [B, N] bool.

    Returns:
        [B, 2C, *S]: mean, then variance.
    """
    example = features[0]
    # A sample without any modality has zeros: its mean is 0 / 1, not 0 / 0.
    number = present.sum(1).clamp(min=1)
    count = per_sample(number.to(example.dtype), example)
    mean = sum(features[1:], example) / count
    squares = []
    for n, feature in enumerate(features):
        distance = (feature - mean).square()
        # An absent feature is zero, but its distance from the mean is not.
        squares.append(mask_absent(distance, present[:, n]))
    variance = sum(squares[1:], squares[0]) / count
    return torch.cat([mean, variance], 1)
