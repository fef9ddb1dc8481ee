"""Codes of what MedMAP writes; those of the labels are the task's own, as in the Slicer panel."""

from __future__ import annotations

from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code

from medmap.task import Label, Region, Task

CATEGORY = Code("49755003", "SCT", "Morphologically Altered Structure")
BRAIN = Code("12738006", "SCT", "Brain")
NEOPLASM = Code("108369006", "SCT", "Neoplasm")
"""Type of a region that unites labels (whole tumor, tumor core); its label tells which."""
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
MR_OF_BRAIN = Code("24590-2", "LN", "MR Brain")
VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long Axis")
DIAMETER_3D = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
CUBIC_CENTIMETER = Code("cm3", "UCUM", "cubic centimeter")
MILLIMETER = Code("mm", "UCUM", "millimeter")


def type_of(label: Label) -> CodedConcept:
    """Segmented property type of a label; a neoplasm where the task gives no code."""
    if label.code is None:
        return CodedConcept.from_code(NEOPLASM)
    return CodedConcept(label.code.value, label.code.scheme, label.code.meaning)


def type_of_region(region: Region, task: Task) -> CodedConcept:
    """Segmented property type of a region: that of its label if it is one, else a neoplasm."""
    labels = [label for label in task.labels if label.name in region.labels]
    if len(labels) == 1:
        return type_of(labels[0])
    return CodedConcept.from_code(NEOPLASM)
