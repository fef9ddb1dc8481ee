"""What ``medmap evaluate``, ``compare`` and ``info`` print: 80 columns, and a verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from medmap.evaluation import ScoreRow, Store, summarize
from medmap.task import BRATS


def write_evaluation(folder, lift, cases=24):
    """A finished evaluation of invented scores."""
    store = Store(folder, "weights")
    rows = []
    for number in range(cases):
        for subset in BRATS.subsets():
            for position, region in enumerate(BRATS.regions):
                dice = 0.5 + 0.08 * len(subset) - 0.1 * position + 0.004 * number
                row = ScoreRow(
                    case=f"C{number}",
                    subset=BRATS.subset_key(subset),
                    region=region.name,
                    dice=dice,
                    dice_rule=dice,
                    hd95_mm=9.0 - dice,
                    hd95_rule_mm=9.0 - dice,
                    sensitivity=1.0,
                    precision=1.0,
                    prediction_ml=3.0,
                    reference_ml=3.0,
                    diagonal_mm=373.0,
                )
                if region.name == "WT":
                    row = replace(row, dice=dice + lift * (1 + 0.01 * number))
                rows.append(row)
    store.finish({"bundle": "medmap-custom-1.0.0"}, BRATS, rows, summarize(rows, BRATS, "cases"))
    return folder


def run(*arguments):
    """The command on a terminal of 80 columns, as far as rich is concerned."""
    command = [sys.executable, "-m", "medmap", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", "TTY_COMPATIBLE": "1", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations")
    ours = write_evaluation(folder / "ours", 0.03)
    theirs = write_evaluation(folder / "theirs", 0.0)
    return run("compare", ours, theirs)


def test_compare_ends_in_a_verdict(compared):
    assert compared.returncode == 0, compared.stderr
    verdict = compared.stdout.strip().splitlines()[-1]
    assert verdict.startswith(
        "Verdict: Averaged over all subsets, 24 cases: WT: A is better by 0.03"
    )
    assert "TC: no difference was found" in verdict


def test_compare_keeps_its_numbers_on_80_columns(compared):
    lines = compared.stdout.splitlines()
    rows = [line for line in lines if line.startswith("t1+t1ce+t2+flair")]
    assert "…" not in compared.stdout
    assert len(rows) == 3
    assert all(len(row) <= 80 for row in rows)
    assert "0.866" in rows[0], "mean of B of the whole tumor with all modalities"


@pytest.mark.parametrize("width", [80, 60, 200])
def test_a_table_that_is_too_wide_is_printed_in_parts(width, capsys, monkeypatch):
    from rich.console import Console

    from medmap.cli import tables

    console = Console(width=width, highlight=False)
    monkeypatch.setattr(tables, "out", console)
    headings = ["modalities", *(f"score {number}" for number in range(9))]
    cells = [f"0.{number}23 ± 0.456" for number in range(9)]
    tables.print_table("Scores", headings, [["t1+t1ce+t2+flair", *cells], None])
    printed = capsys.readouterr().out
    assert all(cell in printed for cell in cells)
    assert all(len(line) <= width for line in printed.splitlines())
    assert (printed.count("t1+t1ce+t2+flair") == 1) == (width == 200)


def test_info_as_json_is_read_by_programs(tiny_bundle_path):
    shown = run("info", tiny_bundle_path, "--json")
    content = json.loads(shown.stdout)
    assert content["id"] == "tiny-1.0.0"
    assert content["task"]["name"] == "BraTS"
    assert content["networks"][0]["any_subset"] is True


def test_quiet_prints_errors_only_wherever_it_stands(tiny_bundle_path, tmp_path):
    for arguments in (("-q", "info", tiny_bundle_path), ("verify", tiny_bundle_path, "--quiet")):
        shown = run(*arguments)
        assert (shown.returncode, shown.stdout, shown.stderr) == (0, "", "")
    refused = run("info", tmp_path / "nothing", "-q")
    assert refused.returncode == 66
    assert "nothing" in refused.stderr


def test_off_a_terminal_a_line_is_printed_every_minute(capsys, monkeypatch):
    from medmap.cli import base

    now = [0.0]
    monkeypatch.setattr(base.time, "monotonic", lambda: now[0])
    lines = base.ProgressLines()
    for step in range(300):
        now[0] = 10.0 * step
        lines(0.01 * step / 300, f"step {step} [/x]")
    printed = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(printed) == 60
    assert "[/x]" in printed[0]


def test_a_step_that_takes_long_repeats_its_line(capsys):
    from medmap.cli import base

    with base.ProgressLines(interval_s=0.2) as lines:
        lines(0.0, "preparing case 1 of 2")
        time.sleep(0.8)
    printed = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(printed) >= 2
    assert all("preparing case 1 of 2" in line for line in printed)


def test_each_stage_reports_its_tenths(capsys):
    """Preparing ends at 100 %; the training after it is not silent for that."""
    from medmap.cli import base

    lines = base.ProgressLines()
    for stage in ("preparing", "training"):
        for step in range(100):
            lines(step / 100, stage)
    printed = capsys.readouterr().err.splitlines()
    assert sum("training" in line for line in printed) == 10


def test_maps_of_another_program_are_scored(tmp_path):
    import numpy as np

    from medmap.io.nifti import write_labels
    from medmap.volume import Grid

    grid = Grid((24, 24, 24), np.eye(4))
    labels = np.zeros(grid.shape, np.uint8)
    labels[4:14, 4:14, 4:14] = 2
    for folder in ("predictions", "labels"):
        (tmp_path / folder).mkdir()
        write_labels(tmp_path / folder / "A.nii.gz", labels, grid)
    arguments = ["--predictions", tmp_path / "predictions", "--labels", tmp_path / "labels"]
    scored = run("evaluate", *arguments, "--task", "BraTS")
    assert scored.returncode == 0, scored.stderr
    for title in ("Dice, mean", "Lesion-wise Dice", "Lesion-wise HD95", "Normalized surface", "ml"):
        assert title in scored.stdout
    assert "1.000" in scored.stdout
    for wrong, words in (
        (arguments[:2], "--labels"),
        ([*arguments, "--data", tmp_path], "--data is of no use"),
        ([*arguments, "--part", "test"], "--part is of no use"),
        ([*arguments, "--cross-validate"], "--cross-validate is of no use"),
        (["--data", tmp_path, "--subset", "t1"], "--subset is of no use"),
        ([*arguments, "--lesions", "BraTS-XYZ"], "BraTS-MET"),
        ([], "--predictions FOLDER"),
    ):
        refused = run("evaluate", *wrong)
        assert refused.returncode == 2
        assert words in refused.stderr
