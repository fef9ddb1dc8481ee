"""KD-Net, PMKL, ProtoKD, SMU-Net, ACN: the mathematics, who learns from whom, and one way through
training.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from Testing.medmap.small_networks import SMALL
from torch.nn.functional import cross_entropy, kl_div

from medmap.bundle.loading import load_bundle
from medmap.errors import BundleError, InputDataError, UsageError
from medmap.networks import build_network
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.checkpoint import load_checkpoint
from medmap.training.export import export
from medmap.training.loop import train
from medmap.training.objectives import OBJECTIVES, Context, WithAnchor, build_objective
from medmap.training.objectives.acn import InformationHead
from medmap.training.objectives.adversary import Discriminator
from medmap.training.objectives.losses import class_means, similarity_maps
from medmap.training.objectives.pmkl import contrastive_loss, knowledge_map
from medmap.training.objectives.protokd import prototype_loss
from medmap.training.objectives.smu_net import gram_loss
from medmap.training.recipe import Recipe, learning_rate

STUDENTS = {
    "kd-net": "UNet",
    "pmkl": "UNet",
    "protokd": "VNet",
    "smu-net": "SegResNet",
    "acn": "SegResNet",
}
TEACHERS = {"kd-net": "UNet", "pmkl": "GatedUNet", "protokd": "VNet"}
OPTIONS = {"smu-net": {"discriminator_width": 4}, "acn": {"discriminator_width": 4}}
NAMES = sorted(STUDENTS)


def network_of(name, inputs=(1, 3), **options):
    own = {**SMALL[name], "modalities": 4, "classes": 4, **options}
    return build_network(name, own if name == "GatedUNet" else {**own, "inputs": list(inputs)})


def student_options(method):
    return {"style": True} if method == "smu-net" else {}


def context_of(method, seed=0, **changes):
    torch.manual_seed(seed)
    teacher = network_of(TEACHERS[method], range(4)) if method in TEACHERS else None
    student = network_of(STUDENTS[method], **student_options(method))
    return Context(
        **{"task": BRATS, "backbone": student, "teacher": teacher, "steps": 10, **changes}
    )


def objective_of(method, seed=0, **options):
    return build_objective(
        method, context_of(method, seed), {**OPTIONS.get(method, {}), **options}
    ).train()


def batch_of(size=2, present=None, seed=0):
    """Two patches with a blob of three nested classes that the images show."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij")
    distance = sum(axis.square() for axis in axes).sqrt()
    label = sum((distance < radius).long() for radius in (0.9, 0.6, 0.35)).repeat(size, 1, 1, 1)
    noise = torch.randn(size, 4, 16, 16, 16, generator=generator)
    image = (
        label[:, None] * torch.tensor([0.5, 1.0, -1.0, 0.8]).reshape(1, 4, 1, 1, 1) + 0.3 * noise
    )
    here = torch.ones(size, 4, dtype=torch.bool) if present is None else torch.tensor(present)
    return Batch(
        image, here, label, torch.ones_like(label).bool(), tuple(f"case{n}" for n in range(size))
    )


def groups_of(objective):
    return {
        name: [*group.parameters, *group.undecayed] for name, group in objective.groups().items()
    }  # identity of parameters is what matters


# ---------------------------------------- losses


def test_prototype_maps_are_one_where_the_features_of_a_class_are_constant():
    label = torch.randint(0, 3, (2, 6, 6, 6))
    label[0][label[0] == 2] = 0
    codes = torch.randn(3, 5)
    feature = codes[label].movedim(-1, 1)
    means, counted = class_means(feature, label, 3)
    assert counted.tolist() == [[True, True, False], [True, True, True]]
    torch.testing.assert_close(means[1, 2], codes[2], atol=1e-4, rtol=1e-4)
    own = similarity_maps(feature, means).gather(1, label[:, None])
    torch.testing.assert_close(own, torch.ones_like(own), atol=1e-4, rtol=0)


def test_prototypes_stay_exact_under_autocast():
    label, feature = torch.randint(0, 3, (2, 6, 6, 6)), torch.randn(2, 5, 6, 6, 6)
    exact = class_means(feature, label, 3)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_means(feature, label, 3)[0], exact)
        assert similarity_maps(feature, exact).dtype == torch.float32


