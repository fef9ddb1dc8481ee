"""Anchors: the printed and the sound forms, and what is wrong with the printed ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from medmap.errors import BundleError, UsageError
from medmap.networks.stem import Mixture
from medmap.task import BRATS
from medmap.training.alignment import (
    ANCHORS,
    MixtureAnchor,
    NormalAnchor,
    PeerAnchor,
    build_anchor,
    foreground,
    normal_divergence,
)
from medmap.training.batch import Batch
from medmap.training.objectives import WithAnchor
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective

NAMES = BRATS.modality_names
FORMS = [
    ("peer", "sound"),
    ("peer", "eq12"),
    ("mixture", "sound"),
    ("mixture", "eq13"),
    ("mixture", "conference"),
    ("normal", "sound"),
    ("normal", "printed"),
    ("normal", "printed-std"),
]


def latents(seed=0, batch=2, scale=1.0, **changes):
    """Correlated latents with a different mean and spread a modality."""
    rng = torch.Generator().manual_seed(seed)
    common = torch.randn(batch, 3, 4, 4, 4, generator=rng)
    made = {
        name: scale * ((n + 1) * 0.5 * (common + torch.randn(batch, 3, 4, 4, 4, generator=rng)) + n)
        for n, name in enumerate(NAMES)
    }
    return {**made, **changes}


def everywhere(batch=2, names=NAMES):
    return {name: torch.full((batch,), name in names) for name in NAMES}


@pytest.mark.parametrize("mean", [-2.0, 0.0, 0.7])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_p_n_is_the_divergence_of_torch(mean, sigma):
    expected = kl_divergence(Normal(torch.tensor(mean), torch.tensor(sigma)), Normal(0.0, 1.0))
    found = normal_divergence(torch.tensor(mean), torch.tensor(sigma**2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_p_n_takes_its_moments_from_the_brain_of_the_samples_that_have_the_modality():
    brain = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    brain[:, :2] = True
    z = latents()
    z["t1"][0, :, 2:] = 1e3  # outside the brain
    z["t2"][1] = 1e3  # a sample without the modality
    present = everywhere()
    present["t2"][1] = False
    found = NormalAnchor(NAMES)(z, present, brain)
    expected = []
    for name in NAMES:
        for c in range(3):
            rows = [0] if name == "t2" else [0, 1]
            voxels = torch.cat([z[name][b, c][brain[b]] for b in rows])
            q = Normal(voxels.mean(), voxels.std(unbiased=False))
            expected.append(kl_divergence(q, Normal(0.0, 1.0)))
    torch.testing.assert_close(found, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)


def test_p_n_vanishes_for_standard_moments_and_the_printed_form_does_not():
    z = {
        name: torch.randn(2, 3, 24, 24, 24, generator=torch.Generator().manual_seed(n))
        for n, name in enumerate(NAMES)
    }
    assert NormalAnchor(NAMES)(z, everywhere()) < 1e-3
    assert NormalAnchor(NAMES, "printed")(z, everywhere()).item() == pytest.approx(0.5, abs=1e-2)
    assert NormalAnchor(NAMES, "printed-std")(z, everywhere()).item() == pytest.approx(
        0.5, abs=1e-2
    )
    # around its minimum the printed form with v = variance is eight times as steep in v: 1/2
    # ln(1/v) + v/2 has 1/2
    v = torch.tensor(1.0, requires_grad=True)

    def curvature(form):
        first = torch.autograd.grad(
            normal_divergence(torch.tensor(0.0), v, form), v, create_graph=True
        )[0]
        return torch.autograd.grad(first, v)[0]

    assert (curvature("printed") / curvature("sound")).item() == pytest.approx(8, rel=0.01)


def test_mixture_weights_go_to_uniform_on_fixed_features():
    for form in ("sound", "eq13"):
        anchor = MixtureAnchor(NAMES, form)
        z = {
            name: torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(n))
            for n, name in enumerate(NAMES)
        }
        start = anchor.weights()
        assert max(start.values()) > 0.7
        optimizer = torch.optim.Adam(anchor.parameters(), 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            anchor(z, everywhere()).backward()
            optimizer.step()
        assert anchor.weights() == pytest.approx(dict.fromkeys(NAMES, 0.25), abs=0.03)


def test_no_mixture_is_better_than_the_uniform_one():
    z = latents()
    uniform = MixtureAnchor(NAMES, initial={})(z, everywhere())
    for seed in range(20):
        values = np.random.default_rng(seed).normal(0, 2, 4)
        drawn = MixtureAnchor(NAMES, initial=dict(zip(NAMES, values, strict=True)))
        assert drawn(z, everywhere()) >= uniform


def test_the_conference_form_has_no_lower_bound_and_leaves_its_peer_alone():
    anchor, z = MixtureAnchor(NAMES, "conference"), latents()
    optimizer = torch.optim.SGD(anchor.parameters(), 1.0)
    values = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = anchor(z, everywhere())
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[25] < values[0]
    assert values[-1] < -10
    weights = anchor.weights()
    assert weights.pop("t1ce") == 1.0
    assert max(weights.values()) < 0


def test_printed_weights_that_do_not_add_up_to_one_charge_identical_latents():
    z = dict.fromkeys(NAMES, torch.randn(2, 3, 8, 8, 8))
    published = {"t1": 0.7759, "t2": 0.8977, "t1ce": 2.2055, "flair": 0.3055}
    loss = MixtureAnchor(NAMES, "eq13", initial=published)(z, everywhere())
    energy = z["t1"].square().mean()
    assert (loss / energy).item() == pytest.approx((sum(published.values()) - 1) ** 2, rel=1e-4)
    assert MixtureAnchor(NAMES, initial=published)(z, everywhere()) < 1e-8


@pytest.mark.parametrize("name", ["peer", "mixture"])
def test_the_sound_forms_do_not_reward_small_latents_and_the_printed_do(name):
    printed = {"peer": "eq12", "mixture": "eq13"}[name]
    for form, ratio in (("sound", 1.0), (printed, 0.01)):
        anchor = build_anchor(name, NAMES, form=form)
        found = anchor(latents(scale=0.1), everywhere()) / anchor(latents(), everywhere())
        assert float(found.detach()) == pytest.approx(ratio, rel=0.02)


@pytest.mark.usefixtures("float64")
def test_eq_12_is_the_mean_square_to_the_peer():
    z = latents()
    expected = torch.stack([(z[n] - z["t1ce"]).square().mean() for n in NAMES]).mean()
    found = PeerAnchor(NAMES, form="eq12")(z, everywhere())
    torch.testing.assert_close(found, expected)
    total = PeerAnchor(NAMES, form="eq12", reduction="sum")(z, everywhere())
    torch.testing.assert_close(total, 4 * expected)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_what_is_absent_has_no_influence_and_no_gradient(name, form):
    anchor = build_anchor(name, NAMES, form=form)
    some = everywhere(names=("t1ce", "flair"))
    z = latents()
    expected = anchor(z, some)
    for content in (torch.full_like(z["t1"], float("nan")), torch.full_like(z["t1"], 1e4)):
        assert torch.equal(anchor({**z, "t1": content, "t2": content}, some), expected)
    assert torch.equal(anchor({n: z[n] for n in ("flair", "t1ce")}, some), expected), (
        "left out is not absent"
    )
    leaves = {n: t.clone().requires_grad_() for n, t in z.items()}
    anchor(leaves, some).backward()
    assert all(leaves[n].grad.abs().max() == 0 for n in ("t1", "t2"))
    assert leaves["flair"].grad.abs().max() > 0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_order_of_the_names_changes_nothing(name, form):
    anchor = build_anchor(name, NAMES, form=form)
    z, present = latents(), everywhere()
    expected = anchor(z, present)
    for order in itertools.islice(itertools.permutations(NAMES), 1, 24, 7):
        reordered = anchor({n: z[n] for n in order}, {n: present[n] for n in order})
        torch.testing.assert_close(reordered, expected)
        built = build_anchor(name, order, form=form)(z, present)
        torch.testing.assert_close(built, expected)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_one_modality_alone_gives_a_finite_loss_and_nothing_to_align_with(name, form):
    anchor = build_anchor(name, NAMES, form=form)
    for alone in NAMES:
        loss = anchor(latents(), everywhere(names=(alone,)))
        assert torch.isfinite(loss)
        if name != "normal":
            assert loss == 0
    empty = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    assert torch.isfinite(anchor(latents(), everywhere(), empty)), "a patch outside the head"


@pytest.mark.parametrize(("name", "form"), [("peer", "eq12"), ("mixture", "eq13")])
def test_jointly_the_mean_of_the_modalities_is_aligned(name, form):
    """Proposition 1's alternative: the whole at once; individually costs more by the spread."""
    z = latents()
    whole = (z["t1"] + z["t1ce"] + z["t2"] + z["flair"]) / 4
    target = {"peer": z["t1ce"], "mixture": z["flair"]}[name]
    jointly = build_anchor(name, NAMES, form=form, joint=True)(z, everywhere())
    torch.testing.assert_close(jointly, (whole - target).square().mean(), rtol=1e-4, atol=1e-5)
    individually = build_anchor(name, NAMES, form=form)(z, everywhere())
    spread = sum((z[m] - whole).square().mean() for m in NAMES) / 4
    torch.testing.assert_close(individually - jointly, spread, rtol=1e-3, atol=1e-4)


