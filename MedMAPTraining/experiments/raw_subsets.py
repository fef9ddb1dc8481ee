"""Segment every modality subset of raw scans: steps, seconds, and volumes of tumor.

    python experiments/raw_subsets.py CASES -o FOLDER

CASES holds one folder per case with t1, t1ce, t2 or flair as .nii.gz, with skull and not aligned.
FOLDER gets the results of every subset, and ``raw_subsets.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

from medmap.commands.segment import Options, Result, segment_files
from medmap.progress import ignore_progress, never_cancel
from medmap.task import BRATS


def main() -> None:
    """Parse the command line, segment, and print one line per subset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path, nargs="+", help="folders of cases")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(exist_ok=True)
    rows = []
    for case in arguments.cases:
        for subset in subsets(case):
            row = measured(case, subset, arguments.output)
            rows.append(row)
            print(json.dumps(row), flush=True)
            text = json.dumps(rows, indent=1) + "\n"
            (arguments.output / "raw_subsets.json").write_text(text, encoding="utf-8")


def subsets(case: Path) -> list[tuple[str, ...]]:
    """Every non-empty subset of a case's modalities."""
    names = []
    for name in BRATS.modality_names:
        if (case / f"{name}.nii.gz").exists():
            names.append(name)
    collected: list[tuple[str, ...]] = []
    for size in range(1, len(names) + 1):
        collected.extend(combinations(names, size))
    return collected


def measured(case: Path, subset: tuple[str, ...], output: Path) -> dict:
    """Segment one subset, and return what it took and what it found."""
    folder = output / f"{case.name}_{'_'.join(subset)}"
    scans = {name: case / f"{name}.nii.gz" for name in subset}
    started = time.perf_counter()
    cpu_started = time.process_time()
    result = segment_files(
        scans,
        folder,
        None,
        Options(device="cpu", keep_prepared=True, overwrite=True),
        progress=ignore_progress,
        cancel=never_cancel,
    )
    row: dict = {"case": case.name, "subset": "+".join(subset)}
    row["volumes_ml"] = {name: round(ml, 2) for name, ml in result.segmentation.volumes_ml.items()}
    row["seconds"] = round(time.perf_counter() - started, 1)
    row["cpu_seconds"] = round(time.process_time() - cpu_started, 1)
    row["steps"] = step_rows(result)
    return row


def step_rows(result: Result) -> list[dict]:
    """The steps of the preparation, with their figures."""
    preparation = result.segmentation.preparation
    if preparation is None:
        return []
    return [step.to_dict() for step in preparation.steps]


if __name__ == "__main__":
    main()
