"""Anatomical label maps of real brains, with FreeSurfer's ids.

FreeSurfer, FastSurfer and SynthSeg write such maps. A map is brought into the template's frame of
``anatomy.py`` (RAS in mm, midline at x = 0, thalami where the procedural brain has them).
Placement, tumor growth and contrast are therefore the same code for both kinds of anatomy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from medmap.errors import InputDataError, MissingInputError
from medmap.io.nifti import read_nifti
from medmap.phantom.anatomy import TISSUES
from medmap.phantom.fields import RegularGrid
from medmap.resampling import reorient
from medmap.tensors import from_array, to_array

IDS: dict[str, tuple[int, ...]] = {
    "wm": (2, 41, 7, 46, 78, 79, 85, *range(251, 256), *range(3000, 5000)),
    "gm": (3, 42, 17, 53, 18, 54, 19, 20, 55, 56, 80, *range(1000, 3000)),
    "ventricle": (4, 43, 5, 44, 14, 15, 72),
    "cb_gm": (8, 47),
    "thalamus": (9, 10, 48, 49),
    "striatum": (11, 12, 26, 50, 51, 58),
    "pallidum": (13, 52),
    "stem": (16, 28, 60, 170, 171, 172, 173, 174, 175),
    "wmh": (25, 57, 77),
    "choroid": (31, 63),
    "csf": (24,),
}
"""Tissue -> ids of FreeSurfer's color table (surfer.nmr.mgh.harvard.edu, FreeSurferColorLUT)."""

LEFT = (
    *(2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 17, 18, 25, 26, 28),
    *range(1000, 2000),
    *range(3000, 4000),
)

RIGHT = (
    *(41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 57, 58, 60),
    *range(2000, 3000),
    *range(4000, 5000),
)
"""Ids of the left and of the right hemisphere, both with their half of the hindbrain."""

HINDBRAIN = (7, 8, 15, 16, 46, 47)
"""Ids of cerebellum, brainstem and fourth ventricle: a tumor starts elsewhere."""

OUTSIDE = 255
"""Marks voxels outside the brain among rows of ``TISSUES``."""

UNKNOWN = 254
"""Marks ids that are in no table, while a label map is read."""

THALAMI = (0.0, -3.0, 8.0)
"""Middle between the thalami in the template's frame."""

LEAST_TISSUE_VOXELS = 50_000
"""Of gray and of white matter, 50 ml each: a map with less is no label map of a brain."""

MARGIN_VOXELS = 14
"""Background around the brain: distances and the warp need it."""

COARSE_MM = 2.0


@dataclass(frozen=True)
class LabelMap:
    """A label map, prepared once.

    Attributes:
        tissue: [I, J, K] uint8 rows of ``TISSUES``, ``OUTSIDE`` outside the brain; on ``grid``.
        grid: 1 mm voxels in the template's frame.
        distances: [4, I', J', K'] float32 mm on ``coarse_grid``: inside the smooth envelope, inside
            the cerebrum, inside the ventricles, and right of the midline.
        coarse_grid: the grid of the distances.
    """

    tissue: torch.Tensor
    grid: RegularGrid
    distances: torch.Tensor
    coarse_grid: RegularGrid


