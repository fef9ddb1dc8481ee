"""Logit offsets of a bundle, chosen on development cases.

    python choose_logit_offsets.py measure BUNDLE CASES FOLDER
    python choose_logit_offsets.py choose FOLDER [--apart t1ce t2+flair]
        [--into BUNDLE --version VERSION]

The script lies in ``MedMAPTraining/experiments``. ``measure`` segments cases, with or without
tumors, from every modality subset, and keeps the logits of all voxels that could be tumor.
``choose`` tries offsets for the whole tumor, for the core, and for enhancement: the same ones for
all subsets that agree in whether they have one of the modalities of each ``--apart`` (T1ce; T2 or
FLAIR), since fifteen sets of offsets would be fitted to a handful of cases. It takes those with the
largest mean Dice of WT, TC and ET. *Left out* is the Dice of each case under the offsets that all
others choose; a group in which it is no better than without offsets gets none. Where a subset would
report more than 2 ml in a tenth more of the tumor-free cases, its offset of the whole tumor is
lowered; single ones are left to the confidence thresholds, which are chosen afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from shared import script_parser, table_head, table_row

from medmap.bundle.loading import Bundle, load_bundle, update_decisions
from medmap.evaluation.scoring import supported_subsets
from medmap.inference import predictions
from medmap.io.cohorts import find_cases
from medmap.io.labels import read_case_labels, with_conventions
from medmap.metrics import dice_of_counts
from medmap.postprocess.spec import NO_OFFSETS, OffsetSpec
from medmap.preprocess import prepare
from medmap.resampling import resample_nearest
from medmap.sliding_window import SlidingWindow
from medmap.task import BRATS
from medmap.volume import Grid, Volume

LEAST_PROBABILITY = 0.03
"""Voxels with less tumor are background under every offset that is tried."""

WHOLE = (0.0, 0.4, 0.8, 1.2)
CORE = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
ENHANCING = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Added to the logits of all of the tumor, to those of its core, and to that of enhancement.

1.6 for all of it gave a tumor-free person 2.03 ml from T1 and FLAIR."""

TOLERANCE = 0.002
"""Of mean Dice: the smallest offsets that come so close to the best are taken."""

LIMIT_ML = 2.0
MOST_NEW_SHARE = 0.1
"""Of the tumor-free cases, that offsets may lift above ``LIMIT_ML``."""

LEAST_ENHANCEMENT_MM3 = 200.0

Setting = tuple[float, float, float]
"""Offsets of the whole tumor, the core, and enhancement."""

NOTHING: Setting = (0.0, 0.0, 0.0)

SETTINGS: tuple[Setting, ...] = tuple(itertools.product(WHOLE, CORE, ENHANCING))


@dataclass(frozen=True)
class Record:
    """One case from one modality subset.

    Attributes:
        case: name.
        logits: [3, N] of NCR, ED and ET relative to background, of the voxels that may be tumor.
        labels: [N] class of each of them.
        totals: voxels of NCR, ED and ET in the whole case.
        voxel_ml: volume of a voxel.
    """

    case: str
    logits: np.ndarray
    labels: np.ndarray
    totals: np.ndarray
    voxel_ml: float

    @property
    def has_tumor(self) -> bool:
        """Whether the reference has any."""
        return bool(self.totals.any())


def measure(bundle: Bundle, cases: Path, folder: Path) -> None:
    """Write one file per case and subset."""
    folder.mkdir(parents=True, exist_ok=True)
    # What the network gives by itself: the offsets are what is looked for.
    bundle = replace(bundle, offsets=NO_OFFSETS)
    readable_cases, _ = with_conventions(find_cases(cases, BRATS), BRATS)
    for case in readable_cases:
        volumes = case.read(BRATS.modality_names)
        prepared = prepare(volumes, BRATS, bundle.preprocess, multiple=bundle.stride)
        classes = classes_on(prepared.grid, read_case_labels(case, BRATS))
        totals = np.bincount(classes.numpy().ravel(), minlength=4)[1:]
        subsets = supported_subsets(bundle, list(volumes))
        windows = SlidingWindow(BRATS, bundle.inference, bundle.stride, torch.device("cpu"))
        for positions, prediction in predictions(bundle, windows, prepared, subsets):
            key = BRATS.subset_key(subsets[positions[0]])
            class_probabilities = torch.softmax(prediction.logits.float(), 0)
            tumor = 1 - class_probabilities[0]
            # No offset of the grid makes the other voxels tumor: files stay small without them.
            is_candidate = (tumor > LEAST_PROBABILITY) & prepared.brain
            relative = prediction.logits[1:] - prediction.logits[:1]
            np.savez_compressed(
                folder / f"{case.case_id}={key}.npz",
                logits=relative[:, is_candidate].half().numpy(),
                labels=classes[is_candidate].numpy().astype(np.uint8),
                totals=totals,
                voxel_ml=prepared.grid.voxel_ml,
            )
        print(case.case_id, flush=True)


