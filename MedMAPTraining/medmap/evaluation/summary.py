"""From scores to the tables that papers print and that a bundle's card carries."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from medmap.evaluation.scoring import Row
from medmap.task import Task

RULES = (
    "Dice: both empty 1, one empty 0. HD95: both empty 0; one empty is left out of mean ± SD and counted as undefined, "
    "and counts as the diagonal of the labels' grid in the penalized mean. Small-region rule: a prediction below the "
    "region's least volume counts as empty, for that region's scores only."
)
"""What the tables mean; printed beside them."""

Summary = dict
"""JSON-ready: see ``summarize``."""


def groups(task: Task) -> dict[str, tuple[str, ...]]:
    """Sets of subsets that tables average over, by name.

    ``3 missing`` (with four scans: 4 subsets) and so on to ``0 missing``, ``all subsets``, and ``without X`` for every
    modality whose absence the task warns of.
    """
    total = len(task.modalities)
    order = task.table_order()
    found = {
        f"{total - size} missing": [s for s in order if len(s) == size]
        for size in range(1, total + 1)
    }
    found["all subsets"] = list(order)
    for modality in task.modalities:
        if modality.warning_if_absent:
            found[f"without {modality.title}"] = [s for s in order if modality.name not in s]
    return {name: tuple(task.subset_key(s) for s in subsets) for name, subsets in found.items()}


def summarize(rows: Sequence[Row], task: Task, data: str) -> Summary:
    """The tables of an evaluation.

    Args:
        rows: of one bundle on one cohort.
        task: order of subsets and regions.
        data: what the cases are, in words.

    Returns:
        ``{"data", "cases", "rules", "subsets": {subset: {region: {"mean", "sd", "n"}}}, "averages": {group: {region:
        {"mean", "sd", "n", "subsets"}}}, "dice_rule": {"subsets", "averages"}, "hd95": {"subsets": {subset: {region:
        {"mean", "sd", "n", "undefined", "penalized"}}}, "averages"}, "hd95_rule", "empty": {region: {"reference",
        ...}}, "least_mm3"}``. Dice without the small-region rule stands on top, where the panel reads it. SD is that
        over cases (n - 1).
    """
    return {
        "data": data,
        "cases": len({row.case for row in rows}),
        "rules": RULES,
        "least_mm3": {region.name: region.least_mm3 for region in task.regions if region.least_mm3},
        **_means(rows, task, "dice"),
        "dice_rule": _means(rows, task, "dice_rule"),
        "hd95": _distances(rows, task, "hd95_mm"),
        "hd95_rule": _distances(rows, task, "hd95_rule_mm"),
        "empty": _empties(rows, task),
    }


def table(
    rows: Sequence[Row], task: Task, metric: str = "dice"
) -> dict[str, dict[str, dict[str, float]]]:
    """subset -> region -> case -> value, subsets in the order of the field's tables, those without cases left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        found.setdefault(row.subset, {}).setdefault(row.region, {})[row.case] = getattr(row, metric)
    order = [task.subset_key(s) for s in task.table_order()]
    return {subset: found[subset] for subset in order if subset in found}


