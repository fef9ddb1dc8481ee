"""Dice of regions: equal to Dice of classes where regions are classes, fair to an unsure core."""

from __future__ import annotations

import math

import pytest
import torch

from medmap.errors import UsageError
from medmap.networks import build_network
from medmap.task import BRATS
from medmap.training.objectives import Context, build_objective
from medmap.training.objectives.region_loss import RegionDiceCE
from medmap.training.objectives.segmentation_loss import BatchDiceCE

REGIONS = [(1, 2, 3), (1, 3), (3,)]


@pytest.fixture
def pair():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 5, 4, generator=draw, dtype=torch.float64)
    label = torch.randint(0, 4, (2, 1, 6, 5, 4), generator=draw)
    return logits, label


def test_regions_of_one_class_each_are_the_dice_of_classes(pair):
    by_region = RegionDiceCE([(1,), (2,), (3,)], 30.0)(*pair)
    torch.testing.assert_close(by_region, BatchDiceCE(30.0)(*pair))


def test_the_loss_by_hand():
    """Two voxels: an enhancing one, and an edema one that is called core."""
    probability = torch.tensor(
        [[0.1, 0.1], [0.2, 0.6], [0.1, 0.2], [0.6, 0.1]], dtype=torch.float64
    )
    logits = probability.log().reshape(1, 4, 2, 1, 1)
    label = torch.tensor([3, 2]).reshape(1, 1, 2, 1, 1)
    whole = 1 - (2 * (0.9 + 0.9) + 1) / (1.8 + 2 + 1)
    core = 1 - (2 * 0.8 + 1) / (1.5 + 1 + 1)
    enhancing = 1 - (2 * 0.6 + 1) / (0.7 + 1 + 1)
    cross_entropy = -(math.log(0.6) + math.log(0.2)) / 2
    within = -(math.log(0.6 / 0.9) + math.log(0.2 / 0.9)) / 2
    expected = (whole + core + enhancing) / 3 + cross_entropy + 0.5 * within
    assert float(RegionDiceCE(REGIONS, 1.0, 0.5)(logits, label)) == pytest.approx(expected)


def test_a_core_of_unsure_classes_costs_less_than_a_core_called_edema():
    label = torch.full((1, 1, 10, 10, 10), 2)
    label[0, 0, :5] = 1
    label[0, 0, :2] = 3

    def loss(core):
        logits = torch.zeros(1, 4, 10, 10, 10)
        logits[:, 0] = -9.0
        logits[:, 2, 5:] = 9.0
        logits[:, :, :5] = torch.tensor(core).reshape(1, 4, 1, 1, 1)
        return RegionDiceCE(REGIONS, 1.0)(logits, label)

    assert loss([-9.0, 4.0, -9.0, 4.0]) < loss([-9.0, 0.0, 4.0, 0.0])


def test_cross_entropy_within_the_target_ignores_the_rest(pair):
    logits, label = pair
    logits.requires_grad_()
    (weighted,) = torch.autograd.grad(RegionDiceCE(REGIONS, 1.0, 2.0)(logits, label), logits)
    (without,) = torch.autograd.grad(RegionDiceCE(REGIONS, 1.0)(logits, label), logits)
    difference = (weighted - without).abs().sum(1)
    assert (difference[label[:, 0] == 0] < 1e-12).all()
    assert (difference[label[:, 0] > 0] > 1e-6).all()


def test_a_patch_without_target_has_a_finite_gradient(pair):
    logits = pair[0].requires_grad_()
    loss = RegionDiceCE(REGIONS, 100.0, 0.5)(logits, torch.zeros_like(pair[1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert (logits.grad[:, 1:].sum() > 0).all()


@pytest.mark.parametrize(("smooth", "within"), [(0.0, 0.0), (1.0, -1.0)])
def test_strange_settings_are_refused(smooth, within):
    with pytest.raises(UsageError, match="smooth is"):
        RegionDiceCE(REGIONS, smooth, within)


def test_the_plain_objective_takes_the_regions_of_its_task():
    network = build_network("SubsetUNet", {"widths": (4, 8)})
    options = {"regions": True, "within": 0.5, "smooth": 100}
    objective = build_objective("plain", Context(BRATS, network), options)
    assert objective.loss.regions == [(1, 2, 3), (1, 3), (3,)]
    assert objective.loss.within == 0.5
