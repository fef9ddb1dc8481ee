"""Our figures for the cells of a table, from the evaluations of its runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from scipy.stats import ttest_rel

from medmap.errors import MedMAPError
from medmap.evaluation import Evaluation
from medmap.tables.jobs import evaluation_folder, feed_of, fold_folder
from medmap.task import Task
from medmap.training.printed import PrintedCell, PrintedTable, run_of


@dataclass(frozen=True)
class Figure:
    """A cell with both figures.

    Attributes:
        ours: None where it is not measured.
        printed: None where the paper has none.
        run: whose score it is.
        digits: decimals; negative for exponents (p-values).
        is_shown: False where the paper leaves the cell empty.
    """

    ours: float | None
    printed: float | None
    run: str = ""
    digits: int = 2
    is_shown: bool = True


Grid = list[list[Figure]]


class Scores:
    """Values of cells, from the evaluations in a table's folder; each is read once."""

    def __init__(self, output: Path, folds: Mapping[str, int] | None = None):
        """Read from ``output``; ``folds`` is the number of folds of every run that has any."""
        self.output = output
        self.folds = dict(folds or {})
        self._evaluations: dict[Path, Evaluation | None] = {}

    def value(self, cell: PrintedCell) -> float | None:
        """What a cell shows; None where an evaluation that it needs is not there."""
        keys = cell.keys
        if keys.get("statistic") == "p-value":
            return self._p_value(keys)
        first = self.mean(keys)
        if first is None:
            return None
        if "minus" in keys:
            second = self.mean(cell.operands[1])
            return None if second is None else first - second
        if "percent_over" in keys:
            baseline_means = [self.mean(operand) for operand in cell.operands[1:]]
            defined_means = [value for value in baseline_means if value is not None]
            if len(defined_means) < len(baseline_means) or max(defined_means) == 0:
                return None
            return 100 * (first - max(defined_means)) / max(defined_means)
        return first

    def mean(self, keys: Mapping) -> float | None:
        """Mean over the subsets, feeds and regions that the keys name."""
        values = self.values(keys)
        defined_values = [value for value in values if value is not None]
        # A mean over some of the scores would be another figure than the paper's.
        is_complete = len(defined_values) == len(values)
        if not values or not is_complete:
            return None
        return statistics.mean(defined_values)

    def values(self, keys: Mapping) -> list[float | None]:
        """The scores that a mean is over, each the mean over folds: Dice in percent, distances in
        mm; [None] where an evaluation, or the score of a fold, is missing."""
        outputs = self._outputs(run_of(keys))
        by_fold = [self._values_in(output, keys) for output in outputs]
        if any(None in values for values in by_fold):
            return [None]
        return [statistics.mean(values) for values in zip(*by_fold, strict=True)]

    def _values_in(self, output: Path, keys: Mapping) -> list[float | None]:
        """The scores of one fold, or of a run without folds."""
        feeds = keys.get("feed", "")
        if isinstance(feeds, str):
            feeds = [feeds]
        score = keys.get("score", "dice")
        values: list[float | None] = []
        for feed in feeds:
            exchanged_images = {}
            if feed:
                exchanged_images = feed_of(keys["subset"], feed)
            evaluation = self._evaluation(output, run_of(keys), exchanged_images)
            if evaluation is None:
                return [None]
            table = evaluation.summary.tables[score].subsets
            subsets = subsets_of(keys.get("subset", "all"), evaluation.task)
            regions = regions_of(keys.get("region", "mean"), evaluation.task)
            for subset, region in product(subsets, regions):
                mean = None
                if subset in table:
                    mean = table[subset][region].mean
                if mean is not None and score == "dice":
                    # Papers print Dice in percent.
                    mean = 100 * mean
                values.append(mean)
        return values

    def cases(self, run: str) -> int:
        """How many cases a run was scored on, in all of its folds; 0 where it was not."""
        count = 0
        for output in self._outputs(run):
            evaluation = self._evaluation(output, run, {})
            count += evaluation.summary.cases if evaluation else 0
        return count

    def _outputs(self, run: str) -> list[Path]:
        """The folders that hold a run's evaluations: one for each fold, or the table's."""
        count = self.folds.get(run)
        if count is None:
            return [self.output]
        return [fold_folder(self.output, fold) for fold in range(count)]

    def _p_value(self, keys: Mapping) -> float | None:
        """One-tailed paired t-test over the subsets: is ``against`` better than the run?"""
        their_keys = {**keys, "subset": "all"}
        our_keys = {**their_keys, "run": keys["against"]}
        ours = self.values(our_keys)
        theirs = self.values(their_keys)
        is_measured = None not in ours and None not in theirs
        # Equal scores, or a single pair, have no variance to test against.
        if not is_measured or len(ours) < 2 or ours == theirs:
            return None
        test = ttest_rel(ours, theirs, alternative="greater")
        return float(test.pvalue)

    def _evaluation(self, output: Path, run: str, feed: Mapping[str, str]) -> Evaluation | None:
        folder = evaluation_folder(output, run, feed)
        if folder not in self._evaluations:
            try:
                self._evaluations[folder] = Evaluation.read(folder)
            except MedMAPError:
                self._evaluations[folder] = None
        return self._evaluations[folder]


def subsets_of(name: str | Sequence[str], task: Task) -> list[str]:
    """Keys of the modality subsets that a cell's ``subset`` means."""
    if not isinstance(name, str):
        keys: list[str] = []
        for part in name:
            keys += subsets_of(part, task)
        return keys
    count = len(task.modalities)
    sizes = {
        "all": range(1, count + 1),
        "full": [count],
        "single": [1],
    }
    if name.startswith("missing "):
        missing = int(name.removeprefix("missing "))
        sizes[name] = [count - missing]
    if name not in sizes:
        return [task.subset_key(name.split("+"))]
    subsets = [subset for subset in task.table_order() if len(subset) in sizes[name]]
    return [task.subset_key(subset) for subset in subsets]


def regions_of(name: str, task: Task) -> list[str]:
    """Names of the regions that a cell's ``region`` means."""
    if name == "mean":
        return [region.name for region in task.regions]
    return [name]


def grid_of(table: PrintedTable, scores: Scores | None) -> Grid:
    """Both figures of every cell; without scores the paper's alone."""
    grid = []
    for row in table.rows:
        line = []
        for cell in row.cells:
            ours = None
            if scores and cell.is_shown:
                ours = scores.value(cell)
            digits = 2
            if cell.keys.get("statistic") == "p-value":
                digits = -1
            line.append(Figure(ours, cell.printed, cell.run, digits, cell.is_shown))
        grid.append(line)
    return grid