def table_csv(summary: Summary, task: Task) -> str:
    """The subset table as CSV: a line a subset, then a line an average; Dice as a share, HD95 in mm.

    Columns are ``<region>_<score>_<figure>``; the scores are ``dice``, ``hd95`` and, where the region has a
    small-region rule, ``dice_rule`` and ``hd95_rule``; the figures ``mean``, ``sd`` and, of distances, ``undefined``
    and ``penalized``. What is not defined is an empty cell.
    """
    scores = {
        "dice": summary,
        **{name: summary[name] for name in ("dice_rule", "hd95", "hd95_rule")},
    }
    columns = [
        (region.name, score, figure)
        for region in task.regions
        for score in scores
        if region.least_mm3 or not score.endswith("_rule")
        for figure in (
            ("mean", "sd", "undefined", "penalized") if score.startswith("hd95") else ("mean", "sd")
        )
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scans", "cases", *("_".join(column) for column in columns)])
    for kind in ("subsets", "averages"):
        for name, found in summary[kind].items():
            cells = [scores[score][kind][name][region][figure] for region, score, figure in columns]
            words = name if kind == "subsets" else f"mean, {name}"
            writer.writerow(
                [words, found[task.regions[0].name]["n"], *("" if c is None else c for c in cells)]
            )
    return text.getvalue()


def per_case_averages(
    values: dict[str, dict[str, dict[str, float]]], subsets: Sequence[str], region: str
) -> dict:
    """case -> mean over the subsets, of the cases that have them all (values of ``table``)."""
    columns = [values.get(subset, {}).get(region, {}) for subset in subsets]
    cases = (
        [case for case in columns[0] if all(case in column for column in columns)]
        if columns
        else []
    )
    return {case: float(np.mean([column[case] for column in columns])) for case in cases}


def _means(rows: Sequence[Row], task: Task, metric: str) -> dict:
    values = table(rows, task, metric)
    subsets = {
        subset: {
            region.name: _mean_sd(list(regions[region.name].values())) for region in task.regions
        }
        for subset, regions in values.items()
    }
    return {"subsets": subsets, "averages": _averages(values, subsets, task)}


def _averages(values: dict, subsets: dict, task: Task) -> dict:
    """Means of the subsets' means, each subset weighing the same, as the papers' tables mean it; only of groups that
    are complete. The SD is that of the cases' own averages, of cases that have all the group's subsets."""
    found = {}
    for name, members in groups(task).items():
        if not members or not set(members) <= set(subsets):
            continue
        found[name] = {}
        for region in task.regions:
            means = [subsets[member][region.name]["mean"] for member in members]
            spread = _mean_sd(list(per_case_averages(values, members, region.name).values()))
            entry = {"mean": round(float(np.mean(means)), 4), "sd": spread["sd"], "n": spread["n"]}
            found[name][region.name] = {**entry, "subsets": len(members)}
    return found


def _distances(rows: Sequence[Row], task: Task, metric: str) -> dict:
    diagonal = {(row.case, row.region): row.diagonal_mm for row in rows}
    values, found = table(rows, task, metric), {}
    for subset, regions in values.items():
        found[subset] = {}
        for region, cases in regions.items():
            known = [value for value in cases.values() if not math.isnan(value)]
            penalized = [
                diagonal[case, region] if math.isnan(value) else value
                for case, value in cases.items()
            ]
            entry = _mean_sd(known, 2) if known else {"mean": None, "sd": None, "n": 0}
            undefined = len(cases) - len(known)
            found[subset][region] = {
                **entry,
                "undefined": undefined,
                "penalized": round(float(np.mean(penalized)), 2),
            }
    return {"subsets": found, "averages": _average_distances(values, found, task)}


def _average_distances(values: dict, subsets: dict, task: Task) -> dict:
    """As ``_averages``; None where a subset of the group has no defined distance. SD over cases that have them all."""
    found = {}
    for name, members in groups(task).items():
        if not members or not set(members) <= set(subsets):
            continue
        found[name] = {}
        for region in task.regions:
            entries = [subsets[member][region.name] for member in members]
            means = [entry["mean"] for entry in entries]
            own = [
                v
                for v in per_case_averages(values, members, region.name).values()
                if not math.isnan(v)
            ]
            spread = _mean_sd(own, 2)
            found[name][region.name] = {
                "mean": None if None in means else round(float(np.mean(means)), 2),
                "sd": spread["sd"] if own else None,
                "n": spread["n"],
                "undefined": sum(entry["undefined"] for entry in entries),
                "penalized": round(float(np.mean([entry["penalized"] for entry in entries])), 2),
                "subsets": len(members),
            }
    return found


def _empties(rows: Sequence[Row], task: Task) -> dict:
    """Region -> how many cases have none of it, and how many predictions (cases x subsets) found none, and both."""
    found = {}
    for region in task.regions:
        own = [row for row in rows if row.region == region.name]
        found[region.name] = {
            "reference": len({row.case for row in own if row.reference_ml == 0}),
            "prediction": sum(row.prediction_ml == 0 for row in own),
            "both": sum(row.prediction_ml == 0 == row.reference_ml for row in own),
            "emptied_by_rule": sum(0 < 1000 * row.prediction_ml < region.least_mm3 for row in own),
            "predictions": len(own),
        }
    return found


def _mean_sd(values: Sequence[float], digits: int = 4) -> dict:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    mean = float(np.mean(values)) if len(values) else None
    return {
        "mean": None if mean is None else round(mean, digits),
        "sd": round(sd, digits),
        "n": len(values),
    }
