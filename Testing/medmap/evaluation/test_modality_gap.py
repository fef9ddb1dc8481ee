"""Measures of the gap between modalities: known answers, and the command on a bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from Testing.medmap.small_networks import SMALL
from typer.testing import CliRunner

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.cli.main import app
from medmap.commands.phantoms import write_phantoms
from medmap.errors import InputDataError, UsageError
from medmap.evaluation.modality_gap import (
    Latents,
    centroid_distance,
    collect_latents,
    default_tap,
    gap_measures,
    mmd,
    paired_distance,
    tsne_map,
    two_sample_accuracy,
)
from medmap.io.cohorts import find_cases
from medmap.networks import build_network
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(300, 4)), RNG.normal(size=(300, 4))
GROUPS = np.arange(300) // 60


def test_equal_distributions_have_no_gap():
    assert centroid_distance(A, B) < 0.15
    assert abs(mmd(A, B)) < 0.01
    assert two_sample_accuracy(A, B, GROUPS) == pytest.approx(0.5, abs=0.08)
    assert paired_distance(A, B) == pytest.approx(2, abs=0.2)
    assert paired_distance(A, A) == 0


def test_shifted_distributions_are_told_apart_by_all():
    far = B + 3
    assert centroid_distance(A, far) == pytest.approx(3, rel=0.1)
    assert mmd(A, far) > 0.5
    assert two_sample_accuracy(A, far, GROUPS) > 0.95
    assert paired_distance(A, A + 3) == pytest.approx(0, abs=1e-9), (
        "it compares places, not places and levels"
    )


def test_a_difference_of_spread_alone_is_seen_by_mmd_only():
    wide = 4 * B
    assert centroid_distance(A, wide) < 0.15
    assert mmd(A, wide) > 0.1


def test_measures_do_not_depend_on_the_scale_of_the_latents():
    for measure in (centroid_distance, mmd, paired_distance):
        assert measure(100 * A, 100 * (B + 1)) == pytest.approx(measure(A, B + 1), rel=1e-6)


def test_mmd_is_its_definition():
    a, b = A[:5], B[:6] + 1
    pooled = np.concatenate([a, b])
    a, b = ((x - pooled.mean(0)) / pooled.std(0) for x in (a, b))
    both = np.concatenate([a, b])
    square = ((both[:, None] - both[None]) ** 2).sum(2)
    width = np.median(square[np.triu_indices(11, 1)])
    k = lambda x, y: np.exp(-((x - y) ** 2).sum() / width)  # noqa: E731
    xx = np.mean([k(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    yy = np.mean([k(b[i], b[j]) for i in range(6) for j in range(6) if i != j])
    xy = np.mean([k(x, y) for x in a for y in b])
    assert mmd(A[:5], B[:6] + 1) == pytest.approx(xx + yy - 2 * xy)


def test_one_case_alone_can_be_measured():
    assert two_sample_accuracy(A, B + 3, np.zeros(300)) > 0.95


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Two untrained networks, one of which gives all scans one latent, and phantoms."""
    root = tmp_path_factory.mktemp("gap")
    write_phantoms(root / "data", 2, 3, 4.0, False, "cpu", False, lambda fraction, text: None)
    torch.manual_seed(0)
    options = {"widths": [4, 8], "stem": {"at": "mod_bottleneck"}}
    for name in ("apart", "alike"):
        network = build_network("SubsetUNet", options)
        if name == "alike":
            for encoder in network.base.encoders[1:]:
                encoder.load_state_dict(network.base.encoders[0].state_dict())
        save_bundle(
            root / name,
            name=name,
            version="1",
            task=BRATS,
            network=network,
            network_spec=NetworkSpec(*network.built_from),
            preprocess=PreprocessSpec(spacing=4.0),
            inference=InferenceSpec(),
            card={},
        )
    return root


