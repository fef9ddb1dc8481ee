"""What the values of label files mean is decided for a cohort, stated, and never guessed."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from medmap.errors import InputDataError, UsageError
from medmap.io.cases import Case
from medmap.io.labels import read_case_labels, recognize_file, with_conventions
from medmap.io.nifti import read_nifti, write_volume
from medmap.task import BRATS, MYOPS, Label, Task
from medmap.task.conventions import (
    distinct_values,
    find_convention,
    names_of_conventions,
    recognize,
)

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def label_file(path, *values):
    """A label map whose voxels take the values in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((6, 6, 6), np.float32)
    array.flat[: len(values)] = values
    write_volume(path, array, AFFINE)
    return path


def convention_of(cases, chosen=""):
    """Names of the conventions of a cohort, from the values by case."""
    reading = recognize(cases, BRATS, chosen)
    return {entry.name for entry in reading.conventions.values()}


@pytest.mark.parametrize(
    ("case", "values", "expected"),
    [
        ("deepmedic_brats_2013_pat0001_1", (1, 2, 3, 4), "brats2012"),
        ("brats_tcia_pat105_0001", (1, 2, 4), "brats2012"),
        ("Brats18_2013_2_1", (1, 2, 4), "brats2017"),
        ("BraTS20_Training_001", (1, 2, 4), "brats2017"),
        ("BraTS2021_00006", (2, 4), "brats2017"),
        ("BraTS-GLI-00012-000", (1, 2, 3), "brats2023"),
        ("BraTS-SSA-00002-000", (2,), "brats2023"),
        ("BraTS-MEN-00004-000", (1, 2, 3), "brats2023"),
        ("BraTS-GLI-02060-100", (1, 2, 4), "brats2024"),
        ("BraTS-GLI-00005-101", (1, 2, 3, 4), "brats2024"),
        ("BraTS-MET-00110-000", (1, 2, 3, 4), "brats2024"),
        ("BraTS-PED-00001-000", (1, 2, 3), "brats-ped"),
        ("BraTS-PED-00001-000", (1, 2, 4), "brats-ped"),
        ("BRATS_001", (1, 2, 3), "msd"),
        # Relabeled files keep the names of their release.
        ("BraTS-SSA-00002-000", (1, 2, 4), "brats2017"),
        ("BRATS_001", (1, 2, 4), "brats2017"),
        ("patient7", (1, 2, 4), "brats2017"),
        ("patient7", (1, 2, 3), "brats2023"),
        ("patient7", (), "brats2017"),
    ],
)
def test_a_convention_is_recognized_by_the_names_of_the_cases(case, values, expected):
    reading = recognize({case: values}, BRATS)
    assert reading.conventions[case].name == expected
    assert reading.conventions[case].description in reading.statement


@pytest.mark.parametrize("values", [(3, 4), (1, 2, 3, 4)])
def test_three_beside_four_is_refused_without_a_name(values):
    with pytest.raises(InputDataError, match="several meanings") as error:
        recognize({"patient7": values}, BRATS)
    assert "brats2012, brats2024, brats-ped" in error.value.remedy
    assert error.value.option.startswith("labels ")


def test_the_cohort_decides_not_the_file():
    """One file holds 3, another 4: each by itself would be read in another way."""
    with pytest.raises(InputDataError, match="several meanings"):
        recognize({"a": (1, 2, 3), "b": (1, 2, 4)}, BRATS)
    cases = {"brats_2013_pat0001_1": (1, 3), "brats_2013_pat0002_1": (2, 4)}
    assert convention_of(cases) == {"brats2012"}


def test_cases_of_two_releases_are_read_as_each_release_writes_them():
    reading = recognize({"BraTS2021_00006": (1, 2, 4), "BraTS-GLI-00012-000": (1, 2, 3)}, BRATS)
    assert reading.conventions["BraTS2021_00006"].name == "brats2017"
    assert reading.conventions["BraTS-GLI-00012-000"].name == "brats2023"
    assert reading.statement.count("Label values as in") == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS2013", "brats2012"),
        ("brats2018", "brats2017"),
        ("brats-2021", "brats2017"),
        ("brats2023", "brats2023"),
        ("BRATS2025", "brats2024"),
        ("brats_ped", "brats-ped"),
        ("MSD", "msd"),
    ],
)
def test_a_year_names_its_convention(name, expected):
    assert find_convention(name, BRATS).name == expected


