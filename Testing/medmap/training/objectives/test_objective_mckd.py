"""MCKD: ratios, whose gradient goes to the student alone; a meta step that changes w and nothing
else.
"""

from __future__ import annotations

import math

import pytest
import torch

from medmap.errors import BundleError, UsageError
from medmap.networks import build_network
from medmap.task import BRATS
from medmap.training.missingness import build_missingness
from medmap.training.objectives import Context, build_objective
from medmap.training.objectives.mckd import importance_ratio, pairwise_distillation
from medmap.training.objectives.self_distillation import encode_batch
from medmap.training.optimizers import OPTIMIZERS
from medmap.training.recipe import Recipe

FULL = [[True] * 4]


@pytest.fixture
def net(network):
    return lambda name="MCKD": network(name, **({"fill": "mean"} if name == "GatedUNet" else {}))


@pytest.fixture
def mckd(make_batch):
    def build(backbone, **options):
        held_out = lambda n: make_batch(present=FULL, size=32, seed=n)  # noqa: E731
        context = Context(BRATS, backbone, steps=10, cases=4, held_out=held_out)
        torch.manual_seed(1)
        return build_objective("mckd", context, {"meta_every": 2, "meta_batches": 3, **options})

    return build


def test_ratios_are_reciprocal_and_bounded():
    ratio = importance_ratio(torch.tensor([0.0, 1.0, -0.5, 0.3]))
    torch.testing.assert_close(ratio * ratio.T, torch.ones(4, 4))
    share = torch.tensor([0.0, 1.0, -0.5, 0.3]).softmax(0)
    torch.testing.assert_close(ratio[1, 2], share[1] / share[2])
    assert importance_ratio(torch.tensor([0.0, 9.0])).tolist() == [
        [1.0, pytest.approx(0.1)],
        [10.0, 1.0],
    ]


@pytest.mark.parametrize(
    ("normalization", "expected"), [("relu", [[1, 4], [0.25, 1]]), ("sigmoid", None)]
)
def test_the_weights_of_table_3_by_hand(normalization, expected):
    w = torch.tensor([2.0, 0.5])
    if expected is None:
        high, low = 1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(-0.5))
        expected = [[1, high / low], [low / high, 1]]
    torch.testing.assert_close(
        importance_ratio(w, 10.0, normalization), torch.tensor(expected, dtype=torch.float)
    )
    # ReLU makes a weight zero: the ratio stays finite.
    dead = importance_ratio(torch.tensor([-1.0, -2.0, 3.0]), 10.0, "relu")
    assert dead.tolist()[0][:2] == [1, 1]
    assert dead.max() == 10


def test_the_mean_square_of_fig_3a_by_hand():
    a, b = (torch.randn(2, 3, 2, 2) for _ in range(2))
    present = torch.tensor([[True, True, False, False]] * 2)
    expected = 2 * (a - b).square().mean()
    maps = [a, b, None, None]
    torch.testing.assert_close(
        pairwise_distillation(maps, present, torch.ones(4, 4), norm=2), expected
    )


def test_generated_features_are_compared_with_the_actual_ones_by_hand(net, mckd, make_batch):
    """Fig. 5: what Eq. 2 would put in the place of T1ce, against its own bottleneck."""
    objective = mckd(net("GatedUNet"), meta_batches=1)
    batch = make_batch(present=FULL, size=32, seed=5)
    with torch.no_grad():
        features = encode_batch(objective.backbone, batch)
        latents = [objective.backbone.latent(f, "mod_bottleneck").flatten(1) for f in features]
    objective.meta_loss(batch)
    generated = (latents[0] + latents[2] + latents[3]) / 3
    figures = objective.epoch_end(0)
    distance = (generated - latents[1]).abs().mean()
    similarity = (generated * latents[1]).sum() / generated.norm() / latents[1].norm()
    assert figures["generated_l1_t1ce"] == pytest.approx(float(distance), rel=1e-4)
    assert figures["generated_cosine_t1ce"] == pytest.approx(float(similarity), rel=1e-4)
    assert "generated_l1_t1ce" not in objective.epoch_end(1)


def test_distillation_by_hand_among_what_each_sample_has():
    torch.manual_seed(0)
    a, b, c = (torch.randn(2, 3, 2, 2) for _ in range(3))
    present = torch.tensor([[True, True, False, True], [True, False, False, True]])
    ratio = importance_ratio(torch.tensor([0.5, 0.0, 9.0, -0.5]))
    far = lambda x, y, n: (x[n] - y[n]).abs().mean()  # noqa: E731
    first = sum(
        (ratio[i, j] + ratio[j, i]) * far(x, y, 0)
        for i, j, x, y in ((0, 1, a, b), (0, 3, a, c), (1, 3, b, c))
    )
    second = (ratio[0, 3] + ratio[3, 0]) * far(a, c, 1)
    torch.testing.assert_close(
        pairwise_distillation([a, b, None, c], present, ratio), (first + second) / 2
    )


