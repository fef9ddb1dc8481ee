"""How sure a bundle is of what it finds, with and without tumors, and the doubt that follows from it.

python MedMAPTraining/experiments/certainty.py measure BUNDLE CASES OUT.json
python MedMAPTraining/experiments/certainty.py choose OUT.json [OUT.json ...] [--into BUNDLE --version VERSION]

``measure`` segments generated cases, with or without tumors, from every set of scans, and notes every piece found: its
certainty, its volume, and how much of it is tumor. ``choose`` takes for each set the certainty below which pieces are
left out: the one with the most of (mean WT of the heads with tumor) - 1/4 (share of the heads without in which more
than 2 ml are found); the lowest among equals, and never more than 0.98, since real scans are less like the generated
ones than those are alike.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medmap.bundle.loading import Bundle, load_bundle, update_doubt
from medmap.confidence import NO_DOUBT, DoubtSpec, pieces
from medmap.evaluation.scoring import supported_subsets
from medmap.inference import Run
from medmap.io.cohorts import find_cases
from medmap.io.nifti import read_nifti
from medmap.preprocess import prepare, to_grid
from medmap.task import BRATS

GRID = (0.0, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98)
LIMIT_ML, WEIGHT = 2.0, 0.25


def measure(bundle: Bundle, folder: Path) -> list[dict]:
    """One record a case and set of scans: ml of true tumor, and certainty, ml and ml of true tumor of each piece."""
    records = []
    for case in find_cases(folder, BRATS):
        volumes, label = case.read(BRATS.modality_names), read_nifti(case.label, modality="seg")
        prepared = prepare(volumes, BRATS, bundle.preprocess, multiple=bundle.stride)
        truth = (
            to_grid((np.asarray(label.array) > 0).astype(np.float32), label.grid, prepared.grid)
            > 0.5
        )
        voxel_ml, subsets = prepared.grid.voxel_ml, supported_subsets(bundle, list(volumes))
        run = Run(
            replace(bundle, doubt=NO_DOUBT),
            torch.device("cpu"),
            lambda fraction, text: None,
            lambda: False,
        )
        for positions, logits in run.each(prepared, subsets):
            numbers, certainty = pieces(logits, prepared, bundle.postprocess)
            sizes = (
                torch.bincount(numbers.flatten(), minlength=len(certainty) + 1)[1:] * voxel_ml
            ).tolist()
            right = (
                torch.bincount(numbers[truth], minlength=len(certainty) + 1)[1:] * voxel_ml
            ).tolist()
            found = list(zip(certainty, sizes, right, strict=True))
            key = BRATS.subset_key(subsets[positions[0]])
            records.append(
                {
                    "case": case.case_id,
                    "subset": key,
                    "true": float(truth.sum()) * voxel_ml,
                    "pieces": found,
                }
            )
        print(case.case_id, flush=True)
    return records


def whole_tumor(records: list[dict], least: float) -> float:
    """Mean WT Dice of the heads with tumor if pieces less certain than ``least`` are left out."""
    kept = [
        ([p for p in r["pieces"] if p[0] >= least], r["true"]) for r in records if r["true"] > 0
    ]
    return float(
        np.mean([2 * sum(p[2] for p in k) / (sum(p[1] for p in k) + true) for k, true in kept])
    )


def found_ml(records: list[dict], least: float) -> list[float]:
    """What is still found in each head without tumor."""
    return [sum(p[1] for p in r["pieces"] if p[0] >= least) for r in records if r["true"] == 0]


def worth(records: list[dict], least: float) -> float:
    """What ``choose`` wants most of."""
    return whole_tumor(records, least) - WEIGHT * float(
        np.mean([v > LIMIT_ML for v in found_ml(records, least)])
    )


def choose(records: list[dict]) -> DoubtSpec:
    """The doubt that suits these records; prints what it does to them."""
    print(
        "| scans | least certainty | WT of heads with tumor | heads without: above 2 ml | largest ml |"
    )
    print("|---|--:|--:|--:|--:|")
    least = {}
    for key in (BRATS.subset_key(subset) for subset in BRATS.table_order()):
        own = [r for r in records if r["subset"] == key]
        best = max(GRID, key=lambda value, own=own: (round(worth(own, value), 4), -value))
        if best:
            least[key] = best
        whole, many, largest = (
            [measured(own, value) for value in (0.0, best)]
            for measured in (
                whole_tumor,
                lambda o, v: sum(ml > LIMIT_ML for ml in found_ml(o, v)),
                lambda o, v: max(found_ml(o, v), default=0.0),
            )
        )
        print(
            f"| {key} | {best:g} | {whole[0]:.3f} -> {whole[1]:.3f} | {many[0]} -> {many[1]} "
            f"| {largest[0]:.0f} -> {largest[1]:.0f} |"
        )
    return DoubtSpec(least)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure")
    one.add_argument("bundle", type=Path)
    one.add_argument("cases", type=Path)
    one.add_argument("out", type=Path)
    two = commands.add_parser("choose")
    two.add_argument("records", type=Path, nargs="+")
    two.add_argument("--into", type=Path)
    two.add_argument("--version")
    given = parser.parse_args()
    if given.command == "measure":
        given.out.write_text(json.dumps(measure(load_bundle(given.bundle), given.cases)))
        return
    doubt = choose([record for path in given.records for record in json.loads(path.read_text())])
    if given.into:
        change = "the same weights; pieces that the network is too unsure of are left out"
        update_doubt(given.into, doubt, version=given.version, change=change)


if __name__ == "__main__":
    main()
