"""Confidence of the components that a bundle finds, with and without tumors, and the thresholds that follow.

python MedMAPTraining/experiments/certainty.py measure BUNDLE CASES OUT.json
python MedMAPTraining/experiments/certainty.py choose OUT.json [OUT.json ...] [--into BUNDLE --version VERSION]

``measure`` segments cases, with or without tumors, from every modality subset, and records every
component: its confidence, its volume, and how much of it is tumor. ``choose`` takes for each subset the
confidence threshold with the largest (mean WT Dice of the cases with tumor) - 1/4 (share of the
tumor-free cases with more than 2 ml); the lowest among equals, and never more than 0.98, since real
scans are less like generated ones than those are like each other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from medmap.bundle.loading import Bundle, load_bundle, update_confidence
from medmap.evaluation.scoring import supported_subsets
from medmap.inference import predictions
from medmap.io.cohorts import find_cases
from medmap.io.nifti import read_nifti
from medmap.postprocess import (
    ConfidenceSpec,
    component_confidence,
    find_components,
    most_probable,
)
from medmap.preprocess import prepare
from medmap.resampling import to_grid
from medmap.sliding_window import SlidingWindow
from medmap.task import BRATS

GRID = (0.0, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98)
LIMIT_ML, WEIGHT = 2.0, 0.25


def measure(bundle: Bundle, folder: Path) -> list[dict]:
    """One record per case and modality subset.

    Each holds the volume of the reference tumor in ml, and of each component its confidence, its volume
    and how much of that is tumor.
    """
    records = []
    for case in find_cases(folder, BRATS):
        volumes = case.read(BRATS.modality_names)
        label = read_nifti(case.label, modality="seg")
        prepared = prepare(volumes, BRATS, bundle.preprocess, multiple=bundle.stride)
        mask = (np.asarray(label.array) > 0).astype(np.float32)
        tumor = to_grid(mask, label.grid, prepared.grid) > 0.5
        voxel_ml = prepared.grid.voxel_ml
        subsets = supported_subsets(bundle, list(volumes))
        windows = SlidingWindow(BRATS, bundle.inference, bundle.stride, torch.device("cpu"))
        for positions, prediction in predictions(bundle, windows, prepared, subsets):
            is_tumor_class = (most_probable(prediction.logits) > 0) & prepared.brain
            found = find_components(is_tumor_class, voxel_ml, bundle.postprocess)
            count = len(found.is_small)
            sizes = torch.bincount(found.numbers.flatten(), minlength=count) * voxel_ml
            overlaps = torch.bincount(found.numbers[tumor], minlength=count) * voxel_ml
            components = []
            for number, confidence in component_confidence(prediction.logits, found).items():
                components.append((confidence, float(sizes[number]), float(overlaps[number])))
            records.append(
                {
                    "case": case.case_id,
                    "subset": BRATS.subset_key(subsets[positions[0]]),
                    "true": float(tumor.sum()) * voxel_ml,
                    "pieces": components,
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


def choose(records: list[dict]) -> ConfidenceSpec:
    """The thresholds that suit these records; prints what they do to them."""
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
    return ConfidenceSpec(least)


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
    records = []
    for path in given.records:
        records += json.loads(path.read_text())
    confidence = choose(records)
    if given.into:
        change = "the same weights; low-confidence components are removed from the result"
        update_confidence(given.into, confidence, version=given.version, change=change)


if __name__ == "__main__":
    main()
