"""Series are assigned to modalities from evidence alone, and what is open becomes a question."""

from __future__ import annotations

import pytest

from medmap.detection.modality_detection import SeriesEvidence, detect_modalities, score_modalities
from medmap.task import BRATS, MYOPS


def scored(task=BRATS, **evidence):
    result = score_modalities(SeriesEvidence(**evidence), task)
    return {score.modality: score.confidence for score in result.scores}


def test_scores_come_with_reasons():
    result = score_modalities(SeriesEvidence("AX T1 POST"), BRATS)
    (score,) = result.scores
    assert (score.modality, score.confidence) == ("t1ce", 0.95)
    assert score.reason == "the name says 't1' and 'post'"
    assert not result.rejection


def test_a_recorded_agent_shifts_a_plain_t1_and_leaves_a_reason():
    evidence = SeriesEvidence("Ax T1", contrast_agent="Gadovist 8 ml")
    scores = score_modalities(evidence, BRATS).scores
    assert {s.modality: s.confidence for s in scores} == {"t1": 0.45, "t1ce": 0.65}
    assert all("Gadovist 8 ml" in score.reason for score in scores)


def test_the_protocol_counts_only_when_nothing_else_says_anything():
    assert scored(name="Ax T2", protocol="t1_mprage") == {"t2": 0.9}
    assert scored(name="6", protocol="t1_mprage") == {"t1": 0.85}


@pytest.mark.parametrize(
    ("evidence", "rejection"),
    [
        ({"name": "T1", "scanner": "CT"}, "DICOM says CT, not MR"),
        ({"name": "T1", "unusable": "a label map"}, "a label map"),
        ({"name": "T1 mapping"}, "'mapping' means a parameter map"),
        ({"name": "Volume_1"}, "the name says nothing about the modality"),
    ],
)
def test_what_is_no_input_is_rejected_with_a_reason(evidence, rejection):
    result = score_modalities(SeriesEvidence(**evidence), BRATS)
    assert not result.scores
    assert result.rejection == rejection


def test_other_tasks_use_names_and_aliases():
    assert scored(MYOPS, name="patient_c0") == {"bssfp": 0.9}
    assert scored(MYOPS, name="cardiac LGE") == {"lge": 0.9}


def test_assignments_and_questions_refer_to_the_series_that_was_given():
    names = ("T1", "Ax T2 FLAIR", "MPRAGE +C", "Ax T1 POST", "localizer")
    series = [SeriesEvidence(name, source=n) for n, name in enumerate(names)]
    detection = detect_modalities(series, BRATS)
    assert {k: c.series.source for k, c in detection.assigned.items()} == {"t1": 0, "flair": 1}
    (question,) = detection.questions
    assert [candidate.series.source for candidate in question.candidates] == [3, 2]
    assert question.text == "T1ce: 'Ax T1 POST' or 'MPRAGE +C'? Please choose."
    assert [evidence.name for evidence, _ in detection.rejected] == ["localizer"]
    assert "T1: 'T1' (85% sure: the name says 't1')." in detection.text(BRATS)