def test_a_class_absent_from_one_sample_still_counts_for_the_others():
    label = torch.randint(0, 2, (2, 6, 6, 6))
    label[1, 0, 0] = 2
    student, teacher = torch.randn(2, 5, 6, 6, 6), torch.randn(2, 5, 6, 6, 6)
    own, counted = class_means(student, label, 3)
    goal, _ = class_means(teacher, label, 3)
    assert counted.tolist() == [[True, True, False], [True, True, True]]
    errors = (
        (similarity_maps(student, own) - similarity_maps(teacher, goal)).square().flatten(2).mean(2)
    )
    torch.testing.assert_close(prototype_loss(student, teacher, label, 3), errors[counted].mean())
    released = prototype_loss(student, teacher, label, 3, in_every_sample=True)
    torch.testing.assert_close(released, errors[:, :2].mean())
    assert prototype_loss(teacher, teacher, label, 3) == 0


def test_protokd_is_the_sum_of_its_published_terms():
    objective, batch = objective_of("protokd"), batch_of()
    objective.eval()
    _, losses = next(objective.steps(batch, 0.0))
    with torch.no_grad():
        logits, taught = (
            f(batch.image, batch.present).logits
            for f in (objective.student, objective.teacher.network)
        )
    expected = kl_div(
        (logits / 10).log_softmax(1), (taught / 10).softmax(1), reduction="none"
    ).mean()
    torch.testing.assert_close(losses["distillation"], 10 * expected)
    p, g = logits.softmax(1), torch.nn.functional.one_hot(batch.label, 4).movedim(-1, 1)
    axes = (0, 2, 3, 4)
    quotients = (2 * (p * g).sum(axes) + 1e-5) / (g.sum(axes) + p.square().sum(axes) + 1e-5)
    torch.testing.assert_close(losses["dice"], 1 - quotients.mean())
    weights = 1 - torch.bincount(batch.label.flatten(), minlength=4) / batch.label.numel()
    torch.testing.assert_close(
        losses["cross_entropy"], cross_entropy(logits, batch.label, weight=weights)
    )


def test_kd_nets_bottleneck_term_is_the_divergence_over_channels_averaged_over_voxels():
    objective, batch = objective_of("kd-net"), batch_of()
    _, losses = next(objective.steps(batch, 0.0))
    with torch.no_grad():
        networks = (objective.student, objective.teacher.network)
        latent, goal = (
            f(batch.image, batch.present, ("bottleneck",)).taps["bottleneck"] for f in networks
        )
    expected = kl_div(latent.log_softmax(1), goal.softmax(1), reduction="none").sum(1).mean()
    torch.testing.assert_close(losses["bottleneck"], 10 * expected)


def test_the_knowledge_map_is_zero_where_the_teacher_errs_or_the_student_knows_better():
    label = torch.tensor([[[[0, 1, 1, 0]]]])
    teacher, student = torch.zeros(1, 2, 1, 1, 4), torch.zeros(1, 2, 1, 1, 4)
    teacher[0, :, 0, 0] = torch.tensor(
        [[3.0, 3.0, 0.0, 1.0], [0.0, 0.0, 3.0, 0.0]]
    )  # wrong at the second voxel
    student[0, :, 0, 0] = torch.tensor(
        [[0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]]
    )  # better at the fourth
    weight = knowledge_map(student.requires_grad_(), teacher, label)[0, 0, 0]
    assert not weight.requires_grad
    assert weight[1] == weight[3] == 0
    difference = cross_entropy(student, label, reduction="none") - cross_entropy(
        teacher, label, reduction="none"
    )
    torch.testing.assert_close(weight[[0, 2]], difference[0, 0, 0, [0, 2]])
    assert (weight[[0, 2]] > 0).all()


def test_pmkl_without_anything_to_teach_is_zero_and_finite():
    objective, batch = objective_of("pmkl"), batch_of()
    with (
        torch.no_grad()
    ):  # a teacher that is wrong everywhere: it says background, and there is none
        objective.teacher.network.head.weight.zero_()
        objective.teacher.network.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    batch.label[:] = 1
    _, losses = next(objective.steps(batch, 0.0))
    assert losses["regional"] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters())


