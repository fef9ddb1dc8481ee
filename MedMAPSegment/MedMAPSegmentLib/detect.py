"""Which volume of a scene is which modality: from names and DICOM descriptions, with reason and confidence.

It never guesses: where two volumes fit one slot about equally well, or one volume fits two slots, nothing is assigned
and the question is handed back. Voxels are not looked at, and nothing in the scene changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medmap.task import Modality, Task

from .series_words import FLAIR, KINDS, T1, T1CE, T2, TITLES, Reading, readSeries, splitWords

ASSIGN = 0.6
"""Least confidence for filling a slot."""
MARGIN = 0.15
"""A candidate must be this much better than the next one."""
MENTION = 0.3
"""Candidates below are not worth a question."""

DECATHLON = (FLAIR, T1, T1CE, T2)
"""Order of the channels in Task01_BrainTumor of the Medical Segmentation Decathlon (its dataset.json)."""

TAGS = {
    "SeriesDescription": "0008,103E",
    "ProtocolName": "0018,1030",
    "ContrastBolusAgent": "0018,0010",
    "Modality": "0008,0060",
    "ImageType": "0008,0008",
}
"""What is read of DICOM, by keyword."""

TagLookup = Callable[[Any], Mapping[str, str]]


@dataclass(frozen=True)
class Candidate:
    """A volume that may fill a slot.

    Attributes:
        node: vtkMRMLScalarVolumeNode.
        modality: name of the slot.
        confidence: 0..1.
        reason: what speaks for it, as part of a sentence (``the name says 't1' and 'post'``).
    """

    node: Any
    modality: str
    confidence: float
    reason: str


@dataclass(frozen=True)
class Question:
    """A slot that is left open although something may fit it: the user must choose.

    Attributes:
        modality: name of the slot.
        candidates: best first.
        text: the question, as shown.
    """

    modality: str
    candidates: tuple[Candidate, ...]
    text: str


@dataclass(frozen=True)
class Detection:
    """Outcome of ``detectModalities``.

    Attributes:
        found: modality name -> the one clear candidate; no node occurs twice.
        questions: slots with candidates of which none is clear, in task order.
        ignored: (node, why) of the volumes that are no input.
    """

    found: dict[str, Candidate]
    questions: tuple[Question, ...]
    ignored: tuple[tuple[Any, str], ...]

    def text(self, task: Task) -> str:
        """What was found and what is open, one line a slot."""
        lines = []
        for modality in task.modalities:
            candidate = self.found.get(modality.name)
            if candidate is not None:
                sure = f"{candidate.confidence:.0%} sure: {candidate.reason}"
                lines.append(f"{modality.title}: '{candidate.node.GetName()}' ({sure}).")
            lines += [
                question.text for question in self.questions if question.modality == modality.name
            ]
        return "\n".join(lines) or "No volume of the scene could be recognized by its name."


def volumesOf(scene) -> list:
    """Every scalar volume node of a scene that a user sees, in scene order."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    nodes = [scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode") for n in range(count)]
    return [node for node in nodes if not node.GetHideFromEditors()]


def detectModalities(nodes: Iterable[Any], task: Task, tags: TagLookup | None = None) -> Detection:
    """Find the volumes for a task's slots.

    Args:
        nodes: volume nodes, as from ``volumesOf``; others are ignored with a reason.
        task: its modalities are the slots. A name that reads as T1, T1ce, T2 or FLAIR gets all that is known of these;
            any other modality is found by its name and aliases as whole words.
        tags: gives DICOM values of a node by keyword (see ``TAGS``); attributes of the node and of its item in the
            subject hierarchy (``DICOM.<keyword>``) are read anyway.

    Returns:
        Clear candidates, questions, and what was ignored.
    """
    kinds = _kinds(task)
    candidates: list[Candidate] = []
    ignored: list[tuple[Any, str]] = []
    for node in nodes:
        found, why = _candidates(node, task, kinds, tags)
        candidates += found
        if not found:
            ignored.append((node, why))
    return _assigned(candidates, task, tuple(ignored))


def databaseTags(database) -> TagLookup:
    """``tags`` for ``detectModalities`` from Slicer's DICOM database (``slicer.dicomDatabase``)."""

    def lookUp(node) -> dict[str, str]:
        instances = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
        path = database.fileForInstance(instances[0]) if instances else ""
        return (
            {keyword: database.fileValue(path, tag) for keyword, tag in TAGS.items()}
            if path
            else {}
        )

    return lookUp


def _kinds(task: Task) -> dict[str, str]:
    """Contrast (of ``KINDS``) -> name of the task's modality that it is."""
    result: dict[str, str] = {}
    for modality in task.modalities:
        chances = readSeries([modality.name]).chances
        if len(chances) == 1:
            result.setdefault(next(iter(chances)), modality.name)
    return result


def _candidates(
    node, task: Task, kinds: Mapping[str, str], tags: TagLookup | None
) -> tuple[list[Candidate], str]:
    """Slots that a node may fill; or none, and why."""
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        return [], "not a volume"
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return [], "a label map"
    if node.GetClassName() != "vtkMRMLScalarVolumeNode":
        return [], "several values per voxel"
    dicom = _dicom(node, tags)
    scanner = dicom.get("Modality", "").strip().upper()
    if scanner not in ("", "MR", "OT"):
        return [], f"DICOM says {scanner}, not MR"
    own = [word for m in task.modalities for word in _words(m)]
    brainOnly = set(kinds.values()) == set(task.modality_names)
    reading, where = _read(node, dicom, own, brainOnly)
    if reading.excluded:
        return [], reading.excluded
    found = [
        Candidate(node, kinds[kind], round(confidence, 2), _because(reading, where, dicom))
        for kind, confidence in reading.chances.items()
        if kind in kinds
    ]
    if not found and reading.chances:
        return (
            [],
            f"{' or '.join(TITLES[kind] for kind in reading.chances)}, which the model does not use",
        )
    found = found or _byAlias(node, dicom, task, kinds) or _byNumber(node, kinds)
    return found, "the name says nothing about the kind of scan"


