"""What every backbone must hold, whatever the paper: nothing absent is ever read, names and order
do not matter.
"""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from Testing.medmap.small_networks import SMALL, mask, small

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.errors import BundleError
from medmap.networks import NETWORKS, build_network
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS

SUBSETS = [s for n in range(1, 5) for s in combinations(range(4), n)]


def case(network, size=None):
    size = size or max(2 * network.stride, 16)
    return torch.randn(
        1,
        4,
        *(size,) * network.spatial_dims,
        generator=torch.Generator().manual_seed(1),
    )


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def network(request):
    return small(request.param)


def test_every_network_has_small_options_for_these_tests():
    assert set(SMALL) == set(NETWORKS)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_what_absent_channels_hold_changes_no_bit(network, subset):
    image, present = case(network), mask(subset)
    absent = ~present[0]
    with torch.inference_mode():
        expected = network(image, present).logits
        for content in (torch.randn_like(image) * 1e3, torch.full_like(image, float("nan"))):
            leaked = image.clone()
            leaked[:, absent] = content[:, absent]
            assert torch.equal(network(leaked, present).logits, expected)
        features = [
            network.encode(image[:, m : m + 1], m) if m in subset else None for m in range(4)
        ]
        assert torch.equal(network.decode(features, present).logits, expected), (
            "leaving it out is not masking it"
        )
    assert torch.isfinite(expected).all()
    assert expected.shape == (1, network.classes, *image.shape[2:])


def test_the_subset_matters(network):
    image = case(network)
    with torch.inference_mode():
        assert not torch.equal(
            network(image, mask((0,))).logits, network(image, mask((0, 1))).logits
        )


def test_a_batch_with_different_masks_equals_its_samples(network):
    """In float64: how far two batch sizes differ in float32 depends on the processor."""
    network = copy.deepcopy(network).double()
    image = torch.cat([case(network), case(network).flip(2)]).double()
    present = torch.cat([mask((0, 2)), mask((1,))])
    with torch.inference_mode():
        together = network(image, present).logits
        apart = torch.cat([network(image[n : n + 1], present[n : n + 1]).logits for n in range(2)])
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=1e-6)


def test_no_gradient_reaches_the_encoder_of_an_absent_modality(network):
    network.train()
    image = case(network).requires_grad_()
    network(image, mask((1, 3))).logits.square().mean().backward()
    network.eval()
    assert image.grad[:, [0, 2]].abs().max() == 0
    assert (image.grad[:, [1, 3]].abs().amax((0, 2, 3, 4)) > 0).all()
    network.zero_grad()


def test_taps_are_those_that_the_class_declares(network):
    with torch.inference_mode():
        taps = network(case(network), mask((0, 1, 2, 3)), want=sorted(network.provides)).taps
    assert set(taps) == network.provides


def test_sizes_that_are_no_cube_go_through(network):
    s = network.stride
    shape = (3 * s, 2 * s, 4 * s) if s >= 8 else (24, 16, 32)
    image = torch.randn(1, 4, *shape)
    with torch.inference_mode():
        assert network(image, mask((1, 3))).logits.shape == (1, network.classes, *shape)


def test_bfloat16_autocast_gives_finite_logits(network):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(network(case(network), mask((2,))).logits.float()).all()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_network_survives_the_way_through_a_bundle(name, tmp_path):
    network = small(name)
    save_bundle(
        tmp_path / "b",
        name="x",
        version="1",
        task=BRATS,
        network=network,
        network_spec=NetworkSpec(name, SMALL[name]),
        preprocess=PreprocessSpec(),
        inference=InferenceSpec(),
        card={},
    )
    loaded = load_bundle(tmp_path / "b").network
    image = case(network)
    with torch.inference_mode():
        expected = network(image, mask((0, 1))).logits
        torch.testing.assert_close(
            loaded(image, mask((0, 1))).logits, expected, rtol=0.05, atol=0.05
        )


def test_an_unknown_network_or_option_is_refused():
    with pytest.raises(BundleError, match="unknown"):
        build_network("os.system", {})
    with pytest.raises(BundleError, match="no option 'depth'"):
        build_network("SubsetUNet", {"depth": 3})


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_two_dimensions_and_three_modalities_go_the_same_way(name):
    network = small(name, spatial_dims=2, modalities=3)
    s = max(network.stride, 8)
    image, present = (
        torch.randn(2, 3, 3 * s, 5 * s),
        torch.tensor([[True, False, True], [False, True, False]]),
    )
    leaked = torch.where(present[:, :, None, None], image, torch.full_like(image, float("nan")))
    with torch.inference_mode():
        expected = network(image, present, want=sorted(network.provides))
        assert torch.equal(network(leaked, present).logits, expected.logits)
    assert expected.logits.shape == (2, network.classes, 3 * s, 5 * s)
    assert torch.isfinite(expected.logits).all()
    assert set(expected.taps) == network.provides


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_mask_is_data_to_the_compiler(name):
    """One graph for all subsets, without a break: nothing in a network looks at what a mask
    holds.
    """
    network = small(name).double()
    image = case(network).double()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for subset in ((0,), (1, 3), (0, 1, 2, 3)):
            expected = network(image, mask(subset)).logits
            torch.testing.assert_close(compiled(image, mask(subset)).logits, expected)
