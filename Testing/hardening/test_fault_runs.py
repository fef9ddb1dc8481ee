"""Faults of bundles, devices, memory, disks and signals, rows 40 to 59 of the fault table."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medmap.bundle.format import SUMS
from medmap.networks.subset_unet import SubsetUNet


def resummed(folder) -> None:
    """Make the hashes true again, so that the test meets what lies behind them."""
    import hashlib

    names = sorted(p.name for p in folder.iterdir() if p.name != SUMS)
    lines = (
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    )
    (folder / SUMS).write_text("".join(lines))


def described(change):
    def damage(folder):
        path = folder / "metadata.json"
        data = json.loads(path.read_text())
        change(data["medmap"])
        path.write_text(json.dumps(data))
        resummed(folder)

    return damage


def weights(change):
    def damage(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        resummed(folder)

    return damage


def flipped(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def pickled(folder):
    torch.save({"a": torch.ones(3)}, folder / "model.safetensors")
    resummed(folder)


def first(tensors):
    return sorted(name for name, value in tensors.items() if value.is_floating_point())[0]


BUNDLES = {
    "43 file missing": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "43 file added": (lambda f: (f / "extra.txt").write_text("x"), "extra.txt"),
    "43 bad JSON": (
        lambda f: ((f / "metadata.json").write_text("{"), resummed(f)),
        "metadata.json",
    ),
    "43 newer format": (described(lambda own: own.update(format=9)), "format 9, this MedMAP reads"),
    "44 one bit": (flipped, "SHA-256"),
    "45 pickle": (pickled, "safetensors|weights"),
    "46 NaN": (weights(lambda t: t[first(t)].view(-1)[:1].fill_(np.nan)), "finite"),
    "46 shape": (weights(lambda t: t.update({first(t): t[first(t)].flatten()[:1].clone()})), "fit"),
    "46 key missing": (weights(lambda t: t.pop(first(t))), "fit|lack"),
    "46 key added": (weights(lambda t: t.update(surplus=torch.ones(2))), "fit|surplus"),
    "46 network unknown": (
        described(lambda own: own["network"].update(name="os.system")),
        "unknown",
    ),
}


@pytest.mark.parametrize("row", BUNDLES)
def test_bundles_that_are_not_what_they_say(row, scans, cli, tmp_path, tiny_bundle_path):
    damage, words = BUNDLES[row]
    bundle = shutil.copytree(tiny_bundle_path, tmp_path / "bundle")
    damage(bundle)
    ran = cli("segment", "--t1", scans.path("t1"), "-o", tmp_path / "out", "--bundle", bundle)
    assert ran.code == 78, ran.err
    assert re.search(words, ran.error), ran.error
    assert not (tmp_path / "out").exists()
    assert cli("verify", bundle).code == 78


def test_45_no_archive_is_ever_unpacked(cli, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.writestr("../escaped.txt", "x")
    ran = cli("verify", tmp_path / "bundle.zip")
    assert ran.code in (66, 78)
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_40_scans_that_a_bundle_is_not_made_for(
    scans, cli, tmp_path, tiny_bundle, tiny_bundle_path
):
    from medmap.bundle.format import NetworkSpec
    from medmap.bundle.loading import save_bundle
    from medmap.networks import build_network

    options = {"modalities": 4, "classes": 4, "inputs": [0, 1], "widths": [4, 8]}
    save_bundle(
        tmp_path / "fixed",
        name="fixed",
        version="1",
        task=tiny_bundle.task,
        network=build_network("UNet", options),
        network_spec=NetworkSpec("UNet", options),
        preprocess=tiny_bundle.preprocess,
        inference=tiny_bundle.inference,
        card={},
    )
    ran = cli(
        "segment", "--t2", scans.path("t2"), "-o", tmp_path / "out", "--bundle", tmp_path / "fixed"
    )
    assert ran.code == 78, ran.err
    assert "T1" in ran.error
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_48_a_device_that_is_not_there_is_never_replaced_in_silence(
    scans, cli, tmp_path, tiny_bundle_path
):
    given = ["--t1", scans.path("t1"), "--bundle", tiny_bundle_path, "--device", "cuda"]
    ran = cli("segment", *given, "-o", tmp_path / "out")
    assert ran.code == 69
    assert "cuda" in ran.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("failing", [1, 2])
def test_49_out_of_memory_at_the_nth_step_ends_in_a_result_that_says_so(
    failing, scans, cli, tmp_path, tiny_bundle_path, monkeypatch
):
    from medmap.networks.subset_unet import SubsetUNet

    encode, calls = SubsetUNet.encode, []

    def short_of_memory(self, image, modality):
        calls.append(modality)
        if len(calls) == failing:
            raise torch.OutOfMemoryError("injected")
        return encode(self, image, modality)

    monkeypatch.setattr(SubsetUNet, "encode", short_of_memory)
    given = [
        "--t1",
        scans.path("t1"),
        "--t2",
        scans.path("t2"),
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
    ]
    ran = cli("segment", *given, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "Memory sufficed only for windows" in " ".join(ran.err.split())
    assert "Memory sufficed" in (tmp_path / "out/report.json").read_text()


def test_50_too_little_memory_on_this_computer(scans, cli, tmp_path, tiny_bundle_path, monkeypatch):
    bundle = shutil.copytree(tiny_bundle_path, tmp_path / "bundle")
    described(lambda own: own["inference"].update(bytes_per_voxel=10**9))(bundle)
    given = ["--t1", scans.path("t1"), "--bundle", bundle, "--device", "cpu"]
    ran = cli("segment", *given, "-o", tmp_path / "out")
    assert ran.code == 69, ran.err
    assert "Out of memory" in ran.error
    assert not (tmp_path / "out").exists()


def test_51_an_answer_that_is_not_finite(scans, cli, tmp_path, tiny_bundle_path, monkeypatch):
    sound = SubsetUNet.decode

    def overflows(*arguments, **options):
        output = sound(*arguments, **options)
        output.logits[0, 1, 3, 3, 3] = float("nan")
        return output

    monkeypatch.setattr(SubsetUNet, "decode", overflows)
    given = ["--t1", scans.path("t1"), "--bundle", tiny_bundle_path, "--device", "cpu"]
    ran = cli("segment", *given, "-o", tmp_path / "out")
    assert ran.code == 70, ran.err
    assert "not finite" in ran.error
    assert not (tmp_path / "out").exists()


def test_52_no_tumor_is_a_result(scans, cli, tmp_path, tiny_bundle_path):
    bundle = shutil.copytree(tiny_bundle_path, tmp_path / "bundle")
    weights(lambda t: [v.zero_() for n, v in t.items() if n.startswith("head")])(bundle)
    given = ["--t1", scans.path("t1"), "--bundle", bundle, "--device", "cpu"]
    ran = cli("segment", *given, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "No tumor was found" in ran.err


@pytest.mark.parametrize("call", range(1, 7))
def test_55_a_write_that_fails_at_the_nth_call_loses_nothing(
    call, scans, cli, tmp_path, tiny_bundle_path, monkeypatch
):
    output = tmp_path / "out"
    given = [
        "--t1",
        scans.path("t1"),
        "-o",
        output,
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
    ]
    output.mkdir()
    for name in ("segmentation.nii.gz", "overlay.png", "report.json"):
        (output / name).write_text("old")
    count = [0]

    def failing(function):
        def wrapped(*arguments, **options):
            count[0] += 1
            if count[0] == call:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return wrapped

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    ran = cli("segment", *given, "--overwrite")
    if count[0] < call:
        assert ran.code == 0
        return
    assert ran.code == 74, ran.err
    assert "No space left" in ran.error
    assert {p.name: p.read_text() for p in output.iterdir()} == dict.fromkeys(
        ("segmentation.nii.gz", "overlay.png", "report.json"), "old"
    )


def python(code: str, *arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


def test_55_a_disk_that_is_full(scans, tmp_path, tiny_bundle_path):
    """A real limit of the system: no file may grow beyond 200 bytes."""
    command = [
        sys.executable,
        "-m",
        "medmap.cli",
        "segment",
        "--t1",
        scans.path("t1"),
        "-o",
        tmp_path / "out",
    ]
    command += ["--bundle", tiny_bundle_path, "--device", "cpu"]

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    # Python would leave cut files of its own beside the sources it compiles.
    clean = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, preexec_fn=limited, env=clean
    )
    assert ran.returncode == 74, ran.stderr
    assert "broke off" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_56_57_58_outputs(scans, cli, tmp_path, tiny_bundle_path):
    given = [
        "segment",
        "--t1",
        scans.path("t1"),
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
        "-o",
    ]
    assert cli(*given, tmp_path / "no/such").code == 73
    (tmp_path / "file").write_text("kept")
    assert cli(*given, tmp_path / "file").code == 73
    assert (tmp_path / "file").read_text() == "kept"
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    scan = shutil.copy(scans.path("t1"), inputs / "segmentation.nii.gz")
    before = scans.hashes(), (inputs / "segmentation.nii.gz").read_bytes()
    (tmp_path / "link").symlink_to(inputs)
    for place in (inputs, tmp_path / "link", inputs / ".." / "inputs"):
        ran = cli("segment", "--t1", scan, "--bundle", tiny_bundle_path, "-o", place, "--overwrite")
        assert ran.code == 73, ran.err
        assert "same file as an input" in ran.error
    assert (scans.hashes(), (inputs / "segmentation.nii.gz").read_bytes()) == before
    assert cli(*given, tmp_path / ("x" * 300)).code == 73


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name
)
def test_53_59_a_signal_leaves_all_or_nothing(number, scans, tmp_path, tiny_bundle_path):
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "medmap.cli",
        "segment",
        "--t1",
        scans.path("t1"),
        "-o",
        output,
    ]
    command += ["--bundle", tiny_bundle_path, "--device", "cpu"]
    process = subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "window" in line:
            process.send_signal(number)
            break
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    if process.returncode == 0:  # it came after the last question; then everything is there
        assert len(list(output.iterdir())) == 3
    elif number == signal.SIGKILL:
        assert not [p for p in output.iterdir() if not p.name.startswith(".tmp-")]
    else:
        assert process.returncode == 130
        assert not output.exists()


def test_results_name_no_folder_and_no_patient(scans, cli, tmp_path, tiny_bundle_path):
    given = ["--t1", scans.path("t1"), "--bundle", tiny_bundle_path, "--device", "cpu"]
    assert cli("segment", *given, "-o", tmp_path / "out").code == 0
    report = (tmp_path / "out/report.json").read_text()
    assert str(tmp_path) not in report
    assert os.uname().nodename not in report
    assert time.strftime("%Y-%m-%d") in report or "seconds" in report