def classes_on(grid: Grid, reference: Volume) -> torch.Tensor:
    """[D, H, W] classes of a reference segmentation at the nearest voxels of a grid."""
    rounded = np.rint(np.asarray(reference.array))
    values = rounded.astype(np.int16)
    nearest = resample_nearest(values, reference.grid, grid)
    classes = np.zeros(nearest.shape, np.int64)
    for number, value in enumerate(BRATS.label_values()):
        classes[nearest == value] = number
    return torch.from_numpy(classes)


def read_records(folder: Path) -> dict[str, list[Record]]:
    """The records of each subset."""
    records: dict[str, list[Record]] = {}
    for path in sorted(folder.glob("*=*.npz")):
        case, _, key = path.stem.rpartition("=")
        data = np.load(path)
        record = Record(
            case=case,
            logits=data["logits"].astype(np.float32),
            labels=data["labels"],
            totals=data["totals"],
            voxel_ml=float(data["voxel_ml"]),
        )
        records.setdefault(key, []).append(record)
    return records


def decided(record: Record, setting: Setting) -> dict[str, np.ndarray]:
    """[N] bool of each region, decided region by region under some offsets."""
    tumor_offset, core_offset, enhancing_offset = setting
    # Relative to the background, whose odds are 1.
    necrosis_odds, edema_odds, enhancement_odds = np.exp(record.logits)
    necrosis = necrosis_odds * np.exp(tumor_offset + core_offset)
    edema = edema_odds * np.exp(tumor_offset)
    enhancement = enhancement_odds * np.exp(tumor_offset + core_offset + enhancing_offset)
    is_tumor = necrosis + edema + enhancement > 1
    is_core = is_tumor & (necrosis + enhancement > edema)
    is_enhancing = is_core & (enhancement > necrosis)
    enhancing_mm3 = is_enhancing.sum() * record.voxel_ml * 1000
    if enhancing_mm3 < LEAST_ENHANCEMENT_MM3:
        is_enhancing = np.zeros_like(is_enhancing)
    return {"WT": is_tumor, "TC": is_core, "ET": is_enhancing}


def scores(record: Record, setting: Setting) -> list[float]:
    """Dice of WT, TC and ET."""
    values = []
    members_of_region = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
    for region, mask in decided(record, setting).items():
        members = members_of_region[region]
        is_reference = np.isin(record.labels, members)
        reference = sum(int(record.totals[label - 1]) for label in members)
        overlap = int((mask & is_reference).sum())
        predicted = int(mask.sum())
        values.append(dice_of_counts(overlap, predicted, reference))
    return values


def score_table(records: Sequence[Record]) -> np.ndarray:
    """[cases, len(SETTINGS), 3] Dice of the cases with a tumor."""
    rows = []
    for record in records:
        if record.has_tumor:
            rows.append([scores(record, setting) for setting in SETTINGS])
    return np.array(rows)


def best_setting(means: np.ndarray) -> int:
    """The smallest of the settings that are as good as the best; means [len(SETTINGS)]."""
    is_good = means >= means.max() - TOLERANCE
    good_settings = np.flatnonzero(is_good).tolist()
    sizes = [sum(setting) for setting in SETTINGS]
    return min(good_settings, key=lambda number: sizes[number])


def false_positives(records: Sequence[Record], setting: Setting) -> int:
    """Tumor-free cases with more than ``LIMIT_ML``."""
    count = 0
    for record in records:
        if record.has_tumor:
            continue
        tumor = decided(record, setting)["WT"]
        volume_ml = float(tumor.sum()) * record.voxel_ml
        if volume_ml > LIMIT_ML:
            count += 1
    return count


def silenced(records: Sequence[Record], setting: Setting) -> Setting:
    """The setting with the largest offset of the whole tumor that adds few false positives."""
    tumor_free = sum(not record.has_tumor for record in records)
    allowed = false_positives(records, NOTHING) + MOST_NEW_SHARE * tumor_free
    _, core, enhancing = setting
    for tumor_offset in sorted(WHOLE, reverse=True):
        if tumor_offset > setting[0]:
            continue
        candidate = (tumor_offset, core, enhancing)
        if false_positives(records, candidate) <= allowed:
            return candidate
    # The offsets of the core raise the tumor a little, too.
    return (-0.2, core, enhancing)


