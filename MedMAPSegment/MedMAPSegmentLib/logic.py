"""From the panel's choices to a segmentation node, in three steps; no Qt.

``prepare`` (main thread) copies what is needed out of the scene into a ``Request``; ``compute``
(any thread) turns a request into a result with numpy and torch only; ``apply`` (main thread) puts
the result into the scene. ``process`` does the three in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medmap.checks import Finding
from medmap.errors import Cancelled, InputDataError, InternalError
from medmap.preparation.plan import Mode, PreparationPlan
from medmap.task import BRATS, Task
from medmap.volume import Volume

from .devices import AUTO, checkDevice, computing
from .inputs import readSlots
from .mrml import scene as mrml
from .mrml.brain_mask import brainMasks
from .mrml.editing import rejoinEditedCopy, separateEditedCopy
from .mrml.nodes import removeDerived
from .mrml.preparation_plan import Planner, scansKey
from .mrml.prepared_scans import addPreparedScans
from .request import PreparationMemory, Request, preparedRequest
from .runner import InlineRunner, Job, JobState, Progress, Runner, Work

if TYPE_CHECKING:
    from medmap.bundle.loading import Bundle
    from medmap.inference import Segmentation


class SegmentationLogic:
    """Segments tumors from whichever of the task's modalities a scene offers.

    Args:
        scene: vtkMRMLScene to read from and write to.
        segment: stands in for ``medmap.inference.segment``.
        loadBundle: gives the model; None loads the default bundle. Called once, on the thread that
            computes, and its result is kept.
        task: names, labels and colors of the model.

    Attributes:
        scene: the vtkMRMLScene.
        task: the task of the model.
        preparations: spares a run the preparation that the run before it has carried out.
    """

    def __init__(
        self,
        scene: Any,
        segment: Callable[..., Any] | None = None,
        loadBundle: Callable[[], Any] | None = None,
        task: Task = BRATS,
    ) -> None:
        self.scene = scene
        self._segment = segment or _segment
        self._undo: list[Callable[[], Any]] = []
        self.preparations = PreparationMemory()
        self.setModel(loadBundle or _loadDefaultBundle, task)

    def setModel(self, loadBundle: Callable[[], Any], task: Task) -> None:
        """Use another model from now on; the one that was loaded is dropped."""
        self._loadBundle = loadBundle
        self._bundle: Bundle | None = None
        self.task = task

    def bundle(self, progress: Progress | None = None) -> Bundle:
        """The model, loaded when it is first asked for and kept warm. Raises MedMAPError when it is
        damaged.
        """
        bundle = self._bundle
        if bundle is None:
            if progress is not None:
                progress(0.0, "loading the model")
            bundle = self._loadBundle()
            self._bundle = bundle
        return bundle

    def problems(
        self, inputs: Mapping[str, Any], reference: str | None = None, outputNode: Any = None
    ) -> list[str]:
        """Every reason, as a sentence, why Apply cannot work; quick enough to be called after each
        click.
        """
        problems = list(readSlots(self.task, inputs, (), reference).problems)
        if outputNode is not None and mrml.foreignSegments(outputNode):
            problems.append(
                f"'{outputNode.GetName()}' holds segments that MedMAP did not make; choose "
                "another output."
            )
        return problems

    def prepare(
        self,
        inputs: Mapping[str, Any],
        reference: str | None = None,
        device: str = AUTO,
        outputNode: Any = None,
        remarks: Iterable[Finding] = (),
        plan: PreparationPlan | None = None,
        maskNode: Any = None,
    ) -> Request:
        """Check the choices and copy the voxels; nothing in the scene changes.

        Args:
            inputs: modality name -> vtkMRMLScalarVolumeNode, or None for an empty slot. A constant
                volume counts as missing, with a remark.
            reference: modality whose grid the result is wanted on; None lets ``medmap`` choose.
            device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
            outputNode: vtkMRMLSegmentationNode to fill; None for a new one.
            remarks: what a reader of the result must know about the patient.
            plan: brain extraction and alignment that come first; None takes the scans as they are.
            maskNode: segmentation or label volume with a brain mask, or None.

        Raises:
            UsageError: unknown modality or device.
            InputDataError: the choices cannot work; the message names every problem.
        """
        slots = readSlots(self.task, inputs, (), reference)
        checkDevice(device)
        problems = self.problems(inputs, reference, outputNode)
        if problems:
            raise InputDataError(" ".join(problems), "Change the choice and press Apply again.")
        findings = list(remarks)
        for warning in slots.warnings:
            findings.append(Finding("warning", "constant", warning, "Check the volume."))
        masks = {}
        key = None
        if plan is not None:
            key = scansKey(slots.used, self.task, plan.reference, maskNode)
            if maskNode is not None:
                masks = brainMasks(maskNode, slots.used, plan.reference)
        return Request(
            volumes={name: mrml.volumeFromNode(node) for name, node in slots.used.items()},
            nodeIDs={name: node.GetID() for name, node in slots.used.items()},
            nodeNames={name: node.GetName() for name, node in slots.used.items()},
            reference=reference,
            device=device,
            outputID=outputNode.GetID() if outputNode is not None else None,
            remarks=tuple(findings),
            plan=plan,
            brainMasks=masks,
            scansKey=key,
        )

    def isPrepared(
        self, used: Mapping[str, Any], plan: PreparationPlan, maskNode: Any = None
    ) -> bool:
        """Whether the last run carried out this very plan, so that its prepared scans serve again.

        Args:
            used: modality name -> volume node.
            plan: brain extraction and alignment.
            maskNode: segmentation or label volume with a brain mask, or None.
        """
        if plan.is_empty:
            return False
        key = scansKey(used, self.task, plan.reference, maskNode)
        return self.preparations.isFor(key, plan)

    def work(self, request: Request) -> Work:
        """The computation as work for a runner; it touches neither MRML nor VTK nor Qt."""
        return lambda progress, cancelled: self.compute(request, progress, cancelled)

    def compute(
        self,
        request: Request,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Segmentation:
        """Prepare the scans and segment. Returns ``medmap.inference.Segmentation``; raises
        MedMAPError, ``Cancelled`` among them.
        """
        bundle = self.bundle(progress)
        with computing():
            prepared = preparedRequest(request, self.task, progress, cancelled, self.preparations)
            result = self._segment(
                prepared.request.volumes,
                bundle,
                reference=prepared.request.reference,
                device=request.device,
                progress=prepared.progress,
                cancel=cancelled,
            )
        if prepared.preparation is not None:
            result = replace(result, preparation=prepared.preparation)
        return _withRemarks(result, request.remarks)

    def start(self, request: Request, runner: Runner) -> Job:
        """Hand the computation to a runner; poll the job and, once it is done, ``apply`` its
        result.
        """
        return runner.start(self.work(request))

    def apply(self, request: Request, result: Segmentation) -> Any:
        """Put a result into the scene; ``undo`` takes it out again.

        Returns:
            The vtkMRMLSegmentationNode.

        Raises:
            InputDataError: the reference volume is gone or has other voxels than when the request
                was prepared; the scene is unchanged then.
        """
        node = self.scene.GetNodeByID(request.nodeIDs[result.reference])
        if node is None:
            raise InputDataError(
                f"The volume '{request.nodeNames[result.reference]}' was removed during the "
                "computation.",
                "Choose the volumes again and press Apply.",
            )
        output = self.scene.GetNodeByID(request.outputID) if request.outputID is not None else None
        restore = mrml.snapshot(output) if output is not None else None
        segmentation = mrml.segmentationFromResult(self.scene, node, result, self.task, output)
        # It began as a copy of other labels: to export it instead of these would be wrong.
        edited = separateEditedCopy(self.scene, segmentation)

        def takeBack() -> Any:
            restored = self._takeBack(segmentation, restore)
            rejoinEditedCopy(self.scene, edited)
            return restored

        if result.preparation is not None:
            try:
                addPreparedScans(self.scene, segmentation, request, result.preparation, self.task)
            except Exception:
                takeBack()
                raise
        self._undo.append(takeBack)
        return segmentation

    def _takeBack(self, made: Any, restore: Callable[[], None] | None) -> Any:
        if self.scene.IsNodePresent(made):
            removeDerived(self.scene, made)
        return mrml.takeBack(self.scene, made, restore)

    @property
    def canUndo(self) -> bool:
        """True while there is a result to take back."""
        return bool(self._undo)

    def undo(self) -> Any:
        """Take the last result back: a new node is removed, one that was filled gets its former
        segments.

        Returns:
            The vtkMRMLSegmentationNode that was restored; None if it is gone now, or there is
            nothing to undo.
        """
        return self._undo.pop()() if self._undo else None

    def forgetResults(self) -> None:
        """Undo nothing that was made so far: the scene is closed."""
        self._undo.clear()
        self.preparations.clear()

    def process(
        self,
        inputs: Mapping[str, Any],
        reference: str | None = None,
        device: str = AUTO,
        outputNode: Any = None,
        progress: Progress | None = None,
        maskNode: Any = None,
        prepare: Mode = "auto",
    ) -> Any:
        """Segment and wait: for scripts. Returns the vtkMRMLSegmentationNode.

        Args:
            inputs, reference, device, outputNode, maskNode: as for ``prepare``.
            progress: called with the completed fraction and a text.
            prepare: ``auto`` extracts the brain from scans that show a skull and aligns scans that
                lie apart, ``always`` does both for every scan, ``never`` takes them as they are.

        Raises:
            MedMAPError: the inputs, the bundle or the device will not do; the scene is unchanged
                then.
        """
        used = readSlots(self.task, inputs, (), reference).used
        plan = Planner(prepare).plan(used, self.task, reference, maskNode)
        request = self.prepare(inputs, reference, device, outputNode, plan=plan, maskNode=maskNode)
        return self.apply(request, resultOf(self.start(request, InlineRunner(progress))))


def resultOf(job: Job) -> Any:
    """Result of a finished job. Raises what stopped it."""
    if job.state is JobState.DONE:
        return job.result
    if job.state is JobState.CANCELLED:
        raise Cancelled()
    raise job.error or InternalError("The computation has not finished.", "Wait for it.")


def _withRemarks(result: Segmentation, remarks: tuple[Finding, ...]) -> Segmentation:
    """The result, with what preparing had to say in front of what the computation had to say."""
    if not remarks:
        return result
    findings = (*remarks, *result.provenance.findings)
    provenance = replace(result.provenance, findings=findings)
    return replace(result, findings=(*remarks, *result.findings), provenance=provenance)


def _segment(volumes: Mapping[str, Volume], bundle: Bundle, **options: Any) -> Segmentation:
    from medmap.inference import segment  # imports torch, so not before Apply

    return segment(volumes, bundle, **options)


def _loadDefaultBundle() -> Bundle:
    from medmap.bundle.format import default_bundle_path
    from medmap.bundle.loading import load_bundle

    return load_bundle(default_bundle_path())