def test_the_chosen_convention_counts_more_than_any_name():
    assert convention_of({"BraTS-GLI-00005-101": (3, 4)}, "brats2012") == {"brats2012"}
    assert convention_of({"patient7": (3, 4)}, "BraTS-PED") == {"brats-ped"}
    with pytest.raises(UsageError, match="'brats1999'"):
        recognize({"a": (1,)}, BRATS, "brats1999")
    with pytest.raises(UsageError, match="has not"):
        recognize({"a": (1,)}, MYOPS, "brats2023")
    assert names_of_conventions(MYOPS) == ("task",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("brats2012", (1, 2, 1, 4)),
        ("brats2024", (1, 2, 4, 0)),
        ("brats-ped", (4, 1, 1, 2)),
    ],
)
def test_values_become_the_task_s_own(name, expected):
    labels = np.array([1, 2, 3, 4], np.int16)
    converted = find_convention(name, BRATS).to_task(labels, BRATS, "seg.nii.gz")
    assert converted.tolist() == list(expected)
    assert converted.dtype == BRATS.label_dtype


def test_a_task_that_segments_the_cavity_keeps_it():
    cavity = Label("RC", "Resection cavity", 5)
    task = replace(BRATS, name="post", labels=(*BRATS.labels, cavity))
    converted = find_convention("brats2024", task).to_task(np.array([3, 4]), task, "seg")
    assert converted.tolist() == [4, 5]


def test_msd_exchanges_edema_and_core():
    converted = find_convention("msd", BRATS).to_task(np.array([1, 2, 3]), BRATS, "seg")
    assert converted.tolist() == [2, 1, 4]


def test_almost_whole_numbers_are_whole(tmp_path):
    path = label_file(tmp_path / "seg.nii", 0.9999999, 2.0000002, 3.9999998)
    volume = read_nifti(path)
    convention, _ = recognize_file(path, BRATS, volume)
    labels = convention.to_task(volume.array, BRATS, path.name)
    assert np.unique(labels).tolist() == [0, 1, 2, 4]


def test_fractions_are_shown_with_digits(tmp_path):
    path = label_file(tmp_path / "seg.nii", 0.99, 2)
    with pytest.raises(InputDataError, match=r"fractions such as 0\.99,"):
        recognize_file(path, BRATS, read_nifti(path))


def test_a_cohort_is_read_with_one_convention_and_unknown_values_concern_their_case(tmp_path):
    cases = []
    for name, values in (("a", (1, 3)), ("b", (2, 3)), ("c", (1, 7))):
        cases.append(Case(name, {}, label_file(tmp_path / name / "seg.nii", *values)))
    decided, reading = with_conventions(cases, BRATS)
    assert {case.convention.name for case in decided} == {"brats2023"}
    assert "by the values that occur (1, 2, 3)" in reading.statement
    assert set(np.unique(read_case_labels(decided[0], BRATS).array)) == {0, 1, 4}
    with pytest.raises(InputDataError, match="the label values 7"):
        read_case_labels(decided[2], BRATS)


def test_a_file_is_named_by_itself_or_by_its_folder(tmp_path):
    path = label_file(tmp_path / "brats_2013_pat0001_1" / "seg.nii", 1, 2, 3, 4)
    assert recognize_file(path, BRATS, read_nifti(path))[0].name == "brats2012"
    path = label_file(tmp_path / "any" / "BraTS-PED-00001-000-seg.nii", 1, 2, 3)
    assert recognize_file(path, BRATS, read_nifti(path))[0].name == "brats-ped"


def test_the_values_of_other_releases_are_no_part_of_bundles_any_more():
    data = BRATS.to_dict()
    data["labels"][2]["also"] = [3]
    data["labels"][0]["beside"] = [[3, 4]]
    assert Task.from_dict(data) == BRATS


def test_distinct_values_are_those_of_numpy():
    rng = np.random.default_rng(3)
    few = rng.choice([0, 1, 2, 4], (20, 21, 22)).astype(np.uint8)
    many = rng.integers(-300, 300, (20, 21, 22)).astype(">i2")
    for array in (few, np.asfortranarray(few), many, np.zeros((2, 2, 2), int)):
        assert distinct_values(array) == np.unique(array).tolist()


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_scaled_label_files_are_read_as_numbers(tmp_path, slope):
    path = tmp_path / "brats_2013_pat0001_1_seg.nii"
    array = (np.arange(125).reshape(5, 5, 5) % 5 / slope).astype(np.int16)
    image = nib.Nifti1Image(array, AFFINE)
    image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    (case,), _ = with_conventions([Case("P", {}, path)], BRATS, "brats2012")
    assert set(np.unique(read_case_labels(case, BRATS).array)) == {0, 1, 2, 4}
    with pytest.raises(InputDataError, match="1, 2, 3, 4"):
        with_conventions([Case("P", {}, path)], BRATS)
