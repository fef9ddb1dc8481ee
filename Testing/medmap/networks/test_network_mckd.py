"""MCKD's network and the skeleton that it shares with ShaSpec, against what is published."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import PRESENT
from Testing.medmap.small_networks import SMALL as SMALL_NETWORKS
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from medmap.errors import BundleError
from medmap.networks import build_network
from medmap.networks.mckd import MCKD
from medmap.networks.resnet_aspp_encoder import (
    ModalityTermConv,
    first_present_map,
    mean_of_present_maps,
    standardize,
)

SMALL = SMALL_NETWORKS["MCKD"]


def test_it_has_the_published_parameters_and_operations(count):
    with torch.device("meta"):
        network = MCKD(classes=3).eval()
        image, present = torch.empty(1, 4, 80, 160, 160), torch.ones(1, 4, dtype=torch.bool)
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            output = network(image, present, want=("mod_bottleneck",))
    assert count(network) == 43_656_163
    assert round(count(network) / 1e6, 1) == 43.7
    assert round(flops.get_total_flops() / 1e9) == 754
    assert output.logits.shape == (1, 3, 80, 160, 160)
    assert [tuple(t.shape) for t in output.taps["mod_bottleneck"]] == [(1, 256, 5, 5, 5)] * 4
    with torch.device("meta"):
        assert count(MCKD()) - count(network) == 33, (
            "a class is one channel of the 1x1 head and its bias"
        )


def test_the_number_of_classes_does_not_change_the_fusion():
    with torch.device("meta"):
        three, four = MCKD(3, 7, **SMALL), MCKD(4, 2, **SMALL)
    assert [term.weight.shape[1] for term in four.decoder.terms] == [
        4 * w for w in four.widths.skips
    ]
    assert [term.weight.shape[1] for term in three.decoder.terms] == [
        3 * w for w in three.widths.skips
    ]


@pytest.mark.parametrize(("dims", "size"), [(3, (8, 24, 16)), (2, (24, 40))])
def test_shapes_in_three_and_two_dimensions(dims, size):
    network = MCKD(spatial_dims=dims, **SMALL)
    with torch.no_grad():
        output = network(torch.randn(2, 4, *size), PRESENT, want=sorted(network.provides))
    deepest = tuple(n // s // 4 for n, s in zip(size, network.stem_stride, strict=True))
    assert output.logits.shape == (2, 4, *size)
    assert output.taps["bottleneck"].shape == (2, 4 * 16, *deepest)
    assert output.taps["decoder"].shape[2:] == tuple(
        n // s for n, s in zip(size, network.stem_stride, strict=True)
    )


def test_the_logits_of_fixed_weights_are_pinned(fixed, waves):
    network = fixed(MCKD(**SMALL), gain=None)
    with torch.no_grad():
        logits = network(waves(2, 4, 16, 16, 16), PRESENT).logits
    assert logits.mean().item() == pytest.approx(0.74242, abs=1e-4)
    assert logits.std().item() == pytest.approx(1.38695, abs=1e-4)


@pytest.mark.usefixtures("float64")
def test_absent_bottlenecks_are_the_mean_of_the_present_ones():
    network = MCKD(**SMALL).eval()
    with torch.no_grad():
        taps = network(
            torch.randn(2, 4, 16, 16, 16), PRESENT, want=("mod_bottleneck", "bottleneck")
        ).taps
    slots = taps["bottleneck"].chunk(4, 1)
    features = taps["mod_bottleneck"]
    for m in (0, 2):
        assert torch.equal(slots[m][0], features[m][0])
    for m in (1, 3):
        torch.testing.assert_close(slots[m][0], (features[0][0] + features[2][0]) / 2)
    for m in range(4):
        assert torch.equal(slots[m][1], features[1][1])


def test_all_modalities_go_through_the_same_encoder():
    network = MCKD(**SMALL).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        first, last = (network.encode(image, m) for m in (0, 3))
    assert torch.equal(first[-1], last[-1])
    assert not torch.equal(first[0], last[0]), "the skips' terms belong to a modality"


@pytest.mark.usefixtures("float64")
def test_weights_are_standardized():
    raw = torch.randn(5, 7, 3, 3, 3) * 4 + 2
    weight = standardize(raw, eps=1e-5)
    variance = raw.var((1, 2, 3, 4), correction=0)
    torch.testing.assert_close(weight.mean((1, 2, 3, 4)), torch.zeros(5))
    torch.testing.assert_close(weight.var((1, 2, 3, 4), correction=0), variance / (variance + 1e-5))


@pytest.mark.usefixtures("float64")
def test_a_skip_is_a_convolution_over_the_concatenated_modalities():
    conv = ModalityTermConv(3, modalities=4, inputs=3, outputs=5)
    x = torch.randn(2, 12, 4, 4, 4)
    whole = functional.conv3d(x, standardize(conv.weight))
    torch.testing.assert_close(sum(conv(part, m) for m, part in enumerate(x.chunk(4, 1))), whole)


@pytest.mark.parametrize(
    ("fill", "expected"), [(mean_of_present_maps, [2.0, 7.0]), (first_present_map, [1.0, 7.0])]
)
def test_what_fills_an_absent_modality(fill, expected):
    values = [[1.0, 0.0], [0.0, 7.0], [3.0, 0.0]]
    maps = [torch.tensor(v).reshape(2, 1, 1, 1, 1).expand(2, 2, 2, 2, 2) for v in values]
    assert fill([*maps, None], PRESENT)[:, 0, 0, 0, 0].tolist() == expected


@pytest.mark.parametrize("options", [{"blocks": ()}, {"blocks": (1,) * 5}, {"stem_stride": (1, 2)}])
def test_refuses_depths_and_strides_that_make_no_network(options):
    with pytest.raises(BundleError, match="do not make this network"):
        build_network("MCKD", options)
