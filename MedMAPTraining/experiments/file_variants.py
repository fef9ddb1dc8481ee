"""The same patient, stored as scanners and tools store it: does the volume of the tumor change?

    python MedMAPTraining/experiments/file_variants.py FOLDER ... [--bundle BUNDLE]
        [--modalities t1ce flair] [--json OUT.json]

FOLDER holds skull-stripped cases as ``medmap train --data`` takes them. Every variant is a sound
file: it must not be refused, and the volume of the whole tumor must be that of the plain file
within 3 %, or within 6 % and 0.5 ml where voxels were interpolated or noise was added. The script
prints the change in percent, and ends with 1 if a variant lies beyond. Scans are changed in memory
only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from shared import script_parser, table_head, table_row

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle, load_bundle
from medmap.errors import MedMAPError
from medmap.inference import segment
from medmap.io.cohorts import find_cases
from medmap.task import BRATS
from medmap.volume import Volume

Change = Callable[[np.ndarray, np.ndarray, str], tuple[np.ndarray, np.ndarray]]
"""(voxels, affine, modality) -> (voxels, affine)."""

EXACT_SHARE = 0.03
"""Allowed relative change where the voxels of the brain are the same."""

SMOOTHED_SHARE = 0.06
SMOOTHED_ML = 0.5
"""Allowed change where voxels of the brain were interpolated or noise was added."""


def bright(array: np.ndarray) -> np.float32:
    """The 99th percentile of the brain, whose background is the smallest value."""
    return np.float32(np.percentile(array[array > array.min()], 99))


def rotation(degrees: float, axis: int) -> np.ndarray:
    """[4, 4] rotation about a world axis through the origin."""
    radians = np.radians(degrees)
    cosine = np.cos(radians)
    sine = np.sin(radians)
    first, second = [other for other in range(3) if other != axis]
    matrix = np.eye(4)
    matrix[first, first] = cosine
    matrix[second, second] = cosine
    matrix[first, second] = -sine
    matrix[second, first] = sine
    return matrix


def turned(*turns: tuple[float, int]) -> Change:
    """The header of all scans turned as a whole by (degrees, axis)."""
    matrix = np.eye(4)
    for degrees, axis in turns:
        matrix = rotation(degrees, axis) @ matrix

    def change(array: np.ndarray, affine: np.ndarray, _: str) -> tuple[np.ndarray, np.ndarray]:
        return array, matrix @ affine

    return change


def padded(voxels: int, constants: Mapping[str, float] | None = None) -> Change:
    """Background added on all sides; its value may be another in every scan."""

    def change(array: np.ndarray, affine: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        value = (constants or {}).get(name, array.min())
        # The first voxel now lies so many voxels earlier.
        edges = affine[:3, :3]
        shifted = affine.copy()
        shifted[:3, 3] -= edges @ np.full(3, voxels)
        wider = np.pad(array, voxels, constant_values=value)
        return wider, shifted

    return change


def voxelwise(function: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A change of intensities alone."""

    def change(array: np.ndarray, affine: np.ndarray, _: str) -> tuple[np.ndarray, np.ndarray]:
        return function(array).astype(np.float32), affine

    return change


