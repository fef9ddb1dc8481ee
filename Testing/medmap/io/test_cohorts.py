"""Cohorts are found in BIDS and in tables; what is not clear is reported with its case."""

from __future__ import annotations

import json

import pytest

from medmap.errors import InputDataError, MissingInputError
from medmap.io.cohorts import find_cases, find_cohort, is_bids
from medmap.io.labels import read_case_labels
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
        ("", "is empty"),
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


def names_of(case):
    return {kind: path.name for kind, path in case.scans.items()}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        # Two visits of one patient in a folder.
        (("P_2019_flair.nii", "P_2021_flair.nii", "P_2021_t2.nii"), "P_2019_flair.nii and P_2021"),
        # Unpacked beside packed.
        (("P_flair.nii", "P_flair.nii.gz"), "P_flair.nii and P_flair.nii.gz"),
        # Two names of one modality.
        (("P_t1c.nii", "P_t1ce.nii"), "P_t1c.nii and P_t1ce.nii"),
        (("P_T1ce.nii", "P_t1ce.nii"), "P_T1ce.nii and P_t1ce.nii"),
        (("flair.nii", "P_flair.nii"), "P_flair.nii and flair.nii"),
    ],
)
@pytest.mark.parametrize("layout", ["folders", "flat"])
def test_two_files_of_one_kind_are_a_fault_that_names_both(tmp_path, files, named, layout):
    folder = "P" if layout == "folders" else "."
    touch(tmp_path, *(f"{folder}/{name}" for name in files))
    cases = find_cases(tmp_path, BRATS)
    faults = " ".join(case.fault for case in cases)
    if layout == "flat" and len({name.rsplit("_", 1)[0] for name in files}) > 1:
        assert not faults.strip()  # what precedes the modality tells the cases apart
        return
    assert named in faults
    with pytest.raises(InputDataError, match="same kind of file"):
        cases[0].read()


def test_scans_of_two_visits_are_reported_even_if_no_modality_is_there_twice(tmp_path):
    touch(tmp_path, "P/P_2019_flair.nii", "P/P_2021_t1ce.nii", "Q/Q1_ax_t1.nii", "Q/Q1_cor_t2.nii")
    touch(tmp_path, "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz")
    touch(tmp_path, "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz")
    cohort = find_cohort(tmp_path, BRATS)
    assert [pair[0].parent.name for pair in cohort.mixed] == ["P"]
    assert "P_2019_flair.nii and P_2021_t1ce.nii" in cohort.warning


def test_two_label_maps_concern_only_what_needs_labels(tmp_path):
    touch(tmp_path, "P/P_t2.nii", "P/P_seg.nii", "P/P_2_seg.nii")
    (case,) = find_cases(tmp_path, BRATS)
    case.check()
    with pytest.raises(InputDataError, match="label map"):
        read_case_labels(case, BRATS)


def test_two_columns_of_one_modality_are_a_fault_only_where_both_are_filled(tmp_path):
    (tmp_path / "cohort.csv").write_text("case,t1ce,t1c\na,x.nii,y.nii\nb,x.nii,\nc,n/a,y.nii\n")
    a, b, c = find_cases(tmp_path / "cohort.csv", BRATS)
    assert "x.nii and y.nii of a" in a.fault
    assert names_of(b) == {"t1ce": "x.nii"}
    assert names_of(c) == {"t1ce": "y.nii"}


@pytest.mark.parametrize("name", ["C2_t1_gd.nii.gz", "C2_gd.nii.gz"])
def test_a_scan_with_gadolinium_never_turns_brains_into_hearts(tmp_path, name):
    files = [f"{case}/{case}_{m}.nii.gz" for case in ("C1", "C2", "C3") for m in ("t1", "flair")]
    touch(tmp_path, *files, f"C2/{name}")
    cohort = find_cohort(tmp_path, BRATS)
    assert [case.case_id for case in cohort.cases] == ["C1", "C2", "C3"]
    assert all(case.label is None and not case.fault for case in cohort.cases)
    assert [path.name for path in cohort.ignored] == [name]
    assert name in cohort.warning


def test_folders_that_look_like_cases_but_are_none_are_listed(tmp_path):
    touch(
        tmp_path,
        "A/A_flair.nii.gz",
        "B/B_0000.nii.gz",
        "C/scan.nii",
        "D/flair.nii.gz",
        "D/t1.nii.gz",
        "D/seg.nii.gz",
        "E/notes.txt",
    )
    cohort = find_cohort(tmp_path, BRATS)
    assert [case.case_id for case in cohort.cases] == ["A", "D"]
    assert cohort.cases[1].label.name == "seg.nii.gz"
    assert [path.name for path in cohort.ignored] == ["B_0000.nii.gz", "scan.nii"]


@pytest.mark.parametrize("layout", ["A/", "", "sub-1/anat/"])
def test_names_that_begin_with_a_dot_are_no_scans(tmp_path, layout):
    stem = "sub-1_" if "sub" in layout else "A_"
    suffixes = ("FLAIR", "T1w", "dseg") if "sub" in layout else ("flair", "t1", "seg")
    touch(tmp_path, *(f"{layout}{stem}{suffix}.nii.gz" for suffix in suffixes))
    touch(tmp_path, *(f"{layout}._{stem}{suffix}.nii.gz" for suffix in suffixes))
    touch(tmp_path, ".trash/A_t2.nii.gz", "__MACOSX/A/A_t2.nii.gz")
    cohort = find_cohort(tmp_path, BRATS)
    (case,) = cohort.cases
    assert not case.fault
    assert set(case.scans) == {"t1", "flair"}
    assert not [path for path in (*case.scans.values(), case.label) if path.name[0] == "."]
    assert not cohort.ignored


