"""Measure the preparation of raw scans: masks by method and contrast, error of the alignment.

    python experiments/preparation.py CASES -o preparation.json

CASES holds one folder per case with t1, t1ce, t2 or flair as .nii.gz. A file ``anatomy.nii.gz``
(labels; positive voxels are brain) or ``brain_mask.nii.gz`` beside them is what masks are compared
with.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medmap.io.nifti import read_nifti
from medmap.metrics import dice
from medmap.phantom import generate
from medmap.preparation.brain_extraction import METHODS, extract_brain
from medmap.preparation.motion import Motion, mask_points
from medmap.preparation.registration import register
from medmap.preparation.workflow import prepare_case
from medmap.resampling import resample_linear, resample_nearest
from medmap.task import BRATS
from medmap.volume import Grid, Volume

PHANTOM_SEEDS = (11, 12, 13, 14, 15, 16)
PAIRS = (("t1", "t2"), ("t1ce", "flair"), ("flair", "t1"), ("t2", "t1ce"))
MAX_SHIFT_MM = 20.0
MAX_DEGREES = 15.0
DISPLACEMENTS_PER_PAIR = 2


def main() -> None:
    """Parse the command line and write all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--skip-masks", action="store_true")
    arguments = parser.parse_args()
    folders = sorted(path for path in arguments.cases.iterdir() if path.is_dir())
    results: dict = {"phantom_errors_mm": phantom_errors()}
    print(json.dumps(results), flush=True)
    results["cases"] = {}
    for folder in folders:
        results["cases"][folder.name] = measure_case(folder, not arguments.skip_masks)
        print(folder.name, json.dumps(results["cases"][folder.name]), flush=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def random_motion(rng: np.random.Generator, center: np.ndarray) -> np.ndarray:
    """[4, 4] rotation of up to 15 degrees about each axis in turn, and a shift of up to 20 mm."""
    direction = rng.normal(size=3)
    length_mm = rng.uniform(0, MAX_SHIFT_MM)
    shift = direction / np.linalg.norm(direction) * length_mm
    axis = int(rng.integers(3))
    degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES)
    motion = Motion.identity(center).shifted(shift)
    return motion.turned(axis, degrees).matrix


def distance_mm(one: np.ndarray, other: np.ndarray, points: np.ndarray) -> float:
    """Mean distance over brain points between two motions."""
    origin = np.zeros(3)
    return Motion(one, origin).distance_mm(Motion(other, origin), points)


