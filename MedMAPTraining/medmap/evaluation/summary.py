"""From scores to the tables that papers print and that a bundle's card carries."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

from medmap.evaluation.scoring import ScoreRow
from medmap.evaluation.tables import Cells, EmptyMasks, Statistics, SubsetTable, Summary
from medmap.metrics import EMPTY_MASK_RULE
from medmap.task import Region, Task

RULES = (
    f"{EMPTY_MASK_RULE} An undefined HD95 is left out of mean ± SD and counted, and counts as the "
    "diagonal of the labels' grid in the penalized mean. Minimum-volume rule: a prediction below "
    "the region's minimum volume counts as empty, for that region's scores only."
)
"""What the tables mean; printed beside them."""

DICE_DIGITS = 4
DISTANCE_DIGITS = 2

ScoreTable = dict[str, dict[str, dict[str, float]]]
"""subset -> region -> case -> value."""


def groups(task: Task) -> dict[str, tuple[str, ...]]:
    """Groups of modality subsets that tables average over, by name.

    ``3 missing`` (with four modalities: 4 subsets) and so on to ``0 missing``, ``all subsets``, and
    ``without X`` for every modality whose absence the task warns of.
    """
    total = len(task.modalities)
    order = task.table_order()
    members: dict[str, list[tuple[str, ...]]] = {}
    for size in range(1, total + 1):
        of_size = [subset for subset in order if len(subset) == size]
        members[f"{total - size} missing"] = of_size
    members["all subsets"] = list(order)
    for modality in task.modalities:
        if modality.warning_if_absent:
            without = [subset for subset in order if modality.name not in subset]
            members[f"without {modality.title}"] = without
    keys = {}
    for name, subsets in members.items():
        keys[name] = tuple(task.subset_key(subset) for subset in subsets)
    return keys


def summarize(rows: Sequence[ScoreRow], task: Task, data: str) -> Summary:
    """The tables of an evaluation.

    Args:
        rows: of one bundle on one cohort.
        task: order of subsets and regions.
        data: what the cases are, in words.
    """
    return Summary(
        data=data,
        cases=len({row.case for row in rows}),
        rules=RULES,
        least_mm3={
            region.name: region.min_volume_mm3 for region in task.regions if region.min_volume_mm3
        },
        dice=_dice_table(rows, task, "dice"),
        dice_rule=_dice_table(rows, task, "dice_rule"),
        hd95=_distance_table(rows, task, "hd95_mm"),
        hd95_rule=_distance_table(rows, task, "hd95_rule_mm"),
        empty={region.name: _empty_masks(rows, region) for region in task.regions},
        further=_further_tables(rows, task),
    )


FURTHER_SCORES = {
    "lesion_dice": DICE_DIGITS,
    "lesion_hd95_mm": DISTANCE_DIGITS,
    "nsd": DICE_DIGITS,
    "volume_error_ml": DISTANCE_DIGITS,
}
"""Columns of ``ScoreRow`` that get a table where every row has them, and the digits they keep."""


def _further_tables(rows: Sequence[ScoreRow], task: Task) -> dict[str, SubsetTable]:
    """Tables of the scores that every row has; a mean over some of the rows would mislead."""
    tables: dict[str, SubsetTable] = {}
    if not rows:
        return tables
    for metric, digits in FURTHER_SCORES.items():
        values = [getattr(row, metric) for row in rows]
        is_missing = any(math.isnan(value) for value in values)
        if not is_missing:
            tables[metric] = _dice_table(rows, task, metric, digits)
    return tables


def table(rows: Sequence[ScoreRow], task: Task, metric: str = "dice") -> ScoreTable:
    """subset -> region -> case -> value of a column of ``ScoreRow``.

    Subsets stand in the order of the field's tables; those without cases are left out.
    """
    values: ScoreTable = {}
    for row in rows:
        regions = values.setdefault(row.subset, {})
        cases = regions.setdefault(row.region, {})
        cases[row.case] = getattr(row, metric)
    order = [task.subset_key(subset) for subset in task.table_order()]
    return {subset: values[subset] for subset in order if subset in values}


def table_csv(summary: Summary, task: Task) -> str:
    """The subset table as CSV: a line for each subset, then for each average.

    Columns are ``<region>_<score>_<figure>``; the scores are ``dice`` (0..1), ``hd95`` (mm) and,
    where the region has a minimum-volume rule, ``dice_rule`` and ``hd95_rule``; the figures
    ``mean``, ``sd`` and, of distances, ``undefined`` and ``penalized``. What is not defined is an
    empty cell. A subset that another one's network segmented bears a mark.
    """
    columns = _csv_columns(summary, task)
    headings = ["_".join(column) for column in columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scans", "cases", *headings])
    first_region = task.regions[0].name
    for kind, prefix in (("subsets", ""), ("averages", "mean, ")):
        for name, cells in getattr(summary.dice, kind).items():
            title = prefix + name + summary.mark(name)
            line: list[str | float | int] = [title, cells[first_region].n]
            for region, score, figure in columns:
                rows = getattr(summary.tables[score], kind)
                value = getattr(rows[name][region], figure)
                if value is None:
                    value = ""
                line.append(value)
            writer.writerow(line)
    return text.getvalue()


def _csv_columns(summary: Summary, task: Task) -> list[tuple[str, str, str]]:
    """Region, score and figure of every column."""
    columns = []
    for region in task.regions:
        for score in summary.tables:
            if score.endswith("_rule") and not region.min_volume_mm3:
                continue
            figures = ["mean", "sd"]
            if score.startswith("hd95"):
                figures += ["undefined", "penalized"]
            columns += [(region.name, score, figure) for figure in figures]
    return columns


def per_case_averages(values: ScoreTable, subsets: Sequence[str], region: str) -> dict[str, float]:
    """case -> mean over the subsets, of the cases that have them all (values of ``table``)."""
    columns = [values.get(subset, {}).get(region, {}) for subset in subsets]
    if not columns:
        return {}
    averages = {}
    for case in columns[0]:
        has_all = all(case in column for column in columns)
        if not has_all:
            continue
        scores = [column[case] for column in columns]
        averages[case] = float(np.mean(scores))
    return averages


def _dice_table(
    rows: Sequence[ScoreRow], task: Task, metric: str, digits: int = DICE_DIGITS
) -> SubsetTable:
    """The table of a score that is always defined."""
    values = table(rows, task, metric)
    subsets: Cells = {}
    for subset, regions in values.items():
        cells = {}
        for region in task.regions:
            scores = list(regions[region.name].values())
            cells[region.name] = _statistics(scores, digits)
        subsets[subset] = cells
    averages: Cells = {}
    for name, members in _complete_groups(task, subsets).items():
        cells = {}
        for region in task.regions:
            cells[region.name] = _average(values, subsets, members, region.name, digits)
        averages[name] = cells
    return SubsetTable(subsets, averages)


def _complete_groups(task: Task, subsets: Cells) -> dict[str, tuple[str, ...]]:
    """Groups all of whose subsets were scored: an average over fewer would be another figure."""
    complete = {}
    for name, members in groups(task).items():
        if members and set(members) <= set(subsets):
            complete[name] = members
    return complete


def _average(
    values: ScoreTable, subsets: Cells, members: Sequence[str], region: str, digits: int
) -> Statistics:
    """Mean of the subsets' means, each subset weighing the same, as papers' tables mean it.

    The SD is that of the cases' own averages, of the cases that have all the group's subsets.
    """
    subset_means = [subsets[member][region].mean for member in members]
    defined_means = _defined(subset_means)
    mean = round(float(np.mean(defined_means)), digits)
    case_averages = per_case_averages(values, members, region)
    spread = _statistics(list(case_averages.values()), digits)
    return Statistics(mean, spread.sd, spread.n, subsets=len(members))


def _defined(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _distance_table(rows: Sequence[ScoreRow], task: Task, metric: str) -> SubsetTable:
    diagonal = {(row.case, row.region): row.diagonal_mm for row in rows}
    values = table(rows, task, metric)
    subsets: Cells = {}
    for subset, regions in values.items():
        cells = {}
        for region_name, distances in regions.items():
            # What is not defined counts as the diagonal of the grid (BraTS).
            penalties = {case: diagonal[case, region_name] for case in distances}
            cells[region_name] = _distance_statistics(distances, penalties)
        subsets[subset] = cells
    averages: Cells = {}
    for name, members in _complete_groups(task, subsets).items():
        cells = {}
        for region in task.regions:
            cells[region.name] = _distance_average(values, subsets, members, region.name)
        averages[name] = cells
    return SubsetTable(subsets, averages)


def _distance_statistics(
    distances: Mapping[str, float], penalties: Mapping[str, float]
) -> Statistics:
    """Statistics of one cell's distances in mm by case; ``penalties`` stand for undefined ones."""
    defined = [distance for distance in distances.values() if not math.isnan(distance)]
    penalized = []
    for case, distance in distances.items():
        penalized.append(penalties[case] if math.isnan(distance) else distance)
    statistics = Statistics(None, None, 0)
    if defined:
        statistics = _statistics(defined, DISTANCE_DIGITS)
    return Statistics(
        statistics.mean,
        statistics.sd,
        statistics.n,
        undefined=len(distances) - len(defined),
        penalized=round(float(np.mean(penalized)), DISTANCE_DIGITS),
    )


