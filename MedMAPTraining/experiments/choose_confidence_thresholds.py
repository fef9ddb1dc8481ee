"""Confidence of the components that a bundle finds, and the confidence thresholds that follow.

    python choose_confidence_thresholds.py measure BUNDLE CASES OUT.json
    python choose_confidence_thresholds.py choose OUT.json [OUT.json ...]
        [--into BUNDLE --version VERSION]

The script lies in ``MedMAPTraining/experiments``. ``measure`` segments cases, with or without
tumors, from every modality subset, and records every component: its confidence, its volume, and how
much of it is tumor. ``choose`` takes for each subset the confidence threshold with the largest
(mean WT Dice of the cases with tumor) - 1/4 (share of the tumor-free cases with more than 2 ml);
the lowest among equals, and never more than 0.995: tumors that this model knows less well than
those measured have less confidence.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from shared import script_parser, table_head, table_row

from medmap.bundle.loading import Bundle, load_bundle, update_decisions
from medmap.evaluation.scoring import supported_subsets
from medmap.inference import predictions
from medmap.io.cohorts import find_cases
from medmap.io.labels import read_case_labels
from medmap.postprocess.components import Components, component_confidence, find_components
from medmap.postprocess.decoding import decode
from medmap.postprocess.prediction import Prediction
from medmap.postprocess.spec import ConfidenceSpec
from medmap.preprocess import prepare
from medmap.resampling import to_grid
from medmap.sliding_window import SlidingWindow
from medmap.task import BRATS

THRESHOLDS = (0.0, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
LIMIT_ML = 2.0
FALSE_POSITIVE_WEIGHT = 0.25

FORMER_KEYS = {"true": "reference_ml", "pieces": "components"}
"""Keys of records that earlier versions wrote, and what they are called today."""


def measure(bundle: Bundle, folder: Path) -> list[dict]:
    """One record per case and modality subset.

    Each holds the volume of the reference tumor in ml, and of each component its confidence, its
    volume in ml and how much of that is tumor.
    """
    records = []
    for case in find_cases(folder, BRATS):
        volumes = case.read(BRATS.modality_names)
        label = read_case_labels(case, BRATS)
        prepared = prepare(volumes, BRATS, bundle.preprocess, multiple=bundle.stride)
        is_tumor = np.asarray(label.array) > 0
        mask = is_tumor.astype(np.float32)
        tumor = to_grid(mask, label.grid, prepared.grid) > 0.5
        voxel_ml = prepared.grid.voxel_ml
        subsets = supported_subsets(bundle, list(volumes))
        windows = SlidingWindow(BRATS, bundle.inference, bundle.stride, torch.device("cpu"))
        for positions, prediction in predictions(bundle, windows, prepared, subsets):
            probability = torch.softmax(prediction.decisive_logits, 0)
            classes = decode(probability, bundle.postprocess, BRATS)
            is_tumor_class = (classes > 0) & prepared.brain
            candidates = find_components(is_tumor_class, voxel_ml, bundle.postprocess)
            record = {
                "case": case.case_id,
                "subset": BRATS.subset_key(subsets[positions[0]]),
                "reference_ml": float(tumor.sum()) * voxel_ml,
                "components": _component_records(prediction, candidates, tumor, voxel_ml),
            }
            records.append(record)
        print(case.case_id, flush=True)
    return records


def _component_records(
    prediction: Prediction, candidates: Components, tumor: torch.Tensor, voxel_ml: float
) -> list[tuple[float, float, float]]:
    """Confidence, ml, and ml within the reference of every component."""
    count = len(candidates.is_small)
    sizes = torch.bincount(candidates.numbers.flatten(), minlength=count) * voxel_ml
    overlaps = torch.bincount(candidates.numbers[tumor], minlength=count) * voxel_ml
    confidences = component_confidence(prediction.logits, candidates)
    records = []
    for number, confidence in confidences.items():
        size_ml = float(sizes[number])
        overlap_ml = float(overlaps[number])
        records.append((confidence, size_ml, overlap_ml))
    return records


def _predicted_ml(record: dict, threshold: float) -> float:
    """Volume that is left when components below the threshold are removed."""
    return sum(ml for confidence, ml, _ in record["components"] if confidence >= threshold)


def _overlap_ml(record: dict, threshold: float) -> float:
    """Volume of tumor in the components that are left."""
    return sum(ml for confidence, _, ml in record["components"] if confidence >= threshold)


def whole_tumor_dice(records: list[dict], threshold: float) -> float:
    """Mean WT Dice of the cases with tumor if components below the threshold are removed."""
    scores = []
    for record in records:
        reference_ml = record["reference_ml"]
        if reference_ml > 0:
            total_ml = _predicted_ml(record, threshold) + reference_ml
            overlap_ml = _overlap_ml(record, threshold)
            scores.append(2 * overlap_ml / total_ml)
    return float(np.mean(scores))


def false_positive_ml(records: list[dict], threshold: float) -> list[float]:
    """Volume that is left in each tumor-free case."""
    tumor_free = [record for record in records if record["reference_ml"] == 0]
    return [_predicted_ml(record, threshold) for record in tumor_free]


def objective(records: list[dict], threshold: float) -> float:
    """What ``choose`` maximizes."""
    above_limit = [ml > LIMIT_ML for ml in false_positive_ml(records, threshold)]
    penalty = FALSE_POSITIVE_WEIGHT * float(np.mean(above_limit))
    return whole_tumor_dice(records, threshold) - penalty


def best_threshold(records: list[dict]) -> float:
    """The lowest of the thresholds with the best objective, to four digits."""
    best = THRESHOLDS[0]
    best_value = round(objective(records, best), 4)
    for threshold in THRESHOLDS[1:]:
        value = round(objective(records, threshold), 4)
        if value > best_value:
            best = threshold
            best_value = value
    return best


def choose(records: list[dict]) -> ConfidenceSpec:
    """The thresholds that suit these records; prints what they do to them."""
    headings = [
        "modalities",
        "confidence threshold",
        "WT Dice of cases with tumor",
        "tumor-free cases above 2 ml",
        "largest ml",
    ]
    print("\n".join(table_head(headings)))
    thresholds = {}
    for subset in map(BRATS.subset_key, BRATS.table_order()):
        subset_records = [record for record in records if record["subset"] == subset]
        threshold = best_threshold(subset_records)
        if threshold:
            thresholds[subset] = threshold
        print(table_row([subset, f"{threshold:g}", *_effect(subset_records, threshold)]))
    return ConfidenceSpec(thresholds)


def _effect(records: list[dict], threshold: float) -> list[str]:
    """Dice, number above the limit and largest volume, without and with the threshold."""
    dice = [whole_tumor_dice(records, value) for value in (0.0, threshold)]
    volumes = [false_positive_ml(records, value) for value in (0.0, threshold)]
    above = []
    for volumes_ml in volumes:
        above.append(sum(ml > LIMIT_ML for ml in volumes_ml))
    largest = [max(volumes_ml, default=0.0) for volumes_ml in volumes]
    return [
        f"{dice[0]:.3f} -> {dice[1]:.3f}",
        f"{above[0]} -> {above[1]}",
        f"{largest[0]:.0f} -> {largest[1]:.0f}",
    ]


def read_records(paths: list[Path]) -> list[dict]:
    """The records of all files, with today's keys."""
    records = []
    for path in paths:
        for stored in json.loads(path.read_text()):
            record = {}
            for key, value in stored.items():
                current_key = FORMER_KEYS.get(key, key)
                record[current_key] = value
            records.append(record)
    return records


def main() -> None:
    """The command line."""
    parser = script_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure_parser = commands.add_parser("measure")
    measure_parser.add_argument("bundle", type=Path)
    measure_parser.add_argument("cases", type=Path)
    measure_parser.add_argument("out", type=Path)
    choose_parser = commands.add_parser("choose")
    choose_parser.add_argument("records", type=Path, nargs="+")
    choose_parser.add_argument("--into", type=Path)
    choose_parser.add_argument("--version")
    options = parser.parse_args()
    if options.command == "measure":
        records = measure(load_bundle(options.bundle), options.cases)
        options.out.write_text(json.dumps(records))
        return
    confidence = choose(read_records(options.records))
    if options.into:
        change = "the same weights; low-confidence components are removed from the result"
        update_decisions(
            options.into, version=options.version, change=change, confidence=confidence
        )


if __name__ == "__main__":
    main()
