"""Losses shared by the objectives, against libraries or by hand."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from medmap.networks.auxiliary import mean_over_present, ring_l1
from medmap.task import BRATS
from medmap.training.objectives import Context, build_objective, losses

RNG = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(2, 4, 5, 6, 7, generator=RNG)
LABEL = torch.randint(0, 4, (2, 5, 6, 7), generator=RNG)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("over_batch", [True, False])
def test_dice_is_monais(background, squared, over_batch):
    expected = DiceLoss(
        include_background=background,
        to_onehot_y=True,
        softmax=True,
        squared_pred=squared,
        batch=over_batch,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )(LOGITS, LABEL[:, None])
    target = losses.one_hot_classes(LABEL, 4)
    found = losses.dice_loss(
        LOGITS.softmax(1),
        target,
        background=background,
        squared=squared,
        over_batch=over_batch,
        smooth=1e-5,
        eps=0,
    )
    torch.testing.assert_close(found, expected)


def test_without_smoothing_an_absent_class_costs_a_constant():
    target = losses.one_hot_classes(torch.zeros_like(LABEL), 4)
    assert losses.dice_loss(target, target) == pytest.approx(0.75, abs=1e-4)


def test_weighted_cross_entropy_is_torchs_without_its_normalization():
    w = torch.tensor([0.1, 2.0, 0.5, 1.0])
    expected = (cross_entropy(LOGITS, LABEL, reduction="none") * w[LABEL]).mean()
    torch.testing.assert_close(losses.weighted_cross_entropy(LOGITS, LABEL, w), expected)


def test_classes_can_weigh_alike_beside_the_dice():
    logits = LOGITS.double()
    expected = cross_entropy(logits, LABEL)
    expected = expected + losses.dice_loss(logits.softmax(1), losses.one_hot_classes(LABEL, 4))
    equal = losses.cross_entropy_and_dice(logits, LABEL, class_weighted=False)
    torch.testing.assert_close(equal, expected)


@pytest.mark.parametrize("objective", ["sls", "passion", "pmr", "mckd"])
def test_an_objective_can_weigh_classes_alike(objective, network):
    """The lineage's weights make small tumors too large in short trainings."""
    name = "MCKD" if objective == "mckd" else "RFNet"
    options = {"alpha": 0.0} if objective == "mckd" else {}
    for class_weighted in (True, False):
        context = Context(BRATS, network(name), steps=10, cases=4)
        built = build_objective(objective, context, {**options, "class_weighted": class_weighted})
        loss = built.task_loss if objective == "mckd" else built._loss
        expected = losses.cross_entropy_and_dice(LOGITS, LABEL, class_weighted=class_weighted)
        assert loss(LOGITS, LABEL) == expected


def test_class_weights_are_one_minus_the_share_of_the_sample():
    label = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    label[0, :2] = 3
    assert losses.class_weights(label, 4).tolist() == [[0.5, 1, 1, 0.5], [0, 1, 1, 1]]


def test_clipping_stops_the_gradient_of_hard_voxels_and_the_default_does_not():
    logits = torch.tensor([10.0, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    label = torch.ones(1, 1, 1, dtype=torch.long)
    for clip, moves in ((0.005, False), (0.0, True)):
        (gradient,) = torch.autograd.grad(
            losses.weighted_cross_entropy(logits, label, torch.ones(2), clip=clip),
            logits,
            retain_graph=True,
        )
        assert bool(gradient.abs().max() > 0) is moves


def test_soft_kl_is_torchs():
    teacher = torch.randn(LOGITS.shape, generator=RNG)
    logs, t = log_softmax(LOGITS / 4, 1), softmax(teacher / 4, 1)
    expected = kl_div(logs, t, reduction="none").sum(1).mean()
    torch.testing.assert_close(losses.soft_kl(LOGITS, teacher, 4), expected)
    torch.testing.assert_close(
        losses.soft_kl(LOGITS, teacher, 4, over_classes="mean"), expected / 4
    )
    torch.testing.assert_close(
        losses.soft_kl(LOGITS, teacher, 4, squared_temperature=True), 16 * expected
    )
    torch.testing.assert_close(
        losses.soft_kl(LOGITS, teacher, 4, entropy=True), -(t * logs).sum(1).mean()
    )
    assert losses.soft_kl(LOGITS, LOGITS, 4).abs() < 1e-6


def test_soft_kl_weighs_voxels_and_survives_an_empty_mask_and_sends_the_teacher_nothing():
    student, teacher = LOGITS.clone().requires_grad_(), LOGITS.flip(1).clone().requires_grad_()
    weight = torch.zeros(LABEL.shape)
    assert losses.soft_kl(student, teacher, weight=weight) == 0
    weight[0, 0, 0, 0] = 3.0
    loss = losses.soft_kl(student, teacher, weight=weight)
    p, q = teacher[0, :, 0, 0, 0].softmax(0), student[0, :, 0, 0, 0].softmax(0)
    torch.testing.assert_close(loss, (p * (p / q).log()).sum())
    loss.backward()
    assert teacher.grad is None
    assert torch.isfinite(student.grad).all()


def test_prototypes_are_class_means_and_maps_are_one_on_constant_features():
    feature = torch.nn.functional.one_hot(LABEL, 4).movedim(-1, 1).float() * 2
    label = LABEL.clone()
    label[1][label[1] == 3] = 0
    means, has = losses.class_means(feature, LABEL, 4)
    torch.testing.assert_close(means, 2 * torch.eye(4).expand(2, 4, 4), rtol=1e-4, atol=1e-4)
    maps = losses.similarity_maps(feature, means)
    assert has.all()
    torch.testing.assert_close(
        maps.gather(1, LABEL[:, None]), torch.ones(2, 1, 5, 6, 7), rtol=1e-4, atol=1e-4
    )
    means, has = losses.class_means(feature, label, 4)
    assert has.tolist() == [[True] * 4, [True, True, True, False]]
    assert torch.isfinite(losses.similarity_maps(feature, means)).all()


def test_sums_over_modalities_leave_the_absent_out():
    values = [torch.tensor([1.0, float("nan")]), None, torch.tensor([3.0, 5.0])]
    present = torch.tensor([[True, False, True], [False, False, True]])
    assert mean_over_present(values, present) == pytest.approx(3.0)
    assert mean_over_present([None] * 3, present) == 0


def test_the_ring_compares_neighbors_that_are_both_there():
    x = [torch.full((1, 2, 3), float(v)) for v in (0, 1, 3, 7)]
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert ring_l1(x, everything) == pytest.approx(1 + 2 + 4 + 7)
    assert ring_l1(
        [x[0], None, x[2], x[3]], torch.tensor([[True, False, True, True]])
    ) == pytest.approx(4 + 7)
    assert ring_l1(x, torch.tensor([[True, False, True, False]])) == 0


def test_the_ramp_rises_from_almost_nothing_to_one():
    assert losses.consistency_ramp(0.0) == pytest.approx(math.exp(-5))
    assert losses.consistency_ramp(0.05, 0.1) == pytest.approx(math.exp(-1.25))
    assert losses.consistency_ramp(0.5, 0.1) == 1.0


def test_labels_and_logits_change_their_size_only_where_they_must():
    assert losses.resize_label(LABEL, (5, 6, 7)) is LABEL
    assert losses.resize_logits(LOGITS, (5, 6, 7)) is LOGITS
    assert losses.resize_label(LABEL, (10, 12, 14)).shape == (2, 10, 12, 14)
    assert losses.resize_logits(LOGITS, (10, 12, 14)).shape == (2, 4, 10, 12, 14)
