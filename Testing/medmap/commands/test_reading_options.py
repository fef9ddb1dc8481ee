"""Every option that a remedy names is one that the command has.

For cohorts, reference labels, evaluation, and training.
"""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from Testing.medmap.commands.tiny_training import SMALLEST_RECIPE
from typer.testing import CliRunner

from medmap.cli import app

CONTRADICTORY = ("--affine", "sform")
UNORIENTED = ("--assume-orientation",)


def medmap(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(path, array, kind):
    """A file whose sform and qform contradict each other, or that has neither."""
    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((2.0, 2.0, 2.0))
    if kind == CONTRADICTORY:
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        image.header.set_sform(affine, 1)
        affine[:3, 3] = 30
        image.header.set_qform(affine, 1)
    else:
        image.header.set_sform(None, 0)
        image.header.set_qform(None, 0)
    nib.save(image, path)


@pytest.fixture(params=[CONTRADICTORY, UNORIENTED], ids=["contradictory", "unoriented"])
def cohort(request, tmp_path, volumes):
    """Two cases; the option that reads them."""
    label = np.zeros(volumes["t1"].array.shape, np.uint8)
    label[22:30, 18:26, 14:22] = 2
    root = tmp_path / "data"
    for number in range(2):
        case = root / f"C{number}"
        case.mkdir(parents=True)
        array = volumes["flair"].array.astype(np.int16) + number
        write(case / f"C{number}_flair.nii", array, request.param)
        write(case / f"C{number}_seg.nii", label, request.param)
    return root, request.param


def commands(root, folder, bundle):
    """What is run on the cohort, by name."""
    (folder / "recipe.json").write_text(json.dumps(SMALLEST_RECIPE))
    case = root / "C0"
    scans = ["--flair", case / "C0_flair.nii", "--truth", case / "C0_seg.nii"]
    model = ["--bundle", bundle, "--device", "cpu"]
    run = ["--run", folder / "run", "--bundle", folder / "trained", "--device", "cpu"]
    return {
        "segment": ["segment", *scans, "-o", folder / "one", *model],
        "segment-cohort": ["segment-cohort", root, "-o", folder / "all", *model],
        "evaluate": ["evaluate", "--data", root, *model],
        "train": ["train", folder / "recipe.json", "--data", root, *run, "--workers", "0"],
    }


@pytest.mark.parametrize("name", ["segment", "segment-cohort", "evaluate", "train"])
def test_the_remedy_that_is_named_works(tmp_path, cohort, tiny_bundle_path, name):
    root, option = cohort
    command = commands(root, tmp_path, tiny_bundle_path)[name]
    refused = medmap(*command)
    assert refused.exit_code in (1, 65)
    remedy = getattr(refused.exception, "command_line_remedy", refused.output)
    assert " ".join(option) in remedy
    done = medmap(*command, *option)
    assert done.exit_code == 0, (done.output, done.exception)
