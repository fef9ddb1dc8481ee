"""SegResNet as ACN and SMU-Net have it, for one set of modalities; MONAI's implementation
underneath.

Myronenko, "3D MRI Brain Tumor Segmentation Using Autoencoder Regularization", BrainLes 2018,
without the autoencoder branch. ACN (Wang et al., MICCAI 2021) trains two of them together, one with
all modalities and one with some; SMU-Net (Azad et al., MIDL 2022) adds a style path to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medmap.errors import UnavailableError
from medmap.networks.base import Output, requested
from medmap.networks.blocks import CONV
from medmap.networks.fixed_subset import FixedSubset

MAX_POOL = {2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}


class SegResNet(FixedSubset):
    """Pre-activated residual blocks with group normalization; strided convolutions down, added
    skips up.

    4,702,244 parameters with four input channels and four classes, as MONAI counts; the code of ACN
    has 4,704,228 in the same topology (it has biases and no normalization before the head).
    4,776,228 with ``style`` (SMU-Net: 4.78 M).

    Both published codes drop out at the bottleneck, MONAI after the first convolution; here it is
    the bottleneck. Their four outputs are sigmoid channels (ED, NET, ET and an unsupervised
    background); what an output means is the objective's business.

    Args:
        modalities, classes, spatial_dims, inputs, replicate, modality_channels: see
            ``FixedSubset``.
        width: channels at full resolution, a multiple of the eight groups; doubled from level to
            level.
        blocks_down: residual blocks of the levels at strides 1, 2, 4, ...
        blocks_up: residual blocks of the levels on the way up, coarse to fine; one fewer than
            ``blocks_down``.
        dropout: probability at the bottleneck in training.
        style: SMU-Net's extra path: the decoder reads content (the bottleneck) and a style code,
            which is then the tap ``style``.

    Raises:
        UnavailableError: MONAI is not installed; inference inside Slicer does without it, and so
            without this network.
    """

    provides: frozenset[str] = frozenset({"bottleneck", "decoder"})

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        inputs: Sequence[int] | None = None,
        replicate: int = 1,
        width: int = 16,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.2,
        style: bool = False,
        modality_channels: int = 1,
    ):
        super().__init__(modalities, classes, spatial_dims, inputs, replicate, modality_channels)
        self.stride = 2 ** (len(blocks_down) - 1)
        self.net: Any = _monai_segresnet()(
            spatial_dims=spatial_dims,
            init_filters=width,
            in_channels=self.channels,
            out_channels=classes,
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
            upsample_mode="nontrainable",
        )
        self.dropout = nn.Dropout(dropout)
        coarsest = width * self.stride
        self.style = StylePath(spatial_dims, coarsest) if style else None
        if style:
            self.provides = type(self).provides | {"style"}

    def segment(self, image: Tensor, want: Sequence[str] = ()) -> Output:
        """[B, channels, *S] -> logits [B, classes, *S].

        Taps: ``bottleneck`` [B, stride * width, *S / stride] (SMU-Net's content), ``decoder`` [B,
        width, *S], and with the style path ``style``, shaped as the bottleneck.
        """
        net = self.net
        x = net.convInit(image)
        levels = []
        entries = []
        for stage in net.down_layers:
            # A stage of MONAI's begins with the strided convolution, whose output the style reads.
            entry = stage[0](x)
            x = stage[1:](entry)
            entries.append(entry)
            levels.append(x)
        x = self.dropout(x)
        taps = {"bottleneck": x}
        if self.style is not None:
            x, taps["style"] = self.style(entries[-2], entries[-1], x)
        x = self._decode(x, levels[:-1])
        taps["decoder"] = x
        return Output(net.conv_final(x), requested(taps, want))

    def _decode(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """MONAI's way up: the skips, fine to coarse, are added, not concatenated."""
        ups = self.net.up_samples
        stages = self.net.up_layers
        for up, stage, skip in zip(ups, stages, reversed(skips), strict=True):
            x = stage(up(x) + skip)
        return x


class StylePath(nn.Module):
    """SMU-Net's style code, and the decoder's input made of style and content.

    style = 1-wide convolution of [pooled entry of the last level but one, entry of the last level,
    bottleneck], where an entry is the strided convolution that leads into a level.
    """

    def __init__(self, dims: int, channels: int):
        super().__init__()
        conv = CONV[dims]
        # The entry of the last level but one has half the channels of the two others.
        described = channels // 2 + 2 * channels
        self.style = conv(described, channels, 1)
        self.merge = conv(2 * channels, channels, 1)

    def forward(self, finer: Tensor, coarse: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C/2, *2s], [B, C, *s], [B, C, *s] -> the decoder's input and the style, each [B, C,
        *s].
        """
        pool = MAX_POOL[finer.ndim - 2]
        pooled = pool(finer, 2)
        views = torch.cat([pooled, coarse, content], 1)
        style = self.style(views)
        style_and_content = torch.cat([style, content], 1)
        return self.merge(style_and_content), style


def _monai_segresnet() -> type[Any]:
    """MONAI's class, imported only where it is used: inference inside Slicer has no MONAI and needs
    none elsewhere.
    """
    try:
        from monai.networks.nets import SegResNet as MonaiSegResNet
    except ImportError as error:
        raise UnavailableError(
            "The network SegResNet needs MONAI, which is not installed here.",
            "Install it: pip install monai.",
        ) from error
    return MonaiSegResNet
