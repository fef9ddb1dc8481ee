"""Signals at random moments of train, evaluate and segment-cohort: nothing half, nothing lost, no
traceback, no orphan.

A signal goes to the whole process group, as a terminal's Ctrl-C does, a seeded moment after the
command has begun its work. The same command afterwards, in this process, must end with what an
uninterrupted one gives, byte for byte. ``segment`` is in ``test_fault_runs.py``.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medmap.commands import cohort as cohorts
from medmap.training.checkpoint import load_checkpoint

LONGEST = 240
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def moments(*few):
    """(signal, seed): few of them always, every signal at three moments when slow tests run."""
    many = [(number, seed) for number in SIGNALS for seed in (1, 2, 3)]
    marks = {pair: () if pair in few else pytest.mark.slow for pair in many}
    return pytest.mark.parametrize(
        ("number", "seed"),
        [
            pytest.param(*pair, marks=mark, id=f"{pair[0].name}-{pair[1]}")
            for pair, mark in marks.items()
        ],
    )


@pytest.fixture
def patients(make_patients):
    return make_patients(40)


def interrupted(number, seed, ready, log: Path, *arguments) -> tuple[int, str]:
    """Start a command, send the signal a seeded moment after ``ready()``; its exit code and what it
    said."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "medmap.cli", *map(str, arguments)]
    with log.open("w") as said:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=said, env=environment, start_new_session=True
        )
        try:
            end = time.monotonic() + LONGEST
            while not ready() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(random.Random(seed).uniform(0.0, 0.3))
            os.killpg(process.pid, number)
            code = process.wait(LONGEST)
            _all_gone(process.pid)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text()
    assert "Traceback" not in text, text
    if code not in (0, -signal.SIGKILL):
        assert code == 130, text
        assert "error: " in text
        assert "fix: " in text
    return code, text


def _all_gone(group: int) -> None:
    """No process of the group outlives the command for long."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return
        if all(_zombie(pid) for pid in _group(group)):
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived its command")


def _group(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 by name of the files below a folder; temporary ones, which only a kill leaves, are
    not results."""
    files = [
        path
        for path in sorted(folder.rglob(pattern))
        if path.is_file() and ".tmp-" not in str(path)
    ]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def left_over(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp-" in path.name]


@moments((signal.SIGTERM, 1), (signal.SIGKILL, 2))
def test_training_goes_on_to_the_same_bits(number, seed, patients, cli):
    common = [
        "train",
        patients / "recipe.json",
        "--data",
        patients / "data",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]

    def training(name):
        return [
            *common,
            "--save-every",
            "1",
            "--run",
            patients / name,
            "--bundle",
            patients / f"{name}-bundle",
        ]

    def begun():
        return (patients / "run/checkpoint.pt").exists()

    code, _ = interrupted(number, seed, begun, patients / "log", *training("run"))
    assert (patients / "run-bundle").exists() == (code == 0), (
        "a bundle is there only when the steps are done"
    )
    assert code != 0, "the signal came too late to show anything"
    assert 0 < load_checkpoint(patients / "run")["step"] <= 40
    if number != signal.SIGKILL:
        assert not left_over(patients)
    assert cli(*training("run")).code == 0
    assert cli(*training("whole")).code == 0
    weights = [digests(patients / f"{name}-bundle", "*.safetensors") for name in ("run", "whole")]
    assert weights[0] == weights[1]


@moments((signal.SIGINT, 1))
def test_an_evaluation_goes_on_to_the_same_table(number, seed, patients, cli, tiny_bundle_path):
    common = [
        "evaluate",
        "--data",
        patients / "data",
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
        "-o",
    ]

    def begun():
        return (patients / "result/weights.json").exists()

    code, _ = interrupted(number, seed, begun, patients / "log", *common, patients / "result")
    assert (patients / "result/scores.csv").exists() == (code == 0), (
        "a table is there only when all is scored"
    )
    if number != signal.SIGKILL:
        assert not left_over(patients)
    for name in ("result", "whole"):
        assert cli(*common, patients / name).code == 0
    tables = [digests(patients / name, "scores.csv") for name in ("result", "whole")]
    assert tables[0]
    assert tables[0] == tables[1]


@moments((signal.SIGINT, 2), (signal.SIGKILL, 1))
def test_a_cohort_goes_on_where_it_was(number, seed, patients, cli, tiny_bundle_path, monkeypatch):
    before = digests(patients / "data")
    lines = [f"case-{n},data/Case_{n % 2}/Case_{n % 2}_t1.nii.gz" for n in range(12)]
    (patients / "cohort.csv").write_text("\n".join(["case,t1", *lines]) + "\n")
    common = [
        "segment-cohort",
        patients / "cohort.csv",
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
        "-o",
    ]

    def begun():
        return (patients / "out/results.csv").exists()

    code, _ = interrupted(number, seed, begun, patients / "log", *common, patients / "out")
    done = [folder for folder in (patients / "out").iterdir() if folder.is_dir()]
    for folder in done:
        files = [path for path in folder.iterdir() if ".tmp-" not in path.name]
        assert len(files) == 3 or number == signal.SIGKILL
    if number != signal.SIGKILL:
        assert not left_over(patients)
    monkeypatch.setattr(
        cohorts, "_by_processes", lambda jobs, options: map(cohorts.segment_job, jobs)
    )
    again = cli(*common, patients / "out")
    assert again.code == 0, again.err
    assert "0 failed" in again.out
    if code != 0:
        assert "12 segmented" not in again.out, "what was finished is kept"
    assert cli(*common, patients / "whole").code == 0
    labels = [digests(patients / name, "segmentation.nii.gz") for name in ("out", "whole")]
    assert len(labels[0]) == 12
    assert labels[0] == labels[1]
    assert digests(patients / "data") == before
