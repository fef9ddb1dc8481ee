"""What a computation gets from the scene: arrays and words, no MRML node."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from medmap.checks import Finding
from medmap.preparation.plan import PreparationPlan
from medmap.task import Task
from medmap.volume import Volume

from .devices import AUTO
from .runner import Progress

if TYPE_CHECKING:
    from medmap.preparation.workflow import Preparation

PREPARATION_SHARE = 0.6
"""Share of the progress bar for the preparation: it takes longer than the segmentation."""


@dataclass(frozen=True)
class Request:
    """Everything that a computation needs, copied out of the scene.

    Attributes:
        volumes: modality name -> scan.
        nodeIDs: modality name -> ID of the volume node that the scan was copied from.
        nodeNames: modality name -> name of that node, for messages.
        reference: modality whose grid the result is wanted on; None leaves the choice to
            ``medmap``.
        device: as ``devices.checkDevice`` accepts it.
        outputID: ID of the segmentation node to fill; None for a new one.
        remarks: what preparing found worth saying.
        plan: brain extraction and alignment that come first; None for none.
        brainMasks: modality name -> brain mask that was made elsewhere.
        scansKey: changes with the nodes that the scans and the mask were copied from.
    """

    volumes: dict[str, Volume]
    nodeIDs: dict[str, str]
    nodeNames: dict[str, str]
    reference: str | None = None
    device: str = AUTO
    outputID: str | None = None
    remarks: tuple[Finding, ...] = ()
    plan: PreparationPlan | None = None
    brainMasks: dict[str, Volume] = field(default_factory=dict)
    scansKey: tuple | None = None


class PreparationMemory:
    """The outcome of the last preparation, which serves again while nothing that it was made from
    has changed.
    """

    def __init__(self) -> None:
        self._preparation: Preparation | None = None
        self._unchanged: tuple[str, ...] = ()
        self._digest = b""
        self._scansKey: tuple | None = None

    def outcomeFor(self, request: Request, task: Task) -> Preparation | None:
        """The outcome for these very scans, masks and steps; None if it was made from others."""
        preparation = self._preparation
        if preparation is None or self._digest != _digestOf(request, task):
            return None
        volumes = dict(preparation.volumes)
        # A scan that needed nothing is the request's own, as ``prepare_scans`` has it.
        for name in self._unchanged:
            volumes[name] = request.volumes[name]
        return replace(preparation, volumes=volumes, is_reused=True)

    def keep(self, request: Request, task: Task, preparation: Preparation) -> None:
        """Remember an outcome in the place of the one before it."""
        unchanged = []
        for name, volume in preparation.volumes.items():
            if volume is request.volumes[name]:
                unchanged.append(name)
        self._preparation = preparation
        self._unchanged = tuple(unchanged)
        self._digest = _digestOf(request, task)
        self._scansKey = request.scansKey

    def isFor(self, scansKey: tuple, plan: PreparationPlan) -> bool:
        """Whether the outcome was made from these nodes by these steps; quick, for every click."""
        if self._preparation is None:
            return False
        return self._scansKey == scansKey and self._preparation.plan == plan

    def clear(self) -> None:
        """Forget it: the scene is closed."""
        self._preparation = None
        self._scansKey = None


def _digestOf(request: Request, task: Task) -> bytes:
    """Digest of all that a preparation depends on.

    By content, because a change of voxels need not be announced to the scene. Hashing a scan takes
    a tenth of a second, aligning it several seconds.
    """
    digest = hashlib.blake2b(f"{task.name} {request.plan}".encode())
    for kind, volumes in (("scan", request.volumes), ("mask", request.brainMasks)):
        _addVolumes(digest, kind, volumes)
    return digest.digest()


def _addVolumes(digest: hashlib.blake2b, kind: str, volumes: Mapping[str, Volume]) -> None:
    for name, volume in sorted(volumes.items()):
        digest.update(f"{kind} {name} {volume.name} {volume.array.shape}".encode())
        digest.update(volume.affine.tobytes())
        digest.update(volume.array.tobytes())


@dataclass(frozen=True)
class PreparedRequest:
    """A request whose scans are prepared.

    Attributes:
        request: with the prepared scans, and without a plan.
        preparation: what was done; None where nothing was planned.
        progress: for what follows.
    """

    request: Request
    preparation: Preparation | None
    progress: Progress


def preparedRequest(
    request: Request,
    task: Task,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    memory: PreparationMemory | None = None,
) -> PreparedRequest:
    """Carry out the plan of a request, as ``medmap segment`` does; on any thread.

    Args:
        request: with the scans as they were chosen.
        task: gives titles and the order of the modalities.
        progress: called with the completed fraction and a text.
        cancelled: asked before every step; True stops the run.
        memory: spares a preparation that was carried out before; None prepares in any case.

    Raises:
        UnavailableError: a step needs what is not installed.
        InputDataError: no brain was found in a scan.
        Cancelled: ``cancelled`` returned True.
    """
    report = progress or _ignore
    if request.plan is None or request.plan.is_empty:
        return PreparedRequest(request, None, report)
    preparation = None
    if memory is not None:
        preparation = memory.outcomeFor(request, task)
    if preparation is None:
        preparation = _carriedOut(request, request.plan, task, report, cancelled)
        if memory is not None:
            memory.keep(request, task, preparation)
    # Where something was prepared, the grid of the result is the one that nothing moved away from.
    prepared = replace(
        request, volumes=preparation.volumes, reference=request.plan.reference, plan=None
    )

    share = PREPARATION_SHARE
    if preparation.is_reused:
        share = 0.0

    def remaining(fraction: float, text: str) -> None:
        report(share + (1 - share) * fraction, text)

    return PreparedRequest(prepared, preparation, remaining)


def _carriedOut(
    request: Request,
    plan: PreparationPlan,
    task: Task,
    report: Progress,
    cancelled: Callable[[], bool] | None,
) -> Preparation:
    from medmap.preparation.workflow import prepare_scans  # imports torch, so not before Apply

    return prepare_scans(
        request.volumes,
        task,
        plan,
        brain_masks=request.brainMasks,
        progress=lambda fraction, text: report(PREPARATION_SHARE * fraction, text),
        cancel=cancelled,
    )


def _ignore(fraction: float, text: str) -> None:
    """Report progress to nobody."""
