"""How a bundle does on labeled cases and on tumor-free ones, from every modality subset.

    python real_cases.py measure BUNDLE OUT.json [--cases FOLDER ...] [--tumor-free FOLDER ...]
    python real_cases.py table BEFORE.json [AFTER.json]

The script lies in ``MedMAPTraining/experiments``. ``measure`` takes folders of cases as
``medmap train --data`` does; it writes the Dice of WT, TC and ET of each labeled case, and the ml
of tumor in each case that is tumor-free (whose labels, if any, are not read). The two kinds are
independent: give either. ``table`` prints means by modality subset, side by side where two files
are given; only cases that are in both count.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from shared import script_parser, table_head, table_row

from medmap.bundle.loading import Bundle, load_bundle
from medmap.evaluation.scoring import identity, supported_subsets
from medmap.inference import segment_subsets
from medmap.io.cohorts import Case, find_cases
from medmap.io.labels import read_case_labels
from medmap.metrics import dice, region_masks, region_volumes_ml
from medmap.preprocess import choose_reference
from medmap.task import BRATS
from medmap.volume import Volume

LIMIT_ML = 2.0
"""Tumor in a tumor-free case up to this volume counts as none."""

REGIONS = tuple(region.name for region in BRATS.regions)


def dice_records(case: Case, bundle: Bundle) -> list[dict]:
    """One record per modality subset of a labeled case.

    Each holds ``dice`` by region, ``tumor_ml`` of the result and ``reference_ml`` of the label.
    """
    volumes = case.read(BRATS.modality_names)
    label = read_case_labels(case, BRATS)
    reference = _scan_on_grid_of(label, volumes, case.case_id)
    reference_masks = region_masks(np.asarray(label.array), BRATS)
    subsets = supported_subsets(bundle, list(volumes))
    label_maps = segment_subsets(volumes, bundle, subsets, reference=reference)
    records = []
    for subset, labels in label_maps.items():
        masks = region_masks(labels, BRATS)
        scores = {name: round(dice(masks[name], reference_masks[name]), 4) for name in REGIONS}
        tumor_ml = float(masks["WT"].sum()) * label.grid.voxel_ml
        reference_ml = float(reference_masks["WT"].sum()) * label.grid.voxel_ml
        records.append(
            {
                "case": case.case_id,
                "subset": subset,
                "dice": scores,
                "tumor_ml": round(tumor_ml, 2),
                "reference_ml": round(reference_ml, 2),
            }
        )
    return records


def _scan_on_grid_of(label: Volume, volumes: dict[str, Volume], case_id: str) -> str:
    """The modality that the label was drawn on: results are compared voxel by voxel."""
    for name, volume in volumes.items():
        if volume.grid.distance(label.grid) < 0.5:
            return name
    raise SystemExit(f"No scan of {case_id} has the grid of its label map.")


def tumor_free_records(case: Case, bundle: Bundle) -> list[dict]:
    """One record per modality subset of a tumor-free case: ``tumor_ml``, all of it false."""
    volumes = case.read(BRATS.modality_names)
    reference = choose_reference({name: volume.grid for name, volume in volumes.items()})
    voxel_ml = volumes[reference].grid.voxel_ml
    subsets = supported_subsets(bundle, list(volumes))
    label_maps = segment_subsets(volumes, bundle, subsets, reference=reference)
    records = []
    for subset, labels in label_maps.items():
        tumor_ml = region_volumes_ml(labels, BRATS, voxel_ml)["WT"]
        record = {
            "case": case.case_id,
            "subset": subset,
            "tumor_ml": round(tumor_ml, 2),
        }
        records.append(record)
    return records


def measure(path: Path, labeled: Sequence[Path], tumor_free: Sequence[Path]) -> dict:
    """What ``measure`` writes: the bundle's name and identity, ``cases`` and ``tumor_free``."""
    bundle = load_bundle(path)
    result: dict = {"bundle": bundle.id, "identity": identity(path)}
    kinds = {"cases": (labeled, dice_records), "tumor_free": (tumor_free, tumor_free_records)}
    for kind, (folders, score) in kinds.items():
        result[kind] = []
        for folder in folders:
            for case in find_cases(folder, BRATS):
                result[kind] += score(case, bundle)
                print(case.case_id, flush=True)
    return result


def common_records(results: Sequence[dict], kind: str) -> list[list[dict]]:
    """The records of each result whose case and subset every result has."""
    pairs = []
    for result in results:
        pairs.append({(record["case"], record["subset"]) for record in result[kind]})
    common = set.intersection(*pairs)
    selected = []
    for result in results:
        records = [r for r in result[kind] if (r["case"], r["subset"]) in common]
        selected.append(records)
    return selected


def table(results: Sequence[dict]) -> str:
    """Markdown: by modality subset the mean Dice, and the tumor-free cases above the limit."""
    labeled = common_records(results, "cases")
    tumor_free = common_records(results, "tumor_free")
    headings = ["modality subset"]
    for result in results:
        headings += [
            f"{result['bundle']}: WT / TC / ET (cases)",
            f"tumor-free above {LIMIT_ML:g} ml",
        ]
    lines = table_head(headings)
    subset_means: list[list[np.ndarray]] = [[] for _ in results]
    for subset in map(BRATS.subset_key, BRATS.table_order()):
        cells = [subset]
        for n in range(len(results)):
            scores = [list(r["dice"].values()) for r in labeled[n] if r["subset"] == subset]
            if scores:
                subset_means[n].append(np.mean(scores, axis=0))
            cells.append(_dice_cell(scores))
            cells.append(
                _volume_cell([r["tumor_ml"] for r in tumor_free[n] if r["subset"] == subset])
            )
        lines.append(table_row(cells))
    means = ["**mean of the subsets**"]
    for rows in subset_means:
        means += [_triple(np.mean(rows, axis=0)) if rows else "–", ""]
    lines.append(table_row(means))
    return "\n".join(lines)


def _dice_cell(scores: Sequence[Sequence[float]]) -> str:
    if not scores:
        return "–"
    means = np.mean(scores, axis=0)
    return f"{_triple(means)} ({len(scores)})"


def _volume_cell(volumes_ml: Sequence[float]) -> str:
    if not volumes_ml:
        return "–"
    above_limit = sum(ml > LIMIT_ML for ml in volumes_ml)
    count = len(volumes_ml)
    largest_ml = max(volumes_ml)
    return f"{above_limit} of {count}, largest {largest_ml:.1f} ml"


def _triple(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def main() -> None:
    """The command line."""
    parser = script_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure_parser = commands.add_parser("measure")
    measure_parser.add_argument("bundle", type=Path)
    measure_parser.add_argument("out", type=Path)
    measure_parser.add_argument("--cases", type=Path, nargs="*", default=[])
    measure_parser.add_argument("--tumor-free", type=Path, nargs="*", default=[])
    table_parser = commands.add_parser("table")
    table_parser.add_argument("results", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "measure":
        result = measure(options.bundle, options.cases, options.tumor_free)
        options.out.write_text(json.dumps(result), encoding="utf-8")
        return
    print(table([json.loads(path.read_text(encoding="utf-8")) for path in options.results]))


if __name__ == "__main__":
    main()
