"""MCKD's network: one encoder for all modalities; what is absent is filled with the mean of what is
present.

Source: Wang et al., "Meta-Learned Modality-Weighted Knowledge Distillation for Robust Multi-Modal
Learning with Missing Data", arXiv 2405.07155 (which calls the network a 3D U-Net), and the facts of
its released code. The distillation between modalities is an objective; it acts on the tap
``mod_bottleneck``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from medmap.networks.base import Features, Output, level_of_each
from medmap.networks.resnet_aspp_encoder import (
    ResNetASPPBackbone,
    fill_absent,
    mean_of_present_maps,
)


class MCKD(ResNetASPPBackbone):
    """A shared ResNet-50 + ASPP encoder, mean-filled bottlenecks, one decoder. Published: 43.7 M
    parameters.

    Differences from the released code: softmax logits over ``classes`` (background included)
    instead of three sigmoid regions ET, WT, TC (``classes=3``, read through a sigmoid, is that
    head); the skips of an absent modality are zero instead of the encoder's answer to a zero image,
    a constant of the weights. As there, only the bottleneck is filled.

    Args:
        modalities: number of modalities M.
        classes: number of output channels, background included.
        spatial_dims: 3 as published, or 2.
        width: factor on all channels; 1 is published, 1/8 suits a CPU.
        blocks: depth of the stages; (3, 4, 6, 3) is published (ResNet-50); fewer entries leave out
            the coarsest stages.
        stem_stride: stride of the first convolution along the spatial axes; (1, 2, 2) is published,
            for crops of 80x160x160.
    """

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        width: float = 1.0,
        blocks: Sequence[int] = (3, 4, 6, 3),
        stem_stride: Sequence[int] | None = None,
    ):
        super().__init__(modalities, classes, spatial_dims, width, blocks, stem_stride)
        self.shared = self.encoder()

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> the modality's terms in the skips, fine to coarse, then its bottleneck [B,
        F, *s].
        """
        skips, bottleneck = self.shared(image)
        terms = self.decoder.project(skips, modality)
        return [*terms, bottleneck]

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Fill the absent bottlenecks with the mean of the present ones and decode; see
        ``Backbone.decode``.
        """
        maps = level_of_each(features, -1)
        filling = mean_of_present_maps(maps, present)
        filled = fill_absent(maps, filling, present)
        return self.decode_filled(filled, features, want)
