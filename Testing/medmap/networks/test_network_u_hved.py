"""U-HVED against what is published."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import PRESENT
from Testing.medmap.small_networks import SMALL as SMALL_NETWORKS
from torch.distributions import Normal, kl_divergence

from medmap.networks.u_hved import (
    UHVED,
    Gaussian,
    gaussian_divergence,
    posterior_divergence,
    product_of_gaussians,
    split_gaussian,
)

SMALL = SMALL_NETWORKS["UHVED"]


def gaussian(*shape) -> Gaussian:
    return Gaussian(torch.randn(shape), torch.randn(shape))


def normal(g: Gaussian) -> Normal:
    return Normal(g.mean, (g.log_variance / 2).exp())


def test_it_has_the_published_parameters(count):
    with torch.device("meta"):
        network, deployed = UHVED(), UHVED(reconstruct=False)
    assert count(network) == 1_250_560
    assert round(count(network) / 1e6, 2) == 1.25
    assert count(deployed) == count(network) - count(network.image_decoders)


@pytest.mark.parametrize(("dims", "size"), [(3, (8, 24, 16)), (2, (24, 40))])
def test_shapes_in_three_and_two_dimensions_and_with_more_classes_than_modalities(dims, size):
    network = UHVED(modalities=3, classes=5, spatial_dims=dims, **SMALL).train()
    output = network(
        torch.randn(2, 3, *size), PRESENT[:, :3], want=sorted(network.provides), known=[0, 1]
    )
    assert output.logits.shape == (2, 5, *size)
    assert [t.shape for t in output.aux["reconstruction"]] == [(2, 1, *size)] * 3
    assert [t.shape for t in output.aux["divergence"]] == [(2,)] * 3, "one a level"
    assert output.taps["bottleneck"].shape == (2, 8, *(n // 4 for n in size))


def test_the_logits_of_fixed_weights_are_pinned(fixed, waves):
    with torch.no_grad():
        logits = fixed(UHVED(**SMALL))(waves(2, 4, 16, 16, 16), PRESENT).logits
    assert logits.std((0, 2, 3, 4)).tolist() == pytest.approx(
        [0.41922, 0.51230, 0.24660, 0.59505], abs=1e-4
    )
    assert logits[:, 1, 3, 5, 7].tolist() == pytest.approx([0.51170, 0.55272], abs=1e-4)


def test_training_samples_and_evaluation_does_not():
    network, image = UHVED(**SMALL), torch.randn(2, 4, 16, 16, 16)
    with torch.no_grad():
        network.eval()
        assert torch.equal(network(image, PRESENT).logits, network(image, PRESENT).logits)
        network.train()
        assert not torch.equal(network(image, PRESENT).logits, network(image, PRESENT).logits)


@pytest.mark.usefixtures("float64")
def test_the_product_multiplies_densities_of_the_present_experts_and_of_the_prior():
    torch.manual_seed(0)
    experts = [gaussian(1, 1, 2, 2, 2) for _ in range(3)]
    product = product_of_gaussians(experts, torch.tensor([[True, False, True]]))
    x = torch.linspace(-3, 3, 7).reshape(-1, 1, 1, 1, 1)
    log = sum(normal(g).log_prob(x) for g in (experts[0], experts[2])) + Normal(0, 1).log_prob(x)
    offset = log - normal(product).log_prob(x)
    torch.testing.assert_close(offset, offset[:1].expand_as(offset), rtol=1e-4, atol=1e-4)


def test_without_experts_the_product_is_the_prior():
    product = product_of_gaussians([gaussian(1, 2, 4, 4)], torch.zeros(1, 1, dtype=torch.bool))
    assert not product.mean.any()
    assert not product.log_variance.any()


def test_an_absent_expert_may_hold_anything():
    experts = [gaussian(2, 1, 3, 3) for _ in range(2)]
    present = torch.tensor([[True, False], [True, True]])
    clean = product_of_gaussians(experts, present)
    experts[1].mean[0], experts[1].log_variance[0] = float("nan"), float("nan")
    dirty = product_of_gaussians(experts, present)
    assert torch.equal(clean.mean, dirty.mean)
    assert torch.equal(clean.log_variance, dirty.log_variance)


def test_a_log_variance_is_clipped_where_its_exponential_is_finite():
    g = split_gaussian(torch.tensor([[[0.0, 1e4], [0.0, 1e4]]]).reshape(1, 2, 2))
    assert g.log_variance.tolist() == [[[0.0, 50.0]]]
    assert torch.isfinite(product_of_gaussians([g], torch.ones(1, 1, dtype=torch.bool)).mean).all()


@pytest.mark.usefixtures("float64")
def test_the_divergence_is_the_textbook_one():
    p, q = gaussian(2, 3, 4, 4), gaussian(2, 3, 4, 4)
    expected = kl_divergence(normal(p), normal(q)).flatten(1).mean(1)
    torch.testing.assert_close(gaussian_divergence(p, q), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("float64")
def test_the_divergence_of_posteriors_runs_over_the_subsets_of_what_is_present():
    torch.manual_seed(0)
    experts = [gaussian(2, 1, 3, 3) for _ in range(3)]
    present = torch.tensor([[True, False, True], [False, True, False]])
    q = product_of_gaussians(experts, present)
    actual = posterior_divergence(experts, present, q)

    def own(sample, *subset):
        row = slice(sample, sample + 1)
        chosen = [Gaussian(experts[m].mean[row], experts[m].log_variance[row]) for m in subset]
        return product_of_gaussians(chosen, torch.ones(1, len(subset), dtype=torch.bool))

    prior = Gaussian(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))
    both, first, third, second = own(0, 0, 2), own(0, 0), own(0, 2), own(1, 1)
    to_subsets = (gaussian_divergence(both, first) + gaussian_divergence(both, third)) / 2
    to_prior = sum(gaussian_divergence(g, prior) for g in (both, first, third)) / 3
    torch.testing.assert_close(actual[:1], to_subsets + to_prior)
    torch.testing.assert_close(
        actual[1:], gaussian_divergence(second, prior), msg="one modality: only to the prior"
    )
