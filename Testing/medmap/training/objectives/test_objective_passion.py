"""PASSION: its updates against hand-computed values, one decoder call against many, no gradient to
the teacher.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medmap.errors import BundleError, UsageError
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.objectives import Context, build_objective
from medmap.training.objectives.passion import (
    PAPER,
    RELEASED,
    prototype_maps,
    relative_preference,
    scheduled_beta,
    task_mask,
)
from medmap.training.objectives.self_distillation import Students, decode_together, encode_batch

BACKBONES = ["mmFormer", "RFNet", "M2FTrans", "SubsetUNet", "GatedUNet"]
PUBLISHED = ["mmFormer", "RFNet", "M2FTrans"]
COUNTS = dict(zip(BRATS.modality_names, (8, 6, 2, 4), strict=True))
PRESENT = [[True, True, False, True], [False, True, False, False], [True, False, False, True]]


def passion(backbone, **options):
    return build_objective(
        "passion", Context(BRATS, backbone, cases=10, cases_with=COUNTS), options
    )


def run(objective, batch):
    ((group, losses),) = list(objective.steps(batch, 0.0))
    assert group == "main"
    return losses


def test_relative_preference_and_task_mask_by_hand():
    distance = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 5.0, 0.0, 0.0], [2.0, 0.0, 0.0, 2.0]])
    preference = relative_preference(distance)
    torch.testing.assert_close(
        preference, torch.tensor([[0.5, 0, 0, -0.5], [0, 0, 0, 0], [0, 0, 0, 0.0]])
    )
    assert task_mask(preference).tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    both = task_mask(relative_preference(torch.tensor([[1.0, 2.0], [3.0, 1.0]])), whole_batch=True)
    # Behind: the second by 1/3 in one sample, the first by 1/2 in the other; the batch says the
    # first.
    assert both.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("epoch", "step"), [(0, 0.015), (99, 0.015), (100, 0.0225), (200, 0.03375)]
)
def test_the_released_update_of_beta_by_hand(epoch, step):
    preference = torch.tensor([0.4, -0.4, 0.2, -0.2])
    raw = torch.tensor([1 - 0.4 * step, 1 + 0.4 * step, 1 - 0.2 * step, 1 + 0.2 * step])
    beta = scheduled_beta(torch.ones(4), preference, epoch)
    torch.testing.assert_close(beta, 2 * raw / raw.norm())
    torch.testing.assert_close(beta.norm(), torch.tensor(2.0))
    low = scheduled_beta(torch.tensor([0.1, 1, 1, 1]), torch.tensor([100.0, 0, 0, 0]), 0)
    torch.testing.assert_close(
        low, 2 * torch.tensor([0.1, 1, 1, 1]) / torch.tensor([0.1, 1, 1, 1]).norm()
    )


def test_beta_starts_at_one_over_one_minus_the_missing_rate_and_follows_the_preference(network):
    objective = passion(network("SubsetUNet"))
    torch.testing.assert_close(objective.beta, torch.tensor([10 / 8, 10 / 6, 10 / 2, 10 / 4]))
    objective.preference_sum += torch.tensor([0.6, -0.6, 0.0, 9.0])
    objective.seen += torch.tensor([2.0, 3.0, 0.0, 1.0])
    figures = objective.epoch_end(0)
    torch.testing.assert_close(
        objective.beta, torch.tensor([1.25 - 0.003, 10 / 6 + 0.002, 5, 2.5 - 0.09])
    )
    assert figures["preference_t1"] == pytest.approx(0.3)
    assert figures["beta_flair"] == pytest.approx(2.41)
    assert not objective.seen.any()
    released = passion(network("SubsetUNet"), variant="released")
    torch.testing.assert_close(released.beta, torch.ones(4))
    torch.testing.assert_close(released.weight, torch.tensor([10 / 8, 10 / 6, 10 / 2, 10 / 4]))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", BACKBONES)
def test_one_call_of_the_decoder_equals_one_call_per_student(name, dims, network, make_batch):
    """In float64: the two ways add up in another order, and how far they differ in float32 depends
    on the processor.
    """
    options = {"dropout": 0.0} if name in ("mmFormer", "M2FTrans") else {}
    net = network(name, dims, **options).double()
    batch = make_batch(dims)
    batch = replace(batch, image=batch.image.double())
    features = encode_batch(net, batch)
    students = Students.of(batch.present)
    pairs = list(zip(students.sample.tolist(), students.modality.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (0, 3), (2, 0), (2, 3)]
    teacher, alone = decode_together(net, features, batch.present, students, ("decoder",))
    naive = net(batch.image, batch.present, ("decoder",))
    torch.testing.assert_close(teacher.logits, naive.logits)
    torch.testing.assert_close(teacher.taps["decoder"], naive.taps["decoder"])
    for row, (sample, modality) in enumerate(pairs):
        only = torch.zeros(1, 4, dtype=torch.bool)
        only[0, modality] = True
        expected = net(batch.image[sample : sample + 1], only, ("decoder",))
        torch.testing.assert_close(alone.logits[row], expected.logits[0])
        torch.testing.assert_close(alone.taps["decoder"][row], expected.taps["decoder"][0])
        deep_pairs = zip(alone.aux.get("deep", []), expected.aux.get("deep", []), strict=True)
        for together, single in deep_pairs:
            torch.testing.assert_close(together[row], single[0])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_it_trains_the_published_backbones_and_remembers_distances(
    name, dims, variant, network, make_batch
):
    objective = passion(network(name, dims), variant=variant)
    losses = run(objective, make_batch(dims))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert {"segmentation", "deep1", "pixel", "prototype"} <= set(losses)
    assert ("separate" in losses) == (variant == "released")
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objective.parameters())
    assert objective.seen.tolist() == [2, 1, 0, 2]
    assert objective.distance_sum[2] == 0
    figures = objective.epoch_end(0)
    assert set(figures) == {
        f"{what}_{name}" for what in ("preference", "beta") for name in BRATS.modality_names
    }


def test_the_teacher_receives_no_gradient_from_distillation(network, make_batch):
    """With the fused loss away, what only the teacher uses stays without a gradient."""
    objective = passion(network("SubsetUNet"))
    batch = make_batch(present=[[True, True, False, False]])
    features, students = encode_batch(objective.backbone, batch), Students.of(batch.present)
    teacher, alone = decode_together(
        objective.backbone, features, batch.present, students, ("decoder",)
    )
    teacher.logits.retain_grad()
    teacher.taps["decoder"].retain_grad()
    alone.logits.retain_grad()
    prototype, _ = objective._prototype(alone, teacher, batch.label, students)
    (objective._pixel(alone, teacher, students).sum() + prototype.sum()).backward()
    assert alone.logits.grad.abs().sum() > 0
    assert teacher.logits.grad is None
    assert teacher.taps["decoder"].grad is None


@pytest.mark.usefixtures("float64")
def test_the_losses_by_hand(network, make_batch):
    """The divergence of each student, weighted by beta; the prototype loss only of who lags
    behind.
    """
    objective = passion(network("SubsetUNet")).eval()
    batch = make_batch(present=[[True, True, False, True]])
    losses = run(objective, batch)
    net = objective.backbone
    full = net(batch.image, batch.present, ("decoder",))
    label = batch.label[:, ::2, ::2, ::2]
    wanted, _ = prototype_maps(full.taps["decoder"], label, 4)
    pixel, squares, far = [], [], []
    for m in (0, 1, 3):
        only = torch.zeros(1, 4, dtype=torch.bool)
        only[0, m] = True
        alone = net(batch.image, only, ("decoder",))
        p, q = (alone.logits / 4).softmax(1), (full.logits / 4).softmax(1)
        pixel.append((p * (p / q).log()).sum(1).mean())
        difference = prototype_maps(alone.taps["decoder"], label, 4)[0] - wanted
        squares.append(difference.square().flatten(2).mean(2).sum())
        far.append(difference.square().flatten(2).sum(2).sqrt().sum())
    beta = [objective.beta[m] for m in (0, 1, 3)]
    torch.testing.assert_close(
        losses["pixel"], 0.5 * sum(b * x for b, x in zip(beta, pixel, strict=True))
    )
    behind = [x > sum(far) / 3 for x in far]
    torch.testing.assert_close(
        losses["prototype"], 0.1 * sum(b * x for b, x in zip(behind, squares, strict=True))
    )


def test_a_sample_with_one_modality_has_nothing_to_distil(network, make_batch):
    objective = passion(network("RFNet"))
    losses = run(objective, make_batch(present=[[False, False, True, False]]))
    assert "pixel" not in losses
    assert not objective.seen.any()


def test_absent_scans_are_not_read(network, make_batch):
    """They hold NaN in every test here; noise in their place changes no loss."""
    objective = passion(network("RFNet"))
    batch = make_batch()
    noise = torch.where(
        batch.present[..., None, None, None], batch.image, torch.randn_like(batch.image)
    )
    other = Batch(noise, batch.present, batch.label, batch.brain, batch.case_id)
    for mine, its in zip(
        run(objective, batch).values(), run(objective, other).values(), strict=True
    ):
        assert torch.equal(mine, its)


def test_the_slip_of_the_released_mmformer_can_be_chosen(network, make_batch):
    batch = make_batch(present=[[True, False, True, False]])
    right, slip = (
        run(
            passion(network("mmFormer", dropout=0.0), variant="released", t2_with_t1_tokens=slip),
            batch,
        )
        for slip in (False, True)
    )
    assert torch.equal(right["segmentation"], slip["segmentation"])
    assert not torch.equal(right["pixel"], slip["pixel"])


@pytest.mark.parametrize(
    "name", [field for field in PAPER.__dict__ if field != "t2_with_t1_tokens"]
)
def test_every_deviation_can_be_chosen_alone(name, network, make_batch):
    assert getattr(RELEASED, name)
    objective = passion(network("RFNet"), **{name: True})
    losses = run(objective, make_batch(present=PRESENT[::2]))
    assert all(torch.isfinite(value) for value in losses.values())
    objective.epoch_end(0)


def test_what_cannot_be_is_refused(network):
    with pytest.raises(UsageError, match="cannot train"):
        passion(network("SubsetUNet"), variant="guessed")
    with pytest.raises(BundleError, match="backward_kl"):
        passion(network("SubsetUNet"), backward_kl=True)
