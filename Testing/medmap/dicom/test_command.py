"""``medmap segment STUDY`` as a user meets it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from generated_study import IDENTIFIER, NAME, Scan, write_series, write_study
from pydicom.uid import generate_uid
from Testing.medmap.dicom.command_line import medmap

SECRETS = (*NAME.split("^"), IDENTIFIER, "1940", "20240102", "2024-01-02", "Arzt")


@pytest.fixture(scope="module")
def result(study_folder, tiny_bundle_path, tmp_path_factory):
    """Folder of a finished run, and the run."""
    output = tmp_path_factory.mktemp("results") / "result"
    run = medmap(
        "segment", study_folder, "-o", output, "--bundle", tiny_bundle_path, "--device", "cpu"
    )
    assert run.returncode == 0, run.stderr
    return output, run


def test_a_study_gives_results_in_nifti_and_in_dicom(result):
    output, run = result
    names = {path.name for path in output.iterdir()}
    expected = {
        "segmentation.nii.gz",
        "overlay.png",
        "report.json",
        "segmentation.dcm",
        "regions.dcm",
        "measurements.dcm",
    }
    assert expected <= names
    for name in expected:
        assert name in run.stdout


def test_nifti_and_dicom_hold_the_same_voxels(result):
    import highdicom

    from medmap.task import BRATS

    output, _ = result
    labels = np.asarray(nib.load(output / "segmentation.nii.gz").dataobj)
    segmentation = highdicom.seg.segread(output / "segmentation.dcm")
    assert labels.any()
    # The volume of the segments spans only the slices with labels; its affine is in LPS.
    volume = segmentation.get_volume(combine_segments=False)
    counts = np.asarray(volume.array).reshape(-1, len(BRATS.labels)).sum(axis=0)
    for label, count in zip(BRATS.labels, counts, strict=True):
        assert count == np.sum(labels == label.value)


def test_nothing_identifying_leaves_the_study_but_in_dicom(result, study_folder):
    output, run = result
    texts = [run.stdout, run.stderr, *(path.name for path in output.iterdir())]
    for path in output.iterdir():
        if path.suffix in (".json", ".png"):
            texts.append(path.read_bytes().decode("latin-1"))
    texts.append(nib.load(output / "segmentation.nii.gz").header.binaryblock.decode("latin-1"))
    for text in texts:
        # The digests of files are new in each run, and contain the digits of a year now and then.
        readable = re.sub("[0-9a-f]{64}", "", text)
        for secret in SECRETS:
            assert secret not in readable
    assert study_folder.name not in run.stdout + run.stderr


def test_the_report_tells_what_each_series_was_taken_for(result):
    output, _ = result
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    entries = {entry["series"]: entry for entry in report["dicom"]["series"]}
    assert entries["7"]["modality"] == "t1ce"
    assert entries["9"]["reason"] == "the same images as series 7"
    assert "modality" not in entries["1"]


def test_the_study_is_not_changed(study_folder, tiny_bundle_path, tmp_path):
    def content():
        files = sorted(path for path in study_folder.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = content()
    medmap("segment", study_folder, "--list")
    assert content() == before


def test_the_list_shows_every_series_with_a_reason_and_writes_nothing(
    study_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = medmap("segment", study_folder, "--list")
    assert run.returncode == 0, run.stderr
    for description in ("localizer", "t1_se_tra KM", "t2_tirm_tra_dark-fluid", "T2W TSE cor"):
        assert description in run.stdout
    assert "the same images as series 7" in run.stdout
    for secret in SECRETS:
        assert secret not in run.stdout + run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_chosen_series_is_used(study_folder, tiny_bundle_path):
    run = medmap("segment", study_folder, "--list", "--series", "T1ce=9", "--series", "T2=none")
    rows = [line for line in run.stdout.splitlines() if "t1_se_tra KM" in line]
    assert "chosen" in rows[1]
    assert "T1ce" in rows[1]


def with_second_flair(scans, folder):
    flair = next(scan for scan in scans if scan.number == 4)
    changed = vars(flair) | {
        "number": 12,
        "series_uid": generate_uid(),
        "array": np.roll(flair.array, 1, axis=0),
    }
    return write_study(folder, [*scans, Scan(**changed)])


def test_an_ambiguous_study_is_asked_about(scans, tmp_path):
    study = with_second_flair(scans, tmp_path)
    run = medmap("segment", study, "-o", tmp_path / "result")
    assert run.returncode == 65
    cause, remedy = run.stderr.strip().splitlines()[-2:]
    assert cause.startswith("error: FLAIR may be series 4 (")
    assert "or 12 (" in cause
    assert remedy.endswith("(--series FLAIR=4).")
    assert not (tmp_path / "result").exists()


def test_two_visits_are_asked_about(scans, tmp_path):
    study = write_study(tmp_path, scans)
    later = Scan(**(vars(scans[1]) | {"date": "20240401", "series_uid": generate_uid()}))
    write_series(study / "later", later)
    run = medmap("segment", study, "-o", tmp_path / "result")
    assert run.returncode == 65
    assert "2 (90 days later, 1 series)" in run.stderr
    assert "--study" in run.stderr
    chosen = medmap("segment", study, "--list", "--study", "2")
    assert chosen.returncode == 0
    assert "localizer" not in chosen.stdout


def test_invalid_values_are_not_quoted_in_warnings(scans, tmp_path):
    invalid = {"PatientBirthDate": NAME, "AcquisitionTime": NAME, "FrameOfReferenceUID": NAME}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path, replace(scans[1], extra=invalid))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = medmap("segment", tmp_path, "--list")
    assert run.returncode == 0, run.stderr
    texts = [run.stdout, run.stderr, *(str(warning.message) for warning in caught)]
    for secret in NAME.split("^"):
        assert not any(secret in text for text in texts)


def test_a_directory_file_stands_for_its_folder(scans, tmp_path):
    write_series(tmp_path, scans[1])
    (tmp_path / "DICOMDIR").touch()
    run = medmap("segment", tmp_path / "DICOMDIR", "--list")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--list"], 2, "about a DICOM study"),
        (["--series", "FLAIR=3"], 2, "about a DICOM study"),
        (["{study}"], 2, "--output"),
        (["{study}", "--t1", "t1.nii.gz", "-o", "r"], 2, "Give the study or the files"),
        (["{study}", "-o", "r", "--series", "FLAIR"], 2, "--series FLAIR=12"),
        (["{study}", "-o", "r", "--series", "FLAIR=77"], 2, "There is no series 77"),
        (["{study}", "-o", "r", "--series", "FLAIR=1"], 65, "has only 7 slices"),
        (["{file}", "-o", "r"], 2, "a file, not a folder"),
        (["{nothing}", "-o", "r"], 66, "no such folder"),
        (["{empty}", "-o", "r"], 66, "no DICOM files"),
    ],
)
def test_misuse_is_explained_without_names(study_folder, tmp_path, arguments, code, text):
    empty = tmp_path / "Mustermann"
    empty.mkdir()
    places = {
        "study": study_folder,
        "file": next(study_folder.rglob("*.dcm")),
        "nothing": tmp_path / "Mustermann2",
        "empty": empty,
    }
    given = [str(part).format(**places) for part in arguments]
    run = medmap("segment", *given)
    assert run.returncode == code, run.stderr
    assert text in run.stderr
    assert "Traceback" not in run.stderr
    assert "Mustermann" not in run.stderr


def test_a_missing_library_names_the_extra(study_folder, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "pydicom" else find_spec(name, *rest),
    )
    run = medmap("segment", study_folder, "--list")
    assert run.returncode == 69
    assert "medmap[clinic]" in run.stderr


def test_a_run_that_fails_leaves_nothing_behind(study_folder, tmp_path):
    broken = tmp_path / "study"
    shutil.copytree(study_folder, broken)
    file = sorted((broken / "S002").iterdir())[3]
    file.write_bytes(file.read_bytes()[:-500])
    run = medmap("segment", broken, "-o", tmp_path / "result")
    assert run.returncode == 65
    assert "Series 2: the pixels of a file are damaged" in run.stderr
    assert not (tmp_path / "result").exists()
