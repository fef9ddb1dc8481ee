"""Compare methods of brain extraction, contrast by contrast: what decides the default of each.

    python experiments/brain_extraction.py --cases REAL... --label-maps FOLDER --tumors CASES... \\
        --bundle BUNDLE -o FOLDER

REAL are folders of scans with skull: t1, t1ce, t2 or flair as .nii.gz, and beside them ``dlmuse``
(anatomy; positive is brain) or ``t1_bet`` (an extracted brain), where there are such. CASES are
stripped patients with tumors, as CASE/CASE_t1.nii.gz and CASE/CASE_seg.nii.gz. FOLDER gets the
masks, which a second run takes as they are, and ``brain_extraction.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medmap.bundle.loading import load_bundle
from medmap.io.nifti import read_nifti
from medmap.metrics import dice
from medmap.phantom.whole_head import SEQUENCES, generate_head
from medmap.preparation import deepbet_masks, network_masks
from medmap.preparation.availability import deepbet_is_installed
from medmap.resampling import resample_nearest
from medmap.task import BRATS
from medmap.volume import Volume

FIRST_SEED = 90_000
"""Training begins at 7,000,000."""

HEADS_PER_CONTRAST = 2
SPACING_MM = 2.0
SLICES_PER_THICK_ONE = 3
"""Thick slices of synthetic whole heads have 6 mm."""

Extract = Callable[[Volume], np.ndarray]
MaskRow = tuple[dict, np.ndarray]


@dataclass(frozen=True)
class Bench:
    """Methods, and where their masks are kept.

    Attributes:
        methods: by name.
        folder: of the results.
    """

    methods: dict[str, Extract]
    folder: Path

    def rows(
        self, name: str, volume: Volume, **fields: object
    ) -> Iterator[tuple[dict, np.ndarray]]:
        """One row and one mask per method."""
        for method, extract in self.methods.items():
            mask, seconds = self._mask(f"{name}_{method}", extract, volume)
            row = {
                "scan": name,
                "method": method,
                "cpu_seconds": seconds,
                **fields,
            }
            volume_ml = float(mask.sum()) * volume.grid.voxel_ml
            row["ml"] = round(volume_ml)
            yield row, mask

    def _mask(self, name: str, extract: Extract, volume: Volume) -> tuple[np.ndarray, float]:
        path = self.folder / f"{name}.npz"
        if path.exists():
            stored = np.load(path)
            return stored["mask"], float(stored["seconds"])
        started = time.process_time()
        try:
            mask = extract(volume)
        except ValueError:
            mask = np.zeros(volume.array.shape, bool)
        seconds = round(time.process_time() - started, 1)
        np.savez_compressed(path, mask=mask, seconds=seconds)
        return mask, seconds


def main() -> None:
    """Parse the command line, measure, and write all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path, nargs="*", default=[])
    parser.add_argument("--label-maps", type=Path)
    parser.add_argument("--tumors", type=Path, nargs="*", default=[])
    parser.add_argument("--bundle", type=Path, help="MedMAP's own network")
    parser.add_argument("--without-deepbet", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(exist_ok=True)
    methods: dict[str, Extract] = {}
    if deepbet_is_installed() and not arguments.without_deepbet:
        methods["deepbet"] = deepbet_masks.extract
    if arguments.bundle:
        bundle = load_bundle(arguments.bundle)
        methods["network"] = lambda volume: network_masks.extract_with(bundle, volume)
    bench = Bench(methods, arguments.output)
    rows: list[dict] = []
    sources = [real_rows(bench, arguments.cases), tumor_rows(bench, arguments.tumors)]
    if arguments.label_maps:
        label_maps = sorted(arguments.label_maps.glob("*.nii.gz"))
        sources.append(generated_rows(bench, label_maps))
    for source in sources:
        for row in source:
            rows.append(row)
            print(json.dumps(row), flush=True)
    text = json.dumps(rows, indent=1) + "\n"
    (arguments.output / "brain_extraction.json").write_text(text, encoding="utf-8")
    print(table(rows))


def real_rows(bench: Bench, cases: list[Path]) -> Iterator[dict]:
    """Scans with skull: share of the anatomy inside, Dice with a mask, and with deepbet's."""
    for folder in cases:
        for name in BRATS.modality_names:
            path = folder / f"{name}.nii.gz"
            if not path.exists():
                continue
            volume = read_nifti(path, modality=name)
            deepbet_mask = None
            for row, mask in bench.rows(f"{folder.name}_{name}", volume, contrast=name):
                row |= _with_references(folder, volume, mask)
                if row["method"] == "deepbet":
                    deepbet_mask = mask
                elif deepbet_mask is not None:
                    row["dice_deepbet"] = round(float(dice(mask, deepbet_mask)), 4)
                yield row | {"set": folder.name.split("_")[0]}


def _with_references(folder: Path, volume: Volume, mask: np.ndarray) -> dict:
    row = {}
    for reference, key in (("dlmuse", "anatomy_inside"), ("t1_bet", "dice_bet")):
        path = folder / f"{reference}.nii.gz"
        if not path.exists():
            continue
        other = read_nifti(path)
        brain_labels = (other.array > 0).astype(np.uint8)
        brain = resample_nearest(brain_labels, other.grid, volume.grid) > 0
        if key == "dice_bet":
            figure = dice(mask, brain)
        else:
            # The labels are of structures alone: a brain mask rightly holds more.
            figure = (mask & brain).sum() / brain.sum()
        row[key] = round(float(figure), 4)
    return row


def generated_rows(bench: Bench, label_maps: list[Path]) -> Iterator[dict]:
    """Synthetic heads, whose brain is known: Dice, with thin and with thick slices."""
    seed = FIRST_SEED
    for contrast in SEQUENCES:
        for _ in range(HEADS_PER_CONTRAST):
            head = generate_head(seed, label_maps, SPACING_MM, contrast)
            image = head.image.numpy()
            brain = head.brain.numpy()
            affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
            for slices in (1, SLICES_PER_THICK_ONE):
                thick_affine = affine @ np.diag([1, 1, slices, 1.0])
                volume = Volume(_thick(image, slices), thick_affine)
                truth = _thick(brain.astype(np.float32), slices) > 0.5
                name = f"generated{seed}_{slices}"
                label = f"generated, {SPACING_MM * slices:g} mm"
                for row, mask in bench.rows(name, volume, contrast=contrast, set=label):
                    row["dice"] = round(float(dice(mask, truth)), 4)
                    yield row
            seed += 1


def _thick(array: np.ndarray, count: int) -> np.ndarray:
    """[I, J, K // count] float32: slices averaged along the last axis."""
    rows, columns, slices = array.shape
    thick_slices = slices // count
    usable = array[:, :, : thick_slices * count]
    groups = usable.reshape(rows, columns, thick_slices, count)
    return groups.mean(axis=3, dtype=np.float32)


def tumor_rows(bench: Bench, cases: list[Path]) -> Iterator[dict]:
    """Stripped patients with tumors, extracted once more: what is lost of brain and of tumor."""
    for folder in cases:
        tumor = read_nifti(folder / f"{folder.name}_seg.nii.gz").array > 0
        for name in BRATS.modality_names:
            volume = read_nifti(folder / f"{folder.name}_{name}.nii.gz", modality=name)
            brain = volume.foreground
            rows = bench.rows(f"{folder.name}_{name}", volume, contrast=name, set="stripped")
            for row, mask in rows:
                lost_brain = (brain & ~mask).sum() / brain.sum()
                lost_tumor = (tumor & ~mask).sum() / tumor.sum()
                row["brain_lost"] = round(float(lost_brain), 4)
                row["tumor_lost"] = round(float(lost_tumor), 5)
                yield row


FIGURES = ("anatomy_inside", "dice_bet", "dice_deepbet", "dice", "brain_lost", "tumor_lost")


def table(rows: list[dict]) -> str:
    """Means per set, contrast, and method, with the worst scan, as Markdown."""
    lines = [
        "| set | contrast | method | scans | " + " | ".join(FIGURES) + " | CPU-s |",
        "|---|---|---|--:|" + "--:|" * (len(FIGURES) + 1),
    ]
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        key = (row["set"], row["contrast"], row["method"])
        groups.setdefault(key, []).append(row)
    for key, group in sorted(groups.items()):
        cells = [*key, str(len(group))]
        for figure in FIGURES:
            values = [row[figure] for row in group if figure in row]
            cells.append(_figure_cell(figure, values))
        cpu_seconds = np.mean([row["cpu_seconds"] for row in group])
        cells.append(f"{cpu_seconds:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure_cell(figure: str, values: list[float]) -> str:
    """Mean and worst value; of what is lost the worst is the largest."""
    if not values:
        return "–"
    worst = min(values)
    if figure.endswith("lost"):
        worst = max(values)
    return f"{np.mean(values):.4f} ({worst:.4f})"


if __name__ == "__main__":
    main()