def test_contrastive_loss_by_hand_and_for_one_sample():
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    other = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    far = [
        (1 - torch.tensor(0.8).sqrt()) ** 2,
        torch.tensor(0.0),
    ]  # sqrt(2) apart is beyond the margin
    same = [torch.tensor(0.0), torch.tensor(0.4)]
    torch.testing.assert_close(
        contrastive_loss(one, other), (sum(far) + sum(same)) / 4, atol=1e-5, rtol=0
    )
    contrastive_loss(one, one.detach()).backward()
    assert torch.isfinite(one.grad).all()
    assert contrastive_loss(one[:1], other[:1]) == 0


def test_gram_loss_is_scale_free_in_the_patch_and_has_its_released_form():
    torch.manual_seed(0)
    one, other = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    assert gram_loss(one, one) == 0
    doubled = [torch.cat([f, f], 4) for f in (one, other)]
    torch.testing.assert_close(gram_loss(*doubled), gram_loss(one, other))
    flat = [f.reshape(6, 64) for f in (one, other)]
    gram = [f @ f.T / (2 * 3 * 64) for f in flat]
    expected = (gram[0] - gram[1]).square().sum() / (4 * 9 * 256)
    torch.testing.assert_close(gram_loss(one, other, released=True), expected)


def test_the_information_head_is_a_gaussian_and_starts_at_variance_five():
    head = InformationHead(3, 4)
    missing, full = torch.randn(2, 4, 3, 3, 3), torch.randn(2, 4, 3, 3, 3)
    normal = torch.distributions.Normal(head.mean(missing), 5.0**0.5)
    constant = 0.5 * torch.tensor(2 * torch.pi).log()
    torch.testing.assert_close(head(missing, full), -normal.log_prob(full).mean() - constant)


@pytest.mark.parametrize("dims", [2, 3])
def test_published_discriminators_have_their_size_and_take_any_patch(dims):
    if dims == 3:
        entropy = Discriminator(3, (4, 64, 128, 256, 512), 4, (2,) * 5)
        assert sum(p.numel() for p in entropy.parameters()) == pytest.approx(11.1e6, rel=0.01)
        knowledge = Discriminator(3, (128, 256, 512), 3, (1, 1, 2))
        assert sum(p.numel() for p in knowledge.parameters()) == pytest.approx(4.4e6, rel=0.02)
    tiny = Discriminator(dims, (4, 2, 2, 2, 2), 4, (2,) * 5)
    for size in (1, 2, 5, 16):
        assert tiny(torch.zeros(1, 4, *(size,) * dims)).shape[:2] == (1, 1)


def test_discriminators_compute_in_single_precision_under_autocast():
    """In bfloat16 their gradients on grids below the kernel are not finite on some CPUs."""
    torch.manual_seed(0)
    critic = Discriminator(3, (8, 4, 8, 16), 4, (2, 2, 2, 1))
    features = torch.randn(2, 8, 4, 4, 4, requires_grad=True)
    parameters = [features, *critic.parameters()]
    expected = torch.autograd.grad(critic(features).square().sum(), parameters)
    # What is freed here is what a gradient that reads uninitialized memory gets.
    junk = [torch.full((4**n,), float("nan")) for n in range(2, 10) for _ in range(6)]
    del junk
    with torch.autocast("cpu", torch.bfloat16):
        logits = critic(features.bfloat16())
        assert logits.dtype == torch.float32
        logits = critic(features)
    computed = torch.autograd.grad(logits.square().sum(), parameters)
    for one, other in zip(expected, computed, strict=True):
        torch.testing.assert_close(one, other)


# ---------------------------------------- who learns from whom


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


# ---------------------------------------- refusals


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


# ---------------------------------------- training


class Blobs:
    """A sampler without files."""

    case_ids = ("case0", "case1")

    def available(self, case_id):
        return [True] * 4

    def batch(self, step, size, patch, *first):
        return batch_of(size, seed=step)