def test_latents_of_all_scans_are_of_the_same_places(bundles):
    bundle, cases = load_bundle(bundles / "alike"), find_cases(bundles / "data", BRATS)
    latents = collect_latents(bundle, cases, places=50)
    assert {v.shape for v in latents.values.values()} == {(100, 8)}
    assert latents.case.tolist() == [0] * 50 + [1] * 50
    again = collect_latents(bundle, cases, places=50)
    assert all((again.values[name] == latents.values[name]).all() for name in latents.values)
    whole = collect_latents(bundle, cases, places=10**6)
    assert 0 < whole.tumor.mean() < 0.5
    assert gap_measures(latents)["cases"] == 2
    with pytest.raises(InputDataError):
        collect_latents(bundle, [])


def test_encoders_of_their_own_are_further_apart_than_one_for_all(bundles):
    cases = find_cases(bundles / "data", BRATS)
    apart, alike = (
        gap_measures(collect_latents(load_bundle(bundles / n), cases)) for n in ("apart", "alike")
    )
    for name in ("centroid_distance", "mmd", "paired_distance"):
        assert alike[name]["mean"] < apart[name]["mean"]


def test_the_default_tap_is_where_an_anchor_acts(bundles):
    assert default_tap(load_bundle(bundles / "alike").network) == "mod_bottleneck"
    assert default_tap(build_network("UNet", {"widths": [4, 6], "stem": {"at": "input"}})) == "stem"
    with pytest.raises(UsageError):
        collect_latents(
            load_bundle(bundles / "alike"), find_cases(bundles / "data", BRATS), tap="style"
        )


def test_a_teacher_without_alignment_is_given_each_modality_alone(bundles, tmp_path):
    """The networks of the conference's Fig. 1: a stack has no latent of one modality, but a
    bottleneck for each modality that it is given alone.
    """
    torch.manual_seed(0)
    options = {"modalities": 4, "classes": 4, **SMALL["VNet"], "norm": "instance"}
    network = build_network("VNet", {**options, "inputs": [0, 1, 2, 3]})
    bundle = load_bundle(
        save_bundle(
            tmp_path / "teacher",
            name="teacher",
            version="1",
            task=BRATS,
            network=network,
            network_spec=NetworkSpec(*network.built_from),
            preprocess=PreprocessSpec(spacing=4.0),
            inference=InferenceSpec(),
            card={},
        )
    )
    assert default_tap(bundle.network) == "bottleneck"
    cases = find_cases(bundles / "data", BRATS)[:1]
    latents = collect_latents(bundle, cases, places=20)
    assert set(latents.values) == set(BRATS.modality_names)
    assert latents.values["t1"].shape == latents.values["flair"].shape
    assert not np.allclose(latents.values["t1"], latents.values["flair"])
    decoder = collect_latents(bundle, cases, tap="decoder", places=20)
    assert decoder.values["t1"].shape[1] != latents.values["t1"].shape[1]


def test_the_map_has_every_place_once_a_modality():
    latents = Latents({"t1": A[:40], "t2": B[:40] + 20}, GROUPS[:40], np.arange(40) < 10)
    points, tumor = tsne_map(latents, points=30)
    assert {p.shape for p in points.values()} == {(30, 2)}
    assert tumor.shape == (30,)
    assert two_sample_accuracy(points["t1"], points["t2"], np.zeros(30)) > 0.9


def test_the_command_writes_numbers_and_a_picture(bundles, tmp_path):
    arguments = [
        "analyze",
        str(bundles / "apart"),
        str(bundles / "alike"),
        "--data",
        str(bundles / "data"),
    ]
    shown = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path), "--places", "40"])
    assert shown.exit_code == 0, shown.output
    found = json.loads((tmp_path / "latents.json").read_text())
    assert list(found) == ["apart", "alike"]
    assert set(found["apart"]["mmd"]["pairs"]) == {
        "t1-t1ce",
        "t1-t2",
        "t1-flair",
        "t1ce-t2",
        "t1ce-flair",
        "t2-flair",
    }
    assert (tmp_path / "tsne.png").read_bytes().startswith(b"\x89PNG")
    assert "alike" in shown.output
