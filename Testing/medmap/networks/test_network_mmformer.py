"""mmFormer against what is published: size, cost, token layout, masking."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import PRESENT
from Testing.medmap.small_networks import SMALL as SMALL_NETWORKS
from torch.utils.flop_counter import FlopCounterMode

from medmap.errors import BundleError
from medmap.networks import build_network
from medmap.networks.mmformer import InterTransformer, MMFormer
from medmap.networks.transformer import LearnedPositions, to_tokens, to_volume

SMALL = SMALL_NETWORKS["mmFormer"]


def test_it_has_the_published_parameters_without_those_that_nothing_uses(count):
    with torch.device("meta"):
        released, passion = MMFormer(), MMFormer(window=80)
    unused = 4 * (512 * 128 + 128)
    assert count(released) == 36_391_760
    assert round((count(released) + unused) / 1e6, 2) == 36.65
    assert count(released) - count(passion) == 4 * 512 * (8**3 - 5**3), (
        "only the learned positions differ"
    )
    assert round(count(passion) / 1e6, 2) == 35.60


@pytest.mark.parametrize(("window", "published"), [(128, 256.3), (80, 60.6)])
def test_it_has_the_published_operations(window, published):
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as flops:
        network = MMFormer(window=window).eval()
        present = torch.ones(1, 4, dtype=torch.bool)
        output = network(
            torch.empty(1, 4, window, window, window), present, want=("mod_bottleneck", "deep")
        )
    assert round(flops.get_total_flops() / 1e9, 1) == published
    assert [tuple(t.shape) for t in output.taps["mod_bottleneck"]] == [
        (1, 128, *[window // 16] * 3)
    ] * 4
    assert [t.shape[-1] for t in output.taps["deep"]] == [window // n for n in (2, 4, 8, 16)]


def test_the_fusion_follows_the_modalities_and_not_the_classes():
    with torch.device("meta"):
        network = MMFormer(modalities=3, classes=7, **SMALL)
    assert [f.first.conv.weight.shape[1] for f in network.fusions] == [
        3 * w for w in SMALL["widths"]
    ]
    assert network.project.weight.shape[:2] == (3 * SMALL["widths"][-1], 3 * SMALL["token_width"])
    assert network.head.weight.shape[0] == 7


@pytest.mark.parametrize(("dims", "size"), [(3, (12, 24, 16)), (2, (24, 40))])
def test_shapes_in_three_and_two_dimensions(dims, size):
    network = MMFormer(spatial_dims=dims, **SMALL)
    with torch.no_grad():
        output = network(torch.randn(2, 4, *size), PRESENT, want=sorted(network.provides))
    halves = [tuple(n // s for n in size) for s in (2, 4)]
    assert output.logits.shape == (2, 4, *size)
    assert output.taps["bottleneck"].shape == (2, 8, *halves[1])
    assert [tuple(d.shape) for d in output.aux["deep"]] == [(2, 4, *half) for half in halves]
    assert [tuple(s.shape) for s in output.aux["separate"]] == [(2, 4, *size)] * 4
    assert network.eval()(torch.randn(2, 4, *size), PRESENT).aux == {}


def test_a_voxel_gets_its_own_tokens_of_all_modalities():
    right = InterTransformer(4, 2, 1, 1, 2, 0.0, scrambled=False)
    voxel, modality = torch.arange(64.0).repeat(4), torch.arange(4.0).repeat_interleave(64)
    laid = right.lay_out(torch.stack([voxel, modality], 1)[None], (4, 4, 4))
    for m in range(4):
        assert torch.equal(laid[0, 2 * m].flatten(), torch.arange(64.0))
        assert (laid[0, 2 * m + 1] == m).all()


def test_the_released_layout_gives_a_voxel_four_tokens_of_one_modality():
    released = InterTransformer(4, 1, 1, 1, 2, 0.0, scrambled=True)
    modality = torch.arange(4.0).repeat_interleave(512)[None, :, None]
    laid = released.lay_out(modality, (8, 8, 8))[0].flatten(1)
    for m in range(4):
        assert (laid[:, 128 * m : 128 * (m + 1)] == m).all()


def test_the_released_layout_is_another_function_of_the_same_weights(count, fixed, waves):
    right, released = (
        fixed(MMFormer(**SMALL, scrambled_bottleneck=s), gain=1) for s in (False, True)
    )
    with torch.no_grad():
        logits = [network(waves(2, 4, 16, 16, 16), PRESENT).logits for network in (right, released)]
    assert count(right) == count(released)
    assert not torch.allclose(*logits, atol=1e-3)


def test_tokens_return_to_their_voxels():
    x = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(to_volume(to_tokens(x), (4, 5, 6)), x)


def test_positions_are_interpolated_to_other_windows():
    positions = LearnedPositions(2, 1, 4)
    with torch.no_grad():
        positions.weight.copy_(torch.arange(4.0)[:, None].expand(4, 4))
    assert torch.equal(positions.at((4, 4))[0, :, 0], torch.arange(4.0).repeat_interleave(4))
    finer = positions.at((8, 6))[0, :, 0].reshape(8, 6)
    assert finer[:, 0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
    assert (finer == finer[:, :1]).all()


@pytest.mark.parametrize("scrambled", [False, True])
def test_positions_bring_nothing_of_an_absent_modality_back(scrambled, fixed, waves):
    network = fixed(MMFormer(**SMALL, scrambled_bottleneck=scrambled), gain=1)
    image, present = waves(1, 4, 16, 12, 16), PRESENT[:1]
    changed = torch.where(present[..., None, None, None], image, torch.nan)
    with torch.no_grad():
        expected = network(image, present).logits
        assert torch.equal(network(changed, present).logits, expected)
        assert torch.equal(network(image, present, known=(0, 2)).logits, expected)


@pytest.mark.parametrize(
    ("name", "options"), [("mmFormer", {"token_width": 20}), ("M2FTrans", {"heads": 7})]
)
def test_refuses_heads_that_do_not_divide_the_tokens(name, options):
    with pytest.raises(BundleError, match="attention heads"), torch.device("meta"):
        build_network(name, options)


def test_the_intra_modal_transformers_learn_only_from_the_fused_path():
    network = MMFormer(**SMALL)
    output = network(torch.randn(1, 4, 16, 16, 16), PRESENT[:1])
    sum(logits.square().mean() for logits in output.aux["separate"]).backward()
    assert all(p.grad is None for p in network.intra.parameters())
    assert all(p.grad is not None for p in network.encoders.parameters())


def test_the_logits_of_fixed_weights_are_pinned(fixed, waves):
    network = fixed(MMFormer(**SMALL), gain=1)
    with torch.no_grad():
        logits = network(waves(2, 4, 16, 16, 16), PRESENT).logits
    assert logits.mean().item() == pytest.approx(0.73641, abs=1e-4)
    assert logits.std().item() == pytest.approx(0.31397, abs=1e-4)
