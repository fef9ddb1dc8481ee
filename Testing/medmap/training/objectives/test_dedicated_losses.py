"""KD-Net, PMKL, ProtoKD, SMU-Net, ACN: the mathematics of their losses."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.training.objectives.dedicated_methods import (
    batch_of,
    objective_of,
)
from torch.nn.functional import cross_entropy, kl_div

from medmap.training.objectives.acn import InformationHead
from medmap.training.objectives.adversary import Discriminator
from medmap.training.objectives.losses import class_means, similarity_maps
from medmap.training.objectives.pmkl import contrastive_loss, knowledge_map
from medmap.training.objectives.protokd import prototype_loss
from medmap.training.objectives.smu_net import gram_loss


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
