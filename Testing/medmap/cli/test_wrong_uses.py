"""Wrong uses: an exit code each, a cause, a remedy that works, and nothing left behind."""

from __future__ import annotations

import json
import shlex
import sys

import numpy as np
import pytest
from Testing.medmap.commands.tiny_training import SMALLEST_RECIPE

from medmap.cli.main import main
from medmap.io.nifti import write_labels, write_volume
from medmap.volume import Grid

GRID = Grid((20, 20, 20), np.diag([4.0, 4.0, 4.0, 1.0]))


def write_recipe(folder, name, **changes):
    (folder / name).write_text(json.dumps({**SMALLEST_RECIPE, **changes}))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two cases, recipes with one mistake each, and things that are no input."""
    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        path = tmp_path / f"data/{case}"
        path.mkdir(parents=True)
        write_volume(path / "flair.nii.gz", rng.integers(1, 99, GRID.shape), GRID.affine)
        labels = np.zeros(GRID.shape, np.uint8)
        labels[5:9, 5:9, 5:9] = 1
        write_labels(path / "seg.nii.gz", labels, GRID)
    half = tmp_path / "half/a"
    half.mkdir(parents=True)
    write_volume(half / "flair.nii.gz", rng.integers(1, 99, GRID.shape), GRID.affine)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "table.csv").write_text("case,grade\na,1\nb,2\n")
    (tmp_path / "list.json").write_text("[]")
    write_recipe(tmp_path, "recipe.json")
    write_recipe(tmp_path, "misspelled.json", netwrok="UNet")  # codespell:ignore netwrok
    write_recipe(tmp_path, "option.json", network_options={"widhts": [4, 6]})
    write_recipe(tmp_path, "spacing.json", preprocess={"spcing": 4.0})
    write_recipe(tmp_path, "objective.json", objective="plain", objective_options={"gama": 2})
    write_recipe(tmp_path, "shown.json", missingness="random-subset", missingness_options={"x": 1})
    task = {"name": "x", "modalities": [{"name": "flair"}], "labels": [{"name": "A", "value": 1}]}
    (tmp_path / "task.json").write_text(json.dumps({**task, "label_endings": []}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def medmap(command, monkeypatch, capsys):
    """Exit code and the two lines of the error."""
    monkeypatch.setattr(sys, "argv", ["medmap", *shlex.split(command)])
    with pytest.raises(SystemExit) as end:
        main()
    lines = capsys.readouterr().err.splitlines()
    cause = [line for line in lines if line.startswith("error: ")]
    remedy = [line for line in lines if line.startswith("fix: ")]
    return end.value.code, "".join(cause), "".join(remedy)


TRAIN = "--data data --run run --bundle bundle --device cpu"
HALF = "--data half --run run --bundle bundle --device cpu"
WRONG_USES = [
    # command, exit code, cause, remedy
    (f"train misspelled.json {TRAIN}", 78, "no field 'netwrok'", "Perhaps 'network' is meant"),
    (f"train option.json {TRAIN}", 78, "SubsetUNet has no option 'widhts'", "Perhaps 'widths'"),
    (f"train spacing.json {TRAIN}", 78, "preprocess has no option 'spcing'", "'spacing'"),
    (f"train objective.json {TRAIN}", 78, "plain has no option 'gama'", "It has smooth"),
    (f"train shown.json {TRAIN}", 78, "random-subset has no option 'x'", "weights"),
    (f"train list.json {TRAIN}", 78, "is no table of fields", "medmap recipes"),
    (f"train recipe.json {TRAIN} --task task.json", 78, "label_endings is empty", "Correct"),
    (f"train recipe.json {TRAIN} --anatomy nowhere", 2, "this training has none", "--anatomy"),
    (f"train {TRAIN} --from nowhere", 66, "no bundle folder nowhere", "Check its path."),
    (f"train recipe.json {TRAIN} --plugin", 2, "names no file", "--plugin FILE.py"),
    (f"train recipe.json {HALF}", 65, "a has no reference labels", "--task"),
    ("segment --flair data/a/flair.nii.gz -o out --device gpu", 2, "'gpu' is not a device", "cuda"),
    (
        "segment --t1 data/a/flair.nii.gz --t1 data/b/seg.nii.gz -o out",
        2,
        "T1 is given twice: flair.nii.gz and seg.nii.gz",
        "one file for each modality",
    ),
    ("segment data -o out", 66, "no DICOM files", "NIfTI files by modality"),
    ("segment-cohort data -o out --device gpu", 2, "'gpu' is not a device", "cuda"),
    ("segment-cohort data -o out --device cuda:77", 69, "cuda:77", "--device cpu"),
    ("segment-cohort empty.csv -o out", 65, "is empty", "Write the columns case"),
    ("evaluate --data data --against nowhere", 66, "no scores nowhere", "medmap evaluate"),
    ("evaluate --predictions data --labels half", 65, "No case in half has", "--task"),
    ("report nowhere -o page.html", 66, "no nowhere", "Check its path."),
    ("info nowhere", 66, "no bundle folder nowhere", "Check its path."),
    ("phantom out --task wmh", 2, "no synthetic cases of the task WMH", "BraTS or MyoPS"),
    ("split --data half -o f.json", 65, "No case in half has reference labels", "--task"),
    (
        "split --data data -o f.json --folds 2 --table table.csv --stratify site",
        65,
        "site",
        "grade",
    ),
    (
        "split --data data --check nowhere.json",
        66,
        "nowhere.json cannot be read",
        "Check its path.",
    ),
]


@pytest.mark.parametrize(
    ("command", "code", "cause", "remedy"), WRONG_USES, ids=[use[0] for use in WRONG_USES]
)
def test_a_wrong_use_is_answered_and_leaves_nothing(
    command, code, cause, remedy, folder, monkeypatch, capsys
):
    before = sorted(folder.rglob("*"))
    answer = medmap(command, monkeypatch, capsys)
    assert answer[0] == code, answer
    assert cause in answer[1]
    assert remedy in answer[2]
    left_behind = [path for path in sorted(folder.rglob("*")) if path not in before]
    # A run folder may remain, but none that keeps a task: it may have been the wrong one.
    assert [path for path in left_behind if "run" not in path.relative_to(folder).parts] == []
    assert not (folder / "run/task.json").exists()


def test_the_task_that_was_forgotten_can_be_named_afterwards(folder, monkeypatch, capsys):
    """The first attempt leaves no run that has begun with another task."""
    for case in ("a", "b"):
        (folder / f"data/{case}/seg.nii.gz").rename(folder / f"data/{case}/lesion.nii.gz")
    task = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps({**task, "label_endings": ["lesion"]}))
    command = f"train recipe.json {TRAIN} --workers 0"
    code, _, remedy = medmap(command, monkeypatch, capsys)
    assert code == 65
    assert "--task" in remedy
    assert medmap(f"{command} --task task.json", monkeypatch, capsys)[0] == 0
    assert (folder / "bundle/metadata.json").is_file()
