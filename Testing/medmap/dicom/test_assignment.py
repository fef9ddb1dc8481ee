"""Series become modalities for reasons, and what is open is asked."""

from __future__ import annotations

import numpy as np
import pytest
from generated_study import Scan, grid_affine, write_series
from pydicom.uid import generate_uid

from medmap.detection.sequence_parameters import SequenceParameters
from medmap.dicom.study import assign_modalities, choose_study, read_studies
from medmap.errors import InputDataError, UsageError
from medmap.task import BRATS

SPIN, INVERSION = ("SE",), ("SE", "IR")
T1_TIMING, T2_TIMING, FLAIR_TIMING = (500, 12, None), (4000, 100, None), (9000, 90, 2500)


def study_of(folder, *entries):
    """A study of small series: (number, description, timing, changes)."""
    for number, description, timing, changes in entries:
        rng = np.random.default_rng(number)
        array = rng.uniform(0, 900, (16, 20, 10))
        affine = grid_affine(array.shape, (1.5, 2.0, 4.0))
        sequence = INVERSION if timing[2] else SPIN
        given = {"timing": timing, "sequence": sequence, "series_uid": generate_uid()}
        scan = Scan(number, description, array, affine, **(given | changes))
        write_series(folder / str(number), scan)
    studies, _ = read_studies(folder)
    return choose_study(studies, None)


def by_modality(assignment):
    return {name: series.key for name, series in assignment.chosen.items()}


def test_the_generated_study_is_assigned_with_reasons(study_folder):
    studies, remarks = read_studies(study_folder)
    assignment = assign_modalities(choose_study(studies, None), BRATS)
    assert remarks == []
    assert by_modality(assignment) == {"t1": "2", "t1ce": "7", "t2": "5", "flair": "4"}
    assert assignment.questions == ()
    reasons = {choice.series.key: choice.reason for choice in assignment.choices}
    assert reasons["9"] == "the same images as series 7"
    assert reasons["1"] == "it has only 7 slices, as a planning scan has"
    assert reasons["7"] == "the series description says 't1' and 'km' (95% sure)"


def test_two_series_that_fit_are_asked_about(tmp_path):
    study = study_of(
        tmp_path, (5, "AX FLAIR", FLAIR_TIMING, {}), (12, "SAG FLAIR", FLAIR_TIMING, {})
    )
    assignment = assign_modalities(study, BRATS)
    assert by_modality(assignment) == {}
    assert assignment.questions == (
        "FLAIR may be series 5 ('AX FLAIR', 10 slices of 4 mm) or "
        "12 ('SAG FLAIR', 10 slices of 4 mm).",
    )
    assert assignment.example == "FLAIR=5"
    answered = assign_modalities(study, BRATS, {"flair": "12"})
    assert by_modality(answered) == {"flair": "12"}
    assert answered.questions == ()


def test_a_modality_can_be_left_out(tmp_path):
    study = study_of(tmp_path, (5, "AX FLAIR", FLAIR_TIMING, {}), (6, "AX T2", T2_TIMING, {}))
    assignment = assign_modalities(study, BRATS, {"t2": "none"})
    assert by_modality(assignment) == {"flair": "5"}


def test_an_original_wins_over_its_reformat(tmp_path):
    reformat = {"image_type": ("DERIVED", "SECONDARY", "MPR")}
    study = study_of(
        tmp_path, (5, "T1 3D KM", T1_TIMING, {}), (6, "T1 3D KM tra", T1_TIMING, reformat)
    )
    assignment = assign_modalities(study, BRATS)
    assert by_modality(assignment) == {"t1ce": "5"}
    assert assignment.choices[1].reason == "a reformat; series 5 is an original"


def test_the_corrected_version_of_an_acquisition_wins(tmp_path):
    norm = {"image_type": ("ORIGINAL", "PRIMARY", "M", "NORM", "DIS2D")}
    time = {"extra": {"AcquisitionTime": "101700"}}
    study = study_of(
        tmp_path,
        (5, "t2_tse_tra", T2_TIMING, time),
        (6, "t2_tse_tra", T2_TIMING, norm | time),
    )
    assignment = assign_modalities(study, BRATS)
    assert by_modality(assignment) == {"t2": "6"}
    assert assignment.choices[0].reason == "series 6 is the same with corrections"


