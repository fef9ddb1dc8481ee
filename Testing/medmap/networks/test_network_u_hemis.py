"""U-HeMIS against what is published."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import PRESENT
from Testing.medmap.small_networks import SMALL as SMALL_NETWORKS

from medmap.networks.u_hemis import UHeMIS, mean_and_variance

SMALL = SMALL_NETWORKS["UHeMIS"]


def test_it_has_the_published_parameters(count):
    with torch.device("meta"):
        network = UHeMIS()
    assert count(network) == 565_892
    assert round(count(network) / 1e6, 2) == 0.57


def test_a_modality_has_half_the_channels_of_a_level_and_the_fusion_all():
    network = UHeMIS(**SMALL).eval()
    with torch.no_grad():
        taps = network(
            torch.randn(1, 4, 16, 16, 16), PRESENT[:1], want=("mod_bottleneck", "bottleneck")
        ).taps
    assert [tuple(t.shape) for t in taps["mod_bottleneck"]] == [(1, 8, 4, 4, 4)] * 4
    assert taps["bottleneck"].shape == (1, 16, 4, 4, 4)


@pytest.mark.parametrize(("dims", "size"), [(3, (8, 24, 16)), (2, (24, 40))])
def test_shapes_in_three_and_two_dimensions_and_with_more_classes_than_modalities(dims, size):
    network = UHeMIS(modalities=3, classes=5, spatial_dims=dims, **SMALL)
    output = network(torch.randn(2, 3, *size), PRESENT[:, :3], want=sorted(network.provides))
    assert output.logits.shape == (2, 5, *size)
    assert output.taps["decoder"].shape == (2, 2, *size)


def test_the_logits_of_fixed_weights_are_pinned(fixed, waves):
    with torch.no_grad():
        logits = fixed(UHeMIS(**SMALL))(waves(2, 4, 16, 16, 16), PRESENT).logits
    assert logits.std((0, 2, 3, 4)).tolist() == pytest.approx(
        [0.39306, 0.48254, 0.23013, 0.56000], abs=1e-4
    )
    assert logits[:, 1, 3, 5, 7].tolist() == pytest.approx([0.44962, 0.50760], abs=1e-4)


@pytest.mark.parametrize("subset", [(0,), (1, 3), (0, 1, 2), (0, 1, 2, 3)])
@pytest.mark.usefixtures("float64")
def test_moments_are_those_of_the_present_modalities_alone(subset):
    features = torch.randn(4, 2, 3, 5, 5, 5)
    present = torch.tensor([[m in subset for m in range(4)]] * 2)
    blanked = [f if m in subset else torch.zeros_like(f) for m, f in enumerate(features)]
    chosen = features[list(subset)]
    expected = torch.cat([chosen.mean(0), chosen.var(0, unbiased=False)], 1)
    torch.testing.assert_close(mean_and_variance(blanked, present), expected)


@pytest.mark.usefixtures("float64")
def test_the_order_of_modalities_with_the_same_encoder_does_not_matter():
    network = UHeMIS(**SMALL).eval()
    for encoder in network.encoders[1:]:
        encoder.load_state_dict(network.encoders[0].state_dict())
    image, everything = torch.randn(1, 4, 16, 16, 16), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        swapped = network(image[:, [3, 1, 0, 2]], everything).logits
        torch.testing.assert_close(swapped, network(image, everything).logits)
