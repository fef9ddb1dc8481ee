"""What a report is made of, under names that are never the same twice, and its figures."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from medmap.bundle.loading import Bundle
from medmap.commands.names import distinct_names
from medmap.evaluation import Evaluation
from medmap.evaluation.tables import Summary
from medmap.report import html
from medmap.report.curves import LoggedSeries
from medmap.report.figures import SCALE
from medmap.task import BRATS, Task


@dataclass
class Sources:
    """What a report is made of.

    Attributes:
        evaluations, bundles, logs, run_tasks, pictures: in the order in which they were given.
        example_cases: names of the cases that are drawn; empty chooses some.
        example_subsets: modality subsets that are drawn (``t1ce+flair``); empty draws all.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    bundles: list[Bundle] = field(default_factory=list)
    logs: list[LoggedSeries] = field(default_factory=list)
    run_tasks: list[Task] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    example_cases: tuple[str, ...] = ()
    example_subsets: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """The task of the first source that has one."""
        if self.evaluations:
            return self.evaluations[0].task
        if self.bundles:
            return self.bundles[0].task
        if self.run_tasks:
            return self.run_tasks[0]
        return BRATS

    @property
    def named_evaluations(self) -> list[tuple[str, Evaluation]]:
        """The evaluations, each with a name that no other one has."""
        candidates = []
        for evaluation in self.evaluations:
            name = _title_and_part(evaluation)
            folder = evaluation.folder.absolute()
            candidates.append(
                (
                    name,
                    f"{name} ({folder.name})",
                    f"{name} ({folder.parent.name}/{folder.name})",
                )
            )
        return list(zip(distinct_names(candidates), self.evaluations, strict=True))

    @property
    def named_logs(self) -> list[tuple[str, LoggedSeries]]:
        """The training runs, each with a name that no other one has."""
        names = distinct_names([(log.name,) for log in self.logs])
        return list(zip(names, self.logs, strict=True))

    @property
    def summaries(self) -> list[tuple[str, Summary]]:
        """Name and summary of the evaluations, then of the bundles' cards."""
        summaries = [(name, evaluation.summary) for name, evaluation in self.named_evaluations]
        with_scores = [bundle for bundle in self.bundles if bundle.card.get("dice")]
        candidates = []
        for bundle in with_scores:
            short_name = f"{bundle.id} (its card)"
            # Two bundles may have the same id; their weights differ.
            long_name = f"{bundle.id} (card, {bundle.sha256[:8]})"
            candidates.append((short_name, long_name))
        names = distinct_names(candidates)
        for name, bundle in zip(names, with_scores, strict=True):
            summaries.append((name, Summary.from_dict(bundle.card["dice"])))
        return summaries


@dataclass
class Figures:
    """The figures of a report: PNG bytes by file name (without ending)."""

    pictures: dict[str, bytes] = field(default_factory=dict)

    def keep(self, name: str, png: bytes) -> None:
        """Keep a figure; characters that a file name should not have become dashes.

        A name that is in use, in whatever case of letters, gets a number: no figure replaces
        another one, on file systems without upper and lower case neither.
        """
        file_name = re.sub(r"[^A-Za-z0-9.+_-]+", "-", name).strip("-")
        in_use = {picture_name.lower() for picture_name in self.pictures}
        unique = file_name
        count = 1
        while unique.lower() in in_use:
            count += 1
            unique = f"{file_name}-{count}"
        self.pictures[unique] = png

    def show(self, name: str, png: bytes, alt: str, caption: str = "", scale: float = SCALE) -> str:
        """Keep a figure and give it as HTML; ``scale`` of its pixels to one of the page."""
        self.keep(name, png)
        return html.picture(png, alt, caption, scale)


def _title_and_part(evaluation: Evaluation) -> str:
    part = evaluation.about.get("part")
    if part:
        return f"{evaluation.title}, {part}"
    return evaluation.title
