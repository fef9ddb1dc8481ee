"""Images in the place of another modality (``--feed``): what of them does a model use?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from medmap.errors import InputDataError, UsageError
from medmap.io.cohorts import Case
from medmap.task import Task


def parse_feed(assignments: Sequence[str]) -> dict[str, str]:
    """``t1=t2`` and so on as a dict. Raises UsageError for anything else."""
    feed = {}
    for assignment in assignments:
        modality, separator, other = assignment.partition("=")
        if not separator or not modality or not other or modality in feed:
            raise UsageError(
                f"'{assignment}' assigns no modality.", "Write MODALITY=OTHER, such as t1=t2."
            )
        feed[modality] = other
    return feed


def fed(case: Case, feed: Mapping[str, str], task: Task) -> Case:
    """The case with other modalities' images in the places that ``feed`` names; nothing else.

    The places that it does not name stay empty, so that scores are of the exchanged images alone.

    Raises:
        UsageError: a modality is unknown.
        InputDataError: the case lacks an image that is to be given.
    """
    unknown = sorted({*feed, *feed.values()} - set(task.modality_names))
    if unknown:
        raise UsageError(
            f"{task.name} has no modality {unknown[0]}.",
            f"Use {', '.join(task.modality_names)}.",
        )
    missing = sorted(set(feed.values()) - set(case.scans))
    if missing:
        raise InputDataError(
            f"The case {case.case_id} has no {task.titles(missing)}.",
            "Choose cases that have every modality that is to be given.",
        )
    scans = {modality: case.scans[other] for modality, other in feed.items()}
    return replace(case, scans=scans)
