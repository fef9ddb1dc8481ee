"""What a computation gets from the scene: arrays and words, no MRML node."""

from __future__ import annotations

from collections.abc import Callable
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
) -> PreparedRequest:
    """Carry out the plan of a request, as ``medmap segment`` does; on any thread.

    Raises:
        UnavailableError: a step needs what is not installed.
        InputDataError: no brain was found in a scan.
        Cancelled: ``cancelled`` returned True.
    """
    report = progress or _ignore
    if request.plan is None or request.plan.is_empty:
        return PreparedRequest(request, None, report)
    from medmap.preparation.workflow import prepare_scans  # imports torch, so not before Apply

    preparation = prepare_scans(
        request.volumes,
        task,
        request.plan,
        brain_masks=request.brainMasks,
        progress=lambda fraction, text: report(PREPARATION_SHARE * fraction, text),
        cancel=cancelled,
    )
    # Where something was prepared, the grid of the result is the one that nothing moved away from.
    prepared = replace(
        request, volumes=preparation.volumes, reference=request.plan.reference, plan=None
    )

    def remaining(fraction: float, text: str) -> None:
        report(PREPARATION_SHARE + (1 - PREPARATION_SHARE) * fraction, text)

    return PreparedRequest(prepared, preparation, remaining)


def _ignore(fraction: float, text: str) -> None:
    """Report progress to nobody."""
