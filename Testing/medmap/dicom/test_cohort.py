"""``medmap segment-cohort`` over many DICOM studies."""

from __future__ import annotations

import csv
import json

import pytest
from generated_study import NAME, Scan, write_series
from pydicom.uid import generate_uid
from Testing.medmap.dicom.command_line import medmap

from medmap.commands import cohort as cohort_command
from medmap.commands.cohort import CohortOptions, segment_cohort
from medmap.commands.cohort_studies import SeriesChoice
from medmap.errors import UsageError


def patient(folder, scans, number, second_flair=False):
    """One more patient with the same images, in a folder with a patient's name."""
    for scan in scans:
        changed = vars(scan) | {
            "patient": (f"Patient{number}^Erika", f"ID{number}"),
            "study_uid": f"1.2.826.0.1.3680043.8.498.{number}",
            "series_uid": generate_uid(),
        }
        write_series(folder / f"Mustermann_{number}" / str(scan.number), Scan(**changed))
        if second_flair and scan.number == 4:
            again = changed | {
                "number": 12,
                "series_uid": generate_uid(),
                "array": scan.array * 0.5,
            }
            write_series(folder / f"Mustermann_{number}" / "12", Scan(**again))


@pytest.fixture
def cohort(tmp_path, scans):
    folder = tmp_path / "studies"
    two = [scan for scan in scans if scan.number in (4, 7)]
    patient(folder, two, 1)
    patient(folder, two, 2, second_flair=True)
    patient(folder, two, 3)
    return folder


def run(cohort, output, bundle, **options):
    options = CohortOptions(bundle=bundle, device="cpu", **options)
    return segment_cohort(cohort, output, options, lambda fraction, text: None)


@pytest.mark.slow
def test_studies_are_cases_without_names_and_unchanged_ones_are_kept(
    cohort, tmp_path, tiny_bundle_path
):
    output = tmp_path / "results"
    result = run(cohort, output, tiny_bundle_path)
    by_state = {row["state"]: row for row in result.rows}
    assert sorted(row["state"] for row in result.rows) == ["done", "done", "failed"]
    assert "FLAIR may be series 4" in by_state["failed"]["error"]
    assert "--series" in by_state["failed"]["error"]
    done = by_state["done"]["case"]
    assert (output / done / "segmentation.dcm").exists()
    texts = [str(path.relative_to(output)) for path in output.rglob("*")]
    texts.append((output / "results.csv").read_text(encoding="utf-8"))
    for path in output.rglob("*.json"):
        texts.append(path.read_text(encoding="utf-8"))
    for text in texts:
        for secret in ("Mustermann", NAME.split("^")[1], "Patient1", "ID1"):
            assert secret not in text
    # Of the two that are done, one changes.
    file = sorted((cohort / "Mustermann_3" / "7").iterdir())[20]
    content = bytearray(file.read_bytes())
    content[-300:] = b"\x01\x02" * 150
    file.write_bytes(content)
    again = run(cohort, output, tiny_bundle_path)
    assert sorted(row["state"] for row in again.rows) == ["done", "failed", "kept"]
    with (output / "results.csv").open(encoding="utf-8", newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3


# What a user of medmap segment finds again: --list, --series, --prepare.


@pytest.fixture
def in_process(monkeypatch):
    """Cases are segmented here, so that a test pays for no second Python."""

    def here(jobs, options):
        for job in jobs:
            yield cohort_command.segment_job(job)

    monkeypatch.setattr(cohort_command, "_by_processes", here)


def names_of(cohort) -> list[str]:
    """Names of the studies, in the order of the patients' folders."""
    from medmap.commands.cohort_studies import find_studies

    studies, _ = find_studies(cohort)
    by_folder = {}
    for name, study in studies.items():
        by_folder[study.series[0].header.path.parents[1].name] = name
    return [by_folder[folder] for folder in sorted(by_folder)]


def test_the_list_has_a_table_per_study_and_names_no_patient(cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    done = medmap("segment-cohort", cohort, "--list")
    assert done.returncode == 0, done.stderr
    ambiguous = names_of(cohort)[1]
    for number, name in enumerate(names_of(cohort), 1):
        assert f"{name}: folder {number} of 3" in done.stdout
    assert done.stdout.count("t1_se_tra KM") == 3
    assert "FLAIR may be series 4" in done.stdout
    assert f"Answer with --series {ambiguous}:FLAIR=4." in done.stdout
    for secret in ("Mustermann", "Erika", "Patient1", "ID1"):
        assert secret not in done.stdout + done.stderr
    assert set(tmp_path.rglob("*")) == before


def test_a_choice_for_one_study_leaves_the_others_alone(cohort):
    first, second, _ = names_of(cohort)
    done = medmap("segment-cohort", cohort, "--list", "--series", f"{second}:FLAIR=12")
    assert done.returncode == 0, done.stderr
    assert "may be" not in done.stdout
    assert done.stdout.count("chosen") == 1
    # A choice for one study comes before one for all of them.
    both = ("--series", "FLAIR=none", "--series", f"{first}:FLAIR=4")
    done = medmap("segment-cohort", cohort, "--list", *both)
    assert done.stdout.count("chosen") == 1


def test_a_choice_that_one_study_cannot_follow_stops_no_other(cohort):
    names = names_of(cohort)
    done = medmap("segment-cohort", cohort, "--list", "--series", "FLAIR=12")
    assert done.returncode == 1
    assert f"failed: {names[0]}: There is no series 12." in done.stderr
    assert f"failed: {names[2]}: There is no series 12." in done.stderr
    assert done.stdout.count("chosen") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["{cohort}"], 2, "--output"),
        (["{cohort}", "--list", "--series", "FLAIR"], 2, "--series FLAIR=12"),
        (["{cohort}", "-o", "r", "--series", "study-0:FLAIR=4"], 2, "There is no study study-0."),
        (["{cohort}", "-o", "r", "--series", "FLAIRE=4"], 2, "flaire"),
        (["{cohort}", "-o", "r", "--series", "T1=4", "--series", "T1=5"], 2, "given two series"),
        (["{cohort}", "-o", "r", "--prepare", "sometimes"], 2, "'sometimes' does not exist"),
        (["{table}", "--list"], 2, "for DICOM studies only"),
        (["{table}", "-o", "r", "--series", "FLAIR=3"], 2, "for DICOM studies only"),
    ],
)
def test_misuse_is_refused_before_anything_is_computed(cohort, tmp_path, arguments, code, text):
    (tmp_path / "t1.nii.gz").touch()
    table = tmp_path / "cohort.csv"
    table.write_text("case,t1\na,t1.nii.gz\n")
    places = {"cohort": cohort, "table": table}
    done = medmap("segment-cohort", *(part.format(**places) for part in arguments))
    assert done.returncode == code, done.stderr
    assert text.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists()


