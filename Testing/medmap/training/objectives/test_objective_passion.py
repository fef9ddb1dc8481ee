"""PASSION: its updates against hand-computed values, one decoder call against many, no gradient to
the teacher.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from medmap.errors import BundleError, UsageError
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.objectives import Context, build_objective
from medmap.training.objectives.losses import cross_entropy_and_dice
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
    # Eq. 12 counts every sample that has the modality, also the one that has no other.
    assert objective.seen.tolist() == ([2, 2, 0, 2] if variant == "paper" else [2, 1, 0, 2])
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


def by_hand(net, batch):
    """Outputs of the sample with three modalities, together and of each alone, as networks give
    them: logits of level 0, then of the deep levels, and the map before the head.
    """
    image = batch.image[:1]
    outputs = []
    for modalities in ((0, 1, 3), (0,), (1,), (3,)):
        present = torch.zeros(1, 4, dtype=torch.bool)
        present[0, list(modalities)] = True
        output = net(image, present, ("decoder",))
        outputs.append(([output.logits, *output.aux["deep"]], output.taps["decoder"]))
    return outputs


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_losses_by_hand_on_a_network_with_deep_outputs(variant, network, make_batch):
    """Eq. 1, 3, 7, 8, 10, 11 and 12 literally; the released variant where it does otherwise."""
    net = network("RFNet").double()
    objective = passion(net, variant=variant)
    batch = make_batch(present=[[True, True, False, True], [True, False, False, False]])
    batch = replace(batch, image=batch.image.double())
    losses = run(objective, batch)
    (levels, feature), *alone = by_hand(net, batch)
    assert len(levels) > 2
    released = variant == "released"
    classes = 4 if released else 1

    # Eq. 1: every level counts alike, enlarged to full size; 1/2, 1/4 ... as released.
    whole = net(batch.image, batch.present)
    for level, logits in enumerate(whole.aux["deep"], 1):
        enlarged = interpolate(logits, size=batch.label.shape[1:], mode="trilinear")
        expected = cross_entropy_and_dice(enlarged, batch.label)
        weight = 0.5**level if released else 1.0
        torch.testing.assert_close(
            losses[f"deep{level}"], weight * expected, check_dtype=False, rtol=1e-4, atol=1e-6
        )

    # Eq. 3: the sum over l = 0..L, not level 0 alone.
    pixel = []
    for student_levels, _ in alone:
        total = 0
        for level, (student, teacher) in enumerate(zip(student_levels, levels, strict=True)):
            p, q = (student / 4).softmax(1), (teacher / 4).softmax(1)
            if released:
                divergence = 16 * (q * (q / p).log()).sum(1).mean() / classes
                total = total + 0.5**level * divergence
            else:
                total = total + (p * (p / q).log()).sum(1).mean()
        pixel.append(total)
    factor = objective.weight if released else objective.beta
    factors = [factor[m] for m in (0, 1, 3)]
    expected = 0.5 * sum(f * x for f, x in zip(factors, pixel, strict=True)) / 2
    torch.testing.assert_close(losses["pixel"], expected, check_dtype=False, rtol=1e-4, atol=1e-7)

    # Eq. 7 and 10: norms of single numbers are absolute values.
    label = interpolate(batch.label[:1, None].double(), size=feature.shape[2:])[:, 0].long()
    wanted, _ = prototype_maps(feature, label, 4)
    differences = [prototype_maps(own, label, 4)[0] - wanted for _, own in alone]
    distance = torch.stack([difference.abs().sum() for difference in differences])
    preference = 1 - distance / distance.mean()
    torch.testing.assert_close(
        objective.preference_sum[[0, 1, 3]], preference, check_dtype=False, rtol=1e-3, atol=1e-5
    )

    # Eq. 8 and 11: squares, of those that lag behind.
    voxels = label.numel()
    squares = [difference.square().sum() / voxels / classes for difference in differences]
    terms = [f * x for f, x, rp in zip(factors, squares, preference, strict=True) if rp < 0]
    if not released:
        terms = [x for x, rp in zip(squares, preference, strict=True) if rp < 0]
    torch.testing.assert_close(
        losses["prototype"], 0.1 * sum(terms) / 2, check_dtype=False, rtol=1e-3, atol=1e-7
    )

    # Eq. 12: the denominator counts both samples for T1.
    figures = objective.epoch_end(0)
    if not released:
        assert figures["preference_t1"] == pytest.approx(
            float(preference[0].detach()) / 2, rel=1e-3
        )
        assert figures["preference_t1ce"] == pytest.approx(float(preference[1].detach()), rel=1e-3)


def test_components_can_be_switched_off(network, make_batch):
    """The rows of Table 2: one distillation alone, both, and with delta; beta then stays 1."""
    batch = make_batch(present=[[True, True, False, True]])
    plain = {"task_wise": False, "gradient_wise": False}
    objective = passion(network("RFNet"), prototype=0.0, **plain)
    losses = run(objective, batch)
    assert losses["prototype"] == 0
    assert losses["pixel"] > 0
    objective.epoch_end(0)
    torch.testing.assert_close(objective.beta, torch.ones(4))
    both = run(passion(network("RFNet"), **plain), batch)
    with_delta = run(passion(network("RFNet"), gradient_wise=False), batch)
    assert both["prototype"] > with_delta["prototype"] > 0
    torch.testing.assert_close(both["pixel"], with_delta["pixel"])


def test_the_printed_baseline_segments_each_modality_with_the_fused_decoder(network, make_batch):
    """Eq. 1 and 2: z^{m,0} is D_f of one modality, also where a sample has no other."""
    net = network("RFNet").double()
    batch = make_batch(present=[[True, True, False, True], [True, False, False, False]])
    batch = replace(batch, image=batch.image.double())
    losses = run(passion(net, baseline=True), batch)
    (_, *alone) = by_hand(net, batch)
    of_second = net(batch.image[1:], batch.present[1:]).logits
    t1, t1ce, flair = (levels[0] for levels, _ in alone)
    first = batch.label[:1]
    expected = (
        cross_entropy_and_dice(torch.cat([t1, of_second]), batch.label)
        + cross_entropy_and_dice(t1ce, first) / 2
        + cross_entropy_and_dice(flair, first) / 2
    )
    torch.testing.assert_close(losses["separate"], expected, check_dtype=False)


def test_the_released_baseline_logs_its_preference_and_trains_as_sls_does(network, make_batch):
    batch = make_batch()
    objective = passion(network("RFNet"), variant="released", baseline=True)
    losses = run(objective, batch)
    assert not {"pixel", "prototype"} & set(losses)
    plain = Context(BRATS, network("RFNet"), cases=10, cases_with=COUNTS)
    expected = run(build_objective("sls", plain, {}), batch)
    torch.testing.assert_close(losses["separate"], expected["separate"])
    torch.testing.assert_close(losses["segmentation"], expected["segmentation"])
    before = objective.beta.clone()
    figures = objective.epoch_end(0)
    assert any(figures[f"preference_{name}"] for name in BRATS.modality_names)
    assert torch.equal(objective.beta, before)


def test_a_sample_with_one_modality_has_nothing_to_distil(network, make_batch):
    objective = passion(network("RFNet"))
    losses = run(objective, make_batch(present=[[False, False, True, False]]))
    assert "pixel" not in losses
    assert not objective.preference_sum.any()
    assert objective.seen.tolist() == [0, 0, 1, 0]


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


CHANGES = {
    "forward_kl": {"pixel"},
    "squared_temperature": {"pixel"},
    "halved_levels": {"pixel"},
    "class_mean": {"pixel", "prototype"},
    "rate_as_weight": {"prototype", "beta"},
    "separate": {"separate"},
    "separate_decoder": {"separate"},
    "epoch_preference": {"preference"},
    "several_only": {"preference"},
    "scheduled": {"beta"},
    "batch_delta": {"prototype"},
}
"""What each deviation makes different."""


@pytest.mark.parametrize("name", list(CHANGES))
def test_every_deviation_changes_what_it_says_and_nothing_else(name, network, make_batch):
    assert set(CHANGES) == set(PAPER.__dict__) - {"t2_with_t1_tokens"}
    assert getattr(RELEASED, name)
    batch = make_batch(present=[*PRESENT, [False, True, True, True]])
    figures = []
    always = {"separate": True} if name == "separate_decoder" else {}
    for options in (always, {**always, name: True}):
        # Preferences of the two samples differ in sign, so that a batch decides otherwise.
        objective = passion(network("RFNet"), **options)
        losses = run(objective, batch)
        epoch = objective.epoch_end(0)
        values = {"separate": 0.0} | {key: float(value.detach()) for key, value in losses.items()}
        for kind in ("preference", "beta"):
            values[kind] = [epoch[f"{kind}_{modality}"] for modality in BRATS.modality_names]
        figures.append(values)
    plain, changed = figures
    different = {key for key in plain if changed[key] != pytest.approx(plain[key], rel=1e-5)}
    follows = {"beta"} if CHANGES[name] == {"preference"} else set()
    assert CHANGES[name] <= different
    assert different <= CHANGES[name] | follows


def test_what_cannot_be_is_refused(network):
    with pytest.raises(UsageError, match="cannot train"):
        passion(network("SubsetUNet"), variant="guessed")
    with pytest.raises(BundleError, match="backward_kl"):
        passion(network("SubsetUNet"), backward_kl=True)
