"""A stranger's afternoon on the command line, as its tutorial prints it: no line of the package."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medmap.io.nifti import read_nifti, write_labels, write_volume

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tutorials/own_task.md").read_text(encoding="utf-8")
CASES = [f"{number:02d}" for number in range(4)]


def blocks(language):
    """Code blocks of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands():
    """Commands of the page, each as one line."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    assert all(line.startswith("medmap ") for line in lines)
    return [line.removeprefix("medmap ") for line in lines]


@pytest.fixture
def folder(tmp_path, make_case):
    """What a stranger has: cases as a challenge hands them out, and a copy of the template."""
    (tmp_path / "other").mkdir()
    for number, name in enumerate(CASES):
        case = tmp_path / f"cases/{name}"
        case.mkdir(parents=True)
        volumes = make_case((30, 34, 28), spacing=4.0, seed=number)
        for modality in ("t1", "flair"):
            array = volumes[modality].array.astype(np.int16)
            write_volume(case / f"{modality.upper()}.nii.gz", array, volumes[modality].affine)
        labels = np.zeros(volumes["t1"].array.shape, np.uint8)
        labels[14 + number : 20, 12:18, 10:16] = 1
        write_labels(case / "wmh.nii.gz", labels, volumes["t1"].grid)
        # Another program: it finds every lesion, one voxel beside it.
        shifted = np.roll(labels, 1, axis=0)
        write_labels(tmp_path / f"other/{name}.nii.gz", shifted, volumes["t1"].grid)
    shutil.copytree(ROOT / "MedMAPTraining/examples/plugin", tmp_path / "mine")
    [task] = blocks("toml")
    (tmp_path / "wmh.toml").write_text(task)
    [recipe] = blocks("json")
    tiny = {"network_options": {"width": 4}, "steps": 2, "patch": [16, 16, 16]}
    changed = {**json.loads(recipe), **tiny, "preprocess": {"spacing": 4.0}}
    (tmp_path / "mine/recipe.json").write_text(json.dumps(changed))
    return tmp_path


def test_the_page_leads_from_files_to_a_report(folder):
    printed = {}
    for command in commands():
        result = subprocess.run(
            [sys.executable, "-m", "medmap", *shlex.split(command)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        printed[command] = result.stdout
    assert "4 cases, 4 with labels, 4 with every modality" in printed[commands()[0]]
    assert "Ensemble" in "".join(printed.values())

    for name, subsets in {"scores": 3, "scores-maps": 1, "scores-other": 1}.items():
        evaluation = json.loads((folder / name / "evaluation.json").read_text())
        assert sorted(evaluation["about"]["labels"]) == CASES
        with (folder / name / "scores.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(CASES) * subsets
    reference = read_nifti(folder / "cases/00/wmh.nii.gz").array > 0
    with (folder / "scores-other/scores.csv").open() as file:
        dice = float(next(csv.DictReader(file))["dice"])
    overlap = np.count_nonzero(reference & np.roll(reference, 1, axis=0))
    assert dice == pytest.approx(overlap / np.count_nonzero(reference))

    report = (folder / "report.html").read_text()
    for text in ("run/fold_0", "run/fold_1", "A: maps against B: other", "FLAIR"):
        assert text in report