def test_jointly_p_n_takes_the_moments_of_all_modalities_together():
    z = latents()
    pooled = torch.stack([z[m] for m in NAMES]).transpose(1, 2).transpose(0, 1).flatten(1)
    expected = normal_divergence(pooled.mean(1), pooled.var(1, unbiased=False)).mean()
    found = NormalAnchor(NAMES, joint=True)(z, everywhere())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["peer", "mixture", "normal"])
def test_jointly_absent_modalities_have_no_influence_either(name):
    present = everywhere(names=("t1", "t1ce"))
    anchor = build_anchor(name, NAMES, joint=True)
    noise = torch.full((2, 3, 4, 4, 4), torch.nan)
    assert torch.equal(anchor(latents(), present), anchor(latents(t2=noise, flair=noise), present))


def test_learned_moments_are_those_that_the_heads_give():
    """The conference's P_N: mean and variance "obtained by learnable parameters"."""
    torch.manual_seed(0)
    anchor = NormalAnchor(NAMES, form="printed", moments="learned", channels=3)
    z = latents()
    with torch.no_grad():
        anchor.heads.weight.zero_()
        anchor.heads.bias.copy_(torch.tensor([0.5, 0, 0, 0, 0, 0]))
    # mean 0.5 in one of three channels, variance 1: 1 - 1/2, and 0.25 / 2 in that channel.
    expected = torch.tensor(0.5 + 0.25 / 2 / 3)
    torch.testing.assert_close(anchor(z, everywhere()), expected, rtol=1e-4, atol=1e-5)
    assert dict(anchor.named_parameters())
    with pytest.raises(UsageError, match="guessed"):
        NormalAnchor(NAMES, moments="guessed")


