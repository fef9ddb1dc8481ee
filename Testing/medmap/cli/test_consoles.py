"""Names and consoles of every kind: brackets, bytes that are not UTF-8, ASCII, closed output."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from medmap.commands.cohort_rows import RESULTS
from medmap.io.nifti import write_volume

NOT_UTF8 = os.fsdecode(b"Gr\xfc\xdfe")


def medmap(*arguments, **options):
    command = [sys.executable, "-m", "medmap", *map(str, arguments)]
    options = {"capture_output": True, "check": False, **options}
    return subprocess.run(command, **options)


@pytest.fixture
def cohort(tmp_path, volumes):
    """Cases in folders with odd names; one holds a name that is not UTF-8."""
    root = tmp_path / "data [/x]"
    for name in ("a[red]", NOT_UTF8):
        (root / name).mkdir(parents=True)
        array = volumes["flair"].array.astype(np.int16)
        write_volume(root / name / f"{name}_flair.nii.gz", array, volumes["flair"].affine)
    return root


def test_odd_names_of_files_and_folders_are_segmented_and_printed(
    tmp_path, cohort, tiny_bundle_path
):
    output = tmp_path / "out [/b]"
    output.parent.mkdir()
    options = ["-o", output, "--bundle", tiny_bundle_path, "--device", "cpu"]
    done = medmap("segment-cohort", cohort, *options)
    assert done.returncode == 0, done.stderr
    assert b"2 segmented" in done.stdout
    assert b"out [/b]" in done.stdout
    with (output / RESULTS).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done", "done"]
    report = (output / NOT_UTF8 / "report.json").read_bytes().decode("utf-8")
    assert json.loads(report)["volumes_ml"]
    again = medmap("segment-cohort", cohort, *options)
    assert b"2 kept from before" in again.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1"])
def test_a_console_that_cannot_show_a_character_gets_an_escape(encoding):
    done = medmap(
        "task",
        "check",
        "brats",
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert b"Enhancing tumor" in done.stdout


def test_errors_with_characters_that_a_console_lacks_are_still_errors(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = medmap("task", "check", tmp_path / "Größe.toml", env=environment)
    assert done.returncode == 66, done.stderr
    assert b"Gr\\xf6\\xdfe.toml" in done.stderr


def test_output_that_nobody_reads_is_no_fault():
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = medmap(
        "task", "check", "brats", capture_output=False, stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    assert b"Traceback" not in done.stderr
    assert b"Unexpected" not in done.stderr


def test_a_program_without_standard_output_works():
    command = f"exec 1>&-; exec {sys.executable} -m medmap task check brats"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
