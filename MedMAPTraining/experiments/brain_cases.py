"""Cases from which MedMAP's brain extraction network learns, beside synthetic heads.

    python experiments/brain_cases.py OUT --raw FOLDERS... --stripped CASES --label-maps FOLDER

Raw folders hold t1, t2 and flair as .nii.gz with skull: their masks are deepbet's, which vote on
each other once the scans are aligned; each scan comes twice, whole and cut off below. CASES holds
stripped patients (CASE/CASE_t1.nii.gz and so on): each lends one modality, whose brain is put into
the head of a label map. OUT gets CASE/CASE_mr.nii.gz and CASE_seg.nii.gz, which are what
``medmap train --data`` takes for the task ``brain``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK
import torch
from scipy import ndimage
from shared import script_parser

from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.phantom import whole_head
from medmap.phantom.fields import Draw
from medmap.phantom.labelmap import find_label_maps
from medmap.preparation.workflow import prepare_case
from medmap.resampling import reorient
from medmap.task import BRATS
from medmap.volume import Grid, Volume

STEP_MM = 1.25
"""Voxels of the composed heads: half of the network's."""

FIRST_SEED = 8_800_000

MODALITIES = ("t1ce", "t1", "t1ce", "flair", "t2")
"""Modality of the first stripped case, the second one, and so on in turn: T1ce twice, because no
raw head shows it."""

CLAMP_MM = 25.0
"""Signed distances are clipped here: what lies farther from the brain than the skull is rigid."""

DEMONS_ROUNDS = 60
DEMONS_SIGMA = 2.0
"""Of the displacements' smoothing, in voxels of twice ``STEP_MM``."""


def write_case(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, grid: Grid) -> None:
    """One case in the layout of ``medmap train``."""
    case = folder / name
    case.mkdir(parents=True, exist_ok=True)
    scan_path = case / f"{name}_mr.nii.gz"
    write_volume(scan_path, image.astype(np.float32), grid.affine)
    label_path = case / f"{name}_seg.nii.gz"
    write_labels(label_path, mask.astype(np.uint8), grid)


def write_raw_cases(out: Path, folder: Path) -> None:
    """The scans of one examination with skull, whole and cut off below."""
    volumes = {}
    for name in BRATS.modality_names:
        path = folder / f"{name}.nii.gz"
        if path.exists():
            volumes[name] = read_nifti(path)
    preparation = prepare_case(volumes, BRATS, "always")
    for name, volume in volumes.items():
        mask = preparation.masks[name]
        image = np.asarray(volume.array)
        write_case(out, f"{folder.name}_{name}", image, mask, volume.grid)
        box, grid = _without_base(mask, volume.grid)
        write_case(out, f"{folder.name}_{name}_cut", image[box], mask[box], grid)


def _without_base(mask: np.ndarray, grid: Grid) -> tuple[tuple[slice, ...], Grid]:
    """What a field of view shows that ends in the lowest eighth of the brain."""
    axis = int(np.argmax(np.abs(grid.affine[2, :3])))
    other_axes = tuple(other for other in range(3) if other != axis)
    occupied = np.flatnonzero(mask.any(axis=other_axes))
    first = int(occupied[0])
    stop = int(occupied[-1]) + 1
    eighth = (stop - first) // 8
    start = 0
    end = grid.shape[axis]
    if grid.affine[2, axis] > 0:
        start = first + eighth
    else:
        end = stop - eighth
    box = [slice(None)] * 3
    box[axis] = slice(start, end)
    affine = grid.affine.copy()
    affine[:3, 3] += start * affine[:3, axis]
    shape = list(grid.shape)
    shape[axis] = end - start
    i, j, k = shape
    return tuple(box), Grid((i, j, k), affine)


