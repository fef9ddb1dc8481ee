"""DICOM codes of the segments, in the form that Slicer's terminology selector and DICOM export
read.

The list that Slicer ships has no code for enhancing and non-enhancing lesions (DICOM CID 7168 and
7169), so the module brings its own small context, ``Resources/MedMAP.term.json``.
"""

from __future__ import annotations

from medmap.task import Code, Label

CONTEXT = "Segmentation category and type - MedMAP"
CATEGORY = Code("SCT", "49755003", "Morphologically Altered Structure")
REGION_CONTEXT = "Anatomic codes - DICOM master list"
REGION = Code("SCT", "12738006", "Brain")

_NONE = "^^"


def terminologyEntry(label: Label) -> str | None:
    """Serialized terminology entry of a label, or None when the label has no code.

    Seven fields joined by ``~``: context, category, type, type modifier, region context, region,
    region modifier; codes are ``scheme^value^meaning``
    (vtkSlicerTerminologiesModuleLogic::SerializeTerminologyEntry).
    """
    if label.code is None:
        return None
    return "~".join(
        (CONTEXT, _code(CATEGORY), _code(label.code), _NONE, REGION_CONTEXT, _code(REGION), _NONE)
    )


def _code(code: Code) -> str:
    return "^".join((code.scheme, code.value, code.meaning))