def groups_of(keys: Iterable[str], apart: Sequence[str]) -> list[list[str]]:
    """The subsets that share offsets; ``apart`` holds modalities such as ``t2+flair``."""
    groups: dict[tuple[bool, ...], list[str]] = {}
    for key in keys:
        modalities = set(key.split("+"))
        # Which of the sets of modalities the subset has something of.
        overlaps = []
        for separate in apart:
            overlaps.append(not modalities.isdisjoint(separate.split("+")))
        groups.setdefault(tuple(overlaps), []).append(key)
    return list(groups.values())


def choose(records: Mapping[str, Sequence[Record]], apart: Sequence[str]) -> OffsetSpec:
    """The offsets that suit these records; prints what they do to them."""
    headings = ["modalities", "whole, core, enhancing", "WT / TC / ET before", "after", "left out"]
    print("\n".join(table_head(headings)))
    by_subset = {}
    for keys in groups_of(records, apart):
        tables = {key: score_table(records[key]) for key in keys}
        # Every subset weighs the same, whatever its number of cases.
        subset_means = [table.mean((0, 2)) for table in tables.values()]
        group_means = np.mean(subset_means, axis=0)
        shared_setting = SETTINGS[best_setting(group_means)]
        cross_validated = left_out(tables, records)
        if not _is_gain(tables, cross_validated):
            shared_setting = NOTHING
        for key in keys:
            setting = silenced(records[key], shared_setting)
            by_subset[key] = offsets_of(setting)
            before = tables[key][:, 0].mean(0)
            after = [scores(record, setting) for record in records[key] if record.has_tumor]
            row = [
                key,
                _numbers(setting, 1),
                _numbers(before, 3),
                _numbers(np.mean(after, 0), 3),
                _numbers(cross_validated[key], 3),
            ]
            print(table_row(row))
    return OffsetSpec(by_subset)


def _is_gain(tables: Mapping[str, np.ndarray], cross_validated: Mapping[str, np.ndarray]) -> bool:
    """Whether cases gain by offsets that were chosen without them."""
    number = SETTINGS.index(NOTHING)
    means_before = [table[:, number].mean() for table in tables.values()]
    means_after = [values.mean() for values in cross_validated.values()]
    gain = np.mean(means_after) > np.mean(means_before)
    return bool(gain)


def left_out(
    tables: Mapping[str, np.ndarray], records: Mapping[str, Sequence[Record]]
) -> dict[str, np.ndarray]:
    """Subset -> mean Dice of its cases, each under the offsets that all other cases choose."""
    names = {}
    for key in tables:
        names[key] = [record.case for record in records[key] if record.has_tumor]
    results: dict[str, list[np.ndarray]] = {key: [] for key in tables}
    all_names = set().union(*names.values())
    for case in sorted(all_names):
        remaining_means = []
        for key, table in tables.items():
            is_other = np.array([name != case for name in names[key]])
            remaining_means.append(table[is_other].mean((0, 2)))
        number = best_setting(np.mean(remaining_means, axis=0))
        for key, table in tables.items():
            if case in names[key]:
                row = names[key].index(case)
                results[key].append(table[row, number])
    return {key: np.mean(rows, axis=0) for key, rows in results.items()}


def offsets_of(setting: Setting) -> dict[str, float]:
    """Offset of each label's logit."""
    tumor_offset, core_offset, enhancing_offset = setting
    offsets = {
        "NCR": tumor_offset + core_offset,
        "ED": tumor_offset,
        "ET": tumor_offset + core_offset + enhancing_offset,
    }
    return {name: round(value, 3) for name, value in offsets.items()}


def _numbers(values: Sequence[float] | np.ndarray, digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def main() -> None:
    """The command line."""
    parser = script_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure_parser = commands.add_parser("measure")
    measure_parser.add_argument("bundle", type=Path)
    measure_parser.add_argument("cases", type=Path)
    measure_parser.add_argument("folder", type=Path)
    choose_parser = commands.add_parser("choose")
    choose_parser.add_argument("folder", type=Path)
    choose_parser.add_argument("--apart", nargs="*", default=["t1ce", "t2+flair"])
    choose_parser.add_argument("--into", type=Path)
    choose_parser.add_argument("--version")
    options = parser.parse_args()
    if options.command == "measure":
        measure(load_bundle(options.bundle), options.cases, options.folder)
        return
    offsets = choose(read_records(options.folder), options.apart)
    if options.into:
        change = "the same weights; offsets are added to the logits of each modality subset"
        update_decisions(options.into, version=options.version, change=change, offsets=offsets)


if __name__ == "__main__":
    main()