def test_two_acquisitions_of_one_name_are_asked_about_whatever_their_corrections(tmp_path):
    norm = {"image_type": ("ORIGINAL", "PRIMARY", "M", "NORM")}
    study = study_of(
        tmp_path,
        (5, "t1_tse_tra", T1_TIMING, {"extra": {"AcquisitionTime": "101700"}}),
        (6, "t1_tse_tra", T1_TIMING, norm | {"extra": {"AcquisitionTime": "103100"}}),
    )
    assignment = assign_modalities(study, BRATS)
    assert by_modality(assignment) == {}
    assert assignment.questions


def test_a_reformat_without_its_original_is_used(tmp_path):
    reformat = {"image_type": ("DERIVED", "SECONDARY", "MPR")}
    study = study_of(tmp_path, (6, "T1 3D KM tra", T1_TIMING, reformat))
    assert by_modality(assign_modalities(study, BRATS)) == {"t1ce": "6"}


def test_the_timing_decides_where_names_say_nothing(tmp_path):
    study = study_of(tmp_path, (5, "Kopf 1", FLAIR_TIMING, {}), (6, "Kopf 2", T2_TIMING, {}))
    assignment = assign_modalities(study, BRATS)
    assert by_modality(assignment) == {"t2": "6", "flair": "5"}
    assert "TR 9000 ms, TE 90 ms, TI 2500 ms is the timing of FLAIR" in (
        assignment.choices[0].reason
    )


def test_a_t1_timing_alone_is_asked_about_for_it_may_be_a_t1ce(tmp_path):
    study = study_of(tmp_path, (5, "Kopf 1", T1_TIMING, {}))
    assignment = assign_modalities(study, BRATS)
    assert by_modality(assignment) == {}
    assert len(assignment.questions) == 1


def test_a_name_that_the_timing_contradicts_is_asked_about(tmp_path):
    study = study_of(tmp_path, (5, "AX T2", FLAIR_TIMING, {}))
    assignment = assign_modalities(study, BRATS)
    assert by_modality(assignment) == {}
    assert "but TR 9000 ms" in " ".join(assignment.questions)


def test_a_recorded_agent_distinguishes_two_series_of_one_name(tmp_path):
    agent = {"extra": {"ContrastBolusAgent": "Gadovist"}}
    study = study_of(tmp_path, (3, "AX T1", T1_TIMING, {}), (8, "AX T1", T1_TIMING, agent))
    assert by_modality(assign_modalities(study, BRATS)) == {"t1": "3", "t1ce": "8"}


def test_a_choice_that_does_not_exist_names_those_that_do(tmp_path):
    study = study_of(tmp_path, (5, "AX FLAIR", FLAIR_TIMING, {}))
    with pytest.raises(UsageError) as caught:
        assign_modalities(study, BRATS, {"flair": "12"})
    assert str(caught.value) == "There is no series 12. The study has the series 5."


def test_a_chosen_series_that_is_no_volume_is_refused_with_the_reason(tmp_path):
    phase = {"image_type": ("ORIGINAL", "PRIMARY", "P", "ND")}
    study = study_of(tmp_path, (5, "SWI", T1_TIMING, phase))
    with pytest.raises(InputDataError, match="its voxels are the phase of the signal"):
        assign_modalities(study, BRATS, {"t1": "5"})


def test_one_series_is_not_two_modalities(tmp_path):
    study = study_of(tmp_path, (5, "AX T1", T1_TIMING, {}))
    with pytest.raises(UsageError, match="chosen for two modalities"):
        assign_modalities(study, BRATS, {"t1": "5", "t2": "5"})


@pytest.mark.parametrize(
    ("timing", "sequence", "contrast"),
    [
        ((9000, 120, 2500), INVERSION, "flair"),
        ((5000, 390, 1800), INVERSION, "flair"),
        ((4000, 100, float("nan")), SPIN, "t2"),
        ((3200, 400, float("nan")), SPIN, "t2"),
        ((500, 12, float("nan")), SPIN, "t1"),
        ((5000, 60, 150), INVERSION, ""),
        ((2500, 20, 900), INVERSION, ""),
        ((2000, 3, 900), ("GR", "IR"), "t1"),
        ((800, 25, float("nan")), ("GR",), ""),
        ((3000, 80, float("nan")), ("EP",), ""),
        ((float("nan"),) * 3, (), ""),
    ],
)
def test_timings_give_the_contrast_that_is_beyond_doubt(timing, sequence, contrast):
    assert SequenceParameters(*timing, sequence).contrast() == contrast
