"""Blocks that several backbones share. Shapes are [B, C, *S] with two or three spatial axes S."""

from __future__ import annotations

import torch
from torch import Tensor, nn

InstanceNorm = nn.InstanceNorm2d | nn.InstanceNorm3d

CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, type[InstanceNorm]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
LINEAR_MODE = {2: "bilinear", 3: "trilinear"}


def at_least_float32(tensor: Tensor) -> Tensor:
    """A half-precision tensor as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class ConvNormAct(nn.Sequential):
    """Convolution -> affine instance normalization -> LeakyReLU(0.01).

    The padding is zero, as the background is after preprocessing: outside the crop looks like
    outside the head.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        super().__init__(
            CONV[dims](
                inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2, bias=False
            ),
            NORM[dims](outputs, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two 3-wide convolutions with a shortcut: ``act(x + norm(conv(act(norm(conv(x))))))``; [B, C,
    *S] -> same.
    """

    def __init__(self, dims: int, channels: int):
        super().__init__()
        conv = CONV[dims]
        norm = NORM[dims]
        self.first = ConvNormAct(dims, channels, channels)
        # No bias: the normalization that follows would subtract it.
        self.second = conv(channels, channels, 3, padding=1, bias=False)
        self.norm = norm(channels, affine=True)
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        change = self.second(self.first(x))
        return self.act(x + self.norm(change))


def residual_levels(x: Tensor, first: nn.ModuleList, body: nn.ModuleList) -> list[Tensor]:
    """Levels of an encoder whose every level is ``x = first(x); x + body(x)``, fine to coarse.

    RFNet's family and PMKL's U-Net share this form and differ in their convolutions.
    """
    levels = []
    for enter, refine in zip(first, body, strict=True):
        x = enter(x)
        x = x + refine(x)
        levels.append(x)
    return levels


def upsample(x: Tensor, scale: int = 2, *, align_corners: bool = False) -> Tensor:
    """Linear up-sampling by an integer factor; [B, C, *S] -> [B, C, *scale*S]."""
    if x.device.type != "cpu":
        return nn.functional.interpolate(
            x, scale_factor=scale, mode=LINEAR_MODE[x.ndim - 2], align_corners=align_corners
        )
    # On a CPU interpolation is not vectorized: in bf16 it takes nearly as long as a convolution of
    # 32 channels, axis by axis as a matrix product a fifth of that.
    for axis in range(x.ndim - 1, 1, -1):
        weights = _interpolation_matrix(x.shape[axis], scale, align_corners).to(x.dtype)
        if axis == x.ndim - 1:
            x = x @ weights.T
        else:
            rows = weights @ x.flatten(axis + 1)
            x = rows.unflatten(-1, x.shape[axis + 1 :])
    return x


def _interpolation_matrix(size: int, scale: int, align_corners: bool) -> Tensor:
    """[scale * size, size] float64 weights of linear interpolation; rows add up to 1."""
    index = torch.arange(scale * size, dtype=torch.float64)
    if align_corners:
        position = index * (size - 1) / (scale * size - 1)
    else:
        position = ((index + 0.5) / scale - 0.5).clamp(0, size - 1)
    distance = (position[:, None] - torch.arange(size)).abs()
    return (1 - distance).clamp_min(0)


def modulated_norm(x: Tensor, norm: InstanceNorm, scale: Tensor, shift: Tensor) -> Tensor:
    """``norm(x) * (1 + scale) + shift`` in one pass over the voxels.

    Args:
        x: [B, C, *S].
        norm: affine instance normalization of C channels.
        scale, shift: [B, C].
    """
    weight = norm.weight * (1 + scale)
    bias = norm.bias * (1 + scale) + shift
    # Instance normalization is batch normalization of one sample with B * C channels; so each
    # sample may have weights of its own.
    channels = x.flatten(0, 1)[None]
    normalized = nn.functional.batch_norm(
        channels, None, None, weight.flatten(), bias.flatten(), training=True, eps=norm.eps
    )
    return normalized.reshape(x.shape)


def pixel_shuffle(x: Tensor, scale: int) -> Tensor:
    """Rearrange channels into space, for two or three spatial axes; [B, C*scale**d, *S] -> [B, C,
    *scale*S].

    Sub-pixel convolution (Shi et al., CVPR 2016, Eq. 4) for volumes: a head at half resolution
    still draws full-resolution borders, at an eighth of the cost of convolving there.
    """
    dims = x.ndim - 2
    batch = x.shape[0]
    space = x.shape[2:]
    x = x.reshape(batch, -1, *(scale,) * dims, *space)
    # Behind every spatial axis goes the axis of its sub-voxels.
    order = [0, 1]
    for axis in range(dims):
        order += [2 + dims + axis, 2 + axis]
    fine = [scale * size for size in space]
    return x.permute(order).reshape(batch, -1, *fine)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values of samples [B] in a shape that broadcasts over ``like`` [B, C, *S]."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def mask_absent(x: Tensor, present: Tensor) -> Tensor:
    """Zero the samples whose modality is absent; x [B, C, *S], present [B] bool.

    ``torch.where`` and not a product: NaN * 0 is NaN, and what is absent may hold anything.
    """
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    return torch.where(per_sample(present, x), x, zero)
