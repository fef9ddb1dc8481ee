"""Discriminators that tell the features of two paths apart, and the two sides' losses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medmap.networks.blocks import CONV


class Discriminator(nn.Sequential):
    """[B, channels[0], *S] -> [B, 1, *s] logits of "this comes from the full path", one a
    neighborhood.

    Convolutions with LeakyReLU(0.2) between them. Padding of half the kernel, rounded up, lets
    patches of any size through, down to one voxel a side.

    Args:
        dims: 2 or 3.
        channels: of the input and of every layer but the last, which has one.
        kernel: of every convolution.
        strides: one a convolution.
    """

    def __init__(self, dims: int, channels: Sequence[int], kernel: int, strides: Sequence[int]):
        layers: list[nn.Module] = []
        widths = pairwise((*channels, 1))
        for (inputs, outputs), stride in zip(widths, strides, strict=True):
            padding = kernel // 2
            layers.append(CONV[dims](inputs, outputs, kernel, stride, padding))
            layers.append(nn.LeakyReLU(0.2))
        # The last layer gives logits, without an activation.
        super().__init__(*layers[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Logits, computed in float32 whatever the precision of the training.

        Strides lead to grids smaller than the kernel. There the weight gradients of PyTorch 2.13 in
        bfloat16 on CPUs with AVX512-BF16 read uninitialized memory: SMU-Net ended in NaN after one
        step. Discriminators are small beside the networks whose features they read.
        """
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


def deceive(discriminator: nn.Module, missing: Tensor) -> Tensor:
    """The segmentation networks' side: missing-path features should pass for the full path's."""
    logits = discriminator(missing)
    return binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def tell_apart(discriminator: nn.Module, full: Tensor, missing: Tensor) -> Tensor:
    """The discriminator's side; the features are cut off from the networks they come from."""
    full_logits = discriminator(full.detach())
    missing_logits = discriminator(missing.detach())
    ones = torch.ones_like(full_logits)
    zeros = torch.zeros_like(missing_logits)
    return 0.5 * (
        binary_cross_entropy_with_logits(full_logits, ones)
        + binary_cross_entropy_with_logits(missing_logits, zeros)
    )
