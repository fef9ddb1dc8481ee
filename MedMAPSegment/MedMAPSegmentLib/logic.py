"""From the panel's choices to a segmentation node, in three steps; no Qt.

``prepare`` (main thread) copies what is needed out of the scene into a ``Request``; ``compute`` (any thread) turns a
request into a result with numpy and torch only; ``apply`` (main thread) puts the result into the scene. ``process`` does
the three in a row.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from medmap.errors import Cancelled, InputDataError, InternalError, MedMAPError, UnavailableError, UsageError
from medmap.task import BRATS, Task
from medmap.volume import Volume

from . import scene as mrml
from .runner import InlineRunner, Job, JobState, Progress, Runner, Work

AUTO = "auto"
DEVICES = (AUTO, "cuda", "cpu")


class Remark(NamedTuple):
    """Something worth saying about the inputs; same fields as ``medmap.checks.Finding``."""

    level: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Request:
    """Everything that a computation needs, copied out of the scene: no MRML node in here.

    Attributes:
        volumes: modality name -> scan.
        nodeIDs: modality name -> ID of the volume node that the scan was copied from.
        nodeNames: node ID -> name that a person knows it by.
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
    remarks: tuple[Remark, ...] = ()

    def inWords(self, text: str) -> str:
        """The text with node IDs, by which ``medmap`` knows the volumes, replaced by node names."""
        return re.sub(r"vtkMRML\w+", lambda match: self.nodeNames.get(match[0], match[0]), text)


class SegmentationLogic:
    """Segments tumours from whichever of the task's modalities a scene offers.

    Args:
        scene: vtkMRMLScene to read from and write to.
        segment: stands in for ``medmap.inference.segment``.
        loadBundle: stands in for ``medmap.bundle.load_bundle`` of the default bundle; called once, on the thread that
            computes, and its result kept.
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
        found = []
        if not given:
            found.append("Choose at least one volume.")
        slots: dict[str, list[str]] = {}
        for name, node in given.items():
            slots.setdefault(node.GetID(), []).append(name)
        for names in (names for names in slots.values() if len(names) > 1):
            titles = " and ".join(self.task.modality(name).title for name in names)
            found.append(f"'{given[names[0]].GetName()}' is chosen for {titles}; each volume can fill one slot only.")
        if reference is not None and reference not in given:
            title = self.task.modality(reference).title
            found.append(f"The result is wanted on the grid of {title}, but no {title} volume is chosen.")
        foreign = mrml.foreignSegments(outputNode) if outputNode is not None else []
        if foreign:
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
            nodeNames={node.GetID(): node.GetName() for node in nodes.values()},
            reference=reference,
            device=device,
            outputID=outputNode.GetID() if outputNode is not None else None,
            remarks=remarks,
        )

    def _volumes(self, nodes, reference: str | None) -> tuple[dict[str, Volume], tuple[Remark, ...]]:
        """Copy the volumes; constant ones count as missing, because an empty scan says nothing."""
        volumes, remarks = {}, []
        for name, node in nodes.items():
            volume = mrml.volumeFromNode(node)
            if volume.array.min() == volume.array.max():
                message = f"'{node.GetName()}' has the same value everywhere, so {self.task.modality(name).title} "
                remarks.append(Remark("warning", message + "was treated as missing.", "Check the volume."))
            else:
                volumes[name] = volume
        if not volumes:
            raise InputDataError("Every chosen volume has the same value everywhere.", "Choose other volumes.")
        if reference is not None and reference not in volumes:
            raise InputDataError(
                f"{self.task.modality(reference).title} is to give the result's grid, but it has the same value "
                "everywhere.",
                "Choose another reference.",
            )
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
        report = progress or (lambda fraction, text: None)
        if self._bundle is None:
            report(0.0, "Loading the model")
            self._bundle = self._loadBundle()
        try:
            return self._segment(
                request.volumes,
                self._bundle,
                reference=request.reference,
                device=resolveDevice(request.device),
                progress=progress,
                cancel=cancelled,
            )
        finally:
            _releaseGPU()

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
                f"The volume '{request.nodeNames[request.nodeIDs[result.reference]]}' was removed during the computation.",
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
            MedMAPError: with volumes called by their node names; the scene is unchanged then.
        """
        request = self.prepare(inputs, reference, device, outputNode)
        job = self.start(request, InlineRunner(progress))
        return self.apply(request, self.resultOf(job, request))

    def resultOf(self, job: Job, request: Request):
        """Result of a finished job. Raises what stopped it, with volumes called by their node names."""
        if job.state is JobState.DONE:
            return job.result
        if job.state is JobState.CANCELLED:
            raise Cancelled()
        raise inWords(job.error or InternalError("The computation has not finished.", "Wait for it."), request)


def inWords(error: MedMAPError, request: Request) -> MedMAPError:
    """The error, changed for a person's eyes: node IDs in it replaced by node names."""
    error.cause, error.remedy = request.inWords(error.cause), request.inWords(error.remedy)
    error.args = (f"{error.cause} {error.remedy}",)
    return error


def resolveDevice(device: str) -> str:
    """``auto`` becomes ``cuda`` where PyTorch sees a GPU, otherwise ``cpu``. Raises UnavailableError for a missing GPU."""
    if device == "cpu":
        return device
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UnavailableError("PyTorch finds no usable NVIDIA GPU.", "Choose 'Automatic' or 'CPU' as the device.")
    return "cuda" if available else "cpu"


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
