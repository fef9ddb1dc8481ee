"""What the tests of single networks share: sizes, weights and images that no random number
generator decides.
"""

from __future__ import annotations

import pytest
import torch


def number_of_parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def weights_from_a_formula(network, gain: float | None = 2):
    """The network in float64 and evaluation mode, its weights waves: the same on every machine.

    A weight's standard deviation is about sqrt(gain / fan-in / 2), or that of a sine without a
    gain.
    """
    with torch.no_grad():
        for n, (_, p) in enumerate(sorted(network.named_parameters())):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.7 + n)
            if p.ndim == 1:
                wave = 0.5 + 0.5 * wave
            elif gain is not None:
                wave = wave * (gain / p[0].numel()) ** 0.5
            p.copy_(wave.reshape(p.shape))
    return network.eval().double()


def image_of_waves(*shape) -> torch.Tensor:
    """Values of a float32 image, in float64."""
    positions = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(positions * 0.37).float().double().reshape(shape)


@pytest.fixture
def count():
    return number_of_parameters


@pytest.fixture
def fixed():
    return weights_from_a_formula


@pytest.fixture
def waves():
    return image_of_waves
