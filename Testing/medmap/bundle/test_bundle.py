"""A bundle loads byte for byte as it was saved, or not at all."""

from __future__ import annotations

import json
import random
import shutil
from itertools import combinations

import pytest
import torch

from medmap.bundle.card import card_text
from medmap.bundle.format import default_bundle_path, verify_bundle
from medmap.bundle.loading import load_bundle, update_card
from medmap.errors import BundleError, MissingInputError, OutputError


@pytest.fixture
def copy(tiny_bundle_path, tmp_path):
    return shutil.copytree(tiny_bundle_path, tmp_path / "copy")


def reseal(folder) -> None:
    """Make the hashes right again after a change, to reach the checks behind them."""
    import hashlib

    names = [p.name for p in sorted(folder.iterdir()) if p.name != "SHA256SUMS"]
    sums = "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text(sums)


def test_what_was_saved_is_what_is_loaded(tiny_bundle, tiny_bundle_path):
    assert tiny_bundle.id == "tiny-1.0.0"
    assert tiny_bundle.task.modality_names == ("t1", "t1ce", "t2", "flair")
    assert not tiny_bundle.network.training
    assert load_bundle(tiny_bundle_path).sha256 == tiny_bundle.sha256
    assert set(verify_bundle(tiny_bundle_path)) == {
        "metadata.json",
        "model.safetensors",
        "README.md",
        "SHA256SUMS",
    }


def test_any_flipped_byte_is_refused(copy):
    rng = random.Random(0)
    for _ in range(200):
        path = rng.choice(sorted(copy.iterdir()))
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        original = bytes(data)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(BundleError):
            load_bundle(copy)
        path.write_bytes(original)
    load_bundle(copy)


@pytest.mark.parametrize("name", ["metadata.json", "model.safetensors", "README.md", "SHA256SUMS"])
def test_a_missing_file_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_an_added_file_is_refused(copy):
    (copy / "extra.py").write_text("print('hello')")
    with pytest.raises(BundleError, match=r"extra\.py"):
        load_bundle(copy)


def test_another_format_is_refused_with_both_numbers(copy):
    metadata = json.loads((copy / "metadata.json").read_text())
    metadata["medmap"]["format"] = 99
    (copy / "metadata.json").write_text(json.dumps(metadata))
    reseal(copy)
    with pytest.raises(BundleError, match=r"format 99.*reads 1 and 2"):
        load_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own.pop("task"),
        lambda own: own.update(network={"name": "NoSuchNet", "options": {}}),
        lambda own: own["network"]["options"].update(widths=[4, 4]),
        lambda own: own["preprocess"].update(unheard_of=1),
        lambda own: own["inference"].update(window="big"),
    ],
    ids=["no task", "unknown network", "other widths", "unknown step", "no window"],
)
def test_a_description_that_does_not_fit_is_refused(copy, change):
    metadata = json.loads((copy / "metadata.json").read_text())
    change(metadata["medmap"])
    (copy / "metadata.json").write_text(json.dumps(metadata))
    reseal(copy)
    with pytest.raises(BundleError):
        load_bundle(copy)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 5000])
def test_metadata_that_is_no_description_is_refused(copy, text):
    (copy / "metadata.json").write_text(text)
    reseal(copy)
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_weights_that_are_not_finite_are_refused(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["head.bias"][0] = float("nan")
    save_file(weights, copy / "model.safetensors")
    reseal(copy)
    with pytest.raises(BundleError, match="finite"):
        load_bundle(copy)


def test_a_pickle_is_not_weights(copy):
    torch.save({"a": torch.zeros(1)}, copy / "model.safetensors")
    reseal(copy)
    with pytest.raises(BundleError):
        load_bundle(copy)


def test_a_folder_that_is_not_there_or_not_a_bundle_is_refused(tmp_path):
    with pytest.raises(MissingInputError):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError):
        load_bundle(tmp_path)


def test_updating_the_card_keeps_the_weights_byte_for_byte(copy):
    before = (copy / "model.safetensors").read_bytes()
    table = {
        "data": "two cases",
        "cases": 2,
        "subsets": {"t1": {r: {"mean": 0.5, "sd": 0.1} for r in ("WT", "TC", "ET")}},
    }
    update_card(copy, {"dice": table})
    bundle = load_bundle(copy)
    assert bundle.card["dice"] == table
    assert (copy / "model.safetensors").read_bytes() == before
    assert "0.500 ± 0.100" in (copy / "README.md").read_text()
    assert "two cases" in card_text(json.loads((copy / "metadata.json").read_text()))


def test_real_cases_come_before_synthetic_ones_on_the_card(copy):
    scores = {region: {"mean": 0.5, "sd": 0.1} for region in ("WT", "TC", "ET")}
    real = {"data": "6 patients", "cases": 6, "subsets": {"t1": scores}}
    synthetic = {"data": "24 synthetic cases", "cases": 24, "subsets": {"t1": scores}}
    update_card(
        copy, {"dice_synthetic": synthetic, "dice": real, "population": "Adults before surgery."}
    )
    text = (copy / "README.md").read_text()
    assert text.index("6 patients") < text.index("24 synthetic cases")
    assert "**Population.** Adults before surgery." in text


def test_saving_over_a_bundle_needs_to_be_asked_for(tiny_bundle, tiny_bundle_path):
    from medmap.bundle.loading import save_bundle

    with pytest.raises(OutputError):
        save_bundle(
            tiny_bundle_path,
            name="x",
            version="1",
            task=tiny_bundle.task,
            network=tiny_bundle.network,
            network_spec=tiny_bundle.network_spec,
            preprocess=tiny_bundle.preprocess,
            inference=tiny_bundle.inference,
            card={},
        )


def test_the_shipped_bundle_is_intact_small_and_carries_its_table():
    folder = default_bundle_path()
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 16 << 20
    bundle = load_bundle(folder)
    table = bundle.card["dice"]
    assert set(table["subsets"]) == {bundle.task.subset_key(s) for s in bundle.task.subsets()}
    assert sum(p.numel() for p in bundle.network.parameters()) <= 8e6


def test_the_default_model_handles_missing_modalities():
    subsets = load_bundle(default_bundle_path()).card["dice"]["subsets"]
    without_t1ce = [scores["ET"]["mean"] for key, scores in subsets.items() if "t1ce" not in key]
    # ET is invisible without T1ce: more than a guess would be a leak.
    assert max(without_t1ce) < 0.4
    with_t1ce = [scores["ET"]["mean"] for key, scores in subsets.items() if "t1ce" in key]
    assert min(with_t1ce) > max(without_t1ce) + 0.2
    assert subsets["t2+flair"]["WT"]["mean"] > 0.75


def test_the_environment_can_name_another_default(tiny_bundle_path, monkeypatch):
    monkeypatch.setenv("MEDMAP_BUNDLE", str(tiny_bundle_path))
    assert default_bundle_path() == tiny_bundle_path


SUBSETS = [subset for n in range(1, 5) for subset in combinations(range(4), n)]


@pytest.fixture(scope="module")
def shipped():
    return load_bundle(default_bundle_path())


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_the_shipped_network_never_reads_what_is_absent(shipped, subset):
    network = shipped.network
    image = torch.randn(1, 4, 48, 32, 32, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[m in subset for m in range(4)]])
    absent = ~present[0]
    with torch.inference_mode():
        features = [
            network.encode(image[:, m : m + 1], m) if m in subset else None for m in range(4)
        ]
        expected = network.decode(features, present).logits
        for content in (0.0, float("nan"), 1e6):
            filled = image.clone()
            filled[:, absent] = content
            assert torch.equal(network(filled, present).logits, expected)