def recipe_of(method, **changes):
    recipe = Recipe(
        network=STUDENTS[method],
        network_options={**SMALL[STUDENTS[method]], **student_options(method), "inputs": [1, 3]},
        objective=method,
        objective_options=OPTIONS.get(method, {}),
        missingness="full",
        steps=4,
        batch=2,
        patch=(16, 16, 16),
        large_patch=(16, 16, 16),
        preprocess=PreprocessSpec(spacing=4.0),
        seed=3,
    )
    return replace(recipe, **changes)


def run(method, recipe, folder, **options):
    teacher = context_of(method).teacher
    return train(
        recipe, BRATS, Blobs(), folder, teacher=teacher, device="cpu", precision="fp32", **options
    )


@pytest.mark.parametrize("method", NAMES)
def test_every_method_trains_resumes_to_the_same_bits_and_exports(method, tmp_path):
    recipe = recipe_of(method)
    run(method, recipe, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(step, figures):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(method, recipe, tmp_path / "broken", save_every=2, report=kill)
    assert run(method, recipe, tmp_path / "broken") == 4
    whole, broken = (load_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    for part in ("objective", "average"):
        assert all(torch.equal(whole[part][name], broken[part][name]) for name in whole[part])
    assert set(whole["optimizers"]) == (
        {"main", "disc"} if method in ("acn", "smu-net") else {"main"}
    )
    export(tmp_path / "whole", recipe, BRATS, tmp_path / "bundle", name="s", version="1", card={})
    bundle = load_bundle(tmp_path / "bundle")
    assert [entry.name for entry in bundle.entries] == ["t1ce+flair"]


@pytest.mark.parametrize("method", ["acn", "smu-net"])
def test_the_logged_loss_is_that_of_the_segmenter(method, tmp_path):
    """The discriminators' is logged under its own names."""
    logged = []
    run(
        method,
        replace(recipe_of(method), steps=1),
        tmp_path / "run",
        report=lambda step, figures: logged.append(figures),
    )
    (figures,) = logged
    disc = [name for name in figures if name.endswith("_disc")]
    own = [
        value
        for name, value in figures.items()
        if name not in ("loss", "learning_rate", "waiting", "seconds", *disc)
    ]
    assert disc
    assert figures["loss"] == pytest.approx(sum(own), rel=1e-5)
    assert figures["loss"] != pytest.approx(sum(figures[name] for name in disc), rel=1e-3)


@pytest.mark.parametrize("method", NAMES)
def test_two_cases_can_be_learned_by_heart(method, tmp_path):
    """Segmentation by the student improves; the sum of all losses is no measure where weights ramp
    up.
    """
    figures = []
    recipe = recipe_of(method, steps=30, learning_rate=1e-2, clip=0.0)
    run(method, recipe, tmp_path / "run", report=lambda step, f: figures.append(f))
    name = {"kd-net": "segmentation", "acn": "dice_student", "smu-net": "dice_student"}.get(
        method, "dice"
    )
    told = [f[name] for f in figures]
    assert sum(told[-3:]) < 0.85 * sum(told[:3])


def test_the_discriminators_optimizer_persists_and_its_rate_is_its_own(tmp_path):
    run("acn", recipe_of("acn", schedule="constant"), tmp_path / "run")
    state = load_checkpoint(tmp_path / "run")["optimizers"]["disc"]
    assert state["param_groups"][0]["lr"] == 1e-4
    assert {int(entry["step"]) for entry in state["state"].values()} == {4}


def test_a_decaying_schedule_reaches_the_student(tmp_path):
    rates = []
    recipe = recipe_of("protokd", schedule="poly", learning_rate=1e-3)
    run(
        "protokd",
        recipe,
        tmp_path / "run",
        report=lambda step, figures: rates.append(figures["learning_rate"]),
    )
    assert rates == [learning_rate(1e-3, "poly", step, 4) for step in range(4)]
    assert rates[-1] < rates[0] == 1e-3


def test_all_dedicated_methods_say_so():
    assert {name for name, kind in OBJECTIVES.items() if kind.dedicated} == set(NAMES)