def test_the_teacher_feature_receives_no_gradient():
    teacher, student = (torch.randn(1, 3, 2, 2, requires_grad=True) for _ in range(2))
    ratio = torch.zeros(4, 4)
    ratio[0, 1] = 1.0
    pairwise_distillation(
        [teacher, student, None, None], torch.tensor([[True, True, False, False]]), ratio
    ).backward()
    assert teacher.grad is None or not teacher.grad.any()
    assert student.grad.abs().sum() > 0


def take(objective, batch, progress):
    """One batch as the trainer does it; returns the groups stepped, with the state of everything
    after each.
    """
    groups = objective.groups()
    optimizers = {
        name: OPTIMIZERS[group.optimizer or "sgd"](group.parameters, lr=group.learning_rate or 1e-2)
        for name, group in groups.items()
    }
    done = []
    for name, losses in objective.steps(batch, progress):
        before = {key: value.clone() for key, value in objective.state_dict().items()}
        optimizers[name].zero_grad()
        sum(losses.values()).backward()
        optimizers[name].step()
        changed = {
            key
            for key, value in objective.state_dict().items()
            if not torch.equal(value, before[key])
        }
        done.append((name, changed, losses))
    return done


@pytest.mark.parametrize("name", ["MCKD", "GatedUNet"])
def test_the_meta_step_changes_only_w(name, net, mckd, make_batch):
    objective = mckd(net(name))
    batch = make_batch(present=[[True, True, False, True]], size=32)
    ((group, changed, losses),) = take(objective, batch, 0.0)
    assert group == "main"
    assert "importance" not in changed
    assert set(losses) == {"segmentation", "distillation"}
    steps = take(objective, batch, 0.1)
    assert [group for group, _, _ in steps] == ["main", "meta", "meta", "meta"]
    assert all(changed == {"importance"} for _, changed, _ in steps[1:])
    figures = objective.epoch_end(0)
    kinds = ("importance", "generated_l1", "generated_cosine")
    assert set(figures) == {f"{kind}_{name}" for kind in kinds for name in BRATS.modality_names}
    shares = [value for name, value in figures.items() if name.startswith("importance")]
    assert sum(shares) == pytest.approx(1)


def test_without_distillation_there_is_no_meta_step(net, mckd, make_batch):
    objective = mckd(net(), alpha=0.0)
    steps = take(objective, make_batch(present=FULL, size=32), 0.1)
    assert [group for group, _, _ in steps] == ["main"]
    assert set(steps[0][2]) == {"segmentation"}


def test_equal_importance_leaves_the_meta_pass_as_it_is(net, mckd, make_batch):
    objective = mckd(net()).eval()
    torch.nn.init.zeros_(objective.importance)
    batch = make_batch(present=FULL, size=32)
    _, losses = next(iter(objective.steps(batch, 0.0)))
    torch.testing.assert_close(objective.meta_loss(batch), losses["segmentation"])


def test_the_released_schedule_has_two_stages(net, mckd, make_batch):
    objective = mckd(net(), released_schedule=True, all_share=0.5)
    objective.total = 2000
    batch = make_batch(present=FULL, size=32)
    metas = [len(list(objective.steps(batch, step / 2000))) - 1 for step in (1, 999, 1001, 1499)]
    assert metas == [3, 3, 0, 3]
    protocol = build_missingness("staged", BRATS, {"until": 3}, ["a"])
    import numpy as np

    rng = np.random.default_rng(0)
    assert all(protocol("a", epoch, rng).all() for epoch in (0, 1, 2) for _ in range(20))
    assert not all(protocol("a", 3, rng).all() for _ in range(20))


def test_absent_scans_are_not_read(net, mckd, make_batch):
    objective = mckd(net()).eval()
    batch = make_batch(present=[[True, True, False, True]], size=32)
    _, losses = next(iter(objective.steps(batch, 0.0)))
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("dims", [2, 3])
def test_a_filled_unet_ignores_what_is_absent_and_differs_from_an_unfilled_one(
    dims, network, make_batch
):
    filled = network("GatedUNet", dims, fill="mean").double()
    plain = network("GatedUNet", dims).double()
    plain.load_state_dict(filled.state_dict())
    batch = make_batch(dims, present=[[True, False, True, False]])
    image = batch.image.double()
    logits = filled(image, batch.present).logits
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, filled(image, batch.present, known=[0, 2]).logits)
    assert not torch.allclose(logits, plain(image, batch.present).logits)
    full = make_batch(dims, present=FULL)
    torch.testing.assert_close(
        filled(full.image.double(), full.present).logits,
        plain(full.image.double(), full.present).logits,
    )


def test_what_cannot_be_is_refused(net, network):
    with pytest.raises(UsageError, match="kept out of training"):
        build_objective("mckd", Context(BRATS, net(), cases=4), {})
    with pytest.raises(UsageError, match="no bottleneck"):
        build_objective("mckd", Context(BRATS, network("UNet"), cases=4), {"alpha": 0.0})
    with pytest.raises(BundleError, match="fill"):
        build_network("GatedUNet", {"fill": "zeros"})
    assert Recipe().held_out_cases == 0
