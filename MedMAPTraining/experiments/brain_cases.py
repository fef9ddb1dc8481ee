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
    write_volume(case / f"{name}_mr.nii.gz", image.astype(np.float32), grid.affine)
    write_labels(case / f"{name}_seg.nii.gz", mask.astype(np.uint8), grid)


def write_raw_cases(out: Path, folder: Path) -> None:
    """The scans of one examination with skull, whole and cut off below."""
    names = [name for name in BRATS.modality_names if (folder / f"{name}.nii.gz").exists()]
    volumes = {name: read_nifti(folder / f"{name}.nii.gz") for name in names}
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
    shape = tuple(
        len(range(*part.indices(size))) for part, size in zip(box, grid.shape, strict=True)
    )
    return tuple(box), Grid((shape[0], shape[1], shape[2]), affine)


def write_composed_case(
    out: Path, number: int, scan: Path, modality: str, label_maps: Sequence[Path]
) -> None:
    """The brain of a stripped scan in the head of a label map."""
    draw = Draw(FIRST_SEED + number, "graft")
    image = _at_step(read_nifti(scan))
    brain = _filled_brain(image)
    choice = int(draw.uniform() * len(label_maps))
    classes, head_brain = whole_head.read_head(label_maps[choice % len(label_maps)])
    frame = _Frame(brain, head_brain.numpy())
    brain = frame.placed(brain)
    image = frame.placed(image)
    warped = frame.warped_classes(classes.numpy(), head_brain.numpy(), brain)
    image = _composed(draw, image, brain, warped, modality)
    grid = Grid(frame.shape, np.diag([STEP_MM, STEP_MM, STEP_MM, 1.0]))
    write_case(out, scan.name.removesuffix(".nii.gz"), image, brain, grid)


def _at_step(volume: Volume) -> np.ndarray:
    """[I, J, K] float32, axes closest to RAS, voxels of ``STEP_MM``."""
    array, grid = reorient(np.asarray(volume.array, np.float32), volume.grid)
    return ndimage.zoom(array, grid.spacing / STEP_MM, order=1)


def _filled_brain(image: np.ndarray) -> np.ndarray:
    """The largest component of what is not background, without holes."""
    # Interpolated borders count, half a voxel of the scan: stripped scans lack the outermost fluid.
    closed = ndimage.binary_closing(image > 0, iterations=2)
    components, count = ndimage.label(ndimage.binary_fill_holes(closed))
    sizes = ndimage.sum_labels(components > 0, components, range(1, count + 1))
    return components == 1 + int(np.argmax(sizes))


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
        size = (self._high - self._low).tolist()
        self.shape = (size[0], size[1], size[2])
        self.offset = head_first + (self._low - first) * self.scale

    def placed(self, array: np.ndarray) -> np.ndarray:
        """An array on the grid of the brain, on this grid; 0 where it does not reach."""
        result = np.zeros(self.shape, array.dtype)
        source = []
        target = []
        for low, high, size in zip(self._low, self._high, array.shape, strict=True):
            part = slice(max(0, low), min(size, high))
            source.append(part)
            target.append(slice(part.start - low, part.stop - low))
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
        in_map = positions * self.scale.reshape(per_axis) + self.offset.reshape(per_axis)
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
    images = [SimpleITK.GetImageFromArray(_depth(mask)[every_other]) for mask in (fixed, moving)]
    field = SimpleITK.GetArrayFromImage(demons.Execute(*images))
    # SimpleITK's vectors run along the reversed axes of the array.
    components = [field[..., 2 - axis] for axis in range(3)]
    zoom = np.array(fixed.shape) / np.array(field.shape[:3])
    return np.stack([2 * ndimage.zoom(component, zoom, order=1) for component in components])


def _depth(mask: np.ndarray) -> np.ndarray:
    """Signed distance to the surface in mm, negative inside, clipped."""
    outside = ndimage.distance_transform_edt(~mask)
    inside = ndimage.distance_transform_edt(mask)
    depth_mm = STEP_MM * (outside - inside)
    return np.clip(depth_mm, -CLAMP_MM, CLAMP_MM).astype(np.float32)


def _composed(
    draw: Draw, image: np.ndarray, brain: np.ndarray, classes: np.ndarray, modality: str
) -> np.ndarray:
    """The brain in the head, with the seam, the bias field and the noise of one acquisition."""
    contrast = None
    if draw.chance(0.65):
        contrast = modality
    intensities = whole_head.draw_intensities(draw, contrast).numpy()
    bright = np.percentile(image[brain & (image > 0)], 90)
    brain_image = image / bright * draw.uniform(0.75, 1.0)
    head = _head_image(intensities, classes, brain)
    composed = np.where(brain & (image > 0), brain_image, head).astype(np.float32)
    is_inside = torch.from_numpy(brain)
    result = whole_head.with_dura(draw, torch.from_numpy(composed), is_inside.float())
    # One point spread for brain and head, so that the seam is as soft as any border.
    blurred = ndimage.gaussian_filter(result.numpy(), draw.uniform(0.5, 0.9))
    result = torch.from_numpy(blurred)
    bias = whole_head.smooth_noise(draw, (4, 4, 4), result.shape)
    result = result * torch.exp(draw.uniform(0.0, 0.25) * bias)
    # The brain has its own texture; without one outside, texture would give the brain away.
    amplitude = draw.uniform(0.02, 0.15)
    grain = ndimage.gaussian_filter(draw.white(*result.shape).numpy(), 0.7)
    textured = result * (1 + 3 * amplitude * torch.from_numpy(grain))
    result = torch.where(is_inside, result, textured)
    return whole_head.with_rician_noise(draw, result, draw.uniform(0.002, 0.03)).numpy()


def _head_image(intensities: np.ndarray, classes: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """All but the brain: fluid where the label map has brain and the scan has none."""
    fluid = intensities[whole_head.CLASSES.index("fluid")]
    head = intensities[classes]
    is_brain_class = (classes > 0) & (classes <= len(whole_head.BRAIN_CLASSES))
    head[is_brain_class] = fluid
    is_gap = ndimage.binary_dilation(brain, iterations=4) & (classes == 0)
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
        modality = MODALITIES[number % len(MODALITIES)]
        scan = patient / f"{patient.name}_{modality}.nii.gz"
        write_composed_case(arguments.out, number, scan, modality, label_maps)
        print(f"{number + 1} of {len(patients)}: {scan.name}", flush=True)


if __name__ == "__main__":
    main()