def phantom_errors() -> list[dict]:
    """Absolute errors: synthetic patients, fixed in 4 mm axial, moving in 4 mm sagittal slices."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in PHANTOM_SEEDS:
        case = generate(seed, shape=(92, 108, 92), spacing=2.0)
        grid = Grid((92, 108, 92), case.affine)
        brain = case.brain.numpy()
        points = mask_points(brain, case.affine)
        for fixed_name, moving_name in PAIRS:
            fixed = _sliced(case.images[fixed_name], grid, (1.0, 1.0, 4.0))
            moving = _sliced(case.images[moving_name], grid, (4.0, 1.0, 1.0))
            truth = random_motion(rng, points.mean(axis=0))
            moving = Volume(moving.array, truth @ moving.affine, moving_name)
            result = register(fixed, moving, fixed.foreground, moving.foreground)
            error = distance_mm(result.movement @ truth, np.eye(4), points)
            rows.append(
                {
                    "seed": seed,
                    "pair": f"{moving_name} to {fixed_name}",
                    "displacement_mm": round(distance_mm(truth, np.eye(4), points), 1),
                    "error_mm": round(error, 3),
                    "accepted": result.is_accepted,
                    "repeat_mm": round(result.repeat_mm, 2),
                    "seconds": round(result.seconds, 1),
                }
            )
    return rows


def _sliced(image, grid: Grid, spacing: Sequence[float]) -> Volume:
    extent_mm = np.array(grid.shape) * grid.spacing
    size = np.ceil(extent_mm / spacing).astype(int)
    middle_voxel = (np.array(grid.shape) - 1) / 2
    center = grid.affine[:3, :3] @ middle_voxel + grid.affine[:3, 3]
    # Both grids have one center.
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = center - affine[:3, :3] @ ((size - 1) / 2)
    i, j, k = size.tolist()
    target = Grid((i, j, k), affine)
    resampled = resample_linear(image[None], grid, target)[0]
    return Volume(resampled.numpy(), affine)


def measure_case(folder: Path, with_masks: bool) -> dict:
    """Masks and alignment of one case of files."""
    scans = {}
    for name in BRATS.modality_names:
        path = folder / f"{name}.nii.gz"
        if path.exists():
            scans[name] = read_nifti(path, modality=name)
    result: dict = {}
    preparation = prepare_case(scans, BRATS)
    result["preparation"] = preparation.to_dict()
    if with_masks:
        result["masks"] = mask_rows(folder, scans, preparation.masks)
    masks = dict(preparation.masks)
    for name, scan in scans.items():
        masks.setdefault(name, scan.foreground)
    if len(scans) > 1:
        result["alignment"] = alignment_rows(scans, masks, preparation.plan.reference)
    return result


def mask_rows(folder: Path, scans: dict[str, Volume], fused: dict[str, np.ndarray]) -> list[dict]:
    """Every available method on every scan, and the masks after the vote."""
    rows = []
    for name, scan in scans.items():
        masks = {}
        seconds = {"vote": 0.0}
        for method, entry in METHODS.items():
            if entry.is_available():
                started = time.process_time()
                brain = extract_brain(scan, name, method=method, keeps_stripped=False)
                seconds[method] = time.process_time() - started
                masks[method] = brain.mask
        if name in fused:
            masks["vote"] = fused[name]
        for method, mask in masks.items():
            volume_ml = float(mask.sum()) * scan.grid.voxel_ml
            row = {
                "contrast": name,
                "method": method,
                "cpu_seconds": round(seconds[method], 1),
                "ml": round(volume_ml),
            }
            rows.append(row | _compared(folder, scan, mask))
    return rows


def _compared(folder: Path, scan: Volume, mask: np.ndarray) -> dict:
    """Share of the anatomy inside the mask, and Dice with a mask, where there are such files."""
    row = {}
    for file_name, key in (("anatomy.nii.gz", "anatomy_inside"), ("brain_mask.nii.gz", "dice")):
        path = folder / file_name
        if not path.exists():
            continue
        labels = read_nifti(path)
        brain_labels = (labels.array > 0).astype(np.uint8)
        other = resample_nearest(brain_labels, labels.grid, scan.grid) > 0
        if key == "dice":
            figure = dice(mask, other)
        else:
            figure = (mask & other).sum() / other.sum()
        row[key] = round(float(figure), 4)
    return row


def alignment_rows(
    scans: dict[str, Volume], masks: dict[str, np.ndarray], reference: str
) -> list[dict]:
    """Consistency: transforms with and without an added displacement, in mm over the brain."""
    rng = np.random.default_rng(1)
    rows = []
    fixed = scans[reference]
    for name, moving in scans.items():
        if name == reference:
            continue
        first = register(fixed, moving, masks[reference], masks[name])
        points = mask_points(masks[name], moving.affine)
        for _ in range(DISPLACEMENTS_PER_PAIR):
            added = random_motion(rng, points.mean(axis=0))
            displaced = Volume(moving.array, added @ moving.affine, name)
            second = register(fixed, displaced, masks[reference], masks[name])
            error = distance_mm(second.proposed @ added, first.proposed, points)
            rows.append(
                {
                    "pair": f"{name} to {reference}",
                    "added_mm": round(distance_mm(added, np.eye(4), points), 1),
                    "error_mm": round(error, 3),
                    "accepted": second.is_accepted,
                    "seconds": round(second.seconds, 1),
                }
            )
    return rows


if __name__ == "__main__":
    main()
