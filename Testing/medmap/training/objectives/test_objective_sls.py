"""Shared-latent-space training: every auxiliary output has its loss, nothing absent is learned
from.
"""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import SMALL

from medmap.networks import NETWORKS
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.objectives.losses import cross_entropy_and_dice
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective

EXTRA = {
    "RFNet": {"deep1", "deep2", "deep3", "separate"},
    "mmFormer": {"deep1", "deep2", "separate"},
    "M2FTrans": {"deep1", "deep2", "deep3", "separate"},
    "SubsetUNet": {"deep1"},
    "UHVED": {"divergence", "reconstruction"},
    "RobustMSeg": {"divergence", "reconstruction"},
    "ShaSpec": {"shared", "domain"},
}


def batch(present, size=16, seed=0):
    rng = torch.Generator().manual_seed(seed)
    present = torch.tensor(present)
    image = torch.randn(len(present), 4, size, size, size, generator=rng)
    label = (image[:, :1] > 1).long()[:, 0] * 3
    image = torch.where(present[:, :, None, None, None], image, torch.zeros_like(image))
    return Batch(
        image, present, label, torch.ones_like(label, dtype=torch.bool), ("a",) * len(present)
    )


SOME, ALL = [[True, False, True, False], [False, False, True, True]], [[True] * 4] * 2


def losses(name, present, steps=100, progress=0.0, **options):
    torch.manual_seed(0)
    recipe = Recipe(
        network=name,
        network_options=SMALL[name],
        objective="sls",
        objective_options=options,
        steps=steps,
        epoch_steps=10,
    )
    objective = make_objective(recipe, BRATS).train()
    torch.manual_seed(1)
    ((group, found),) = objective.steps(
        batch(present, 32 if name == "RobustMSeg" else 16), progress
    )
    assert group == "main"
    return objective, found


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_trains_with_what_it_has(name):
    objective, found = losses(name, SOME)
    assert set(found) == {"segmentation"} | EXTRA.get(name, set())
    assert all(torch.isfinite(value) and value > 0 for value in found.values())
    sum(found.values()).backward()
    unused = {
        n
        for n, p in objective.backbone.named_parameters()
        if p.grad is None or not p.grad.abs().any()
    }
    for m in (1,):  # no sample shows T1ce: its encoder learns nothing
        prefixes = tuple(
            f"{part}.{m}." for part in ("encoders", "intra", "specific", "style_encoders")
        )
        own = {
            n
            for n, _ in objective.backbone.named_parameters()
            if n.startswith(prefixes) and "positions" not in n
        }
        assert own <= unused


def test_the_separate_loss_is_the_sum_over_modalities_of_the_samples_that_have_them():
    objective, found = losses("RFNet", SOME)
    b = batch(SOME)
    aux = objective.backbone(b.image, b.present, known=[0, 2, 3]).aux["separate"]
    expected = (
        cross_entropy_and_dice(aux[0][:1], b.label[:1]) / 2
        + cross_entropy_and_dice(aux[2], b.label)
        + cross_entropy_and_dice(aux[3][1:], b.label[1:]) / 2
    )
    torch.testing.assert_close(found["separate"], expected)


@pytest.mark.parametrize("name", ["RFNet", "mmFormer", "M2FTrans"])
def test_hiding_features_shows_the_encoders_everything_and_the_fusion_a_subset(name):
    objective, found = losses(name, ALL[:1], hide=True)
    found["separate"].backward(retain_graph=True)
    reached = [
        any(p.grad is not None and p.grad.any() for p in e.parameters())
        for e in objective.backbone.encoders
    ]
    assert all(reached)
    objective.zero_grad()
    found["segmentation"].backward()
    reached = [
        any(p.grad is not None and p.grad.any() for p in e.parameters())
        for e in objective.backbone.encoders
    ]
    assert not all(reached), "with this seed the fusion sees a proper subset"


def test_the_fusion_starts_at_its_epoch():
    for progress, started in ((0.0, False), (0.19, False), (0.2, True), (0.9, True)):
        _, found = losses("RFNet", ALL, progress=progress, region_fusion_start_epoch=2)
        assert bool(found["segmentation"] > 0) is started
        assert found["deep1"] > 0
        assert found["separate"] > 0
    _, found = losses("M2FTrans", ALL, region_fusion_start_epoch=2, deep_from_start=False)
    assert "deep1" not in found


def test_weights_of_the_terms_are_options():
    _, found = losses("RFNet", ALL)
    _, other = losses("RFNet", ALL, separate=0.5, deep=0.5, deep_decay=0.5)
    torch.testing.assert_close(other["separate"], 0.5 * found["separate"])
    torch.testing.assert_close(other["deep1"], 0.5 * found["deep1"])
    torch.testing.assert_close(other["deep3"], 0.125 * found["deep3"])


@pytest.mark.parametrize("anchor", ["peer", "mixture", "normal"])
@pytest.mark.parametrize(
    "name", [n for n in sorted(NETWORKS) if "mod_bottleneck" in NETWORKS[n].provides]
)
def test_no_anchor_lets_a_gradient_out_of_what_is_absent(name, anchor):
    """Leak test of training, for every backbone with latents and every anchor; deployed networks
    hold no anchor.
    """
    torch.manual_seed(0)
    recipe = Recipe(
        network=name,
        network_options={**SMALL[name], "stem": {}},
        objective="sls",
        alignment={"anchor": anchor, **({"k": "t2"} if anchor == "peer" else {})},
    )
    objective = make_objective(recipe, BRATS).train()
    b = batch(SOME, 32 if name == "RobustMSeg" else 16)
    image = torch.where(
        b.present[:, :, None, None, None], b.image, torch.full_like(b.image, float("nan"))
    )
    image.requires_grad_()
    b = Batch(image, b.present, b.label, b.brain, b.case_id)
    ((_, found),) = objective.steps(b, 0.0)
    assert found["align"] > 0
    sum(found.values()).backward()
    gradient = image.grad[~b.present]
    assert (gradient == 0).all()
    assert torch.isfinite(image.grad).all()
    assert not any(key.startswith("anchor") for key in objective.deploy().state_dict())
