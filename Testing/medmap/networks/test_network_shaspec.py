"""ShaSpec against what is published; the skeleton's own tests are in test_network_mckd.py."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import PRESENT
from Testing.medmap.small_networks import SMALL as SMALL_NETWORKS
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from medmap.errors import BundleError
from medmap.networks import build_network
from medmap.networks.resnet_aspp_encoder import standardize
from medmap.networks.shaspec import ShaSpec

SMALL = SMALL_NETWORKS["ShaSpec"]


def encoded(network, image):
    """(p, s, f) of each modality, zero where PRESENT says absent."""
    output = []
    for m in range(4):
        parts = network.encode(image[:, m : m + 1], m)[-3:]
        output.append(
            [torch.where(PRESENT[:, m].reshape(-1, 1, 1, 1, 1), part, 0) for part in parts]
        )
    return output


def test_it_has_the_published_parameters_and_operations(count):
    with torch.device("meta"):
        network = ShaSpec(classes=3).eval()
        image, present = torch.empty(1, 4, 80, 160, 160), torch.ones(1, 4, dtype=torch.bool)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            network(image, present)
    assert count(network) == 187_705_575
    assert round(count(network) / 1e6, 1) == 187.7
    assert round(flops.get_total_flops() / 1e9) == 1379
    assert count(network.compose) == 27 * 512 * 256
    assert count(network.domain) == 256 * 4 + 4
    assert count(network.specific) == 4 * count(network.shared)


@pytest.mark.parametrize(("dims", "size"), [(3, (8, 24, 16)), (2, (24, 40))])
def test_shapes_in_three_and_two_dimensions(dims, size):
    network = ShaSpec(spatial_dims=dims, **SMALL).eval()
    with torch.no_grad():
        output = network(torch.randn(2, 4, *size), PRESENT, want=sorted(network.provides))
    deepest = tuple(n // s // 4 for n, s in zip(size, network.stem_stride, strict=True))
    assert output.logits.shape == (2, 4, *size)
    assert output.taps["bottleneck"].shape == (2, 4 * 16, *deepest)
    assert output.aux == {}, "only training has auxiliary outputs"


def test_the_logits_of_fixed_weights_are_pinned(fixed, waves):
    network = fixed(ShaSpec(**SMALL), gain=None)
    with torch.no_grad():
        logits = network(waves(2, 4, 16, 16, 16), PRESENT).logits
    assert logits.mean().item() == pytest.approx(0.72879, abs=1e-4)
    assert logits.std().item() == pytest.approx(1.16983, abs=1e-4)


@pytest.mark.usefixtures("float64")
def test_a_present_modality_is_shared_plus_composed():
    network = ShaSpec(**SMALL).eval()
    with torch.no_grad():
        specific, shared, fused = network.encode(torch.randn(1, 1, 16, 16, 16), 1)[-3:]
        composed = functional.conv3d(
            torch.cat([shared, specific], 1), standardize(network.compose.weight), padding=1
        )
    torch.testing.assert_close(fused, shared + composed)


@pytest.mark.parametrize("fill", ["mean", "first"])
@pytest.mark.usefixtures("float64")
def test_an_absent_modality_is_what_the_present_ones_share(fill):
    network = ShaSpec(fill=fill, **SMALL).eval()
    image = torch.randn(2, 4, 16, 16, 16)
    with torch.no_grad():
        parts = encoded(network, image)
        slots = network(image, PRESENT, want=("bottleneck",)).taps["bottleneck"].chunk(4, 1)
    shared = [s for _, s, _ in parts]
    expected = (shared[0][0] + shared[2][0]) / 2 if fill == "mean" else shared[0][0]
    for m in (0, 2):
        torch.testing.assert_close(slots[m][0], parts[m][2][0])
    for m in (1, 3):
        torch.testing.assert_close(slots[m][0], expected)
    torch.testing.assert_close(slots[0][1], shared[1][1])


def test_training_gives_what_the_auxiliary_losses_need():
    network = ShaSpec(**SMALL).train()
    aux = network(torch.randn(2, 4, 16, 16, 16), PRESENT, known=(0, 1, 2)).aux
    assert [None if d is None else tuple(d.shape) for d in aux["domain"]] == [(2, 4)] * 3 + [None]
    assert [None if s is None else tuple(s.shape) for s in aux["shared"]] == [
        (2, 16, 4, 2, 2)
    ] * 3 + [None]
    functional.cross_entropy(aux["domain"][0][:1], torch.tensor([0])).backward()
    assert network.specific[0].reduce[0].weight.grad.abs().max() > 0
    assert network.shared.reduce[0].weight.grad is None, (
        "the classifier looks at specific features only"
    )


def test_each_modality_has_a_specific_encoder_of_its_own():
    network = ShaSpec(**SMALL).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        one, other = (network.encode(image, m)[-3:] for m in (0, 1))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_the_skips_can_come_from_either_encoder(fixed, waves):
    image = waves(1, 4, 16, 16, 16)
    present = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        shared, specific = (
            fixed(ShaSpec(skips=s, **SMALL), gain=None)(image, present).logits
            for s in ("shared", "specific")
        )
    assert not torch.allclose(shared, specific)


@pytest.mark.parametrize("options", [{"fill": "noise"}, {"skips": "both"}])
def test_refuses_options_that_it_does_not_know(options):
    with pytest.raises(BundleError, match="cannot fill"):
        build_network("ShaSpec", options)