def find_label_maps(path: str | Path) -> tuple[Path, ...]:
    """A NIfTI file, or all NIfTI files of a folder, sorted by name.

    Raises:
        MissingInputError: there is none.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith((".nii", ".nii.gz")))
    if not files or not files[0].is_file():
        raise MissingInputError(
            f"There is no label map at {path}.",
            "Choose a NIfTI file with FreeSurfer ids, or a folder of such files.",
        )
    return tuple(files)


@lru_cache(maxsize=32)
def read_label_map(path: Path) -> LabelMap:
    """Read and prepare a label map (a few seconds, held in memory: about 15 MB).

    Raises:
        InputDataError: it has no white and gray matter under FreeSurfer's ids, or its voxels are
            far from 1 mm.
    """
    volume = read_nifti(path, modality="labels")
    array, grid = reorient(np.asarray(volume.array), volume.grid)
    deviation = np.abs(grid.spacing - 1.0).max()
    if deviation > 0.35:
        raise InputDataError(
            f"The label map {path.name} does not have voxels of about 1 mm.", "Resample it to 1 mm."
        )
    ids = np.rint(array).astype(np.int32)
    ids = ids[_brain_box(ids, path.name)]
    tissue = _tissue_rows(ids)
    _require_brain(tissue, path.name)

    origin = _origin(ids)
    coarse_shape = tuple(math.ceil(count / 2) for count in tissue.shape)
    coarse_grid = _grid(origin, COARSE_MM, coarse_shape)
    # Distances vary slowly: at half the resolution they take an eighth of the time.
    every_second = (slice(None, None, 2),) * 3
    distances = _distances(ids[every_second], tissue[every_second], coarse_grid)
    return LabelMap(
        tissue=from_array(np.ascontiguousarray(tissue)),
        grid=_grid(origin, 1.0, tissue.shape),
        distances=from_array(distances),
        coarse_grid=coarse_grid,
    )


def _grid(origin: tuple[float, float, float], step: float, shape: Sequence[int]) -> RegularGrid:
    count_i, count_j, count_k = shape
    return RegularGrid(origin, step, (count_i, count_j, count_k))


def _require_brain(tissue: np.ndarray, name: str) -> None:
    """Raise InputDataError if a map has too little gray or white matter for a brain."""
    for required in ("wm", "gm"):
        voxels = (tissue == TISSUES.index(required)).sum()
        if voxels <= LEAST_TISSUE_VOXELS:
            raise InputDataError(
                f"The label map {name} has no white and gray matter under FreeSurfer's ids.",
                "Use the output of FreeSurfer, FastSurfer or SynthSeg "
                "(2/41 white matter, 3/42 cortex).",
            )


def _brain_box(ids: np.ndarray, name: str) -> tuple[slice, ...]:
    """The box around the brain, with a margin. Raises InputDataError if the map is empty."""
    # CSF (24) surrounds the brain in some maps; ids from 500 on are skull and scalp in SynthSeg's
    # numbering; ids from 1000 on are cortical parcels.
    is_structure = (ids > 0) & (ids < 500) & (ids != 24)
    is_parcel = ids >= 1000
    is_brain = is_structure | is_parcel
    if not is_brain.any():
        raise InputDataError(f"The label map {name} is empty.", "Choose another file.")
    box = []
    for other_axes in ((1, 2), (0, 2), (0, 1)):
        occupied = is_brain.any(axis=other_axes)
        first = int(occupied.argmax())
        stop = len(occupied) - int(occupied[::-1].argmax())
        start = max(first - MARGIN_VOXELS, 0)
        box.append(slice(start, stop + MARGIN_VOXELS))
    return tuple(box)


def _tissue_rows(ids: np.ndarray) -> np.ndarray:
    """Ids -> rows of ``TISSUES``; unknown ids in the brain take the tissue of the nearest voxel."""
    from scipy.ndimage import distance_transform_edt

    table = np.full(max(int(ids.max()), 5000) + 1, UNKNOWN, np.uint8)
    table[0] = OUTSIDE
    # SynthSeg numbers what lies around the brain from 500 on.
    table[500:1000] = OUTSIDE
    for name, values in IDS.items():
        table[list(values)] = TISSUES.index(name)
    rows = table[np.clip(ids, 0, None)]
    is_unknown = rows == UNKNOWN
    if is_unknown.any():
        has_tissue = ~is_unknown & (rows != OUTSIDE)
        nearest = distance_transform_edt(~has_tissue, return_distances=False, return_indices=True)
        sources = tuple(index[is_unknown] for index in nearest)
        rows[is_unknown] = rows[sources]
    return rows


def _origin(ids: np.ndarray) -> tuple[float, float, float]:
    """Position of voxel 0 in the template's frame: from the thalami, else from the bounding box."""
    thalami = np.argwhere(np.isin(ids, IDS["thalamus"]))
    # Fewer voxels are a damaged map or a cut one.
    if len(thalami) > 1000:
        target = THALAMI
        middle = thalami.mean(0)
        # White matter and cortex of the left, then of the right hemisphere.
        left_x = np.argwhere(np.isin(ids, (2, 3)))[:, 0]
        right_x = np.argwhere(np.isin(ids, (41, 42)))[:, 0]
        # The midline lies between the hemispheres: thalami may be displaced.
        if len(left_x) and len(right_x):
            middle[0] = 0.5 * (left_x.mean() + right_x.mean())
    else:
        target = (0.0, 0.0, 4.0)
        middle = (np.array(ids.shape) - 1) / 2

    x, y, z = np.array(target) - middle
    return float(x), float(y), float(z)


