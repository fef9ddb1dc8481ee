"""From the panel's choices to a segmentation node, in three steps; no Qt.

``prepare`` (main thread) copies what is needed out of the scene into a ``Request``; ``compute`` (any thread) turns a
request into a result with numpy and torch only; ``apply`` (main thread) puts the result into the scene.
``process`` does the three in a row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from medmap.checks import Finding
from medmap.errors import Cancelled, InputDataError, InternalError, UsageError
from medmap.task import BRATS, Task
from medmap.volume import Volume

from . import scene as mrml
from .runner import InlineRunner, Job, JobState, Progress, Runner, Work

AUTO = "auto"
DEVICES = (AUTO, "cuda", "cpu")


@dataclass(frozen=True)
class Request:
    """Everything that a computation needs, copied out of the scene: no MRML node in here.

    Attributes:
        volumes: modality name -> scan.
        nodeIDs: modality name -> ID of the volume node that the scan was copied from.
        nodeNames: modality name -> name of that node, for messages.
        reference: modality whose grid the result is wanted on; None leaves the choice to ``medmap``.
        device: one of ``DEVICES``.
        outputID: ID of the segmentation node to fill; None for a new one.
        remarks: what preparing found worth saying.
    """

    volumes: dict[str, Volume]
    nodeIDs: dict[str, str]
    nodeNames: dict[str, str]
    reference: str | None = None
    device: str = AUTO
    outputID: str | None = None
    remarks: tuple[Finding, ...] = ()


class SegmentationLogic:
    """Segments tumours from whichever of the task's modalities a scene offers.

    Args:
        scene: vtkMRMLScene to read from and write to.
        segment: stands in for ``medmap.inference.segment``.
        loadBundle: stands in for loading the default bundle; called once, on the thread that computes, and its result
            is kept.
        task: names, labels and colours.
    """

    def __init__(
        self,
        scene,
        segment: Callable[..., Any] | None = None,
        loadBundle: Callable[[], Any] | None = None,
        task: Task = BRATS,
    ):
        self._scene = scene
        self._segment = segment or _segment
        self._loadBundle = loadBundle or _loadDefaultBundle
        self._bundle: Any = None
        self.task = task

    def problems(self, inputs: Mapping[str, Any], reference: str | None = None, outputNode=None) -> list[str]:
        """Every reason, as a sentence, why Apply cannot work; quick enough to be called after each click."""
        given = {name: node for name, node in inputs.items() if node is not None}
        found = [] if given else ["Choose at least one volume."]
        slots: dict[str, list[str]] = {}
        for name, node in given.items():
            slots.setdefault(node.GetID(), []).append(name)
        for names in (names for names in slots.values() if len(names) > 1):
            titles = " and ".join(self.task.modality(name).title for name in names)
            found.append(f"'{given[names[0]].GetName()}' is chosen for {titles}; each volume can fill one slot only.")
        if reference is not None and reference not in given:
            title = self.task.modality(reference).title
            found.append(f"The result is wanted on the grid of {title}, but no {title} volume is chosen.")
        if outputNode is not None and mrml.foreignSegments(outputNode):
            found.append(f"'{outputNode.GetName()}' holds segments that MedMAP did not make; choose another output.")
        return found

    def prepare(
        self,
        inputs: Mapping[str, Any],
        reference: str | None = None,
        device: str = AUTO,
        outputNode=None,
    ) -> Request:
        """Check the choices and copy the voxels; nothing in the scene changes.

        Args:
            inputs: modality name -> vtkMRMLScalarVolumeNode, or None for an empty slot.
            reference: modality whose grid the result is wanted on; None lets ``medmap`` choose.
            device: one of ``DEVICES``.
            outputNode: vtkMRMLSegmentationNode to fill; None for a new one.

        Raises:
            UsageError: unknown modality or device.
            InputDataError: the choices cannot work; the message names every problem.
        """
        for name in (*inputs, *([reference] if reference is not None else [])):
            self.task.index(name)
        if device not in DEVICES:
            raise UsageError(f"'{device}' is not a device.", f"Use one of {', '.join(DEVICES)}.")
        found = self.problems(inputs, reference, outputNode)
        if found:
            raise InputDataError(" ".join(found), "Change the choice and press Apply again.")
        nodes = {name: inputs[name] for name in self.task.modality_names if inputs.get(name) is not None}
        volumes, remarks = self._volumes(nodes, reference)
        return Request(
            volumes=volumes,
            nodeIDs={name: nodes[name].GetID() for name in volumes},
            nodeNames={name: nodes[name].GetName() for name in volumes},
            reference=reference,
            device=device,
            outputID=outputNode.GetID() if outputNode is not None else None,
            remarks=remarks,
        )

    def _volumes(self, nodes, reference: str | None) -> tuple[dict[str, Volume], tuple[Finding, ...]]:
        """Copy the volumes; constant ones count as missing, because an empty scan says nothing."""
        volumes, remarks = {}, []
        for name, node in nodes.items():
            volume = mrml.volumeFromNode(node)
            if volume.array.min() < volume.array.max():
                volumes[name] = volume
                continue
            title = self.task.modality(name).title
            message = f"{title} ('{node.GetName()}') is the same everywhere and was treated as missing."
            if name == reference or len(nodes) == 1:
                raise InputDataError(f"{title} ('{node.GetName()}') is the same everywhere.", "Choose another volume.")
            remarks.append(Finding("warning", "constant", message, "Check the volume."))
        if not volumes:
            raise InputDataError("Every chosen volume is the same everywhere.", "Choose other volumes.")
        return volumes, tuple(remarks)

    def work(self, request: Request) -> Work:
        """The computation as a piece of work for a runner; it touches neither MRML nor VTK nor Qt."""
        return lambda progress, cancelled: self.compute(request, progress, cancelled)

    def compute(
        self,
        request: Request,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ):
        """Segment. Returns ``medmap.inference.Segmentation``; raises MedMAPError, ``Cancelled`` among them."""
        if self._bundle is None:
            if progress is not None:
                progress(0.0, "loading the model")
            self._bundle = self._loadBundle()
        try:
            result = self._segment(
                request.volumes,
                self._bundle,
                reference=request.reference,
                device=request.device,
                progress=progress,
                cancel=cancelled,
            )
        finally:
            _releaseGPU()
        return _withRemarks(result, request.remarks)

    def start(self, request: Request, runner: Runner) -> Job:
        """Hand the computation to a runner; poll the job and, once it is done, ``apply`` its result."""
        return runner.start(self.work(request))

    def apply(self, request: Request, result):
        """Put a result into the scene.

        Returns:
            The vtkMRMLSegmentationNode.

        Raises:
            InputDataError: the reference volume is gone or has other voxels than when the request was prepared; the
                scene is unchanged then.
        """
        node = self._scene.GetNodeByID(request.nodeIDs[result.reference])
        if node is None:
            raise InputDataError(
                f"The volume '{request.nodeNames[result.reference]}' was removed during the computation.",
                "Choose the volumes again and press Apply.",
            )
        output = self._scene.GetNodeByID(request.outputID) if request.outputID is not None else None
        return mrml.segmentationFromResult(self._scene, node, result, self.task, output)

    def process(
        self,
        inputs: Mapping[str, Any],
        reference: str | None = None,
        device: str = AUTO,
        outputNode=None,
        progress: Progress | None = None,
    ):
        """Segment and wait: for scripts. Arguments as for ``prepare``; returns the vtkMRMLSegmentationNode.

        Raises:
            MedMAPError: the inputs, the bundle or the device will not do; the scene is unchanged then.
        """
        request = self.prepare(inputs, reference, device, outputNode)
        return self.apply(request, resultOf(self.start(request, InlineRunner(progress))))


def resultOf(job: Job):
    """Result of a finished job. Raises what stopped it."""
    if job.state is JobState.DONE:
        return job.result
    if job.state is JobState.CANCELLED:
        raise Cancelled()
    raise job.error or InternalError("The computation has not finished.", "Wait for it.")


def _withRemarks(result, remarks: tuple[Finding, ...]):
    """The result, with what preparing had to say in front of what the computation had to say."""
    if not remarks:
        return result
    plain = [{"level": r.level, "check": r.check, "message": r.message, "remedy": r.remedy} for r in remarks]
    provenance = {**result.provenance, "findings": [*plain, *result.provenance.get("findings", [])]}
    return replace(result, findings=(*remarks, *result.findings), provenance=provenance)


def _segment(volumes, bundle, **options):
    from medmap.inference import segment  # imports torch, so not before Apply

    return segment(volumes, bundle, **options)


def _loadDefaultBundle():
    from medmap.bundle import default_bundle_path, load_bundle

    return load_bundle(default_bundle_path())


def _releaseGPU() -> None:
    """Give cached GPU memory back: volume rendering shares the card."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
