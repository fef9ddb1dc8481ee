"""RFNet against what is published, and the parts that its lineage shares."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.small_networks import PRESENT
from Testing.medmap.small_networks import SMALL as SMALL_NETWORKS
from torch.nn.functional import conv3d, instance_norm
from torch.utils.flop_counter import FlopCounterMode

from medmap.networks.rfnet import RegionFusion, RFNet
from medmap.networks.rfnet_blocks import (
    LevelFusion,
    ModalitySumConv,
    ResidualEncoder,
    SeparateDecoder,
    sum_over_modalities,
)

SMALL = SMALL_NETWORKS["RFNet"]


@pytest.mark.parametrize(
    ("widths", "parameters", "published", "gflop"),
    [((16, 32, 64, 128), 8_984_960, 8.98, 203.6), ((8, 16, 32, 64), 2_381_792, 2.38, 51.6)],
)
def test_it_has_the_published_parameters_and_operations(
    widths, parameters, published, gflop, count
):
    with torch.device("meta"):
        network = RFNet(widths=widths).eval()
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            network(torch.empty(1, 4, 80, 80, 80), torch.ones(1, 4, dtype=torch.bool))
    assert count(network) == parameters
    assert round(parameters / 1e6, 2) == published
    # The means over regions are matrix products here, which are counted, and were products and
    # sums, which are not.
    means = sum(2 * 4 * 4 * w * (80 >> level) ** 3 for level, w in enumerate(widths)) / 1e9
    assert flops.get_total_flops() / 1e9 - means == pytest.approx(gflop, abs=0.05)


@pytest.mark.parametrize(("dims", "size"), [(3, (8, 24, 16)), (2, (24, 40))])
def test_shapes_in_three_and_two_dimensions_and_with_more_classes_than_modalities(dims, size):
    network = RFNet(modalities=3, classes=5, spatial_dims=dims, **SMALL).train()
    output = network(
        torch.randn(2, 3, *size), PRESENT[:, :3], want=sorted(network.provides), known=[0, 2]
    )
    assert output.logits.shape == (2, 5, *size)
    assert [t.shape for t in output.aux["deep"]] == [
        (2, 5, *(n >> level for n in size)) for level in range(3)
    ]
    assert output.aux["separate"][1] is None
    assert output.aux["separate"][2].shape == (2, 5, *size)
    assert [t.shape[1:] for t in output.taps["mod_bottleneck"]] == [
        (8, *(n // 4 for n in size))
    ] * 2
    assert output.taps["decoder"].shape == (2, 4, *size)


def test_the_logits_of_fixed_weights_are_pinned(fixed, waves):
    with torch.no_grad():
        logits = fixed(RFNet(**SMALL))(waves(2, 4, 16, 16, 16), PRESENT).logits
    assert logits.std((0, 2, 3, 4)).tolist() == pytest.approx(
        [0.69111, 0.66158, 0.56580, 0.42157], abs=1e-4
    )
    assert logits[:, 1, 3, 5, 7].tolist() == pytest.approx([0.26450, 0.27720], abs=1e-4)


@pytest.mark.usefixtures("float64")
def test_the_region_fusion_weights_modalities_as_the_paper_writes_it():
    torch.manual_seed(0)
    fusion = RegionFusion(3, modalities=2, classes=3, channels=4, hidden=5)
    level = [torch.randn(1, 4, 6, 6, 6) for _ in range(2)]
    p = torch.randn(1, 3, 6, 6, 6).softmax(1)
    regions = []
    for k in range(3):
        masked = torch.cat([y * p[:, k : k + 1] for y in level], 1)
        mean = p[:, k].mean()
        g = torch.cat([masked.mean((2, 3, 4)) / (mean + 1e-7), mean.reshape(1, 1)], 1)
        a = fusion.weights[k](g).sigmoid()
        regions.append(sum(a[0, m] * level[m] * p[:, k : k + 1] for m in range(2)))
    expected = torch.cat([fusion.regions(regions), fusion.shortcut(level)], 1)
    # Means over regions are taken in float32 whatever comes in: a rounding each of the mean, the
    # share and the sum.
    error = 4 * torch.finfo(torch.float32).eps * float(expected.detach().abs().max())
    torch.testing.assert_close(fusion(level, p), expected, rtol=0, atol=error)


def test_only_their_own_loss_trains_the_region_probabilities():
    network = RFNet(**SMALL).train()
    image = torch.randn(1, 4, 16, 16, 16)
    network(image, torch.ones(1, 4, dtype=torch.bool)).logits.square().mean().backward()
    assert all(p.grad is None for p in network.predictions.parameters())
    assert all(p.grad is None for p in network.separate.parameters())
    output = network(image, torch.ones(1, 4, dtype=torch.bool))
    sum(d.square().mean() for d in output.aux["deep"]).backward()
    assert all(p.grad is not None for p in network.predictions.parameters())


def test_the_separate_decoder_sees_one_modality_at_a_time():
    network = RFNet(**SMALL).train()
    image = torch.randn(1, 4, 16, 16, 16, requires_grad=True)
    network(image, torch.ones(1, 4, dtype=torch.bool)).aux["separate"][2].square().mean().backward()
    touched = image.grad.abs().amax((0, 2, 3, 4)) > 0
    assert touched.tolist() == [False, False, True, False]


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.usefixtures("float64")
def test_fusing_term_by_term_is_fusing_the_concatenation(pre_norm):
    torch.manual_seed(0)
    fusion = ModalitySumConv(3, modalities=3, channels=4, outputs=5, pre_norm=pre_norm)
    level = [torch.randn(2, 4, 6, 6, 6) for _ in range(3)]
    together = torch.cat(level, 1)
    if pre_norm:
        expected = fusion.conv(fusion.act(instance_norm(together)))
    else:
        expected = fusion.act(fusion.norm(fusion.conv(together)))
    torch.testing.assert_close(fusion(level), expected)
    level[1] = torch.zeros_like(level[1])
    assert torch.equal(fusion([level[0], None, level[2]]), fusion(level))


@pytest.mark.usefixtures("float64")
def test_a_sum_over_modalities_pads_and_adds_the_bias_once():
    conv = torch.nn.Conv3d(6, 2, 3, padding=1)
    level = [torch.randn(1, 2, 4, 4, 4) for _ in range(3)]
    expected = conv3d(torch.cat(level, 1), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(sum_over_modalities(conv, level), expected)
    with pytest.raises(ValueError, match="at least one modality"):
        sum_over_modalities(conv, [None, None])


def test_the_encoder_of_the_lineage_halves_the_size_per_level_in_either_order():
    for pre_norm in (False, True):
        levels = ResidualEncoder(2, (4, 6, 8), pre_norm=pre_norm)(torch.randn(1, 1, 24, 16))
        assert [tuple(f.shape[1:]) for f in levels] == [(4, 24, 16), (6, 12, 8), (8, 6, 4)]
        assert SeparateDecoder(2, 3, (4, 6, 8), pre_norm=pre_norm)(levels).shape == (1, 3, 24, 16)
        fusion = LevelFusion(2, 1, 8, hidden=2, outputs=5, pre_norm=pre_norm)
        assert fusion([levels[-1]]).shape == (1, 5, 6, 4)