def test_a_detached_anchor_stays_where_it_is():
    leaves = {n: t.requires_grad_() for n, t in latents().items()}
    PeerAnchor(NAMES, form="eq12", detach=True)(leaves, everywhere()).backward()
    assert leaves["t1ce"].grad.abs().max() == 0
    assert leaves["t1"].grad.abs().max() > 0


def test_weights_are_renormalized_over_what_a_sample_has():
    mixture = Mixture(NAMES, {"t1ce": 2.0})
    present = torch.tensor([[True, False, True, False], [True, True, True, True]])
    weights = mixture(present)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert weights[0].tolist() == [0.5, 0.0, 0.5, 0.0]
    raw = Mixture(NAMES, {"t1": 1.0, "flair": 3.0}, form="raw")(present)
    assert raw[0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_brain_masks_follow_the_latents_down():
    brain = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    brain[:, :4] = True
    assert foreground(brain, torch.zeros(1, 5, 2, 2, 2))[0, :, 0, 0].tolist() == [True, False]
    assert foreground(None, torch.zeros(1, 5, 2, 2, 2)).all()


def test_unknown_anchors_forms_and_names_are_refused():
    for name, options in (
        ("p_mix", {}),
        ("peer", {"k": "dwi"}),
        ("peer", {"form": "eq13"}),
        ("normal", {"k": "t1"}),
        ("mixture", {"reduction": "max"}),
    ):
        with pytest.raises(UsageError):
            build_anchor(name, NAMES, **options)
    with pytest.raises(BundleError):
        Mixture(NAMES, {"dwi": 1.0})
    with pytest.raises(UsageError, match="stem"):
        make_objective(
            Recipe(
                network="UNet", network_options={"widths": (4, 8)}, alignment={"anchor": "peer"}
            ),
            BRATS,
        )


# ------------------------------------------------------------------------------------------------
# the decorator

SMALL = {"widths": (4, 8)}


def batch(seed=0, present=None, size=16):
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 4, size, size, size, generator=rng)
    present = torch.ones(2, 4, dtype=torch.bool) if present is None else present
    image = torch.where(present[:, :, None, None, None], image, torch.zeros_like(image))
    label = (image[:, :1].abs() > 1).long()[:, 0]
    return Batch(image, present, label, torch.ones_like(label, dtype=torch.bool), ("a", "b"))


