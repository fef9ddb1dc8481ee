"""What a segmentation calls its parts, and what each is taken for in the labels of a task.

The parts of a reference are segments, which are matched by tag, code or name, or the values of a
label volume, which follow a label convention. What belongs to what is shown and can be overridden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from medmap.errors import InputDataError, UsageError
from medmap.metrics import label_masks
from medmap.task import Task
from medmap.task.conventions import find_convention, names_of_conventions, recognize

from ..i18n import translator
from ..i18n.sentences import sentence
from .scene import MADE_BY, shapeOf

_ = translator(__file__)

NOT_USED = ""
BY_HAND = "chosen"
"""Reason of what a person assigned."""

# Words of BraTS-like tasks, in texts of lower-case words; a pattern counts only where the task has
# its name.
_WORDS = {
    "NCR": r"\bnon ?enhanc\w*( tumor)?( core)?\b|\bnecro\w*( tumor)?( core)?\b|\bncr\b|\bnetc?\b",
    "ET": r"\b(gd )?enhanc\w*( tumor)?( core)?\b|\bet\b",
    "ED": r"\bedema\w*\b|\bed\b|\bsnfh\b|\bflair hyperintens\w*\b",
    "TC": r"\btumor core\b|\btc\b",
    "WT": r"\bwhole tumor\b|\bcomplete tumor\b|\bwt\b",
}
_CODES = {"6574001": "NCR"}
"""Codes besides those of the task itself: SNOMED CT Necrosis."""


@dataclass(frozen=True)
class Source:
    """One segment, or one value of a label volume, and what it is taken for.

    Attributes:
        key: segment ID, or the value as a text: the key for overriding.
        title: what a person sees: the segment's name, or ``value 4``.
        target: label or region of the task; ``NOT_USED`` when it is not used.
        reason: why, in a few words.
    """

    key: str
    title: str
    target: str
    reason: str


def isLabelVolume(node: Any) -> bool:
    """True for a scalar or label map volume node, False for anything else."""
    return node is not None and node.IsA("vtkMRMLScalarVolumeNode")


def hasLabelValues(node: Any) -> bool:
    """Whether the parts of a reference are numbers: a label volume, or segments such as
    ``Segment_4`` that were imported from a label file.
    """
    if node is None or isLabelVolume(node):
        return node is not None
    return bool(_numbersOf(_namesOf(node)))


def readingOf(node: Any, task: Task, convention: str = "") -> str:
    """How the label values of a reference are read, and why; empty where it has none, or where they
    cannot be read.
    """
    if not hasLabelValues(node):
        return ""
    try:
        values = _valuesOf(node)
        return recognize({node.GetName(): values}, task, convention).statement
    except InputDataError:
        return ""


def unassignedSources(node: Any) -> tuple[Source, ...]:
    """The segments or label values of a reference, none of them understood: to be assigned by hand.

    Raises InputDataError for a volume that holds no labels.
    """
    reason = _("several meanings")
    if isLabelVolume(node):
        values = _valuesOf(node)
        return tuple(Source(str(v), _valueTitle(v), NOT_USED, reason) for v in values)
    names = _namesOf(node)
    return tuple(Source(key, name, NOT_USED, reason) for key, name in names.items())


def conventionsOf(task: Task) -> dict[str, str]:
    """Label conventions that can be chosen for a task: name -> description, for people."""
    descriptions = {}
    for name in names_of_conventions(task):
        convention = find_convention(name, task)
        meanings = convention.description.removeprefix(convention.title)
        descriptions[name] = sentence(convention.title) + meanings
    return descriptions


def conventionNames(task: Task) -> tuple[str, ...]:
    """Names of what can be chosen: empty to recognize the convention, then those of the task."""
    return ("", *names_of_conventions(task))


def targets(task: Task) -> tuple[str, ...]:
    """What a segment can be taken for: labels first, then the regions that are no label. BraTS:
    NCR, ED, ET, WT, TC.
    """
    labels = [label.name for label in task.labels]
    return (*labels, *(r.name for r in task.regions if r.name not in labels))


def sources(
    node: Any, task: Task, override: Mapping[str, str] | None = None, convention: str = ""
) -> tuple[Source, ...]:
    """What each segment (or label value) of a reference is taken for.

    Args:
        node: vtkMRMLSegmentationNode, or a volume node with label values.
        task: labels and regions.
        override: key or title of a source -> label or region name, or ``NOT_USED``.
        convention: name of the convention of label values; empty: recognize it.

    Raises:
        InputDataError: a volume without whole numbers or with several values per voxel, or label
            values that several conventions have.
        UsageError: an override names no source or no target.
    """
    allSources = (
        _valueSources(node, task, override or {}, convention)
        if isLabelVolume(node)
        else _segmentSources(node, task, override or {}, convention)
    )
    for key, target in (override or {}).items():
        if not any(key in (s.key, s.title) for s in allSources):
            raise UsageError(
                f"The reference '{node.GetName()}' has no part '{key}'.", "Assign its parts again."
            )
        if target != NOT_USED and target not in targets(task):
            raise UsageError(
                f"'{target}' is no label or region.", f"Use one of {', '.join(targets(task))}."
            )
        allSources = [
            Source(s.key, s.title, target, BY_HAND) if key in (s.key, s.title) else s
            for s in allSources
        ]
    return tuple(allSources)


def unusedSegments(node: Any, task: Task) -> tuple[str, ...]:
    """Names of the segments that are none of the task's labels and regions: a person has added
    them, and files of labels cannot hold them.
    """
    return tuple(part.title for part in sources(node, task) if part.target == NOT_USED)


def _valueSources(node: Any, task: Task, override: Mapping[str, str], chosen: str) -> list[Source]:
    values = _valuesOf(node)
    unassigned = []
    for value in values:
        if str(value) not in override and _valueTitle(value) not in override:
            unassigned.append(value)
    openValues = np.array(unassigned, int)
    reading = recognize({node.GetName(): unassigned}, task, chosen)
    convention = reading.conventions[node.GetName()]
    # Raises for values that the convention does not have.
    masks = label_masks(convention.to_task(openValues, task, node.GetName()), task)
    meanings: dict[int, str] = {}
    for name, mask in masks.items():
        meanings.update(dict.fromkeys(openValues[mask].tolist(), name))
    reason = _("label value of {convention}").format(convention=sentence(convention.title))
    return [Source(str(v), _valueTitle(v), meanings.get(v, NOT_USED), reason) for v in values]


def _valueTitle(value: int) -> str:
    return _("value {number}").format(number=value)


def _segmentSources(
    node: Any, task: Task, override: Mapping[str, str], convention: str
) -> list[Source]:
    segmentation = node.GetSegmentation()
    segments = {key: segmentation.GetSegment(key) for key in segmentation.GetSegmentIDs()}
    names = {key: segment.GetName() for key, segment in segments.items()}
    numbers = _numbered(node.GetName(), names, task, override, convention)
    return [
        Source(key, s.GetName(), *(numbers.get(key) or _taken(s, task)))
        for key, s in segments.items()
    ]


def _taken(segment: Any, task: Task) -> tuple[str, str]:
    """What one segment is taken for and why: its tag, its code and its name, in this order."""
    labels = {label.name: label for label in task.labels}
    labelName = _tag(segment, MADE_BY)
    if labelName in labels:
        return labelName, _("made by MedMAP")
    entry = _tag(segment, slicer.vtkSegment.GetTerminologyEntryTagName()).split("~")
    value = entry[2].split("^")[1] if len(entry) > 2 and "^" in entry[2] else ""
    byCode = {label.code.value: name for name, label in labels.items() if label.code} | _CODES
    coded = byCode.get(value) if byCode.get(value) in labels else None
    named = _named(segment.GetName(), task)
    if len(named) == 1 and coded in (None, *named):
        if coded is None:
            return named[0], _("name")
        return named[0], _("code and name")
    if coded is not None and not named:
        return coded, _("code")
    if not named:
        return NOT_USED, _("not understood")
    candidates = list(dict.fromkeys([*named, coded])) if coded else named
    text = _("could be {targets}")
    return NOT_USED, text.format(targets=_(" or ").join(candidates))


def _named(name: str, task: Task) -> list[str]:
    """Labels and regions that a name may mean."""
    american = name.lower().replace("oedema", "edema").replace("tumour", "tumor")
    text = " ".join(re.findall(r"[a-z0-9]+", american))
    parts = [(region.title, region.name) for region in task.regions]
    parts += [(label.title, label.name) for label in task.labels]
    titles = {}
    for title, target in parts:
        titles[title.lower()] = target
        # Segments of MedMAP have the titles of the language in which Slicer ran.
        titles[sentence(title).lower()] = target
    names = {target.lower(): target for target in targets(task)}
    for lookup in (names, titles):
        if name.lower().strip() in lookup:
            return [lookup[name.lower().strip()]]
    targetNames = []
    for target, pattern in _WORDS.items():
        if target in targets(task) and re.search(pattern, text):
            targetNames.append(target)
            text = re.sub(
                pattern, " | ", text
            )  # so that the "enhancing" of "non-enhancing" is not found again
    return targetNames


def _numbersOf(names: Mapping[str, str]) -> dict[str, int]:
    """Label values of segments that were imported from a label file without names ('Segment_4');
    empty unless all names are of that kind.
    """
    numbers = {}
    for key, name in names.items():
        match = re.fullmatch(r"(?:segment|label|class)?[ _-]*(\d+)", name.strip(), re.I)
        if match is None:
            return {}
        numbers[key] = int(match[1])
    return numbers


def _numbered(
    title: str,
    names: Mapping[str, str],
    task: Task,
    override: Mapping[str, str],
    convention: str,
) -> dict[str, tuple[str, str]]:
    """What numbered segments are taken for and why, by ID.

    Raises InputDataError where the values have several meanings and none is chosen.
    """
    numbers = _numbersOf(names)
    openNumbers = {}
    for key, value in numbers.items():
        if key not in override and names[key] not in override:
            openNumbers[key] = value
    if not openNumbers:
        return {}
    values = np.array(list(openNumbers.values()))
    chosen = recognize({title: values.tolist()}, task, convention).conventions[title]
    if not convention and not chosen.values.issuperset(values.tolist()):
        # Slicer numbers segments that a person drew, too: those are assigned by hand.
        return {}
    masks = label_masks(chosen.to_task(values, task, title), task)
    meanings = {}
    for name, mask in masks.items():
        for key in np.array(list(openNumbers))[mask].tolist():
            reason = _("label value {number}").format(number=openNumbers[key])
            meanings[key] = (name, reason)
    return meanings


def _namesOf(node: Any) -> dict[str, str]:
    """Name of each segment by its ID."""
    segmentation = node.GetSegmentation()
    return {key: segmentation.GetSegment(key).GetName() for key in segmentation.GetSegmentIDs()}


def _valuesOf(node: Any) -> list[int]:
    """Label values of a volume, or of segments that are named by them, without 0."""
    if not isLabelVolume(node):
        return sorted(_numbersOf(_namesOf(node)).values())
    image = node.GetImageData()
    if shapeOf(node) is None or image.GetNumberOfScalarComponents() != 1:
        raise InputDataError(
            f"The volume '{node.GetName()}' does not have one label per voxel.",
            "Choose a label map.",
        )
    values = np.unique(vtk_to_numpy(image.GetPointData().GetScalars()))
    if values.size > 1000 or (values != np.round(values)).any():
        raise InputDataError(
            f"The values of the volume '{node.GetName()}' are not labels.", "Choose a label map."
        )
    return [int(value) for value in values if value != 0]


def _tag(segment: Any, name: str) -> str:
    text = vtk.reference("")
    return str(text) if segment.GetTag(name, text) else ""
