"""The faster forms of common steps compute what PyTorch's own do, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medmap.networks.blocks import LINEAR_MODE, NORM, modulated_norm, upsample


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 2, 1, 3, 7), (2, 3, 5, 8)])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("align_corners", [False, True])
def test_upsampling_axis_by_axis_is_interpolation(shape, scale, align_corners):
    image = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.interpolate(
        image, scale_factor=scale, mode=LINEAR_MODE[len(shape) - 2], align_corners=align_corners
    )
    upsampled = upsample(image, scale, align_corners=align_corners)
    torch.testing.assert_close(upsampled, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((upsampled * weights).sum(), image)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), image)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_modulated_normalization_is_normalization_with_a_scale_and_a_shift(dims):
    norm = NORM[dims](3, affine=True).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    image = torch.randn(2, 3, *(5, 6, 7)[:dims], dtype=torch.float64)
    scale = torch.randn(2, 3, dtype=torch.float64)
    shift = torch.randn(2, 3, dtype=torch.float64)
    space = (1,) * dims
    expected = norm(image) * (1 + scale.reshape(2, 3, *space)) + shift.reshape(2, 3, *space)
    torch.testing.assert_close(
        modulated_norm(image, norm, scale, shift), expected, rtol=0, atol=1e-12
    )
