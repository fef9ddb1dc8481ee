"""Dice of every subset of modalities on a cohort, each scan encoded once."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medmap.bundle import Bundle
from medmap.dataset import Case
from medmap.errors import InputDataError
from medmap.files import write_text
from medmap.inference import segment_subsets
from medmap.metrics import dice, region_masks
from medmap.nifti import read_nifti

Row = dict[str, str | float]
"""One subset of one case: ``case``, ``subset`` and the Dice of each region by its name."""


def evaluate(
    cases: Sequence[Case],
    bundle: Bundle,
    *,
    device: str = "cpu",
    report: Callable[[int, int, str], None] | None = None,
) -> list[Row]:
    """Score every subset of the scans that each case has.

    Args:
        cases: with reference labels on the grid of one of their scans.
        report: called before each case with its number, how many there are, and its name.

    Returns:
        One row a case and subset; Dice 0..1 per region, both empty = 1, one empty = 0 (``medmap.metrics.dice``).

    Raises:
        InputDataError: a case has no reference labels, or they fit none of its scans.
    """
    rows = []
    for n, case in enumerate(cases):
        if report:
            report(n, len(cases), case.case_id)
        rows += _score_case(case, bundle, device)
    return rows


def _score_case(case: Case, bundle: Bundle, device: str) -> list[Row]:
    if case.label is None:
        raise InputDataError(f"The case {case.case_id} has no reference labels.", "Add <case>_seg.nii.gz.")
    volumes = case.read(bundle.task.modality_names)
    truth = read_nifti(case.label, modality="seg")
    drawn_on = [name for name, v in volumes.items() if v.grid.distance(truth.grid) < 0.5]
    if not drawn_on:
        raise InputDataError(
            f"The labels of {case.case_id} lie on the grid of none of its scans.", "Resample them to one scan's grid."
        )
    subsets = [s for s in bundle.task.subsets() if set(s) <= set(volumes) and bundle.find_entry(s)]
    predicted = segment_subsets(volumes, bundle, subsets, reference=drawn_on[0], device=device)
    reference = region_masks(truth.array, bundle.task)
    return [
        {"case": case.case_id, "subset": subset}
        | {name: dice(mask, reference[name]) for name, mask in region_masks(labels, bundle.task).items()}
        for subset, labels in predicted.items()
    ]


def summarise(rows: Sequence[Row], bundle: Bundle, data: str) -> dict:
    """The table that a bundle's card carries.

    Args:
        rows: of ``evaluate``.
        bundle: for the order of subsets and regions.
        data: what the cases are, in words.

    Returns:
        ``{"data", "cases", "subsets": {subset: {region: {"mean", "sd", "n"}}}}``; SD over cases (n - 1).
    """
    regions = [region.name for region in bundle.task.regions]
    table = {}
    for subset in (bundle.task.subset_key(s) for s in bundle.task.subsets()):
        chosen = [row for row in rows if row["subset"] == subset]
        if chosen:
            table[subset] = {region: _mean_sd([row[region] for row in chosen]) for region in regions}
    return {"data": data, "cases": len({row["case"] for row in rows}), "subsets": table}


def _mean_sd(values: Sequence[float]) -> dict:
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 4), "sd": round(sd, 4), "n": len(values)}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the per-case scores as CSV, atomically."""
    lines: list[str] = []

    class _Lines:
        def write(self, text: str) -> None:
            lines.append(text)

    writer = csv.DictWriter(_Lines(), fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, "".join(lines))
