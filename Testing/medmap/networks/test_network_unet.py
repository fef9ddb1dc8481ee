"""PMKL's U-Net and its gated teacher, against what is published."""

from __future__ import annotations

import pytest
import torch

from medmap.networks import build_network
from medmap.networks.unet import GatedFusion


def parameters(name: str, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(name, options).parameters())


@pytest.mark.parametrize(
    ("name", "options", "count", "published"),
    [
        ("UNet", {"classes": 5}, 2_056_309, 2.06e6),
        ("UNet", {"classes": 5, "inputs": [1], "replicate": 4}, 2_056_309, 2.06e6),
        ("UNet", {}, 2_056_292, 2.06e6),
        ("GatedUNet", {"classes": 5}, 6_650_309, 6.65e6),
        ("GatedUNet", {}, 6_650_292, 6.65e6),
    ],
)
def test_has_the_published_number_of_parameters(name, options, count, published):
    assert parameters(name, **options) == count
    assert count == pytest.approx(published, abs=5e3)


@pytest.mark.parametrize("name", ["UNet", "GatedUNet"])
def test_classes_change_nothing_but_the_head(name):
    assert parameters(name, classes=7) - parameters(name, classes=4) == 3 * (16 + 1)


@pytest.mark.parametrize("name", ["UNet", "GatedUNet"])
def test_kernels_start_small_and_biases_at_zero(name):
    network = build_network(name, {"widths": [8, 16]})
    for key, value in network.named_parameters():  # σ of a normal distribution cut at 2σ is 0.88 σ
        if value.ndim > 1:
            assert value.abs().max() <= 0.02, key
            assert value.detach().std().item() == pytest.approx(0.0088, rel=0.2), key
    assert network.head.bias.abs().max() == 0


def test_a_closed_gate_shuts_a_modality_out():
    torch.manual_seed(0)
    fusion = GatedFusion(3, 2, 4)
    features = [torch.randn(1, 4, 8, 8, 8) for _ in range(2)]
    with torch.inference_mode():
        fusion.gate.weight[:, 4:] = 0  # gates look at the first modality only
        fusion.gate_norm.bias.copy_(torch.tensor([0.0, -200.0]))
        fused = fusion(features)
        assert torch.equal(fused, fusion([features[0], 5 * features[1]]))
        assert not torch.equal(fused, fusion([5 * features[0] + 1, features[1]]))


@pytest.mark.usefixtures("float64")
def test_fusing_by_parts_is_convolving_the_concatenation():
    torch.manual_seed(0)
    fusion = GatedFusion(3, 3, 4)
    features = [torch.randn(2, 4, 6, 8, 6), None, torch.randn(2, 4, 6, 8, 6)]
    stack = torch.cat([features[0], torch.zeros(2, 4, 6, 8, 6), features[2]], 1)
    with torch.inference_mode():
        padded = torch.nn.functional.pad(stack, (1,) * 6, mode="reflect")
        gates = fusion.gate_norm(fusion.gate(padded)).sigmoid().repeat_interleave(4, 1)
        expected = fusion.act(fusion.mix_norm(fusion.mix(stack * gates)))
        torch.testing.assert_close(fusion(features), expected)
