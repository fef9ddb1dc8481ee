"""Age from DICOM and what the user marked: warnings that go with a result."""

from __future__ import annotations

import pytest

slicer = pytest.importorskip("slicer")

from MedMAPSegmentLib.mrml.patient import (  # noqa: E402
    OTHER_TUMOR,
    SURGERY,
    Patient,
    ageOf,
    isMarked,
    mark,
    patientOf,
    studyDateOf,
)


@pytest.fixture
def volume():
    """A volume under a study under a patient in the subject hierarchy, as DICOM import makes it."""
    scene = slicer.vtkMRMLScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "FLAIR")
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    hierarchy.CreateItem(study, node)
    return scene, hierarchy, patient, study, node


def test_without_dicom_nothing_is_known(volume):
    scene, _, _, _, node = volume
    assert ageOf(scene, node) is None
    assert studyDateOf(scene, node) == ""


def test_the_age_is_that_at_the_examination(volume):
    scene, hierarchy, patient, study, node = volume
    hierarchy.SetItemAttribute(patient, "DICOM.PatientBirthDate", "20140601")
    hierarchy.SetItemAttribute(study, "DICOM.StudyDate", "20240531")
    assert ageOf(scene, node) == pytest.approx(10.0, abs=0.01)
    assert studyDateOf(scene, node) == "2024-05-31"


@pytest.mark.parametrize(
    ("text", "years"), [("017Y", 17), ("006M", 0.5), ("003W", 0.057), ("010D", 0.027)]
)
def test_every_unit_of_a_dicom_age_is_read(volume, text, years):
    scene, _, _, _, node = volume
    node.SetAttribute("DICOM.PatientAge", text)
    assert ageOf(scene, node) == pytest.approx(years, rel=0.02)


def test_the_database_is_asked_where_the_scene_does_not_say(volume):
    scene, _, _, _, node = volume
    assert ageOf(scene, node, lambda asked: {"PatientAge": "012Y"}) == 12
    node.SetAttribute("DICOM.PatientAge", "040Y")
    assert ageOf(scene, node, lambda asked: {"PatientAge": "012Y"}) == 40


@pytest.mark.parametrize("text", ["", "old", "17", "20241301", "99999999"])
def test_what_is_no_date_and_no_age_says_nothing(volume, text):
    scene, hierarchy, patient, study, node = volume
    node.SetAttribute("DICOM.PatientAge", text)
    hierarchy.SetItemAttribute(patient, "DICOM.PatientBirthDate", text)
    hierarchy.SetItemAttribute(study, "DICOM.StudyDate", "20240531")
    assert ageOf(scene, node) is None


def test_an_adult_before_surgery_needs_no_warning():
    assert Patient(age_years=18.0).warnings == ()
    assert Patient().warnings == ()


def test_children_surgery_and_other_tumors_are_warned_of():
    messages = [f.message for f in Patient(7.2, afterSurgery=True, otherTumor=True).warnings]
    assert "7 years" in messages[0]
    assert "after surgery" in messages[1]
    assert "another kind" in messages[2]
    assert "less than a year" in Patient(0.4).warnings[0].message


def test_marks_are_kept_in_the_scene(volume):
    scene, _, _, _, node = volume
    parameters = scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    mark(parameters, SURGERY, True)
    assert isMarked(parameters, SURGERY)
    assert not isMarked(parameters, OTHER_TUMOR)
    assert patientOf(scene, [node], parameters).afterSurgery
    mark(parameters, SURGERY, False)
    assert not isMarked(parameters, SURGERY)