def test_bids_suffixes_count_in_any_case_of_letters_and_what_is_not_taken_is_listed(tmp_path):
    touch(
        tmp_path,
        "sub-01/anat/sub-01_flair.nii.gz",
        "sub-01/anat/sub-01_acq-3D_t1W.nii.gz",
        "sub-01/anat/sub-01_T1Gd.nii.gz",
        "sub-01/anat/sub-01_T2star.nii.gz",
        "sub-02/anat/sub-02_CE-gd_T1W.nii.gz",
    )
    cohort = find_cohort(tmp_path, BRATS)
    first, second = cohort.cases
    assert set(first.scans) == {"t1", "t1ce", "flair"}
    assert set(second.scans) == {"t1ce"}
    assert [path.name for path in cohort.ignored] == ["sub-01_T2star.nii.gz"]
    assert not cohort.mixed


TABLE = "case,t1,flair\nJörg,a.nii,n/a\n"


@pytest.mark.parametrize(
    "data",
    [
        TABLE.encode(),
        TABLE.encode("utf-8-sig"),
        TABLE.encode("latin-1"),
        TABLE.encode("utf-16"),
        TABLE.replace(",", ";").encode(),
        TABLE.replace(",", "\t").encode(),
        TABLE.replace("case", "Case").replace("t1", " T1 ").encode(),
        (TABLE + ",,\n\n").encode(),
        TABLE.replace("n/a", "NA").encode(),
        TABLE.replace("n/a", "  ").encode(),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace("a.nii", '"a.nii"').encode(),
    ],
)
def test_tables_of_every_spreadsheet_program_are_understood(tmp_path, data):
    (tmp_path / "cohort.csv").write_bytes(data)
    (case,) = find_cases(tmp_path / "cohort.csv", BRATS)
    assert case.case_id == "Jörg"
    assert case.scans == {"t1": tmp_path / "a.nii"}


def test_a_file_that_is_no_table_is_refused_as_that(tmp_path):
    (tmp_path / "cohort.xlsx").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(InputDataError, match="no table of text"):
        find_cases(tmp_path / "cohort.xlsx", BRATS)


def test_a_bad_case_name_has_its_own_remedy(tmp_path):
    (tmp_path / "cohort.csv").write_text("case,t1\na/b,x.nii\n")
    (case,) = find_cases(tmp_path / "cohort.csv", BRATS)
    with pytest.raises(InputDataError, match="without slashes"):
        case.check()


def test_flat_files_find_their_labels_and_other_folders_do_not_mix_in(tmp_path):
    touch(
        tmp_path,
        "data/A_t1.nii.gz",
        "data/A_seg.nii.gz",
        "data/B_t1.nii.gz",
        "data_labels/B_seg.nii.gz",
        "data_old/B_t1.nii.gz",
    )
    a, b = find_cases(tmp_path / "data", BRATS)
    assert (a.label.name, b.label.name) == ("A_seg.nii.gz", "B_seg.nii.gz")
    assert not b.fault


def test_links_are_followed_and_circles_end(tmp_path):
    touch(tmp_path, "store/one.nii.gz", "real/B/B_flair.nii.gz")
    (tmp_path / "data/A").mkdir(parents=True)
    (tmp_path / "data/A/A_flair.nii.gz").symlink_to(tmp_path / "store/one.nii.gz")
    (tmp_path / "data/B").symlink_to(tmp_path / "real/B")
    (tmp_path / "data/circle").symlink_to(tmp_path / "data")
    cases = find_cases(tmp_path / "data", BRATS)
    assert [case.case_id for case in cases] == ["A", "B"]


def nnunet_data(root, channels, labels):
    touch(root, "imagesTr/P1_0000.nii.gz", "imagesTr/P1_0001.nii.gz", "labelsTr/P1.nii.gz")
    content = {"channel_names": channels, "labels": labels, "numTraining": 1}
    (root / "dataset.json").write_text(json.dumps(content))


def test_an_nnunet_data_set_is_read_by_the_names_of_its_channels(tmp_path):
    labels = {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3}
    nnunet_data(tmp_path, {"0": "FLAIR", "1": "T1Gd"}, labels)
    for folder in (tmp_path, tmp_path / "imagesTr"):
        (case,) = find_cases(folder, BRATS)
        assert names_of(case) == {"t1ce": "P1_0001.nii.gz", "flair": "P1_0000.nii.gz"}
        assert case.label.name == "P1.nii.gz"
        assert case.convention.classes == ((1, "ED"), (2, "NCR"), (3, "ET"))


def test_regions_of_an_nnunet_data_set_give_the_classes(tmp_path):
    regions = {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    nnunet_data(tmp_path, {"0": "T1", "1": "T2"}, {"background": 0, **regions})
    (case,) = find_cases(tmp_path, BRATS)
    assert case.convention.classes == ((1, "ED"), (2, "NCR"), (3, "ET"))


def test_an_nnunet_channel_that_the_task_lacks_is_named(tmp_path):
    nnunet_data(tmp_path, {"0": "FLAIR", "1": "CT"}, {"background": 0, "tumor": 1})
    with pytest.raises(InputDataError, match="'CT'"):
        find_cases(tmp_path, BRATS)
