"""``medmap segment-cohort`` over many DICOM studies."""

from __future__ import annotations

import csv

import pytest
from generated_study import NAME, Scan, write_series
from pydicom.uid import generate_uid

from medmap.commands.cohort import CohortOptions, segment_cohort


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


def run(cohort, output, bundle):
    options = CohortOptions(bundle=bundle, device="cpu")
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
