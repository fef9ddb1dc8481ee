"""A disk that is really full, and memory that really runs out: words and an exit code, nothing
half, nothing lost.

Writes that fail at each single call, and devices without memory, are simulated in
``test_fault_runs.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medmap.commands import cohort as cohorts
from medmap.training.checkpoint import load_checkpoint


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB in memory, and ``fill(keep)`` that leaves so many bytes of it free."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("a small file system is made with Linux' mount")
    made = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if made.returncode:
        pytest.skip(f"mounting a small file system needs root: {made.stderr.strip()}")

    def fill(keep: int) -> Path:
        path = place / "filler"
        path.unlink(missing_ok=True)
        state = os.statvfs(place)
        path.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - keep)))
        return path

    try:
        yield place, fill
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=60)


@pytest.fixture
def patients(make_patients):
    return make_patients(3)


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_segment_leaves_nothing_on_a_full_disk(small_disk, patients, cli, tiny_bundle_path):
    disk, fill = small_disk
    scan = patients / "data/Case_0/Case_0_t1.nii.gz"
    given = [
        "segment",
        "--t1",
        scan,
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
        "-o",
        disk / "out",
    ]
    filler = fill(8 << 10)  # room for the label map, not for the picture
    ran = cli(*given)
    assert ran.code == 74, ran.err
    assert "No space left" in ran.error
    assert entries(disk) == ["filler"]
    filler.unlink()
    assert cli(*given).code == 0


def test_training_keeps_its_checkpoint_on_a_full_disk(small_disk, patients, cli):
    disk, fill = small_disk
    given = [
        "train",
        patients / "recipe.json",
        "--data",
        patients / "data",
        "--device",
        "cpu",
        "--save-every",
        "1",
    ]
    given += ["--run", disk / "run", "--bundle", disk / "bundle"]
    assert cli(*given, "--minutes", "0").code == 0
    step = load_checkpoint(disk / "run")["step"]
    filler = fill(4 << 10)
    ran = cli(*given)
    assert ran.code == 74, ran.err
    assert "No space left" in ran.error
    assert load_checkpoint(disk / "run")["step"] >= step
    assert not (disk / "bundle").exists()
    assert not [name for name in entries(disk) if ".tmp-" in name]
    filler.unlink()
    assert cli(*given).code == 0
    assert (disk / "bundle").is_dir()


def test_an_evaluation_and_a_cohort_go_on_when_there_is_room(
    small_disk, patients, cli, tiny_bundle_path, monkeypatch
):
    monkeypatch.setattr(
        cohorts, "_by_processes", lambda jobs, options: map(cohorts.segment_job, jobs)
    )
    disk, fill = small_disk
    common = [patients / "data", "--bundle", tiny_bundle_path, "--device", "cpu", "-o"]
    for command in (
        ["evaluate", "--data", *common, disk / "scores"],
        ["segment-cohort", *common, disk / "labels"],
    ):
        filler = fill(8 << 10)
        ran = cli(*command)
        assert ran.code in (1, 74), ran.err  # 1: a cohort says which of its cases failed
        assert "No space left" in ran.err
        assert not [name for name in entries(disk) if ".tmp-" in name]
        filler.unlink()
        ran = cli(*command)
        assert ran.code == 0, ran.err


STARVED = """
import resource, sys
import nibabel, torch, medmap.commands.segment
from medmap.cli import main
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux'")
def test_memory_that_runs_out_is_said_in_words(tmp_path, make_case, tiny_bundle_path):
    """The address space may grow by 150 MB after everything is imported; 112³ voxels of eight
    channels want more.

    With 40 MB OpenBLAS ends the process by itself (exit code 1, in its own words), before Python is
    asked; so does a library of nibabel's that is loaded meanwhile, so it is imported before.
    """
    volume = make_case(shape=(112, 112, 112))["t1"]
    nib.save(nib.Nifti1Image(volume.array.astype(np.int16), volume.affine), tmp_path / "t1.nii")
    given = [
        "segment",
        "--t1",
        tmp_path / "t1.nii",
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
    ]
    command = [
        sys.executable,
        "-c",
        STARVED,
        str(150 << 20),
        *map(str, given),
        "-o",
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert "Traceback" not in ran.stderr, ran.stderr
    if ran.returncode == 0:  # smaller windows sufficed
        assert len(list((tmp_path / "out").iterdir())) == 3
    else:
        assert ran.returncode == 69, ran.stderr
        assert "memory" in ran.stderr
        assert not (tmp_path / "out").exists()
