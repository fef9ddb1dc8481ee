"""Bundles of several networks: which scans get which, and that nothing else changes."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.errors import BundleError
from medmap.inference import segment, segment_subsets
from medmap.networks import build_network
from medmap.preprocess import PreprocessSpec
from medmap.subset_comparison import what_if
from medmap.task import BRATS

SETS = [("t1ce",), ("flair",), ("t1ce", "flair")]


def made(sets, path, **options):
    networks = []
    for n, names in enumerate(sets):
        torch.manual_seed(n)
        widths = [4, 6, 8] if n % 2 else [4, 6]
        spec = {
            "modalities": 4,
            "classes": 4,
            "inputs": [BRATS.index(name) for name in names],
            "widths": widths,
        }
        network = build_network("UNet", spec)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        networks.append((NetworkSpec("UNet", spec), network))
    (spec, network), *others = networks
    return save_bundle(
        path,
        name="dedicated",
        version="1",
        task=BRATS,
        network=network,
        network_spec=spec,
        further_networks=others,
        preprocess=PreprocessSpec(spacing=4.0),
        inference=InferenceSpec(),
        card={},
        **options,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return made(SETS, tmp_path_factory.mktemp("bundles") / "dedicated")


@pytest.fixture
def bundle(path):
    return load_bundle(path)


def reseal(folder):
    files = sorted(p for p in folder.iterdir() if p.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_every_network_comes_back_under_its_set(bundle):
    assert [entry.name for entry in bundle.entries] == ["t1ce", "flair", "t1ce+flair"]
    assert len({entry.network.head.weight.sum().item() for entry in bundle.entries}) == 3
    assert bundle.stride == 4, "the strides are 2, 4 and 2"


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        (("t1ce",), "t1ce"),
        (("flair", "t2"), "flair"),
        (("flair", "t1ce"), "t1ce+flair"),
        (BRATS.modality_names, "t1ce+flair"),
        (("t1", "t1ce", "t2"), "t1ce"),
    ],
)
def test_the_largest_entry_that_the_scans_satisfy_is_chosen(bundle, given, chosen):
    assert bundle.entry_for(given).name == chosen


def test_among_equals_the_first_of_the_bundle_is_chosen(tmp_path):
    for sets, chosen in ([("t1",), ("t2",)], "t1"), ([("t2",), ("t1",)], "t2"):
        loaded = load_bundle(made(sets, tmp_path / chosen))
        assert loaded.entry_for(("t1", "t2", "flair")).name == chosen


def test_a_network_for_any_set_is_one_entry_that_takes_what_is_there(tiny_bundle):
    (entry,) = tiny_bundle.entries
    assert entry.name == "any"
    assert tiny_bundle.entry_for(("flair", "t1")).modalities == ("t1", "flair")
    assert tiny_bundle.find_entry(()) is None


def test_scans_that_no_entry_is_made_for_are_refused_with_what_would_do(bundle, volumes):
    assert bundle.find_entry(("t1", "t2")) is None
    with pytest.raises(BundleError, match=r"no network for T2: .* T1ce; FLAIR; T1ce, FLAIR"):
        segment({"t2": volumes["t2"]}, bundle)


def test_segment_says_which_network_it_used_and_what_it_left_aside(bundle, volumes):
    result = segment(volumes, bundle)
    (said,) = [finding for finding in result.findings if finding.check == "entry"]
    assert said.level == "warning"
    assert "T1ce, FLAIR was used" in said.message
    assert "T1, T2 was not" in said.message
    assert result.provenance.entry == "t1ce+flair"
    assert list(result.provenance.used) == ["t1ce", "flair"]
    assert list(result.provenance.unused) == ["t1", "t2"]
    exact = segment({name: volumes[name] for name in ("t1ce", "flair")}, bundle)
    assert not [finding for finding in exact.findings if finding.check == "entry"]
    assert np.array_equal(exact.labels, result.labels)


def test_a_scan_that_is_not_used_warns_as_if_it_were_missing(bundle, volumes):
    result = segment({"flair": volumes["flair"], "t2": volumes["t2"]}, bundle)
    assert any("T1ce" in f.message for f in result.findings if f.check == "missing-modality")


def test_every_subset_gets_what_its_own_network_says(bundle, volumes):
    subsets = [s for s in BRATS.subsets() if bundle.find_entry(s)]
    assert len(subsets) == 12
    labels = segment_subsets(volumes, bundle, subsets)
    for subset in subsets:
        entry = bundle.entry_for(subset)
        assert np.array_equal(labels[BRATS.subset_key(subset)], labels[entry.name])
    assert len({labels[entry.name].tobytes() for entry in bundle.entries}) == 3


def test_other_scans_never_change_what_a_dedicated_network_sees(bundle, volumes, monkeypatch):
    seen = []
    network = bundle.entry_for(("t1ce",)).network
    monkeypatch.setattr(
        network,
        "segment",
        lambda x, want=(), f=network.segment: seen.append(x.clone()) or f(x, want),
    )
    segment_subsets(volumes, bundle, [("t1ce",), ("t1", "t1ce"), ("t1", "t1ce", "t2")])
    assert len(seen) == 1, "the three sets are one computation"
    assert seen[0].shape[1] == 1


def test_what_if_asks_the_entries(bundle, volumes):
    result = what_if(volumes, bundle)
    assert len(result.variants) == 12


def test_the_command_line_says_which_networks_there_are_and_which_was_used(path, volumes, tmp_path):
    from medmap.cli.main import app
    from medmap.io.nifti import write_volume

    shown = CliRunner().invoke(app, ["info", str(path)]).output
    assert shown.count("Network: UNet") == 3
    assert "for T1ce, FLAIR" in shown
    assert "3 networks" in CliRunner().invoke(app, ["verify", str(path)]).output
    options = []
    for name in ("t1", "t1ce"):
        write_volume(
            tmp_path / f"{name}.nii.gz", volumes[name].array.astype(np.int16), volumes[name].affine
        )
        options += [f"--{name}", str(tmp_path / f"{name}.nii.gz")]
    run = CliRunner().invoke(
        app, ["segment", *options, "--bundle", str(path), "-o", str(tmp_path / "result")]
    )
    assert run.exit_code == 0, run.output
    assert "the one for T1ce was used, and T1 was not" in run.output
    assert "not used: t1" in run.output
    report = json.loads((tmp_path / "result/report.json").read_text())
    assert report["bundle"]["entry"] == "t1ce"
    assert list(report["modalities"]["not_used"]) == ["t1"]


def test_two_networks_for_one_set_are_refused(tmp_path):
    with pytest.raises(BundleError, match="Two networks"):
        made([("t1",), ("t1",)], tmp_path / "b")


def test_weights_that_are_missing_or_left_over_are_refused(path, tmp_path):
    for change in (
        lambda w: w.pop("flair/head.bias"),
        lambda w: w.update({"t2/head.bias": torch.zeros(4)}),
    ):
        copy = shutil.copytree(path, tmp_path / "copy", dirs_exist_ok=True)
        weights = load_file(copy / "model.safetensors")
        change(weights)
        save_file(weights, copy / "model.safetensors")
        reseal(copy)
        with pytest.raises(BundleError, match="do not fit"):
            load_bundle(copy)


def test_a_bundle_of_one_network_is_written_as_ever(tmp_path):
    own = json.loads((made(SETS[:1], tmp_path / "one") / "metadata.json").read_text())["medmap"]
    assert own["format"] == 1
    assert "networks" not in own
    own = json.loads((made(SETS, tmp_path / "three") / "metadata.json").read_text())["medmap"]
    assert own["format"] == 2
    assert [stated["options"]["inputs"] for stated in own["networks"]] == [[1], [3], [1, 3]]
