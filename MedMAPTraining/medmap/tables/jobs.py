"""A training or an evaluation of a table, and where its files lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A training, or an evaluation of its bundle.

    Attributes:
        run: name of the row.
        kind: ``train`` or ``evaluate``.
        data: folder of the cases.
        output: the table's folder, or that of one fold in it.
        fold: number of the fold; None for a run without folds.
        teacher: name of the row whose bundle is the teacher, or "".
        split: file whose part ``test`` is scored; None scores every case.
        feed: modality -> the one that is given in its place, of an evaluation.
        needs: names of jobs that come before.
        state: ``done``, ``to do``, or how far a training is.
        hours: estimate for a training from here on; 0 for evaluations.
    """

    run: str
    kind: str
    data: Path
    output: Path
    fold: int | None = None
    teacher: str = ""
    split: Path | None = None
    feed: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()
    state: str = "to do"
    hours: float = 0.0
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0

    @property
    def name(self) -> str:
        """Unique in a plan: ``train conference-protokd-pk``."""
        feed_text = "".join(f", {other} as {modality}" for modality, other in self.feed)
        return f"{self.kind} {self.run}{feed_text}{fold_text(self.fold)}"

    @property
    def recipe_file(self) -> Path:
        """The row's recipe with all changes."""
        return self.output / "recipes" / f"{self.run}.json"

    @property
    def run_folder(self) -> Path:
        """Of the training."""
        return self.output / "runs" / self.run

    @property
    def bundle(self) -> Path:
        """Of the training."""
        return self.output / "bundles" / self.run

    @property
    def teacher_bundle(self) -> Path | None:
        """Bundle of the teacher, if there is one."""
        return self.output / "bundles" / self.teacher if self.teacher else None

    @property
    def evaluation(self) -> Path:
        """Folder of the evaluation."""
        return evaluation_folder(self.output, self.run, dict(self.feed))


def evaluation_folder(output: Path, run: str, feed: Mapping[str, str]) -> Path:
    """Where a run's evaluation lies."""
    feed_suffix = "".join(f"-{other}-as-{modality}" for modality, other in feed.items())
    return output / "evaluations" / f"{run}{feed_suffix}"


def fold_folder(output: Path, fold: int | None) -> Path:
    """Where the runs of a fold lie in a table's folder."""
    return output if fold is None else output / f"fold_{fold}"


def fold_text(fold: int | None) -> str:
    """What a job's name has behind it: ``, fold 0``."""
    return "" if fold is None else f", fold {fold}"


def feed_of(subset: str, given: str) -> dict[str, str]:
    """The feed of a bundle of one modality; empty where it gets its own."""
    return {} if subset == given else {subset: given}
