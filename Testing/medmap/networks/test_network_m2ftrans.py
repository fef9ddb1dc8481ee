"""M2FTrans against what is published: size, the masked transformer, spatial weights, channel-wise
fusion.
"""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import PRESENT
from Testing.medmap.small_networks import SMALL as SMALL_NETWORKS

from medmap.networks.m2ftrans import ChannelAttention, M2FTrans, MaskedTransformer

SMALL = SMALL_NETWORKS["M2FTrans"]


def masked_transformer(fixed, depth: int = 3) -> MaskedTransformer:
    """Width 8, two heads, grid 2**3."""
    return fixed(MaskedTransformer(3, 4, 8, depth, 2, 16, 2, 0.0), gain=1)


@pytest.mark.parametrize(
    ("widths", "parameters", "published"),
    [((16, 32, 64, 128, 256), 45_427_788, 45.43), ((8, 16, 32, 64, 128), 13_193_652, 13.19)],
)
def test_it_has_the_published_parameters(widths, parameters, published, count):
    with torch.device("meta"):
        network = M2FTrans(widths=widths)
    assert count(network) == parameters
    assert round(parameters / 1e6, 2) == published


def test_the_default_works_on_the_published_window():
    with torch.device("meta"), torch.no_grad():
        network = M2FTrans().eval()
        present = torch.ones(1, 4, dtype=torch.bool)
        output = network(torch.empty(1, 4, 80, 80, 80), present, want=("mod_bottleneck", "deep"))
    assert network.transformer.fusion_tokens.weight.shape == (1, 256, 5, 5, 5)
    assert [tuple(t.shape) for t in output.taps["mod_bottleneck"]] == [(1, 256, 5, 5, 5)] * 4
    assert [t.shape[-1] for t in output.taps["deep"]] == [80, 40, 20, 10, 5]


def test_the_fusion_follows_the_modalities_and_not_the_classes():
    with torch.device("meta"):
        network = M2FTrans(modalities=3, classes=7, **SMALL)
    assert [f.first.conv.weight.shape[1] for f in network.fusions] == [3 * SMALL["widths"][0]]
    assert len(network.channel_fusions[0].blocks[0].keys) == 3
    assert network.head.weight.shape[0] == 7


@pytest.mark.parametrize(("dims", "size"), [(3, (12, 24, 16)), (2, (24, 40))])
def test_shapes_in_three_and_two_dimensions(dims, size):
    network = M2FTrans(spatial_dims=dims, **SMALL)
    with torch.no_grad():
        output = network(torch.randn(2, 4, *size), PRESENT, want=sorted(network.provides))
    parts = [tuple(n // s for n in size) for s in (1, 2, 4)]
    assert output.logits.shape == (2, 4, *size)
    assert output.taps["bottleneck"].shape == (2, 8, *parts[-1])
    assert [tuple(d.shape) for d in output.aux["deep"]] == [(2, 4, *part) for part in parts]
    assert [tuple(s.shape) for s in output.aux["separate"]] == [(2, 4, *size)] * 4
    assert network.eval()(torch.randn(2, 4, *size), PRESENT).aux == {}


def test_streams_computed_apart_are_one_masked_transformer(fixed, waves):
    """Against self-attention over all 5 * N tokens with the mask as the paper states it."""
    transformer, grid = masked_transformer(fixed), (2, 2, 2)
    volumes = [waves(2, 8, *grid) * (m + 1) for m in range(4)]
    with torch.no_grad():
        fused, _ = transformer.fuse(
            [transformer.encode(v, m) for m, v in enumerate(volumes)], PRESENT, grid
        )

        group = torch.arange(5).repeat_interleave(8)
        available = torch.cat([PRESENT, torch.ones(2, 1, dtype=torch.bool)], 1)[:, group]
        allowed = (group[:, None] == group) | ((group == 4)[:, None] & available[:, None])
        learned = transformer.fusion_tokens.at(grid).expand(2, -1, -1)
        tokens = torch.cat([v.flatten(2).transpose(1, 2) for v in volumes] + [learned], 1)
        where = torch.cat([p.at(grid) for p in transformer.positions], 1)
        for layer in transformer.layers:
            tokens, _ = layer(tokens + where, allowed=allowed[:, None])
    expected = tokens[:, -8:].transpose(1, 2).reshape(2, 8, *grid)
    torch.testing.assert_close(fused, expected)


def test_spatial_weights_are_what_fusion_tokens_look_at(fixed, waves):
    transformer, grid = masked_transformer(fixed), (2, 2, 2)
    inputs = [transformer.encode(waves(2, 8, *grid), m) for m in range(4)]
    _, spatial = transformer.fuse(inputs, PRESENT, grid)
    assert spatial.shape == (2, 4, *grid)
    assert not spatial.requires_grad
    assert (spatial[~PRESENT] == 0).all()
    assert (spatial[PRESENT] > 0).all()

    with torch.no_grad():
        transformer.layers[0].attention.query.weight.zero_()
    _, even = transformer.fuse(inputs, PRESENT, grid)
    torch.testing.assert_close(even[0, 0], torch.full(grid, 2 / 3, dtype=torch.float64))
    torch.testing.assert_close(even[1, 1], torch.full(grid, 2 / 2, dtype=torch.float64))


def test_channels_look_only_at_those_of_present_modalities(fixed, waves):
    attention = fixed(ChannelAttention(3, 4, 6), gain=1)
    x, level = waves(2, 6, 4, 4, 4), [waves(2, 6, 4, 4, 4) * (m + 2) for m in range(4)]
    present = PRESENT[:1].expand(2, -1)
    with torch.no_grad():
        expected = attention(x, level, present)
        assert torch.equal(attention(x, [level[0], None, level[2], None], present), expected)
        assert torch.equal(
            attention(x, [level[0], level[1] * 9, level[2], -level[3]], present), expected
        )
        assert not torch.equal(
            attention(x, [level[0] * 9, None, level[2], None], present), expected
        )


def test_an_absent_modality_costs_no_bit_with_learned_positions(fixed, waves):
    network = fixed(M2FTrans(**SMALL), gain=1)
    image, present = waves(1, 4, 16, 12, 16), PRESENT[:1]
    changed = torch.where(present[..., None, None, None], image, torch.nan)
    with torch.no_grad():
        expected = network(image, present).logits
        assert torch.equal(network(changed, present).logits, expected)
        assert torch.equal(network(image, present, known=(0, 2)).logits, expected)


def test_the_logits_of_fixed_weights_are_pinned(fixed, waves):
    network = fixed(M2FTrans(**SMALL), gain=1)
    with torch.no_grad():
        logits = network(waves(2, 4, 16, 16, 16), PRESENT).logits
    assert logits.mean().item() == pytest.approx(0.17203, abs=1e-4)
    assert logits.std().item() == pytest.approx(0.45822, abs=1e-4)
