"""ProtoKD's V-Net, against what is published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medmap.errors import BundleError
from medmap.networks import build_network

TINY = {"widths": [4, 6, 8], "depths": [1, 2, 1]}


@pytest.mark.parametrize(
    ("options", "count"), [({}, 9_447_396), ({"inputs": [0]}, 9_446_100)], ids=["four", "one"]
)
def test_has_the_published_number_of_parameters(options, count):
    with torch.device("meta"):
        network = build_network("VNet", options)
    assert sum(p.numel() for p in network.parameters()) == count
    assert count == pytest.approx(9.45e6, abs=5e3)
    assert network.stride == 16


def test_only_the_head_has_a_bias():
    network = build_network("VNet", TINY)
    kinds = (nn.Conv3d, nn.ConvTranspose3d)
    assert [
        k for k, m in network.named_modules() if isinstance(m, kinds) and m.bias is not None
    ] == ["head"]


@pytest.mark.usefixtures("float64")
def test_skips_are_added_and_not_concatenated():
    network = build_network("VNet", TINY).eval()
    image = torch.randn(1, 4, 8, 8, 8)
    with torch.inference_mode():
        for up in network.ups:
            up[1].weight.zero_()
            up[1].bias.zero_()  # nothing comes up: what is left is the first level and its skip
        decoded = network.segment(image, ["decoder"]).taps["decoder"]
        torch.testing.assert_close(decoded, network.up_stages[0](network.down_stages[0](image)))


def test_batch_statistics_follow_training_and_rest_in_evaluation():
    network, image, present = (
        build_network("VNet", TINY),
        torch.randn(2, 4, 16, 16, 16),
        torch.ones(2, 4).bool(),
    )
    norm = network.down_stages[0][0][1]
    network.train()(image, present)
    after = norm.running_mean.clone()
    assert after.abs().max() > 0
    network.eval()(image, present)
    assert torch.equal(norm.running_mean, after)


@pytest.mark.usefixtures("float64")
def test_instance_normalization_keeps_samples_apart_in_training():
    network = build_network("VNet", {**TINY, "norm": "instance"}).train()
    image, present = torch.randn(2, 4, 16, 16, 16), torch.ones(2, 4).bool()
    with torch.no_grad():
        both, first = network(image, present).logits[:1], network(image[:1], present[:1]).logits
    torch.testing.assert_close(both, first)


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"widths": [4, 8], "depths": [1]}], ids=str)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(BundleError):
        build_network("VNet", options)
