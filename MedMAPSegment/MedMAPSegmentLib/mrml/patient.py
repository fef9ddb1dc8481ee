"""What is known of a patient that matters for a model: age from DICOM, and what the user marked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from medmap.checks import Finding

SURGERY, OTHER_TUMOR = "afterSurgery", "otherTumor"
"""Parameters of the panel's parameter node; "true" where the user marked it."""
ADULT_YEARS = 18.0
_DAYS = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}
"""Days per unit of a DICOM age (PS3.5, value representation AS)."""


@dataclass(frozen=True)
class Patient:
    """Facts about a patient.

    Attributes:
        age_years: at the examination, according to DICOM; None if DICOM does not say.
        afterSurgery: the user marked the images as taken after surgery.
        otherTumor: the user marked another kind of tumor than the model's.
    """

    age_years: float | None = None
    afterSurgery: bool = False
    otherTumor: bool = False

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Why the measured performance does not hold for this patient; empty if nothing speaks
        against it.
        """
        findings = []
        remedy = "The measured performance does not apply."
        if self.age_years is not None and self.age_years < ADULT_YEARS:
            age = f"{self.age_years:.0f} years"
            if self.age_years < 1:
                age = "less than a year"
            findings.append(
                _warning(
                    f"The patient is {age} old according to DICOM; the model was made for adults.",
                    remedy,
                )
            )
        if self.afterSurgery:
            findings.append(
                _warning(
                    "The images were taken after surgery; resection cavities and blood may be "
                    "segmented as tumor.",
                    remedy,
                )
            )
        if self.otherTumor:
            findings.append(
                _warning("The tumor is marked as another kind than the model was made for.", remedy)
            )
        return tuple(findings)


def _warning(message: str, remedy: str) -> Finding:
    return Finding("warning", "patient", message, remedy)


TagLookup = Callable[[Any], Mapping[str, str]]
"""DICOM values of a node by keyword."""


def patientOf(
    scene: Any, volumes: Iterable, parameterNode: Any, tags: TagLookup | None = None
) -> Patient:
    """Facts about the patient of some volumes.

    Args:
        scene: vtkMRMLScene with the subject hierarchy that DICOM import fills.
        volumes: volume nodes of one examination; the youngest age counts.
        parameterNode: vtkMRMLScriptedModuleNode with what the user marked; None: nothing.
        tags: see ``ageOf``.
    """
    ages = []
    for node in volumes:
        age = ageOf(scene, node, tags)
        if age is not None:
            ages.append(age)
    return Patient(
        age_years=min(ages) if ages else None,
        afterSurgery=isMarked(parameterNode, SURGERY),
        otherTumor=isMarked(parameterNode, OTHER_TUMOR),
    )


def isMarked(parameterNode: Any, name: str) -> bool:
    """Whether the user marked ``SURGERY`` or ``OTHER_TUMOR``."""
    return parameterNode is not None and parameterNode.GetParameter(name) == "true"


def mark(parameterNode: Any, name: str, marked: bool) -> None:
    """Mark ``SURGERY`` or ``OTHER_TUMOR``, or take the mark away."""
    parameterNode.SetParameter(name, "true" if marked else "")


def ageOf(scene: Any, node: Any, tags: TagLookup | None = None) -> float | None:
    """Age in years at the examination; None if DICOM does not say.

    Args:
        scene: its subject hierarchy holds DICOM attributes of patient and study on the items above
            the series.
        node: a volume node.
        tags: looks DICOM values up in Slicer's database, which alone has the PatientAge of data
            without a date of birth.
    """
    values = _attributes(scene, node)
    if "PatientAge" not in values and tags is not None:
        values["PatientAge"] = str(tags(node).get("PatientAge", ""))
    age = re.fullmatch(r"(\d{1,3})([DWMY])", values.get("PatientAge", "").strip().upper())
    if age is not None:
        return int(age.group(1)) * _DAYS[age.group(2)] / _DAYS["Y"]
    born = _ordinal(values.get("PatientBirthDate", ""))
    examined = _ordinal(values.get("StudyDate", ""))
    if born is None or examined is None or examined < born:
        return None
    return (examined - born) / _DAYS["Y"]


def studyDateOf(scene: Any, node: Any) -> str:
    """Date of the examination as ``2024-05-31``; empty if DICOM does not say."""
    digits = re.sub(r"\D", "", _attributes(scene, node).get("StudyDate", ""))
    if _ordinal(digits) is None:
        return ""
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}"


def patientIDOf(scene: Any, node: Any) -> str:
    """Identifier of the patient in DICOM; empty if there is none."""
    return _attributes(scene, node).get("PatientID", "").strip()


_NAMES = ("PatientAge", "PatientBirthDate", "PatientID", "StudyDate")


def _attributes(scene: Any, node: Any) -> dict[str, str]:
    """DICOM values by keyword: of the node itself, then of its item and the items above it."""
    values = {}
    for name in _NAMES:
        value = node.GetAttribute(f"DICOM.{name}")
        if value:
            values[name] = value
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    if hierarchy is None:
        return values
    item = hierarchy.GetItemByDataNode(node)
    while item and item != hierarchy.GetSceneItemID():
        for name in _NAMES:
            value = hierarchy.GetItemAttribute(item, f"DICOM.{name}")
            if value:
                values.setdefault(name, value)
        item = hierarchy.GetItemParent(item)
    return values


def _ordinal(text: str) -> int | None:
    """Day number of a DICOM date (``20240531``, or with separators); None for anything else."""
    digits = re.sub(r"\D", "", text or "")
    if len(digits) != 8:
        return None

    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).toordinal()
    except ValueError:
        return None
