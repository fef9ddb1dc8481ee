"""KD-Net, PMKL, ProtoKD, SMU-Net, ACN: who learns from whom, and which networks are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from Testing.medmap.training.objectives.dedicated_methods import (
    NAMES,
    TEACHERS,
    batch_of,
    context_of,
    groups_of,
    network_of,
    objective_of,
)

from medmap.errors import BundleError, InputDataError, UsageError
from medmap.networks import build_network
from medmap.task import BRATS
from medmap.training.objectives import WithAnchor, build_objective


@pytest.mark.parametrize("method", sorted(TEACHERS))
def test_a_frozen_teacher_gets_no_gradients_and_keeps_its_buffers(method):
    objective = objective_of(method)
    teacher = objective.teacher.network
    before = copy.deepcopy(teacher.state_dict())
    _, losses = next(objective.steps(batch_of(), 0.5))
    sum(losses.values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any("teacher." in name for name in objective.state_dict())
    assert not {id(p) for p in teacher.parameters()} & {
        id(p) for ps in groups_of(objective).values() for p in ps
    }
    objective.train()
    assert not teacher.training


@pytest.mark.parametrize("method", NAMES)
def test_the_student_sees_its_own_modalities_only(method):
    objective, batch = objective_of(method), batch_of()
    student = objective.deploy().eval()
    assert student.needs == {1, 3}
    with torch.no_grad():
        expected = student(batch.image, batch.present).logits
        batch.image[:, [0, 2]] = float("nan")
        assert torch.equal(student(batch.image, batch.present).logits, expected)


@pytest.mark.parametrize("method", NAMES)
def test_the_other_network_sees_every_modality(method):
    """Changing a modality that the student lacks changes the loss: the teacher and the full path
    see it.
    """
    objective = objective_of(method).eval()
    totals = []
    for change in (0.0, 1.0):
        batch = batch_of()
        batch.image[:, 0] += change * torch.linspace(-1, 1, 16)
        _, losses = next(objective.steps(batch, 0.9))
        totals.append(float(sum(losses.values()).detach()))
    assert totals[0] != totals[1]


@pytest.mark.parametrize("method", NAMES)
def test_each_step_touches_its_own_groups_parameters_and_all_of_them(method):
    objective, batch = objective_of(method), batch_of()
    groups = groups_of(objective)
    everything = {id(p) for p in objective.parameters()}
    assert {id(p) for parameters in groups.values() for p in parameters} == everything
    assert sum(len(parameters) for parameters in groups.values()) == len(everything), (
        "no parameter is stepped twice"
    )
    expected = ["main", "disc"] if method in ("acn", "smu-net") else ["main"]
    assert list(groups) == expected
    seen = []
    for name, losses in objective.steps(batch, 0.5):
        seen.append(name)
        objective.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        touched = {id(p) for p in objective.parameters() if p.grad is not None}
        assert touched <= {id(p) for p in groups[name]}
        untouched = [
            n
            for n, p in objective.named_parameters()
            if id(p) in {id(q) for q in groups[name]} - touched
        ]
        assert not untouched, f"{untouched} never learn"
    assert seen == expected


def information(objective, batch, coupled_to=None):
    _, losses = next(objective.steps(batch, 0.5))
    return losses["information"]


def test_acns_information_depends_on_the_full_path_and_moves_student_and_head():
    objective, batch = objective_of("acn"), batch_of()
    objective.eval()
    before = information(objective, batch)
    before.backward()
    moved = {
        part: any(
            p.grad is not None and p.grad.abs().sum() > 0
            for p in getattr(objective, part).parameters()
        )
        for part in ("student", "information_head", "full")
    }
    assert moved == {"student": True, "information_head": True, "full": False}
    with torch.no_grad():
        for p in objective.full.parameters():
            p.add_(0.05 * torch.randn_like(p))
    assert information(objective, batch) != before


def test_acns_information_moves_the_full_path_when_coupled():
    objective = objective_of("acn", coupled=True)
    information(objective, batch_of()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.full.parameters())


def test_adversarial_losses_reach_the_student_and_not_the_full_path():
    objective, batch = objective_of("acn"), batch_of()
    _, losses = next(objective.steps(batch, 0.5))
    (losses["entropy"] + losses["knowledge"]).backward()
    assert all(p.grad is None for p in objective.full.parameters())
    assert all(p.grad is None for p in objective.adversaries.parameters())
    assert any(p.grad is not None for p in objective.student.parameters())


def test_the_consistency_moves_both_paths_and_grows_with_the_epochs():
    objective, batch = objective_of("acn"), batch_of()
    objective.eval()
    early, late = (next(objective.steps(batch, t))[1]["consistency"] for t in (0.0, 1.0))
    assert 0 < early < late
    late.backward()
    for path in (objective.full, objective.student):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in path.parameters())


def test_smu_nets_content_spares_the_full_path_unless_coupled():
    for coupled in (False, True):
        objective = objective_of("smu-net", coupled=coupled)
        _, losses = next(objective.steps(batch_of(), 0.5))
        (losses["content"] + losses["gram"]).backward()
        assert any(p.grad is not None for p in objective.full.parameters()) == coupled


def test_the_aligned_network_is_the_full_path_and_never_a_student():
    objective = objective_of("acn")
    assert objective.aligned() is objective.full
    with pytest.raises(UsageError, match="Align the teacher"):
        objective_of("pmkl").aligned()


@pytest.mark.parametrize("anchor", ["peer", "mixture", "normal"])
def test_acns_full_path_is_aligned_behind_its_own_stem(anchor):
    stem = {
        "at": "input",
        "channels": 2,
        **({"mixture": {"initial": {"t1ce": 2.0}}} if anchor == "mixture" else {}),
    }
    objective = WithAnchor(
        objective_of("acn", full={"stem": stem}), BRATS, anchor=anchor, tap="stem"
    ).train()
    assert objective.deploy().built_from[1]["inputs"] == [1, 3]
    (main, losses), *_ = objective.steps(batch_of(), 0.5)
    assert main == "main"
    assert losses["align"] > 0
    losses["align"].backward()
    moved = {
        name.split(".")[1]
        for name, p in objective.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert "full" in moved
    assert "student" not in moved


@pytest.mark.parametrize("method", NAMES)
def test_patches_without_a_tumor_give_finite_losses_and_gradients(method):
    objective, batch = objective_of(method), batch_of()
    batch.label[:] = 0
    for group, losses in objective.steps(batch, 0.5):
        objective.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        assert all(torch.isfinite(value) for value in losses.values()), losses
        assert all(
            torch.isfinite(p.grad).all() for p in groups_of(objective)[group] if p.grad is not None
        )


@pytest.mark.parametrize("method", NAMES)
def test_incomplete_cases_are_refused(method):
    objective = objective_of(method)
    with pytest.raises(InputDataError, match="complete"):
        next(
            objective.steps(
                batch_of(present=[[True, True, True, True], [True, False, True, True]]), 0.0
            )
        )
    held = {"t1": 5, "t1ce": 3, "t2": 5, "flair": 5}
    with pytest.raises(InputDataError, match="of 5 cases 2 lack t1ce"):
        build_objective(method, context_of(method, cases=5, cases_with=held), {})


@pytest.mark.parametrize("method", NAMES)
def test_networks_for_any_set_are_refused(method):
    anything = build_network("SubsetUNet", {"modalities": 4, "classes": 4, "widths": [4, 8, 8]})
    with pytest.raises(BundleError, match="one modality subset"):
        build_objective(method, context_of(method, backbone=anything), {})


@pytest.mark.parametrize("method", sorted(TEACHERS))
def test_distilling_needs_a_teacher_of_the_same_task(method):
    with pytest.raises(UsageError, match="--teacher"):
        build_objective(method, context_of(method, teacher=None), {})
    with pytest.raises(BundleError, match="different tasks"):
        build_objective(
            method, context_of(method, teacher=network_of("UNet", range(4), classes=3)), {}
        )


def test_networks_without_the_taps_or_the_same_bottleneck_are_refused():
    with pytest.raises(BundleError, match="style"):
        build_objective("smu-net", context_of("acn"), {})
    other = network_of("UNet", range(4), widths=[4, 6, 10])
    with pytest.raises(BundleError, match="bottlenecks"):
        next(
            build_objective("kd-net", context_of("kd-net", teacher=other), {}).steps(
                batch_of(), 0.0
            )
        )
