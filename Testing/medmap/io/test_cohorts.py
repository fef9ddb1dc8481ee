"""Cohorts are found in BIDS and in tables; what is not clear is said of the case that it concerns."""

from __future__ import annotations

import pytest

from medmap.errors import InputDataError, MissingInputError
from medmap.io.cohorts import find_cases, is_bids
from medmap.task import BRATS


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_bids_scans_are_found_by_suffix_and_contrast_agent(tmp_path):
    touch(
        tmp_path,
        "dataset_description.json",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_acq-space_FLAIR.nii",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/sub-01_dseg.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/ses-pre/anat/sub-02_ses-pre_ce-gd_T1w.nii.gz",
        "sub-02/ses-post/anat/sub-02_ses-post_desc-brain_FLAIR.nii.gz",
        "derivatives/other/sub-01/anat/sub-01_T1w.nii.gz",
    )
    assert is_bids(tmp_path)
    cases = {case.case_id: case for case in find_cases(tmp_path, BRATS)}
    assert list(cases) == ["sub-01", "sub-02_ses-post", "sub-02_ses-pre"]
    first = cases["sub-01"]
    assert {name: path.name for name, path in first.scans.items()} == {
        "t1": "sub-01_T1w.nii.gz",
        "t1ce": "sub-01_ce-gadolinium_T1w.nii.gz",
        "t2": "sub-01_T2w.nii.gz",
        "flair": "sub-01_acq-space_FLAIR.nii",
    }
    assert first.label.name == "sub-01_dseg.nii.gz"
    assert set(cases["sub-02_ses-pre"].scans) == {"t1ce"}
    assert set(cases["sub-02_ses-post"].scans) == {"flair"}


def test_two_runs_of_one_scan_are_not_chosen_between(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_run-1_T1w.nii.gz", "sub-1/anat/sub-1_run-2_T1w.nii.gz")
    (case,) = find_cases(tmp_path, BRATS)
    with pytest.raises(InputDataError, match=r"run-1_T1w\.nii\.gz and sub-1_run-2_T1w"):
        case.read()


def test_a_table_names_files_relative_to_itself(tmp_path):
    (tmp_path / "cohort.csv").write_text(
        "case,T1c,flair,age,label\nanna,a/x.nii.gz,,41,\nbo,,b.nii,38,seg.nii\n"
    )
    anna, bo = find_cases(tmp_path / "cohort.csv", BRATS)
    assert anna.scans == {"t1ce": tmp_path / "a/x.nii.gz"}
    assert anna.label is None
    assert bo.scans == {"flair": tmp_path / "b.nii"}
    assert bo.label == tmp_path / "seg.nii"


def test_cases_of_a_table_that_cannot_be_used_say_so_and_leave_the_rest_alone(tmp_path):
    (tmp_path / "cohort.csv").write_text("case,t1\n../up,x.nii\nempty,\nfine,y.nii\n")
    up, empty, fine = find_cases(tmp_path / "cohort.csv", BRATS)
    for case, why in ((up, "name of a folder"), (empty, "no scan")):
        with pytest.raises(InputDataError, match=why):
            case.check()
    fine.check()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has the columns none"),
        ("name,t1\na,x.nii\n", "has the columns name, t1"),
        ("case,pet\na,x.nii\n", "has the columns case, pet"),
        ("case,t1\n", "has no rows"),
        ("case,t1\n,x.nii\n", "Row 1 .* has no case name"),
        ("case,t1\na,x.nii\na,y.nii\n", "twice"),
    ],
)
def test_malformed_tables_are_refused(tmp_path, text, why):
    (tmp_path / "cohort.csv").write_text(text)
    with pytest.raises(InputDataError, match=why):
        find_cases(tmp_path / "cohort.csv", BRATS)


def test_a_bids_folder_without_scans_is_refused(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_PDw.nii.gz")
    with pytest.raises(MissingInputError, match="no case of the task BraTS"):
        find_cases(tmp_path, BRATS)
