"""T*: in front of or inside every backbone, it never shows an absent modality, and travels in the
bundle.
"""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from Testing.medmap.small_networks import SMALL, mask

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.errors import BundleError, UsageError
from medmap.networks import NETWORKS, build_network
from medmap.networks.stem import ResidualMap
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS

SUBSETS = [s for n in range(1, 5) for s in combinations(range(4), n)]
NAMES = list(BRATS.modality_names)
MIXTURE = {"names": NAMES, "initial": {"t1ce": 2.0}}
FIXED = ("SegResNet", "UNet", "VNet")
WIDE = (*FIXED, "GatedUNet", "RFNet", "mmFormer")
STEMS = {
    "input": {"at": "input", "channels": 1},
    "input, one a modality": {"at": "input", "channels": 1, "sharing": "per-modality"},
    "input, wide": {"at": "input", "channels": 3},
    "input, mean": {"at": "input", "channels": 1, "combine": "mean"},
    "input, mixture": {"at": "input", "channels": 1, "mixture": MIXTURE},
    "bottleneck": {"at": "mod_bottleneck"},
    "bottleneck, one a modality": {"at": "mod_bottleneck", "sharing": "per-modality"},
}
PAIRS = [
    (name, stem)
    for name in sorted(NETWORKS)
    for stem in STEMS
    if not (stem.startswith("bottleneck") and name in FIXED)
    and not (stem == "input, wide" and name not in WIDE)
]


def small(name: str, stem: str, **options):
    torch.manual_seed(0)
    return build_network(name, {**SMALL[name], "stem": STEMS[stem], **options}).eval()


def case(network, seed=1):
    size = max(2 * network.stride, 16)
    return torch.randn(1, 4, *(size,) * 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "stem"), PAIRS, ids=lambda p: str(p))
def test_what_absent_channels_hold_changes_no_bit(name, stem):
    """The anchor has no part in a deployed network, so that this holds for every anchor
    (test_objective_sls.py).
    """
    network = small(name, stem)
    with torch.no_grad():
        for (
            parameter
        ) in network.maps.parameters():  # a trained T*, not the identity that it starts from
            parameter.add_(0.1 * torch.randn_like(parameter))
    image = case(network).expand(15, -1, -1, -1, -1)
    present = torch.cat([mask(subset) for subset in SUBSETS])
    absent = ~present[:, :, None, None, None]
    with torch.inference_mode():
        expected = network(
            torch.where(absent, torch.randn_like(image) * 1e3, image), present
        ).logits
        leaked = network(
            torch.where(absent, torch.full_like(image, float("nan")), image), present
        ).logits
        same = (leaked == expected).flatten(1).all(1)
        assert same.all(), (
            "what is absent is seen with "
            f"{[s for s, ok in zip(SUBSETS, same, strict=True) if not ok]}"
        )
        assert torch.isfinite(expected).all()
        image, present = image[:1], mask((1, 2))
        features = [
            network.encode(image[:, m : m + 1], m) if m in (1, 2) else None for m in range(4)
        ]
        assert torch.equal(network.decode(features, present).logits, network(image, present).logits)


def test_pairs_cover_every_network_and_every_stem():
    assert {name for name, _ in PAIRS} == set(NETWORKS)
    assert {stem for _, stem in PAIRS} == set(STEMS)


@pytest.mark.parametrize("name", [n for n in sorted(NETWORKS) if n not in FIXED])
def test_the_residual_map_starts_as_the_identity(name):
    torch.manual_seed(0)
    network = build_network(name, {**SMALL[name], "stem": {"at": "mod_bottleneck"}}).eval()
    image = case(network)
    with torch.inference_mode():
        expected = network.base(image, mask((0, 2))).logits
        assert torch.equal(network(image, mask((0, 2))).logits, expected)


def test_shared_and_separate_maps_have_equal_weights():
    def weights(sharing):
        network = build_network("SubsetUNet", {**SMALL["SubsetUNet"], "stem": {"sharing": sharing}})
        return sum(m.layers[0].weight.numel() for m in network.maps)

    assert weights("shared") == weights("per-modality") == 4 * 8 * 8 * 27


@pytest.mark.parametrize("name", ["UNet", "RFNet"])
def test_a_shared_map_maps_every_modality_alike(name):
    network = small(name, "input")
    image = case(network)[:, :1]
    latents = [network.latent(network.encode(image, m), "stem") for m in range(4)]
    assert all(torch.equal(z, latents[0]) for z in latents)
    separate = small(name, "input, one a modality")
    assert not torch.equal(separate.map(image, 0), separate.map(image, 1))


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("tap", ["stem", "mod_bottleneck"])
def test_a_modalitys_own_latent_is_its_tap(name, tap):
    network = build_network(name, SMALL[name]).eval()
    image = case(network)
    if tap not in network.provides:
        with pytest.raises(UsageError):
            network.latent([], tap)
        return
    with torch.inference_mode():
        taps = network(image, mask((0, 1, 2, 3)), want=[tap]).taps[tap]
        for m in range(4):
            assert torch.equal(network.latent(network.encode(image[:, m : m + 1], m), tap), taps[m])


@pytest.mark.parametrize("stem", STEMS)
def test_a_stem_survives_the_way_through_a_bundle(stem, tmp_path):
    name = "SubsetUNet" if stem != "input, wide" else "UNet"
    network = small(name, stem)
    with torch.no_grad():
        for parameter in network.maps.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_bundle(
        tmp_path / "b",
        name="x",
        version="1",
        task=BRATS,
        network=network,
        network_spec=NetworkSpec(*network.built_from),
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


def test_a_network_for_one_set_keeps_its_needs_behind_a_stem():
    for stem in ("input", "input, wide", "input, mean", "input, mixture"):
        network = small("UNet", stem, inputs=[1, 3])
        assert network.needs == {1, 3}
        image = case(network)
        with torch.inference_mode():
            out = network(image, mask((1, 3)))
            assert out.logits.shape[1] == 4


@pytest.mark.parametrize("stem", STEMS)
def test_two_dimensions_and_three_modalities_go_the_same_way(stem):
    options = STEMS[stem]
    if "mixture" in options:
        options = {**options, "mixture": {"names": ["bssfp", "lge", "t2"]}}
    name = "UNet" if stem == "input, wide" else "SubsetUNet"
    network = build_network(
        name, {**SMALL[name], "modalities": 3, "spatial_dims": 2, "stem": options}
    ).eval()
    image, present = (
        torch.randn(2, 3, 32, 48),
        torch.tensor([[True, False, True], [False, True, False]]),
    )
    leaked = torch.where(present[:, :, None, None], image, torch.full_like(image, float("nan")))
    with torch.inference_mode():
        assert torch.equal(network(leaked, present).logits, network(image, present).logits)


@pytest.mark.parametrize(
    "stem",
    [{"at": "output"}, {"sharing": "mixing"}, {"channels": 3}, {"at": "input", "combine": "sum"}],
)
def test_unknown_stems_are_refused(stem):
    with pytest.raises(BundleError):
        build_network("SubsetUNet", {**SMALL["SubsetUNet"], "stem": stem})


def test_a_stem_needs_its_place():
    with pytest.raises(BundleError, match="input"):
        build_network("UNet", {**SMALL["UNet"], "stem": {"at": "mod_bottleneck"}})


def test_the_map_is_a_sum_so_that_its_gradient_starts_finite():
    torch.manual_seed(0)
    t = ResidualMap(3, 4, 16)
    x = torch.randn(1, 4, 4, 4, 4)
    (t(x) - 1).square().mean().backward()
    assert 0 < t.layers[-1].weight.grad.abs().max() < 10
