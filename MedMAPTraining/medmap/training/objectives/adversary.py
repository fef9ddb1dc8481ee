"""Discriminators that tell the features of two paths apart, and the two sides' losses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from medmap.networks.blocks import CONV


class Discriminator(nn.Sequential):
    """[B, channels[0], *S] -> [B, 1, *s] logits of "this comes from the full path", one a neighborhood.

    Convolutions with LeakyReLU(0.2) between them. Padding of half the kernel, rounded up, lets patches of any size
    through, down to one voxel a side.

    Args:
        dims: 2 or 3.
        channels: of the input and of every layer but the last, which has one.
        kernel: of every convolution.
        strides: one a convolution.
    """

    def __init__(self, dims: int, channels: Sequence[int], kernel: int, strides: Sequence[int]):
        layers: list[nn.Module] = []
        for (fan_in, fan_out), stride in zip(pairwise((*channels, 1)), strides, strict=True):
            layers += [CONV[dims](fan_in, fan_out, kernel, stride, kernel // 2), nn.LeakyReLU(0.2)]
        super().__init__(*layers[:-1])


def deceive(discriminator: nn.Module, missing: Tensor) -> Tensor:
    """The segmentation networks' side: the missing path's features should pass for the full path's."""
    said = discriminator(missing).float()
    return binary_cross_entropy_with_logits(said, torch.ones_like(said))


def tell_apart(discriminator: nn.Module, full: Tensor, missing: Tensor) -> Tensor:
    """The discriminator's side; the features are cut off from the networks they come from."""
    real, other = discriminator(full.detach()).float(), discriminator(missing.detach()).float()
    return 0.5 * (
        binary_cross_entropy_with_logits(real, torch.ones_like(real))
        + binary_cross_entropy_with_logits(other, torch.zeros_like(other))
    )
