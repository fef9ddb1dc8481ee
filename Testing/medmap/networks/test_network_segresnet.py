"""SegResNet, as ACN and SMU-Net use it, against what is published."""

from __future__ import annotations

import sys

import pytest
import torch

from medmap.errors import UnavailableError
from medmap.networks import build_network

TINY = {"width": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}


@pytest.mark.parametrize(
    ("options", "count", "published"),
    [({}, 4_702_244, 4.70e6), ({"style": True}, 4_776_228, 4.78e6)],
    ids=str,
)
def test_has_the_published_number_of_parameters(options, count, published):
    with torch.device("meta"):
        network = build_network("SegResNet", options)
    assert sum(p.numel() for p in network.parameters()) == count
    assert count == pytest.approx(published, abs=5e3)
    assert network.stride == 8


@pytest.mark.usefixtures("float64")
def test_computes_what_monai_computes():
    network = build_network("SegResNet", {**TINY, "inputs": [0, 2]}).eval()
    image = torch.randn(1, 4, 16, 8, 16)
    with torch.inference_mode():
        ours = network(image, torch.ones(1, 4, dtype=torch.bool)).logits
        torch.testing.assert_close(ours, network.net(image[:, [0, 2]]))


def test_drops_out_at_the_bottleneck_and_only_in_training():
    network, image = (
        build_network("SegResNet", {**TINY, "dropout": 0.5}),
        torch.randn(1, 4, 16, 16, 16),
    )
    torch.manual_seed(0)
    dropped = network.train().segment(image, ["bottleneck"]).taps["bottleneck"]
    kept = network.eval().segment(image, ["bottleneck"]).taps["bottleneck"]
    assert (dropped == 0).float().mean() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0, 2 * kept))


def test_the_style_path_is_a_tap_and_reaches_the_logits():
    torch.manual_seed(0)
    network = build_network("SegResNet", {**TINY, "style": True}).eval()
    assert network.provides == {"bottleneck", "decoder", "style"}
    image = torch.randn(1, 4, 16, 16, 16)
    output = network.segment(image, ["bottleneck", "style"])
    assert output.taps["style"].shape == output.taps["bottleneck"].shape == (1, 32, 4, 4, 4)
    with torch.no_grad():
        network.style.style.bias.add_(torch.randn(32))
        assert not torch.allclose(network.segment(image).logits, output.logits)


def test_without_monai_only_this_network_is_unavailable(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(UnavailableError, match="MONAI"):
        build_network("SegResNet", {})
    assert build_network("UNet", {"widths": [4, 8]})