def one_step(objective, b):
    return [(group, losses) for group, losses in objective.steps(b, 0.0)]


@pytest.mark.parametrize("anchor", sorted(ANCHORS))
def test_the_decorator_adds_align_and_leaves_the_rest_as_it_is(anchor):
    torch.manual_seed(0)
    plain = make_objective(Recipe(network_options=SMALL), BRATS).train()
    torch.manual_seed(0)
    aligned = make_objective(
        Recipe(network_options=SMALL, alignment={"anchor": anchor}), BRATS
    ).train()
    ((_, before),), ((group, after),) = one_step(plain, batch()), one_step(aligned, batch())
    assert group == "main"
    assert set(after) == {*before, "align"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    ((_, half),) = one_step(WithAnchor(plain, BRATS, anchor, alpha=0.0625), batch())
    torch.testing.assert_close(2 * half["align"], after["align"])
    assert "encode" not in vars(aligned.deploy()), "the network is left as it was"


def test_weights_are_logged_by_name_and_learn_without_decay():
    objective = make_objective(
        Recipe(network_options=SMALL, alignment={"anchor": "mixture"}), BRATS
    )
    figures = objective.epoch_end(0)
    assert set(figures) == {f"w_{name}" for name in NAMES}
    assert sum(figures.values()) == pytest.approx(1)
    assert max(figures, key=figures.get) == "w_t1ce"
    main = objective.groups()["main"]
    weights = objective.anchor.mixture.values
    assert any(p is weights for p in main.undecayed)
    assert not any(p is weights for p in main.parameters)


def test_aligned_latents_of_absent_modalities_send_no_gradient():
    present = torch.tensor([[True, True, False, True], [True, True, False, False]])
    recipe = Recipe(network_options={**SMALL, "stem": {}}, alignment={"anchor": "mixture"})
    objective = make_objective(recipe, BRATS).train()
    ((_, losses),) = one_step(objective, batch(present=present))
    losses["align"].backward()
    encoders = objective.deploy().base.encoders
    reached = [
        any(p.grad is not None and p.grad.abs().max() > 0 for p in e.parameters()) for e in encoders
    ]
    assert reached == [True, True, False, True]


def test_a_network_that_uses_the_mixture_shares_it_with_the_anchor():
    stem = {"at": "input", "channels": 2, "mixture": {"initial": {"t1ce": 2.0}}}
    recipe = Recipe(
        network="UNet",
        network_options={**SMALL, "stem": stem},
        alignment={"anchor": "mixture", "tap": "stem"},
    )
    objective = make_objective(recipe, BRATS).train()
    network = objective.deploy()
    assert objective.anchor.mixture is network.mixture
    main = objective.groups()["main"]
    assert sum(p is network.mixture.values for p in [*main.parameters, *main.undecayed]) == 1
    ((_, losses),) = one_step(objective, batch())
    losses["segmentation"].backward()
    assert network.mixture.values.grad.abs().max() > 0, "the task has a say in the weights"