def _dicom(node, tags: TagLookup | None) -> dict[str, str]:
    """DICOM values by keyword: from the lookup, the subject hierarchy's item, and the node's attributes."""
    values = {key: str(value) for key, value in (tags(node) if tags else {}).items() if value}
    scene = node.GetScene()
    hierarchy = (
        scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode") if scene is not None else None
    )
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    for keyword in TAGS:
        name = f"DICOM.{keyword}"
        attribute = hierarchy.GetItemAttribute(item, name) if item else ""
        value = node.GetAttribute(name) or attribute
        if value:
            values[keyword] = value
    return values


def _read(node, dicom: Mapping[str, str], own: list[str], brainOnly: bool) -> tuple[Reading, str]:
    """Reading of a node's texts, and where they stand. The protocol's name counts when nothing better says anything."""
    agent = dicom.get("ContrastBolusAgent", "")
    best = [node.GetName() or "", dicom.get("SeriesDescription", "")]
    derived = dicom.get("ImageType", "")
    reading = readSeries([*best, derived], agent, own, brainOnly)
    where = "name" if not best[1] or best[1] == best[0] else "name and series description"
    if not reading.chances and not reading.excluded and dicom.get("ProtocolName"):
        return readSeries(
            [*best, dicom["ProtocolName"]], agent, own, brainOnly
        ), "name and protocol"
    return reading, where


def _because(reading: Reading, where: str, dicom: Mapping[str, str]) -> str:
    words = " and ".join(f"'{word}'" for word in reading.words)
    verb = "say" if " and " in where else "says"
    reason = f"the {where} {verb} {words}"
    if T1CE in reading.chances and len(reading.chances) == 2 and dicom.get("ContrastBolusAgent"):
        reason += f", DICOM records the contrast agent {dicom['ContrastBolusAgent']}"
    return reason


def _words(modality: Modality) -> tuple[str, ...]:
    return tuple(word.casefold() for word in (modality.name, *modality.aliases))


def _byAlias(
    node, dicom: Mapping[str, str], task: Task, kinds: Mapping[str, str]
) -> list[Candidate]:
    """Modalities whose name or alias is a whole word of the name or description."""
    words = {
        word
        for text in (node.GetName() or "", dicom.get("SeriesDescription", ""))
        for word in splitWords(text)
    }
    found = []
    for modality in task.modalities:
        hits = [word for word in _words(modality) if word in words]
        if hits:
            sure = 0.7 if modality.name in kinds.values() else 0.9
            found.append(Candidate(node, modality.name, sure, f"the name says '{hits[0]}'"))
    return found


def _byNumber(node, kinds: Mapping[str, str]) -> list[Candidate]:
    """The Decathlon's channel numbers; other data sets number otherwise, so they only count in its own file names."""
    match = re.search(r"_000([0-3])(\.nii(\.gz)?)?$", node.GetName() or "")
    if match is None or set(kinds) != set(KINDS):
        return []
    kind = DECATHLON[int(match[1])]
    certain = re.match(r"brats_\d{3}_000\d", node.GetName(), re.IGNORECASE) is not None
    reason = f"_000{match[1]} is {TITLES[kind]} in the order of the Medical Segmentation Decathlon"
    return [Candidate(node, kinds[kind], 0.8 if certain else 0.4, reason)]


def _assigned(candidates: list[Candidate], task: Task, ignored: tuple) -> Detection:
    """Fill each slot that has one clear candidate; ask about the others."""
    clear = {
        c.node.GetID(): _clearlyBest([d for d in candidates if d.node is c.node])
        for c in candidates
    }
    found: dict[str, Candidate] = {}
    for name in task.modality_names:
        best = _clearlyBest([c for c in candidates if c.modality == name])
        if best is not None and best.confidence >= ASSIGN and clear[best.node.GetID()] is best:
            found[name] = best
    taken = {candidate.node.GetID() for candidate in found.values()}
    questions = []
    for name in (name for name in task.modality_names if name not in found):
        open_ = [c for c in candidates if c.modality == name and c.confidence >= MENTION]
        open_ = [c for c in open_ if c.node.GetID() not in taken]
        if open_:
            ordered = tuple(sorted(open_, key=lambda c: -c.confidence))
            questions.append(Question(name, ordered, _question(task, name, ordered, candidates)))
    return Detection(found, tuple(questions), ignored)


def _clearlyBest(candidates: list[Candidate]) -> Candidate | None:
    ordered = sorted(candidates, key=lambda c: -c.confidence)
    if len(ordered) > 1 and ordered[0].confidence - ordered[1].confidence < MARGIN - 1e-9:
        return None
    return ordered[0] if ordered else None


def _question(
    task: Task, name: str, open_: tuple[Candidate, ...], candidates: list[Candidate]
) -> str:
    title = task.modality(name).title
    if len(open_) > 1:
        *most, last = (f"'{c.node.GetName()}'" for c in open_)
        return f"{title}: {', '.join(most)} or {last}? Please choose."
    only = open_[0]
    others = [
        task.modality(c.modality).title
        for c in candidates
        if c.node is only.node and c.modality != name
    ]
    may = f"may be {' or '.join([title, *others])}" if others else f"may be {title}"
    return f"{title}: '{only.node.GetName()}' {may} ({only.reason}). Please choose."