def _distances(ids: np.ndarray, tissue: np.ndarray, grid: RegularGrid) -> np.ndarray:
    """[4, I, J, K] signed distances in mm: envelope, cerebrum, ventricles, and side (right > 0)."""
    is_brain = (tissue != OUTSIDE) & (tissue != TISSUES.index("csf"))
    is_cerebrum = is_brain & ~np.isin(ids, HINDBRAIN)
    is_ventricle = tissue == TISSUES.index("ventricle")
    # The envelope bridges sulci: depth below it must not follow every fold of the cortex.
    maps = (
        _signed_distance(_closed(is_brain, 8.0), 0.8),
        _signed_distance(_closed(is_cerebrum, 8.0), 0.5),
        _signed_distance(is_ventricle, 0.5),
        _side(ids, grid),
    )
    return np.stack(maps).astype(np.float32)


def _side(ids: np.ndarray, grid: RegularGrid) -> np.ndarray:
    """[I, J, K] mm from the midline, positive on the right."""
    from scipy.ndimage import distance_transform_edt

    is_left = np.isin(ids, LEFT)
    is_right = np.isin(ids, RIGHT)
    if not (is_left.any() and is_right.any()):
        # Maps without sides: the plane x = 0 is the midline.
        x = to_array(grid.axes()[0])
        return np.broadcast_to(x[:, None, None], ids.shape)
    to_left = distance_transform_edt(~is_left)
    to_right = distance_transform_edt(~is_right)
    return 0.5 * COARSE_MM * (to_left - to_right)


def _signed_distance(mask: np.ndarray, sigma: float) -> np.ndarray:
    """mm inside a mask, blurred by ``sigma`` voxels: distances between voxels have steps."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    inside = distance_transform_edt(mask)
    outside = distance_transform_edt(~mask)
    return gaussian_filter(COARSE_MM * (inside - outside), sigma).astype(np.float32)


def _closed(mask: np.ndarray, mm: float) -> np.ndarray:
    """Morphological closing by a ball: an envelope that bridges sulci."""
    from scipy.ndimage import distance_transform_edt

    dilated = distance_transform_edt(~mask) < mm / COARSE_MM
    return distance_transform_edt(dilated) > mm / COARSE_MM


def mirrored(label_map: LabelMap) -> LabelMap:
    """Left and right exchanged about x = 0."""
    distances = label_map.distances.flip(1).clone()
    distances[3] *= -1.0
    return LabelMap(
        tissue=label_map.tissue.flip(0),
        grid=_mirrored_grid(label_map.grid),
        distances=distances,
        coarse_grid=_mirrored_grid(label_map.coarse_grid),
    )


def _mirrored_grid(grid: RegularGrid) -> RegularGrid:
    first_x, y, z = grid.origin
    count = grid.shape[0]
    last_x = first_x + grid.step * (count - 1)
    # What was last on the right is first on the left.
    origin = (-last_x, y, z)
    return RegularGrid(origin, grid.step, grid.shape)
