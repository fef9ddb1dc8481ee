"""Robust-MSeg against what is published."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import PRESENT
from Testing.medmap.small_networks import SMALL as SMALL_NETWORKS
from torch.distributions import Normal, kl_divergence

from medmap.networks.robust_mseg import RobustMSeg, style_divergence

SMALL = SMALL_NETWORKS["RobustMSeg"]


def test_it_has_the_published_parameters_in_training_and_at_inference(count):
    with torch.device("meta"):
        training, deployed = RobustMSeg(), RobustMSeg(reconstruct=False)
    assert count(training) == 37_476_344
    assert round(count(training) / 1e6, 1) == 37.5
    assert round(count(deployed) / 1e6, 2) == 6.65


def test_what_only_training_uses_changes_no_segmentation():
    training, deployed = RobustMSeg(**SMALL).eval(), RobustMSeg(**SMALL, reconstruct=False).eval()
    missing = deployed.load_state_dict(training.state_dict(), strict=False)
    assert not missing.missing_keys
    image = torch.randn(2, 4, 16, 16, 16)
    with torch.no_grad():
        expected = training(image, PRESENT)
        assert torch.equal(deployed(image, PRESENT).logits, expected.logits)
        assert torch.equal(training.train()(image, PRESENT).logits, expected.logits)
    assert not expected.aux


@pytest.mark.parametrize(("dims", "size"), [(3, (16, 24, 16)), (2, (24, 40))])
def test_shapes_in_three_and_two_dimensions_and_with_more_classes_than_modalities(dims, size):
    network = RobustMSeg(modalities=3, classes=5, spatial_dims=dims, **SMALL).train()
    output = network(
        torch.randn(2, 3, *size), PRESENT[:, :3], want=sorted(network.provides), known=[0, 1]
    )
    assert output.logits.shape == (2, 5, *size)
    assert [t.shape for t in output.aux["reconstruction"]] == [(2, 1, *size)] * 3
    assert output.aux["divergence"][2] is None
    assert [t.shape[1] for t in output.taps["stem"]] == [4, 4]
    assert [t.shape[1] for t in output.taps["mod_bottleneck"]] == [8, 8]


def test_the_style_stands_between_first_and_last_level_in_training_only():
    network, image = RobustMSeg(**SMALL), torch.randn(1, 1, 16, 16, 16)
    evaluation, training = network.eval().encode(image, 0), network.train().encode(image, 0)
    assert [len(evaluation), len(training)] == [3, 4]
    assert torch.equal(training[0], evaluation[0])
    assert torch.equal(training[-1], evaluation[-1])
    assert training[-2].shape == (1, 16, 1, 1, 1)


def test_the_logits_of_fixed_weights_are_pinned(fixed, waves):
    with torch.no_grad():
        logits = fixed(RobustMSeg(**SMALL))(waves(2, 4, 16, 16, 16), PRESENT).logits
    assert logits.std((0, 2, 3, 4)).tolist() == pytest.approx(
        [0.36926, 0.32580, 0.27505, 0.24200], abs=1e-4
    )
    assert logits[:, 1, 3, 5, 7].tolist() == pytest.approx([1.34834, 1.35700], abs=1e-4)


def test_an_absent_modality_has_the_prior_as_its_style():
    network, image = RobustMSeg(**SMALL).train(), torch.randn(2, 4, 16, 16, 16)
    leaked = torch.where(
        PRESENT.reshape(2, 4, 1, 1, 1), image, torch.full_like(image, float("nan"))
    )
    results = []
    for content in (image, leaked):
        torch.manual_seed(0)
        results.append(network(content, PRESENT).aux)
    for one, other in zip(results[0]["reconstruction"], results[1]["reconstruction"], strict=True):
        assert torch.equal(one, other)
    divergence = torch.stack(results[0]["divergence"], 1)
    assert ((divergence > 0) == PRESENT).all()


@pytest.mark.usefixtures("float64")
def test_the_divergence_is_the_textbook_one():
    mean, log_variance = torch.randn(2, 8), torch.randn(2, 8)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0, 1)).mean(1)
    torch.testing.assert_close(style_divergence(mean, log_variance), expected)
