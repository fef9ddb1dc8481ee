"""Folds are stratified, divide no patient, and are read from nnU-Net's files as well."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from medmap.errors import InputDataError, UsageError
from medmap.evaluation.folds import (
    CaseTable,
    check_folds,
    make_folds,
    patient_of,
    patients_of,
    strata_of,
)
from medmap.training.splits import read_folds, read_split


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005"),
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("BraTS-PED-00012-000", "BraTS-PED-00012"),
        ("sub-07_ses-02", "sub-07"),
        ("sub-07_ses-pre", "sub-07"),
        ("PatientID_0003_Timepoint_1", "PatientID_0003"),
        ("Patient-001_week-000-1", "Patient-001"),
        ("BraTS20_Training_355", "BraTS20_Training_355"),
        ("Brats18_TCIA01_131_1", "Brats18_TCIA01_131_1"),
        ("UCSF-PDGM-0004", "UCSF-PDGM-0004"),
        ("subject_scanner2", "subject_scanner2"),
    ],
)
def test_patients_are_recognized_by_the_names_of_their_cases(case, patient):
    assert patient_of(case) == patient


def cohort(count=60):
    """Patients with two examinations each; a quarter of them from site B."""
    cases = [f"BraTS-GLI-{n // 2:05d}-10{n % 2}" for n in range(count)]
    patients = {case: patient_of(case) for case in cases}
    strata = {case: "B" if int(case[10:15]) % 4 == 0 else "A" for case in cases}
    return cases, patients, strata


def test_folds_spread_strata_and_divide_no_patient():
    cases, patients, strata = cohort()
    folds = make_folds(patients, strata, folds=5, test_share=0.0, seed=3)
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(cases)
    for fold in folds:
        assert sorted([*fold["train"], *fold["val"]]) == sorted(cases)
        trained = {patients[name] for name in fold["train"]}
        assert not trained & {patients[name] for name in fold["val"]}
        counts = Counter(strata[name] for name in fold["val"])
        assert abs(counts["A"] + counts["B"] - 12) <= 2
        # 16 cases of 8 patients from site B in five folds: 2 or 4 each.
        assert 2 <= counts["B"] <= 4
    assert folds == make_folds(patients, strata, folds=5, test_share=0.0, seed=3)
    assert folds != make_folds(patients, strata, folds=5, test_share=0.0, seed=4)


def test_a_test_part_is_kept_aside_from_all_folds():
    _, patients, strata = cohort()
    folds = make_folds(patients, strata, folds=3, test_share=0.2, seed=0)
    tests = {fold["test"] for fold in folds}
    assert len(tests) == 1
    test = tests.pop()
    assert 10 <= len(test) <= 14
    for fold in folds:
        assert not set(test) & {*fold["train"], *fold["val"]}
    assert check_folds(folds, patients) == ([], [])


def test_rare_strata_and_few_patients_do_not_stop_anything():
    names = [f"case{n}" for n in range(10)]
    strata = dict.fromkeys(names, "common") | {"case3": "rare"}
    folds = make_folds({name: name for name in names}, strata, folds=5, test_share=0, seed=0)
    assert [len(fold["val"]) for fold in folds] == [2] * 5
    with pytest.raises(UsageError, match="10 patients cannot be divided into 11"):
        make_folds({name: name for name in names}, strata, folds=11, test_share=0, seed=0)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_give_patients_and_strata(tmp_path, separator):
    rows = [("Case", "Patient", "Site", "Grade"), ("a", "p", "X", "4"), ("b", "p", "X", "2")]
    text = "\n".join(separator.join(row) for row in rows)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    table = CaseTable.read(tmp_path / "t.csv")
    assert patients_of(["a", "b"], table) == {"a": "p", "b": "p"}
    assert strata_of(["a", "b"], table, ["site", "grade"]) == {"a": "X 4", "b": "X 2"}
    with pytest.raises(InputDataError, match="no site for 1 of 3 cases, such as c"):
        strata_of(["a", "b", "c"], table, ["site"])
    with pytest.raises(UsageError, match="needs a table"):
        strata_of(["a"], None, ["site"])


def test_faults_of_folds_are_all_named():
    _, patients, _ = cohort(8)
    first, second, third, *others = sorted(patients)
    faulty = [
        {"train": (first, *others), "val": (second,)},
        {"train": (third,), "val": (second, "nobody")},
    ]
    faults, remarks = check_folds(faulty, patients)
    text = " ".join(faults)
    assert "Fold 0: 1 patients are divided, such as BraTS-GLI-00000 between train and val" in text
    assert "Fold 1: 1 cases are not in the data, such as nobody" in text
    assert "1 cases are validated in several folds" in text
    assert "7 cases on disk are validated in no fold" in " ".join(remarks)


def test_files_of_folds_are_read(tmp_path):
    entries = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]
    nnunet = tmp_path / "splits_final.json"
    nnunet.write_text(json.dumps(entries))
    assert read_split(nnunet, 1) == {"train": ("a", "c"), "val": ("b",)}
    own = tmp_path / "folds.json"
    own.write_text(json.dumps({"about": "two folds", "folds": entries, "test": ["t"]}))
    assert read_split(own, 0) == {"train": ("a", "b"), "val": ("c",), "test": ("t",)}
    with pytest.raises(UsageError, match="has 2 folds") as error:
        read_split(own)
    assert error.value.option == "fold"
    with pytest.raises(UsageError, match="has no fold 2"):
        read_split(own, 2)
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({"train": ["a"]}))
    assert read_folds(plain) is None
    with pytest.raises(UsageError, match="has no folds"):
        read_split(plain, 0)
    own.write_text(json.dumps([{"train": ["a", "c"], "val": ["c"]}]))
    with pytest.raises(InputDataError, match=r"fold 0 of folds\.json are named twice"):
        read_folds(own)
