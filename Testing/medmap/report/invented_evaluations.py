"""Finished evaluations of invented scores, with pictures of two cases, for tests of reports."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from medmap.evaluation import ScoreRow, Store, summarize
from medmap.io.cases import Case
from medmap.report.slices import Slice
from medmap.task import BRATS


def picture(case: str, seed: int) -> Slice:
    """A slice of noise; each prediction is the reference, moved down a row for each modality."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 36), np.uint8)
    labels[10:22, 12:24] = 2
    labels[13:18, 15:20] = 4
    scans = {
        name: rng.integers(1, 255, labels.shape).astype(np.uint8) for name in BRATS.modality_names
    }
    predictions = {BRATS.subset_key(s): np.roll(labels, len(s), 0) for s in BRATS.subsets()}
    return Slice(case, scans, labels, predictions, (1.0, 1.0), "axial, S 3 mm")


def evaluation(folder: Path, name: str, lift: float, cases: int = 14) -> Path:
    """A finished evaluation of invented scores, all raised by ``lift``.

    ET of the last case is empty in both label maps; C0 and C6 have pictures.
    """
    store = Store(folder, name)
    rows = []
    for n in range(cases):
        case_rows = []
        for subset in BRATS.subsets():
            for m, region in enumerate(BRATS.regions):
                score = min(1.0, 0.4 + 0.1 * len(subset) - 0.1 * m + lift + 0.003 * n)
                empty = n == cases - 1 and region.name == "ET"
                score, volume = (1.0, 0.0) if empty else (score, 3.0)
                distance = math.nan if n == 0 and m == 1 else 4.0
                key = BRATS.subset_key(subset)
                case_rows.append(
                    ScoreRow(
                        f"C{n}",
                        key,
                        region.name,
                        score,
                        score,
                        distance,
                        distance,
                        1,
                        1,
                        volume,
                        volume,
                        373.0,
                    )
                )
        store.add(Case(f"C{n}", {}, None), case_rows, picture(f"C{n}", n) if n in (0, 6) else None)
        rows += case_rows
    summary = summarize(rows, BRATS, "made-up <scores> & cases")
    store.finish(
        {"bundle": name, "weights": "0" * 64, "part": "val", "versions": {"medmap": "1"}},
        BRATS,
        rows,
        summary,
    )
    return folder