def _distance_average(
    values: ScoreTable, subsets: Cells, members: Sequence[str], region: str
) -> Statistics:
    """As ``_average``; the mean is None where a subset of the group has no defined distance.

    The SD is over the cases whose distance is defined in all the group's subsets.
    """
    cells = [subsets[member][region] for member in members]
    means = _defined([cell.mean for cell in cells])
    mean = None
    if len(means) == len(cells):
        mean = round(float(np.mean(means)), DISTANCE_DIGITS)
    case_averages = per_case_averages(values, members, region)
    defined = [average for average in case_averages.values() if not math.isnan(average)]
    spread = _statistics(defined, DISTANCE_DIGITS)
    sd = None
    if defined:
        sd = spread.sd
    penalized = _defined([cell.penalized for cell in cells])
    penalized_mean = float(np.mean(penalized))
    undefined_counts = [cell.undefined or 0 for cell in cells]
    return Statistics(
        mean,
        sd,
        spread.n,
        undefined=sum(undefined_counts),
        penalized=round(penalized_mean, DISTANCE_DIGITS),
        subsets=len(members),
    )


def _empty_masks(rows: Sequence[ScoreRow], region: Region) -> EmptyMasks:
    """Counts of empty masks of one region, over all cases and subsets."""
    scores = [row for row in rows if row.region == region.name]
    without_prediction = [row for row in scores if row.prediction_ml == 0]
    without_reference = {row.case for row in scores if row.reference_ml == 0}
    # Milliliters against mm³: a factor of 1000.
    below_minimum = [row for row in scores if 0 < 1000 * row.prediction_ml < region.min_volume_mm3]
    return EmptyMasks(
        reference=len(without_reference),
        prediction=len(without_prediction),
        both=sum(row.reference_ml == 0 for row in without_prediction),
        emptied_by_rule=len(below_minimum),
        predictions=len(scores),
    )


def _statistics(values: Sequence[float], digits: int) -> Statistics:
    """Mean and SD (n - 1; 0 of a single value), rounded."""
    sd = 0.0
    if len(values) > 1:
        sd = float(np.std(values, ddof=1))
    mean = None
    if len(values):
        mean = round(float(np.mean(values)), digits)
    return Statistics(mean, round(sd, digits), len(values))