def test_choices_and_preparation_reach_every_study(cohort, tmp_path, tiny_bundle_path, in_process):
    first, second, third = names_of(cohort)
    choices = (SeriesChoice("FLAIR", "12", second), SeriesChoice("T1ce", "none"))
    output = tmp_path / "results"
    result = run(cohort, output, tiny_bundle_path, series=choices, prepare="never")
    assert [row["scans"] for row in result.rows] == ["flair"] * 3, result.rows
    report = json.loads((output / second / "report.json").read_text(encoding="utf-8"))
    assert report["preparation"]["mode"] == "never"
    used = {entry.get("modality"): entry["series"] for entry in report["dicom"]["series"]}
    assert used["flair"] == "12"
    # The same choices keep the results, another choice makes those anew that it changes.
    other = (SeriesChoice("FLAIR", "4", second), SeriesChoice("T1ce", "none"))
    again = run(cohort, output, tiny_bundle_path, series=other, prepare="never")
    states = {row["case"]: row["state"] for row in again.rows}
    assert states == {first: "kept", second: "done", third: "kept"}


def test_an_unforeseen_fault_of_a_study_names_no_file(
    cohort, tmp_path, tiny_bundle_path, in_process, monkeypatch
):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", str(cohort / "Mustermann_1"))

    monkeypatch.setattr(cohort_command, "segment_assignment", refuse)
    result = run(cohort, tmp_path / "results", tiny_bundle_path, series=())
    errors = [row["error"] for row in result.rows]
    assert "Unexpected PermissionError." in errors
    assert not any("Mustermann" in error for error in errors)


def test_a_modality_that_does_not_exist_is_refused_for_python_too(cohort, tiny_bundle_path):
    choices = (SeriesChoice("FLAIRE", "4"),)
    with pytest.raises(UsageError):
        run(cohort, cohort.parent / "results", tiny_bundle_path, series=choices)
