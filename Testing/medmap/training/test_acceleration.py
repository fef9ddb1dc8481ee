"""Layouts of convolutions in memory: other strides, the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medmap.task import BRATS
from medmap.training.acceleration import FORMATS, VECTOR_CHANNELS, narrow_channels_last
from medmap.training.distributed import Team, launch
from medmap.training.loop import Training
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective


class NoCases:
    """A sampler that is never asked for a batch."""

    case_ids = ("one",)

    def available(self, case_id: str):
        return [True] * len(BRATS.modality_names)


def is_channels_last(weight: torch.Tensor) -> bool:
    """Whether the channels, the second axis, are innermost by the strides alone.

    ``is_contiguous`` is true of a 1-wide kernel in either layout.
    """
    return weight.stride(1) == 1 and weight.stride(-1) == weight.shape[1]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kernel", [1, 3])
def test_only_narrow_convolutions_change_their_layout(dims: int, kernel: int):
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    narrow = conv(4, VECTOR_CHANNELS - 1, kernel)
    wide = conv(4, VECTOR_CHANNELS, kernel)
    numbers = narrow.weight.detach().clone()

    narrow_channels_last(nn.ModuleList([narrow, wide]))

    assert is_channels_last(narrow.weight)
    assert wide.weight.is_contiguous()
    assert wide.weight.stride(1) == kernel**dims
    assert torch.equal(narrow.weight, numbers)


@pytest.mark.parametrize("kernel", [1, 3])
def test_layout_changes_neither_outputs_nor_gradients(kernel: int):
    torch.manual_seed(0)
    convolution = nn.Conv3d(5, 6, kernel, padding=kernel // 2, dtype=torch.float64)
    other = nn.Conv3d(5, 6, kernel, padding=kernel // 2, dtype=torch.float64)
    other.load_state_dict(convolution.state_dict())
    narrow_channels_last(other)
    image = torch.randn(2, 5, 6, 7, 8, dtype=torch.float64)

    results = []
    for layer in (convolution, other):
        scan = image.clone().requires_grad_(True)
        output = layer(scan)
        output.square().sum().backward()
        results.append((output, scan.grad, layer.weight.grad, layer.bias.grad))

    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("channels_last", "narrow", "wide"),
    [(None, True, False), (False, False, False), (True, True, True)],
)
def test_layout_of_a_training_on_a_cpu(
    tmp_path: Path, channels_last: bool | None, narrow: bool, wide: bool
):
    recipe = Recipe(
        network="SubsetUNet",
        network_options={"widths": [8, 16]},
        patch=(16, 16, 16),
        large_patch=(16, 16, 16),
        steps=1,
    )
    options = RuntimeOptions(device="cpu", precision="fp32", channels_last=channels_last)
    objective = make_objective(recipe, BRATS, NoCases())
    team = Team(launch("cpu", "fp32"))
    training = Training(recipe, objective, NoCases(), tmp_path, options, team)

    layouts: dict[bool, set[bool]] = {True: set(), False: set()}
    for layer in training.objective.modules():
        # A kernel of one input channel has channels innermost in either layout.
        if isinstance(layer, nn.Conv3d) and layer.weight.shape[1] > 1:
            is_narrow = layer.out_channels < VECTOR_CHANNELS
            if layer.kernel_size != (1, 1, 1):
                layouts[is_narrow].add(layer.weight.is_contiguous(memory_format=FORMATS[5]))

    assert layouts == {True: {narrow}, False: {wide}}
