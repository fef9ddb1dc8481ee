"""Benches of inference: what they measure is what they say; seconds are only asked to be there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from Testing.medmap.small_networks import SMALL

from medmap.bench import inference as bench
from medmap.bench import windows
from medmap.bench.inference import bench_infer, published_way
from medmap.bench.measure import Cost, isolated, timed
from medmap.bench.peer import load_peer
from medmap.bench.windows import WindowSetup, _monai, _monai_skipping, _ours
from medmap.errors import UsageError
from medmap.io.nifti import write_volume
from medmap.networks import build_network
from medmap.task import BRATS


@pytest.fixture
def files(tmp_path, volumes):
    for name, volume in volumes.items():
        write_volume(tmp_path / f"{name}.nii.gz", volume.array.astype(np.int16), volume.affine)
    return {name: tmp_path / f"{name}.nii.gz" for name in volumes}


def test_ratios_are_of_processor_time_on_a_cpu_and_of_wall_clock_on_a_gpu():
    assert Cost("a", 9.0, 4.0).ratio(Cost("b", 1.0, 2.0)) == 2.0
    assert Cost("a", 9.0, 4.0, device="cuda").ratio(Cost("b", 3.0, 2.0, device="cuda")) == 3.0
    assert Cost("a", failure="no").ratio(Cost("b", 1.0, 1.0)) is None


def test_a_failure_in_another_process_becomes_a_row():
    cost = isolated("gone", load_peer, "no_such_module:f")
    assert cost.seconds is None
    assert "no_such_module" in cost.failure


def test_a_patient_is_segmented_from_files_in_a_process_of_its_own(files, tiny_bundle_path):
    seen = []
    (row,) = bench_infer(
        files, tiny_bundle_path, present=[1], schemes=["ours"], repeats=1, progress=seen.append
    )
    assert seen == ["ours, 1 modality"]
    assert row.failure == ""
    assert row.cpu_seconds > 0
    assert row.note.startswith("window ")
    assert row.peak_mib is None or 50 < row.peak_mib < 4000


def test_windows_are_those_of_the_published_way(files, tiny_bundle_path):
    cost = bench._from_files("w", "windows", files, tiny_bundle_path, "cpu", 1)
    assert max(int(n) for n in cost.note.removeprefix("window ").split(" x ")) <= bench.WINDOW


def test_the_published_way_runs_every_encoder_in_every_window(volumes, monkeypatch):
    network = build_network("SubsetUNet", {"widths": [4, 4]}).eval()
    calls, encode = [], network.encode
    monkeypatch.setattr(
        network,
        "encode",
        lambda image, m: calls.append((m, tuple(image.shape[2:]))) or encode(image, m),
    )
    labels = published_way({"t1": volumes["t1"]}, BRATS, network=network)
    assert labels.shape == volumes["t1"].array.shape
    assert set(np.unique(labels)) <= {0, 1, 2, 4}
    assert calls == [(m, (128, 128, 128)) for m in range(4)]


def test_our_windows_give_what_monais_give(tmp_path):
    setup = WindowSetup(options=SMALL["SubsetUNet"], size=48, window=32)
    network = setup.build()
    image = setup.cube()
    ours = _ours(network, image, setup)
    for theirs in (_monai_skipping(network, image, setup), _monai(network, image, setup)):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_a_peers_windows_get_zeros_for_absent_modalities(tmp_path):
    peer = tmp_path / "peer_windows.py"
    peer.write_text(
        "def slide(image):\n"
        "    assert image.shape == (1, 4, 16, 16, 16) and image[:, 2:].sum() == 0\n"
    )
    cost = windows._peer(f"{peer}:slide", WindowSetup(size=16), 1)
    assert (cost.note, cost.repeats) == ("a peer's way", 1)


def test_every_subset_is_counted(files, tiny_bundle_path):
    assert bench._all("all", files, tiny_bundle_path, "cpu", 1).note == "15 label maps"
    assert bench._one("one", files, tiny_bundle_path, "cpu", 1).seconds > 0


def test_a_peer_is_run_on_the_same_volume(files, tmp_path, monkeypatch, tiny_bundle_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "peer_of_mine.py").write_text(
        "def segment(scans, affine):\n    return (sum(scans.values()) > 700) * 2\n"
        "def wrong(scans, affine):\n    return scans['t1'][:-1]\n"
    )
    cost = bench._peer("peer", "peer_of_mine:segment", files, "cpu", 1)
    assert cost.seconds > 0
    every = bench._peer_all(
        "peer", f"{tmp_path}/peer_of_mine.py:segment", files, tiny_bundle_path, "cpu", 1
    )
    assert every.note == "a peer's model, 15 label maps"
    with pytest.raises(ValueError, match="the peer returned"):
        bench._peer("peer", "peer_of_mine:wrong", files, "cpu", 1)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_peer("peer_of_mine:missing")


def test_wrong_calls_are_refused(files, tiny_bundle_path):
    with pytest.raises(UsageError, match="magic"):
        bench_infer(files, tiny_bundle_path, schemes=["magic"])
    with pytest.raises(UsageError, match="4 modalities, not 5"):
        bench_infer(files, tiny_bundle_path, present=[5], schemes=["ours"])


def test_timing_takes_the_median_and_keeps_the_note():
    answers = iter(["warm-up", "first", "last"])
    cost = timed("t", lambda: next(answers), "cpu", 2)
    assert (cost.note, cost.repeats) == ("last", 2)
