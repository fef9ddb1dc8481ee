"""Hearts: the task, the phantom, and the challenge's layout."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from Testing.medmap.hearts.heart_cases import NAMES

from medmap.errors import MissingInputError, UsageError
from medmap.io.cohorts import find_cases
from medmap.metrics import label_masks
from medmap.phantom import generate_heart
from medmap.task import BRATS, MYOPS, MYOPS_ANATOMY, Task, find_task


def test_the_task_has_seven_subsets_and_the_challenges_values():
    assert len(MYOPS.subsets()) == 7
    assert MYOPS.label_values() == (0, 200, 500, 600, 1220, 2221)
    assert MYOPS.label_dtype == np.int16
    assert BRATS.label_dtype == np.uint8
    assert [MYOPS.find(word) for word in ("C0", "de", "T2", "bSSFP")] == [
        "bssfp",
        "lge",
        "t2",
        "bssfp",
    ]
    assert find_task("myops") is MYOPS


@pytest.mark.parametrize("task", [MYOPS, MYOPS_ANATOMY], ids=lambda t: t.name)
def test_the_task_survives_its_bundle(task):
    assert Task.from_dict(task.to_dict()) == task


def test_a_task_of_an_older_bundle_is_a_brain():
    data = {
        k: v for k, v in BRATS.to_dict().items() if k not in ("organ", "target", "skull_stripped")
    }
    assert Task.from_dict(data) == BRATS


def test_passions_targets_take_scar_and_edema_as_myocardium():
    values = np.array([0, 200, 500, 600, 1220, 2221])
    assert label_masks(values, MYOPS_ANATOMY)["MYO"].tolist() == [
        False,
        True,
        False,
        False,
        True,
        True,
    ]


def test_a_phantom_has_the_challenges_names_values_and_one_grid(challenge):
    scans = {p.name for p in (challenge / "train25").iterdir()}
    assert scans == {
        f"myops_training_{n}_{m}.nii.gz" for n in (101, 102) for m in ("C0", "DE", "T2")
    }
    label = nib.load(challenge / "train25_myops_gd/myops_training_101_gd.nii.gz")
    assert set(np.unique(label.dataobj)) <= set(MYOPS.label_values())
    assert {200, 500, 600} <= set(np.unique(label.dataobj))
    for name in ("C0", "DE", "T2"):
        scan = nib.load(challenge / f"train25/myops_training_101_{name}.nii.gz")
        assert scan.shape == label.shape
        assert np.array_equal(scan.affine, label.affine)
    assert 10 <= nib.affines.voxel_sizes(label.affine)[2] <= 14


def test_the_same_seed_is_the_same_heart_and_another_is_not():
    one, two, other = (generate_heart(seed, spacing=4.0) for seed in (3, 3, 4))
    assert all(torch.equal(one.images[m], two.images[m]) for m in NAMES)
    assert one.facts == two.facts != other.facts


@pytest.mark.parametrize("spacing", [0.1, 9.0])
def test_an_impossible_phantom_is_refused(spacing):
    with pytest.raises(UsageError):
        generate_heart(0, spacing=spacing)


def test_each_contrast_tells_something_else():
    def contrast(modality: str, one: int, other: int) -> float:
        found = []
        for seed in range(6):
            heart = generate_heart(seed, spacing=3.0)
            image, label = heart.images[modality], heart.label
            if (label == one).sum() > 20 and (label == other).sum() > 20:
                found.append(float(image[label == one].mean() / image[label == other].mean()))
        return float(np.mean(found))

    normal, blood, edema, scar = 1, 2, 4, 5
    assert contrast("bssfp", blood, normal) > 1.6
    assert 0.8 < contrast("bssfp", scar, normal) < 1.25
    assert contrast("lge", scar, normal) > 2
    assert contrast("lge", edema, normal) < contrast("lge", scar, normal) / 1.5
    assert contrast("t2", edema, normal) > 1.4


def test_cases_are_found_from_the_challenge_and_from_its_folder(challenge, tmp_path):
    for folder in (challenge, challenge / "train25"):
        cases = find_cases(folder, MYOPS)
        assert [c.case_id for c in cases] == ["myops_training_101", "myops_training_102"]
        assert all(set(c.scans) == set(NAMES) and c.label is not None for c in cases)
    test = tmp_path / "test20"
    test.mkdir()
    for name in ("C0", "T2"):
        (test / f"myops_test_201_{name}.nii.gz").touch()
    (case,) = find_cases(test, MYOPS)
    assert (case.case_id, set(case.scans), case.label) == ("myops_test_201", {"bssfp", "t2"}, None)


def test_cases_in_the_layout_of_brats_are_found_for_hearts_too(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("bssfp", "LGE", "seg"):
        (tmp_path / "a" / f"a_{name}.nii.gz").touch()
    (case,) = find_cases(tmp_path, MYOPS)
    assert set(case.scans) == {"bssfp", "lge"}
    assert case.label is not None


def test_a_folder_of_brains_holds_no_hearts(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/a_flair.nii.gz").touch()
    with pytest.raises(MissingInputError, match="MyoPS"):
        find_cases(tmp_path, MYOPS)
