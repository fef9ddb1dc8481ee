"""A task from a file goes through every command without a change of code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from Testing.medmap.commands.tiny_training import SMALLEST_RECIPE
from typer.testing import CliRunner

from medmap.bundle.loading import load_bundle
from medmap.cli import app
from medmap.commands.training import train_bundle
from medmap.commands.training_options import TrainOptions
from medmap.commands.training_recipe import load_recipe
from medmap.errors import BundleError, MissingInputError, UsageError
from medmap.io.atomic import make_folder
from medmap.io.cohorts import find_cases
from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.task import BRATS, MYOPS, Task, find_task
from medmap.task.conventions import recognize
from medmap.task.files import parse_task, shipped_tasks
from medmap.training.run_task import write_task

LESIONS = """
name = "Lesions"
target = "lesion"
skull_stripped = true
label_endings = ["lesion"]

[[modalities]]
name = "t1"
aliases = ["t1w"]

[[modalities]]
name = "swi"
title = "SWI"
warning_if_absent = "Without SWI, microbleeds are invisible."

[[labels]]
name = "LES"
title = "Lesion"
value = 300
"""
RECIPE = {**SMALLEST_RECIPE, "steps": 2}


def medmap(*arguments):
    """Run a command in this process; returns what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def cohort(tmp_path, make_case):
    """Two cases of two modalities, with the label value 300."""
    root = tmp_path / "data"
    for number in range(2):
        case = root / f"P{number}"
        case.mkdir(parents=True)
        volumes = make_case(seed=number)
        for name, source in (("T1w", "t1"), ("SWI", "flair")):
            array = volumes[source].array.astype(np.int16)
            write_volume(case / f"P{number}_{name}.nii.gz", array, volumes["t1"].affine)
        label = np.zeros(volumes["t1"].array.shape, np.int16)
        label[22:30, 18:26, 14:22] = 300
        write_labels(case / f"P{number}_lesion.nii.gz", label, volumes["t1"].grid)
    return root


def test_a_stranger_s_task_goes_from_a_file_to_a_report(tmp_path, cohort):
    task_file = tmp_path / "lesions.toml"
    task_file.write_text(LESIONS)
    assert "2 cases, 2 with labels" in medmap("task", "check", task_file, "--data", cohort)
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    run = tmp_path / "run"
    bundle = tmp_path / "bundle"
    training = ["train", tmp_path / "recipe.json", "--task", task_file, "--data", cohort]
    training += ["--run", run, "--bundle", bundle, "--device", "cpu", "--workers", "0"]
    medmap(*training)
    task_file.unlink()  # the run and the bundle carry their task
    assert load_bundle(bundle).task.label_values() == (0, 300)
    assert "300 LES" in load_bundle(bundle).card["training"]
    medmap("export", run, "-o", tmp_path / "exported")
    assert load_bundle(tmp_path / "exported").task == load_bundle(bundle).task
    assert "SWI" in medmap("info", bundle)

    evaluation = tmp_path / "evaluation"
    medmap("evaluate", "--data", cohort, "--bundle", bundle, "-o", evaluation, "--device", "cpu")
    about = json.loads((evaluation / "evaluation.json").read_text())
    assert "300 LES" in about["about"]["label_convention"]
    assert {row["name"] for row in about["task"]["regions"]} == {"LES"}

    output = tmp_path / "segmented"
    segmentation = ["segment", "--bundle", bundle, "--scan", f"SWI={cohort}/P0/P0_SWI.nii.gz"]
    segmentation += ["--truth", cohort / "P0/P0_lesion.nii.gz", "-o", output, "--device", "cpu"]
    assert "LES (Lesion)" in medmap(*segmentation)
    assert set(np.unique(read_nifti(output / "segmentation.nii.gz").array)) <= {0, 300}
    assert "300 LES" in json.loads((output / "report.json").read_text())["labels"]

    medmap("segment-cohort", cohort, "--bundle", bundle, "-o", tmp_path / "all", "--device", "cpu")
    page = tmp_path / "page.html"
    medmap("report", evaluation, run, bundle, "-o", page)
    assert "SWI" in page.read_text()


@pytest.mark.parametrize("name", sorted(shipped_tasks()))
def test_shipped_tasks_are_sound_and_survive_a_bundle(name):
    task = find_task(name)
    assert find_task(task.name.upper()) == task
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_shipped_tasks_share_the_table_of_conventions():
    post = find_task("brats2024")
    labels = recognize({"BraTS-GLI-00005-101": (3, 4)}, post).conventions["BraTS-GLI-00005-101"]
    assert labels.to_task(np.array([3, 4]), post, "seg").tolist() == [3, 4]
    older = recognize({"Brats18_2013_2_1": (1, 4)}, post).conventions["Brats18_2013_2_1"]
    assert older.to_task(np.array([1, 4]), post, "seg").tolist() == [1, 3]
    ped = find_task("brats-ped")
    assert recognize({"x": (1, 2, 3, 4)}, ped).conventions["x"].name == "brats-ped"
    wmh = find_task("wmh")
    other = recognize({"7": (1, 2)}, wmh).conventions["7"]
    assert other.to_task(np.array([1, 2]), wmh, "wmh").tolist() == [1, 0]