def write_composed_case(
    out: Path, number: int, scan: Path, modality: str, label_maps: Sequence[Path]
) -> None:
    """The brain of a stripped scan in the head of a label map."""
    draw = Draw(FIRST_SEED + number, "graft")
    image = _at_step(read_nifti(scan))
    brain = _filled_brain(image)
    choice = int(draw.uniform() * len(label_maps))
    # The end of the interval can be drawn, and is no position.
    label_map = label_maps[choice % len(label_maps)]
    classes, head_brain = whole_head.read_head(label_map)
    frame = _Frame(brain, head_brain.numpy())
    brain = frame.placed(brain)
    image = frame.placed(image)
    warped = frame.warped_classes(classes.numpy(), head_brain.numpy(), brain)
    image = _composed(draw, image, brain, warped, modality)
    affine = np.diag([STEP_MM, STEP_MM, STEP_MM, 1.0])
    grid = Grid(frame.shape, affine)
    name = scan.name.removesuffix(".nii.gz")
    write_case(out, name, image, brain, grid)


def _at_step(volume: Volume) -> np.ndarray:
    """[I, J, K] float32, axes closest to RAS, voxels of ``STEP_MM``."""
    array, grid = reorient(np.asarray(volume.array, np.float32), volume.grid)
    return ndimage.zoom(array, grid.spacing / STEP_MM, order=1)


def _filled_brain(image: np.ndarray) -> np.ndarray:
    """The largest component of what is not background, without holes."""
    # Interpolated borders count, half a voxel of the scan: stripped scans lack the outermost fluid.
    closed = ndimage.binary_closing(image > 0, iterations=2)
    filled = ndimage.binary_fill_holes(closed)
    components, count = ndimage.label(filled)
    numbers = range(1, count + 1)
    sizes = ndimage.sum_labels(components > 0, components, numbers)
    largest = 1 + int(np.argmax(sizes))
    return components == largest


class _Frame:
    """A grid around a brain with room for the head of a label map.

    Args:
        brain: [I, J, K] bool, voxels of ``STEP_MM``.
        head_brain: [I', J', K'] bool: the brain in the label map. Its extent is scaled to that of
            ``brain``, axis by axis.
    """

    def __init__(self, brain: np.ndarray, head_brain: np.ndarray):
        first, stop = _extent(brain)
        head_first, head_stop = _extent(head_brain)
        # Voxels of the label map per voxel of the grid.
        self.scale = (head_stop - head_first) / (stop - first)
        above = np.array(head_brain.shape) - head_stop
        self._low = np.floor(first - head_first / self.scale).astype(int)
        self._high = np.ceil(stop + above / self.scale).astype(int)
        i, j, k = (self._high - self._low).tolist()
        self.shape = (i, j, k)
        self.offset = head_first + (self._low - first) * self.scale

    def placed(self, array: np.ndarray) -> np.ndarray:
        """An array on the grid of the brain, on this grid; 0 where it does not reach."""
        result = np.zeros(self.shape, array.dtype)
        source = []
        target = []
        for low, high, size in zip(self._low, self._high, array.shape, strict=True):
            start = max(0, low)
            stop = min(size, high)
            source.append(slice(start, stop))
            target.append(slice(start - low, stop - low))
        result[tuple(target)] = array[tuple(source)]
        return result

    def warped_classes(
        self, classes: np.ndarray, head_brain: np.ndarray, brain: np.ndarray
    ) -> np.ndarray:
        """The label map on this grid, deformed such that its brain has the surface of ``brain``."""
        scaled = ndimage.affine_transform(
            head_brain.astype(np.float32), self.scale, self.offset, self.shape, order=1
        )
        displacement = _surface_displacement(brain, scaled > 0.5)
        positions = np.indices(self.shape).astype(np.float32) + displacement
        per_axis = (3, 1, 1, 1)
        scale = self.scale.reshape(per_axis)
        offset = self.offset.reshape(per_axis)
        in_map = positions * scale + offset
        return ndimage.map_coordinates(classes, in_map, order=0, mode="constant")


