"""An evaluation knows its inputs by content: what changed is scored again, or refused in words."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from medmap.commands.comparison import compare_evaluations
from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.errors import InputDataError, UsageError
from medmap.evaluation import Evaluation
from medmap.evaluation.lesions import LESION_RULES
from medmap.evaluation.scoring import FurtherScores
from medmap.io.nifti import read_nifti, write_labels, write_volume


@pytest.fixture
def cohort(tmp_path, make_case):
    """Two patients of T1ce and FLAIR with labels, uncompressed: an edit keeps the size."""
    folder = tmp_path / "cohort"
    for number in range(2):
        add_case(folder, f"Case_{number}", make_case((24, 28, 22), seed=number))
    return folder


def add_case(folder, name, volumes):
    (folder / name).mkdir(parents=True)
    for modality in ("t1ce", "flair"):
        volume = volumes[modality]
        path = folder / name / f"{name}_{modality}.nii"
        write_volume(path, volume.array.astype(np.int16), volume.affine)
    labels = np.zeros(volume.array.shape, np.uint8)
    labels[10:18, 10:18, 8:14] = 2
    write_labels(folder / name / f"{name}_seg.nii", labels, volume.grid)


def score(cohort, bundle, **options):
    settings = EvaluateOptions(device="cpu", pictures=False, **options)
    return evaluate_bundle(cohort, bundle, settings, lambda fraction, text: None)


def correct_labels(cohort, *, keep_time=False):
    """Move the labels of the first case by one voxel, in a file of the same size."""
    path = cohort / "Case_0/Case_0_seg.nii"
    status = path.stat()
    labels = read_nifti(path)
    write_labels(path, np.roll(labels.array.astype(np.uint8), 1, 0), labels.grid)
    assert path.stat().st_size == status.st_size
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [False, True])
def test_labels_that_were_corrected_are_scored_again(keep_time, cohort, tiny_bundle_path, tmp_path):
    before = score(cohort, tiny_bundle_path, output=tmp_path / "out")
    correct_labels(cohort, keep_time=keep_time)
    after = score(cohort, tiny_bundle_path, output=tmp_path / "out")
    fresh = score(cohort, tiny_bundle_path)
    assert after.summary == fresh.summary != before.summary
    assert "Case_0" in after.warnings[0]
    assert "Case_1" not in after.warnings[0]


def test_a_scan_of_equal_size_that_was_edited_is_noticed(cohort, tiny_bundle_path, tmp_path):
    score(cohort, tiny_bundle_path, output=tmp_path / "out")
    path = cohort / "Case_1/Case_1_flair.nii"
    volume = read_nifti(path)
    write_volume(path, np.flip(volume.array, 0).astype(np.int16), volume.affine)
    after = score(cohort, tiny_bundle_path, output=tmp_path / "out")
    assert "Case_1" in after.warnings[0]


def test_another_cohort_with_the_same_names_is_scored_anew(
    cohort, tiny_bundle_path, tmp_path, make_case
):
    score(cohort, tiny_bundle_path, output=tmp_path / "out")
    other = tmp_path / "other"
    for number in range(2):
        add_case(other, f"Case_{number}", make_case((24, 28, 22), seed=10 + number))
    anew = score(other, tiny_bundle_path, output=tmp_path / "out")
    assert "2 case(s)" in anew.warnings[0]
    assert anew.summary == score(other, tiny_bundle_path).summary


def test_a_copy_of_the_cohort_is_the_same_cohort_and_an_added_case_is_added(
    cohort, tiny_bundle_path, tmp_path, make_case, monkeypatch
):
    from medmap.commands import evaluation

    score(cohort, tiny_bundle_path, output=tmp_path / "out")
    copy = shutil.copytree(cohort, tmp_path / "copy")
    add_case(copy, "Case_2", make_case((24, 28, 22), seed=2))
    scored = []
    original = evaluation.score_case

    def counted(case, *options):
        scored.append(case.case_id)
        return original(case, *options)

    monkeypatch.setattr(evaluation, "score_case", counted)
    result = score(copy, tiny_bundle_path, output=tmp_path / "out")
    assert scored == ["Case_2"]
    assert result.summary.cases == 3
    assert result.warnings == []


def test_evaluations_of_different_references_are_not_compared(cohort, tiny_bundle_path, tmp_path):
    score(cohort, tiny_bundle_path, output=tmp_path / "a")
    correct_labels(cohort)
    score(cohort, tiny_bundle_path, output=tmp_path / "b")
    assert set(Evaluation.read(tmp_path / "a").labels) == {"Case_0", "Case_1"}
    with pytest.raises(InputDataError, match=r"Case_0 \(1 of 2 cases\) differ"):
        compare_evaluations(tmp_path / "a", tmp_path / "b", None, "dice")
    with pytest.raises(InputDataError, match="Case_0"):
        score(cohort, tiny_bundle_path, against=tmp_path / "a")


def test_labels_that_are_packed_otherwise_are_the_same_reference(
    cohort, tiny_bundle_path, tmp_path
):
    score(cohort, tiny_bundle_path, output=tmp_path / "a")
    path = cohort / "Case_0/Case_0_seg.nii"
    labels = read_nifti(path)
    path.unlink()
    write_labels(path.with_suffix(".nii.gz"), labels.array.astype(np.int16), labels.grid)
    score(cohort, tiny_bundle_path, output=tmp_path / "b")
    tests, _ = compare_evaluations(tmp_path / "a", tmp_path / "b", None, "dice")
    assert all(test.p == 1 for test in tests)


def test_lesion_wise_scores_of_a_bundle_are_added_to_plain_ones(cohort, tiny_bundle_path, tmp_path):
    plain = score(cohort, tiny_bundle_path, output=tmp_path / "out")
    further = FurtherScores(LESION_RULES["BraTS-MET"], 1.0)
    lesions = score(cohort, tiny_bundle_path, output=tmp_path / "out", further=further)
    assert "lesion_dice" not in plain.summary.tables
    assert {"lesion_dice", "lesion_hd95_mm", "nsd"} <= set(lesions.summary.tables)
    assert lesions.summary.dice == plain.summary.dice
    assert lesions.warnings == [], "no file changed"
    read = Evaluation.read(tmp_path / "out")
    assert read.summary == lesions.summary
    assert all(0 <= row.lesion_dice <= 1 for row in read.rows)


def test_a_part_without_a_split_is_refused(cohort, tiny_bundle_path):
    with pytest.raises(UsageError, match="no split was given"):
        score(cohort, tiny_bundle_path, part="test")
