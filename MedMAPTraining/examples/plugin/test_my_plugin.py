"""What every network has to pass, and one check by hand: python -m pytest test_my_plugin.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medmap.commands.plugins import load_plugins
from medmap.networks import build_network
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.missingness import build_missingness
from medmap.training.objectives import Context, build_objective

load_plugins([Path(__file__).parent / "my_plugin.py"])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network("MeanFusion", {"modalities": 4, "classes": 4, "width": 4})


def test_absent_modalities_change_no_bit(network):
    image = torch.randn(2, 4, 8, 8, 8)
    present = torch.tensor([[True, False, True, False], [False, True, False, False]])
    is_present = present[:, :, None, None, None]
    noise = torch.where(is_present, image, torch.nan)
    zeros = torch.where(is_present, image, torch.zeros(()))
    with_noise = network(noise, present)
    with_zeros = network(zeros, present)
    assert torch.equal(with_noise.logits, with_zeros.logits)


def test_the_objective_is_cross_entropy_for_gamma_zero(network):
    objective = build_objective("focal", Context(BRATS, network), {"gamma": 0.0})
    image = torch.randn(1, 4, 8, 8, 8)
    present = torch.ones(1, 4, dtype=torch.bool)
    label = torch.randint(0, 4, (1, 8, 8, 8))
    brain = torch.ones_like(label, dtype=torch.bool)
    batch = Batch(image, present, label, brain, ("a",))
    [(group, losses)] = list(objective.steps(batch, 0.0))
    expected = torch.nn.functional.cross_entropy(network(image, present).logits, label)
    assert group == "main"
    torch.testing.assert_close(losses["focal"], expected)


def test_the_protocol_shows_at_most_two():
    protocol = build_missingness("at-most", BRATS, {"number": 2})
    masks = []
    for seed in range(200):
        masks.append(protocol("a", 0, np.random.default_rng(seed)))
    assert set(np.sum(masks, axis=1)) == {1, 2}