def _extent(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last-but-one voxel of a mask along each axis."""
    voxels = np.argwhere(mask)
    return voxels.min(0), voxels.max(0) + 1


def _surface_displacement(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """[3, I, J, K] voxels from each position to where the moving mask shows the same depth.

    Demons (Thirion, Medical Image Analysis 1998) on clipped signed distances: the surfaces meet,
    and what lies around them follows. Every other voxel is enough for a smooth field.
    """
    demons = SimpleITK.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(DEMONS_ROUNDS)
    demons.SetStandardDeviations(DEMONS_SIGMA)
    demons.SetSmoothDisplacementField(True)
    every_other = (slice(None, None, 2),) * 3
    images = []
    for mask in (fixed, moving):
        depth = _depth(mask)[every_other]
        images.append(SimpleITK.GetImageFromArray(depth))
    field = SimpleITK.GetArrayFromImage(demons.Execute(*images))
    zoom = np.array(fixed.shape) / np.array(field.shape[:3])
    components = []
    for axis in range(3):
        # SimpleITK's vectors run along the reversed axes of the array.
        component = field[..., 2 - axis]
        # Twice, since a voxel of the field is two voxels long.
        components.append(2 * ndimage.zoom(component, zoom, order=1))
    return np.stack(components)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Signed distance to the surface in mm, negative inside, clipped."""
    outside = ndimage.distance_transform_edt(~mask)
    inside = ndimage.distance_transform_edt(mask)
    depth = outside - inside
    depth_mm = STEP_MM * depth
    # Far from the surface there is nothing to match.
    clipped = np.clip(depth_mm, -CLAMP_MM, CLAMP_MM)
    return clipped.astype(np.float32)


def _composed(
    draw: Draw, image: np.ndarray, brain: np.ndarray, classes: np.ndarray, modality: str
) -> np.ndarray:
    """The brain in the head, with the seam, the bias field and the noise of one acquisition."""
    contrast = None
    if draw.chance(0.65):
        contrast = modality
    intensities = whole_head.draw_intensities(draw, contrast).numpy()
    has_signal = brain & (image > 0)
    bright = np.percentile(image[has_signal], 90)
    brain_image = image / bright * draw.uniform(0.75, 1.0)
    head = _head_image(intensities, classes, brain)
    composed = np.where(has_signal, brain_image, head).astype(np.float32)
    is_inside = torch.from_numpy(brain)
    result = whole_head.with_dura(draw, torch.from_numpy(composed), is_inside.float())
    # One point spread for brain and head, so that the seam is as soft as any border.
    blurred = ndimage.gaussian_filter(result.numpy(), draw.uniform(0.5, 0.9))
    result = torch.from_numpy(blurred)
    bias = whole_head.smooth_noise(draw, (4, 4, 4), result.shape)
    bias_strength = draw.uniform(0.0, 0.25)
    result = result * torch.exp(bias_strength * bias)
    # The brain has its own texture; without one outside, texture would give the brain away.
    amplitude = draw.uniform(0.02, 0.15)
    white = draw.white(*result.shape).numpy()
    grain = torch.from_numpy(ndimage.gaussian_filter(white, 0.7))
    # Three times: the filter takes most of the variance away.
    textured = result * (1 + 3 * amplitude * grain)
    result = torch.where(is_inside, result, textured)
    sigma = draw.uniform(0.002, 0.03)
    return whole_head.with_rician_noise(draw, result, sigma).numpy()


def _head_image(intensities: np.ndarray, classes: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """All but the brain: fluid where the label map has brain and the scan has none."""
    fluid = intensities[whole_head.CLASSES.index("fluid")]
    head = intensities[classes]
    is_brain_class = (classes > 0) & (classes <= len(whole_head.BRAIN_CLASSES))
    head[is_brain_class] = fluid
    near_brain = ndimage.binary_dilation(brain, iterations=4)
    is_gap = near_brain & (classes == 0)
    head[is_gap | brain] = fluid
    return head


def main() -> None:
    """Write all cases."""
    parser = script_parser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--raw", type=Path, nargs="*", default=[])
    parser.add_argument("--stripped", type=Path)
    parser.add_argument("--label-maps", type=Path)
    arguments = parser.parse_args()
    for folder in arguments.raw:
        write_raw_cases(arguments.out, folder)
    if arguments.stripped is None:
        return
    label_maps = find_label_maps(arguments.label_maps)
    patients = sorted(path for path in arguments.stripped.iterdir() if path.is_dir())
    for number, patient in enumerate(patients):
        # In turn: every modality has as many cases.
        modality = MODALITIES[number % len(MODALITIES)]
        scan = patient / f"{patient.name}_{modality}.nii.gz"
        write_composed_case(arguments.out, number, scan, modality, label_maps)
        print(f"{number + 1} of {len(patients)}: {scan.name}", flush=True)


if __name__ == "__main__":
    main()