def in_one_scan(change: Change, modality: str = "flair") -> Change:
    """The change in one scan only."""

    def partial(array: np.ndarray, affine: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name != modality:
            return array, affine
        return change(array, affine, name)

    return partial


def with_strays(array: np.ndarray) -> np.ndarray:
    """One bright voxel near each of two opposite corners."""
    array = array.copy()
    array[3, 3, 3] = bright(array)
    array[-4, -4, -4] = bright(array)
    return array


def with_crumbs(array: np.ndarray) -> np.ndarray:
    """Twelve bright cubes of 27 voxels, 15 voxels from the brain or as far as there is room."""
    is_background = array == array.min()
    distance = ndimage.distance_transform_edt(is_background)
    least_distance = min(15, 0.8 * distance.max())
    positions = np.argwhere(distance > least_distance)
    chosen = np.random.default_rng(5).choice(len(positions), 12)
    array = array.copy()
    for corner in positions[chosen]:
        cube = tuple(slice(start, start + 3) for start in corner)
        array[cube] = bright(array)
    return array


def with_letters(array: np.ndarray) -> np.ndarray:
    """Bright bars along an edge of all slices, as burnt-in text has, apart from the brain."""
    letters = np.zeros(array.shape, bool)
    for start in range(5, 60, 8):
        letters[start : start + 5, 4:12] = True
    is_background = array == array.min()
    distance = ndimage.distance_transform_edt(is_background)
    letters &= distance > 5
    brightness = 1.2 * bright(array)
    return np.where(letters, brightness, array)


def with_noise(share: float, distribution: str) -> Callable[[np.ndarray], np.ndarray]:
    """Noise of a share of the brain's range in every voxel: uniform from 0, or normal."""

    def change(array: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(1)
        if distribution == "uniform":
            noise = generator.random(array.shape)
        else:
            noise = generator.normal(size=array.shape)
        return array + share * bright(array) * noise.astype(np.float32)

    return change


def shifted(voxels: float, order: int) -> Callable[[np.ndarray], np.ndarray]:
    """Interpolated by splines of this order at positions between the voxels, along all axes."""
    return lambda array: ndimage.shift(array, (voxels,) * 3, order=order)


def _as_integers(array: np.ndarray) -> np.ndarray:
    """Cubic interpolation rounded to 1,000 steps of the brain's range, as int16 files hold it."""
    step = bright(array) / 1000
    return (shifted(1 / 3, 3)(array) / step).round() * step


def from_right_to_left(
    array: np.ndarray, affine: np.ndarray, _: str
) -> tuple[np.ndarray, np.ndarray]:
    """The same voxels in the opposite order along the first two axes (RAS as LPS)."""
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    last_voxel = np.array(array.shape[:2]) - 1
    flip[:2, 3] = last_voxel
    flipped = array[::-1, ::-1]
    return flipped, affine @ flip


@dataclass(frozen=True)
class Variant:
    """A way of storing a patient.

    Attributes:
        title: for the table.
        change: of every scan.
        smoothed: voxels of the brain were interpolated, or noise was added.
    """

    title: str
    change: Change
    smoothed: bool = False

    def allowed_ml(self, plain_ml: float) -> float:
        """By how much the volume of the whole tumor may differ."""
        if self.smoothed:
            return SMOOTHED_SHARE * plain_ml + SMOOTHED_ML
        return EXACT_SHARE * plain_ml


VARIANTS = (
    Variant("two stray voxels in FLAIR", in_one_scan(voxelwise(with_strays))),
    Variant("crumbs 15 mm from the brain", voxelwise(with_crumbs)),
    Variant("burnt-in letters", voxelwise(with_letters)),
    Variant("61 voxels of padding", padded(61)),
    Variant("padding of two constants", padded(40, {"flair": 3, "t1ce": 11})),
    Variant("header turned 12°, -6°", turned((12, 0), (-6, 2))),
    Variant("header turned 25°, -12°", turned((25, 0), (-12, 2))),
    Variant("header turned 30°, 30°", turned((30, 0), (30, 1))),
    Variant("background 32767", voxelwise(lambda array: np.where(array == 0, 32767, array))),
    Variant("intensities times 1e-9", voxelwise(lambda array: array * 1e-9)),
    Variant("LPS voxel order", from_right_to_left),
    Variant("noise of 0.001", voxelwise(lambda array: array + _tiny_noise(array)), True),
    Variant("uniform noise, 1 %", voxelwise(with_noise(0.01, "uniform")), True),
    Variant("normal noise, 0.5 %", voxelwise(with_noise(0.005, "normal")), True),
    Variant("shifted 1/3 voxel, linear", voxelwise(shifted(1 / 3, 1)), True),
    Variant("shifted 1/3 voxel, cubic", voxelwise(shifted(1 / 3, 3)), True),
    Variant("shifted 1/3 voxel, cubic, as integers", voxelwise(_as_integers), True),
)


def _tiny_noise(array: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).random(array.shape) * 1e-3


def tumor_ml(volumes: Mapping[str, Volume], bundle: Bundle, change: Change | None = None) -> float:
    """Volume of the whole tumor; the scans are changed first."""
    scans = {}
    for name, volume in volumes.items():
        array = volume.array.astype(np.float32)
        affine = volume.affine.astype(float)
        if change is not None:
            array, affine = change(array, affine, name)
        contiguous = np.ascontiguousarray(array, np.float32)
        scans[name] = Volume(contiguous, affine, name)
    result = segment(scans, bundle)
    return result.volumes_ml["WT"]


def measure(volumes: Mapping[str, Volume], bundle: Bundle) -> dict[str, float | None]:
    """Volume in ml of the plain scans (key ``plain``) and of every variant; None: refused."""
    results: dict[str, float | None] = {"plain": tumor_ml(volumes, bundle)}
    for variant in VARIANTS:
        try:
            results[variant.title] = tumor_ml(volumes, bundle, variant.change)
        except MedMAPError as error:
            print(f"{variant.title}: {error}", file=sys.stderr)
            results[variant.title] = None
    return results


def is_within(variant: Variant, results: Mapping[str, float | None]) -> bool:
    """Whether the variant was segmented, and its volume may differ as much as it does."""
    plain_ml = results["plain"]
    variant_ml = results[variant.title]
    if plain_ml is None or variant_ml is None:
        return False
    difference_ml = abs(variant_ml - plain_ml)
    return difference_ml <= variant.allowed_ml(plain_ml)


def _cell(variant: Variant, results: Mapping[str, float | None]) -> str:
    plain_ml = results["plain"]
    variant_ml = results[variant.title]
    if variant_ml is None or not plain_ml:
        return "refused"
    text = f"{100 * (variant_ml / plain_ml - 1):+.1f}"
    if not is_within(variant, results):
        text = f"**{text}**"
    return text


def table(cases: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Rows of variants, columns of cases; change in percent, bold beyond what is allowed."""
    lines = table_head(["Stored with", *cases])
    plain = [f"{results['plain']:.1f} ml" for results in cases.values()]
    lines.append(table_row(["(plain)", *plain]))
    for variant in VARIANTS:
        cells = [_cell(variant, results) for results in cases.values()]
        lines.append(table_row([variant.title, *cells]))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all cases of the folders, and print the table."""
    parser = script_parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--bundle", type=Path, default=default_bundle_path())
    parser.add_argument("--modalities", nargs="+", default=["t1ce", "flair"])
    parser.add_argument("--json", type=Path, help="write the volumes in ml")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bundle = load_bundle(options.bundle)
    cases = {}
    for folder in options.folders:
        for case in find_cases(folder, BRATS):
            cases[case.case_id] = measure(case.read(options.modalities), bundle)
            print(f"{case.case_id} is done", file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps(cases, indent=1), encoding="utf-8")
    print("\n".join(table(cases)))
    beyond = [
        variant.title
        for results in cases.values()
        for variant in VARIANTS
        if not is_within(variant, results)
    ]
    return min(len(beyond), 1)


if __name__ == "__main__":
    sys.exit(main())
