"""Review of a segmentation against a reference, in three steps as in ``logic``: collect, compute,
apply.

``collect`` (main thread) copies both label maps out of the scene, ``compute`` (any thread) scores
them with ``medmap.agreement``, ``review_nodes.apply`` (main thread) puts tables, plot and error
segmentation into the scene.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmap.agreement import AGREEMENT, OURS_ONLY, REFERENCE_ONLY, Review, SliceScores
from medmap.agreement import review as compare
from medmap.checks import Finding
from medmap.errors import Cancelled, InputDataError, InternalError
from medmap.task import Task

from ..i18n import translator
from ..runner import Progress
from .fingerprints import fingerprint
from .nodes import Geometry
from .reference import isResult, labelsOn
from .reference_parts import Source

_ = translator(__file__)


@dataclass(frozen=True)
class Request:
    """Everything that a comparison needs, copied out of the scene: no MRML node in here.

    Attributes:
        labels: [I, J, K] uint8, ours.
        reference: [I, J, K] uint8, the reference's, on our grid.
        geometry: our grid.
        task: labels and regions.
        regions: regions that the reference speaks about.
        plane: how slices are stacked.
        segmentationName: name of our node.
        referenceName: name of the reference node.
        sources: what was taken for what in the reference.
        findings: what a reader must know.
        withResult: the reference is another result of this module.
        reading: how label values of the reference were read, and why; empty where it has none.
        referenceID: of the reference node.
        fingerprints: of our labels and of the reference's (``fingerprints.fingerprint``).
        choices: what else decides on the outcome (``choicesText``).
    """

    labels: np.ndarray
    reference: np.ndarray
    geometry: Geometry
    task: Task
    regions: tuple[str, ...]
    plane: str
    segmentationName: str
    referenceName: str
    sources: tuple[Source, ...]
    findings: tuple[Finding, ...]
    withResult: bool = False
    reading: str = ""
    referenceID: str = ""
    fingerprints: tuple[str, str] = ("", "")
    choices: str = ""

    @property
    def errorTitles(self) -> dict[int, str]:
        """Value of an error map -> title."""
        titles = {
            AGREEMENT: _("Agreement"),
            OURS_ONLY: _("Result only"),
            REFERENCE_ONLY: _("Reference only"),
        }
        if self.withResult:
            titles[REFERENCE_ONLY] = _("Other result only")
        return titles


def collect(
    segmentationNode: Any,
    referenceNode: Any,
    task: Task,
    override: Mapping[str, str] | None = None,
    plane: str = "axial",
    convention: str = "",
) -> Request:
    """Copy ours and the reference out of the scene, onto our grid; nothing in the scene changes.

    Args:
        segmentationNode: vtkMRMLSegmentationNode, ours.
        referenceNode: vtkMRMLSegmentationNode or label volume node, on any grid.
        task: labels and regions.
        override: key or title of a source of the reference -> label or region
            (``reference_parts.sources``).
        plane: ``axial``, ``coronal`` or ``sagittal``.
        convention: name of the label convention of a reference volume; empty: recognize it.

    Raises:
        InputDataError: one of the two is missing, the same as the other, or not understood.
        UsageError: an override names something that is not there.
    """
    if segmentationNode is None or referenceNode is None:
        raise InputDataError("A review needs a segmentation and a reference.", "Choose both.")
    if segmentationNode is referenceNode:
        raise InputDataError("The reference is the result itself.", "Choose another reference.")
    ours = labelsOn(segmentationNode, segmentationNode, task)
    theirs = labelsOn(referenceNode, segmentationNode, task, override, convention)
    return Request(
        labels=ours.labels,
        reference=theirs.labels,
        geometry=theirs.geometry,
        task=task,
        regions=theirs.regions,
        plane=plane,
        segmentationName=segmentationNode.GetName(),
        referenceName=referenceNode.GetName(),
        sources=theirs.sources,
        findings=(*ours.findings, *theirs.findings, *_emptiness(theirs.labels, referenceNode)),
        withResult=isResult(referenceNode),
        reading=theirs.reading,
        referenceID=referenceNode.GetID(),
        fingerprints=(fingerprint(segmentationNode), fingerprint(referenceNode)),
        choices=choicesText(override or {}, plane, convention),
    )


def choicesText(override: Mapping[str, str], plane: str, convention: str) -> str:
    """Choices of a review as a text, to be compared with later ones; arguments of ``collect``."""
    return json.dumps([dict(override), plane, convention], sort_keys=True)


def compute(
    request: Request,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Review:
    """Score; touches neither MRML nor VTK. ``progress`` and ``cancelled`` as for every
    ``runner.Work``.
    """
    if cancelled is not None and cancelled():
        raise Cancelled()
    if progress is not None:
        progress(0.0, "comparing with the reference")
    comparison = compare(
        request.labels,
        request.reference,
        request.task,
        request.geometry.grid,
        regions=request.regions,
        plane=request.plane,
    )
    if progress is not None:
        progress(1.0, "done")
    return comparison


def slicesOf(comparison: Review) -> SliceScores:
    """Agreement slice by slice. Raises InternalError for a comparison without it."""
    if comparison.slices is None:
        raise InternalError("The comparison has no scores by slice.", "Please report it.")
    return comparison.slices


def _emptiness(labels: np.ndarray, node: Any) -> list[Finding]:
    if labels.any():
        return []
    message = f"The reference '{node.GetName()}' has no label where the result lies."
    return [
        Finding("warning", "reference", message, "Check that both belong to the same examination.")
    ]