def test_an_nnunet_description_is_a_task(tmp_path):
    content = {
        "name": "Liver",
        "channel_names": {"0": "T1 pre", "1": "T1 post"},
        "labels": {"background": 0, "whole": [1, 2], "tumor": 2},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    task = find_task(tmp_path / "dataset.json")
    assert task.modality_names == ("t1_pre", "t1_post")
    assert task.label_values() == (0, 1, 2)
    assert task.region_classes("whole") == (1, 2)
    assert task.region_classes("tumor") == (2,)


def test_an_nnunet_data_set_is_its_own_task(tmp_path):
    content = {
        "channel_names": {"0": "T1 pre", "1": "CT"},
        "labels": {"background": 0, "organ": [1, 2], "tumor": [2]},
    }
    for name in ("imagesTr/P_0000.nii.gz", "imagesTr/P_0001.nii.gz", "labelsTr/P.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    task = find_task(tmp_path / "dataset.json")
    (case,) = find_cases(tmp_path, task)
    assert set(case.scans) == {"t1_pre", "ct"}
    assert case.convention.task_values(task) == {0: 0, 1: 1, 2: 2}


def test_slice_by_slice_tasks_get_a_recipe_in_two_dimensions(tmp_path):
    path = tmp_path / "flat.json"
    path.write_text(json.dumps({**SOUND, "spatial_dims": 2}))
    recipe = load_recipe(TrainOptions(task=str(path)))
    assert recipe.preprocess.slices
    assert len(recipe.patch) == 2
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    options = TrainOptions(recipe=tmp_path / "recipe.json", task=str(path))
    with pytest.raises(UsageError, match="slice by slice"):
        train_bundle(tmp_path / "run", tmp_path, tmp_path / "bundle", options, lambda *_: None)


def test_a_run_keeps_the_task_that_it_has_begun_with(tmp_path):
    write_task(make_folder(tmp_path / "run"), parse_task(SOUND, "x"))
    changed = {**SOUND, "labels": SOUND["labels"][:1]}
    (tmp_path / "task.json").write_text(json.dumps(changed))
    options = TrainOptions(task=str(tmp_path / "task.json"))
    with pytest.raises(UsageError, match="another description of the task x"):
        train_bundle(tmp_path / "run", tmp_path, tmp_path / "bundle", options, lambda *_: None)


SOUND = {
    "name": "x",
    "modalities": [{"name": "t1"}, {"name": "t2"}],
    "labels": [{"name": "A", "value": 1}, {"name": "B", "value": 2}],
}


def test_defaults_are_titles_colors_and_a_region_for_each_label():
    task = parse_task(SOUND, "x.json")
    assert [region.labels for region in task.regions] == [("A",), ("B",)]
    assert task.modality("t1").title == "t1"
    assert task.labels[0].color != task.labels[1].color


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": 3}, "'name' of the task is 3"),
        ({"modality": []}, "no field 'modality'"),
        ({"modalities": []}, "no modality"),
        ({"modalities": [{"name": "T 1"}]}, "'T 1' is not written"),
        ({"modalities": [{"name": "t1"}, {"name": "t2", "aliases": ["T1"]}]}, "called 't1'"),
        ({"modalities": ["t1"]}, "no table of fields"),
        ({"labels": [{"name": "A"}]}, "lacks the field 'value'"),
        ({"labels": [{"name": "A", "value": True}]}, "'value' of a label is True"),
        ({"labels": [{"name": "A", "value": 0}]}, "the value 0"),
        ({"labels": [{"name": "A", "value": 1}, {"name": "B", "value": 1}]}, "the value 1"),
        ({"labels": [{"name": "A", "value": 1, "color": [1, 2]}]}, "color of A"),
        ({"regions": [{"name": "R", "labels": ["Z"]}]}, "unites Z"),
        ({"regions": [{"name": "R", "labels": []}]}, "unites nothing"),
        ({"spatial_dims": 4}, "spatial_dims is 4"),
    ],
)
def test_what_is_no_task_is_refused_in_words(change, problem):
    with pytest.raises(BundleError, match=r"x\.json describes no task") as error:
        parse_task({**SOUND, **change}, "x.json")
    assert problem in error.value.cause


def test_files_that_are_no_tasks_are_refused(tmp_path):
    (tmp_path / "a.toml").write_text("name = ")
    with pytest.raises(BundleError, match="no valid TOML"):
        find_task(tmp_path / "a.toml")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(BundleError, match="no table"):
        find_task(tmp_path / "a.json")
    with pytest.raises(MissingInputError):
        find_task(tmp_path / "b.json")
    with pytest.raises(UsageError, match="There is no task 'heart'"):
        find_task("heart")
    assert find_task("brats") is BRATS
    assert find_task("MYOPS") is MYOPS
