"""Scans -> one tensor in the network's space, and the record that leads back.

Everything here is computed for each modality from that modality alone, or from what is present: an absent scan has no
influence on crop, normalization or grid. Needs torch and numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from medmap.checks import foreground
from medmap.errors import BundleError, InputDataError, UsageError
from medmap.resampling import canonical_axes, canonical_grid, reorient, resample_linear
from medmap.task import Task
from medmap.volume import Grid, Volume, choose_reference


@dataclass(frozen=True)
class PreprocessSpec:
    """How a bundle wants its input; stored in the bundle, so that inference cannot disagree with training.

    Attributes:
        spacing: edge of the working grid's cubic voxels in mm; with ``slices``, of its square pixels.
        clip: z-scores are clipped to this interval.
        percentiles: mean and standard deviation are taken between these percentiles of the foreground.
        margin: mm of background kept around the brain.
        slices: the network sees the slices of the reference scan one by one, in two dimensions. They keep their places
            and their thickness: between thick slices nothing is interpolated.
        field: with ``slices``, edge in mm of the square in the middle of each slice that the network sees; cropped or
            padded to it. 0 takes the whole slice.
    """

    spacing: float = 1.0
    clip: tuple[float, float] = (-4.0, 6.0)
    percentiles: tuple[float, float] = (0.5, 99.5)
    margin: float = 2.0
    slices: bool = False
    field: float = 0.0

    def to_dict(self) -> dict:
        """Plain JSON-ready form."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping) -> PreprocessSpec:
        """Rebuild; raises BundleError for unknown keys, since an unknown step cannot be honored."""
        try:
            return PreprocessSpec(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            )
        except TypeError as error:
            raise BundleError(
                f"The bundle's preprocessing is not understood ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error


@dataclass(frozen=True)
class Prepared:
    """What the network gets, and what leads back.

    Attributes:
        image: [M, D, H, W] float32, normalized, background and absent modalities 0; axes run left -> right,
            posterior -> anterior, inferior -> superior.
        present: [M] bool.
        brain: [D, H, W] bool, foreground of any present modality; the field of view where a task's scans are not
            skull-stripped.
        grid: where ``image`` lies in the world.
        reference: name of the reference modality.
        reference_grid: grid on which the result is wanted.
        slice_axis: axis of ``grid`` along which a network of two dimensions takes slices; None for volumes.
    """

    image: Tensor
    present: Tensor
    brain: Tensor
    grid: Grid
    reference: str
    reference_grid: Grid
    slice_axis: int | None = None


def normalize(
    array: np.ndarray, spec: PreprocessSpec, skull_stripped: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Z-score one scan over its own foreground.

    Args:
        array: [I, J, K] intensities.
        spec: percentiles and clip.
        skull_stripped: whether voxels of the background's value are no part of the organ (``Task.skull_stripped``).

    Returns:
        [I, J, K] float32 with background 0, and [I, J, K] bool foreground; every voxel is foreground where scans are
        not skull-stripped, though mean and deviation do not count the background's.

    Raises:
        InputDataError: nothing but background, or no contrast.
    """
    mask, _ = foreground(array)
    values = array[mask].astype(np.float64)
    if values.size == 0:
        raise InputDataError("A scan holds nothing but background.", "Leave this modality out.")
    low, high = np.percentile(values, spec.percentiles)
    inner = values[(values >= low) & (values <= high)]
    deviation = inner.std()
    if not np.isfinite(deviation) or deviation <= 1e-6 * max(1.0, abs(float(inner.mean()))):
        raise InputDataError("A scan has no contrast inside the head.", "Leave this modality out.")
    if not skull_stripped:
        mask = np.ones(array.shape, bool)
        values = array[mask].astype(np.float64)
    result = np.zeros(array.shape, np.float32)
    result[mask] = np.clip((values - inner.mean()) / deviation, *spec.clip)
    return result, mask


def prepare(
    volumes: Mapping[str, Volume],
    task: Task,
    spec: PreprocessSpec,
    *,
    reference: str | None = None,
    multiple: int = 1,
) -> Prepared:
    """Bring the present scans of one patient into the network's space.

    Args:
        volumes: scans by modality name; absent ones are simply not there.
        task: names and order of the modalities.
        spec: the bundle's preprocessing.
        reference: modality whose grid carries the result; None chooses
            (see ``medmap.volume.choose_reference``).
        multiple: sizes are padded to multiples of this (the network's stride).

    Raises:
        UsageError: no scan, an unknown modality, or a reference that was not given.
        InputDataError: a scan has no foreground or no contrast.
    """
    if not volumes:
        raise UsageError("No scan was given.", "Give at least one modality.")
    grids = {name: volume.grid for name, volume in volumes.items()}
    reference = reference or choose_reference(grids)
    if reference not in volumes:
        raise UsageError(
            f"The reference '{reference}' is not among the given scans.",
            f"Choose one of {', '.join(volumes)}.",
        )
    reference_grid = volumes[reference].grid
    normalized = {
        name: normalize(volume.array, spec, task.skull_stripped) for name, volume in volumes.items()
    }
    slice_axis = None
    if spec.slices:
        grid, slice_axis = slice_grid(reference_grid, spec, multiple)
    else:
        lattice = working_lattice(reference_grid, spec.spacing)
        grid = _crop(
            lattice,
            {n: (volumes[n].grid, mask) for n, (_, mask) in normalized.items()},
            spec,
            multiple,
        )
    image = torch.zeros((len(task.modalities), *grid.shape))
    brain = torch.zeros(grid.shape, dtype=torch.bool)
    for name, (array, mask) in normalized.items():
        image[task.index(name)] = to_grid(array, volumes[name].grid, grid, spec.slices)
        # Just below a half: where spacings are commensurate exact halves are common, and rounding must not decide.
        brain |= to_grid(mask.astype(np.float32), volumes[name].grid, grid, spec.slices) > 0.499
    return Prepared(
        image,
        torch.tensor(task.presence(volumes)),
        brain,
        grid,
        reference,
        reference_grid,
        slice_axis,
    )


def slice_grid(reference: Grid, spec: PreprocessSpec, multiple: int) -> tuple[Grid, int]:
    """The grid on which a network of two dimensions sees the slices of the reference scan, and their axis.

    Its axes are the reference's own, permuted and flipped to lie closest to RAS; across slices it is the reference's.
    Within slices, pixels within 1 % of the wanted ones are kept, so that nothing is interpolated. The square that is
    kept lies in the middle of the slice; its sides are multiples of ``multiple``.
    """
    canonical = canonical_grid(reference)
    axis = slice_axis_of(canonical)
    affine, shape = canonical.affine.copy(), list(canonical.shape)
    for a in set(range(3)) - {axis}:
        own = float(canonical.spacing[a])
        step = own if abs(own / spec.spacing - 1) < 0.01 else spec.spacing
        shape[a] = -(-round((spec.field or own * shape[a]) / step) // multiple) * multiple
        offset = ((canonical.shape[a] - 1) * own - (shape[a] - 1) * step) / 2
        offset = round(offset / step + 1e-6) * step if step == own else offset
        affine[:3, 3] += canonical.affine[:3, a] / own * offset
        affine[:3, a] *= step / own
    return Grid(tuple(shape), affine), axis


def slice_axis_of(grid: Grid) -> int:
    """The axis across slices: the one with the largest voxels; among equals the one closest to head and feet.

    Args:
        grid: with axes closest to RAS (``canonical_grid``).
    """
    spacing = grid.spacing
    return max(range(3), key=lambda a: (round(float(spacing[a] / spacing.max()), 2), a))


def working_lattice(reference: Grid, spacing: float) -> Grid:
    """The unbounded lattice that the network works on.

    Where the reference scan runs along the world's axes with voxels within 1 % of the wanted ones, its own lattice is
    used, merely flipped and permuted to RAS: nothing is interpolated, and every stored orientation of one scan gives
    the same numbers. Anything else (oblique, other spacing) goes to a lattice along the world's axes that passes
    through the world's origin, so that two samplings of one head meet on the same one. The shape returned is (1, 1, 1).
    """
    canonical = canonical_grid(reference)
    direction = canonical.affine[:3, :3] / spacing
    if np.abs(direction - np.eye(3)).max() < 0.01 and _drift(canonical, spacing) < 0.1:
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = canonical.affine[:3, 3]
        return Grid((1, 1, 1), affine)
    return Grid((1, 1, 1), np.diag([spacing, spacing, spacing, 1.0]))


def _drift(canonical: Grid, spacing: float) -> float:
    """Largest distance, in working voxels, between a scan's corners and the exact lattice from the same origin."""
    exact = np.diag([spacing, spacing, spacing, 1.0])
    exact[:3, 3] = canonical.affine[:3, 3]
    return Grid(canonical.shape, exact).distance(canonical) / spacing


def _crop(
    lattice: Grid, masks: Mapping[str, tuple[Grid, np.ndarray]], spec: PreprocessSpec, multiple: int
) -> Grid:
    """The part of the lattice that holds the foreground of every present scan, with a margin, padded evenly."""
    corners = np.concatenate([_world_box(grid, mask) for grid, mask in masks.values()])
    index = (corners - lattice.affine[:3, 3]) / spec.spacing
    low = np.floor(index.min(0) - spec.margin / spec.spacing + 1e-3).astype(int)
    high = np.ceil(index.max(0) + spec.margin / spec.spacing - 1e-3).astype(int)
    blocks = -(-(high - low + 1) // multiple)
    if (
        multiple > 1 and (blocks == 1).all()
    ):  # one voxel at the coarsest level has no variance to normalize by
        blocks += 1
    missing = blocks * multiple - (high - low + 1)
    low -= missing // 2
    shape = tuple(int(n) for n in high - low + 1 + missing - missing // 2)
    affine = lattice.affine.copy()
    affine[:3, 3] += spec.spacing * low
    return Grid(shape, affine)


def _world_box(grid: Grid, mask: np.ndarray) -> np.ndarray:
    """[N, 3] world positions that span the foreground: the two extreme slices' corners along each axis."""
    bounds = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append((line[0], line[-1]))
    corners = np.array(np.meshgrid(*bounds, indexing="ij"), float).reshape(3, -1).T
    return corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def to_grid(array: np.ndarray, source: Grid, target: Grid, slices: bool = False) -> Tensor:
    """Resample [I, J, K] float32 onto a working grid; outside is 0. Copies voxels where the lattices coincide.

    With ``slices``, across the source's slices the nearest one is taken, and none farther than half their distance.
    """
    flipped, canonical = reorient(array, source)
    offset = np.linalg.solve(target.affine[:3, :3], canonical.affine[:3, 3] - target.affine[:3, 3])
    whole = np.round(offset).astype(int)
    exact = Grid(canonical.shape, _shifted(target.affine, whole))
    if exact.distance(canonical) < 0.1 * target.spacing.min():
        return place(torch.from_numpy(np.ascontiguousarray(flipped)), whole, target.shape)
    # From the canonical order, so that every stored orientation interpolates in the same order of axes.
    nearest = slice_axis_of(canonical) if slices else None
    return resample_linear(
        torch.from_numpy(np.ascontiguousarray(flipped))[None], canonical, target, nearest
    )[0]


def _shifted(affine: np.ndarray, index: np.ndarray) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ index
    return moved


def place(block: Tensor, at: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """Put a block into zeros of ``shape`` so that block voxel 0 lands at index ``at``; what sticks out is cut."""
    result = torch.zeros(shape, dtype=block.dtype)
    target, source = [], []
    for start, size, space in zip(at, block.shape, shape, strict=True):
        low, high = max(int(start), 0), min(int(start) + size, space)
        if low >= high:
            return result
        target.append(slice(low, high))
        source.append(slice(low - int(start), high - int(start)))
    result[tuple(target)] = block[tuple(source)]
    return result


__all__ = [
    "Prepared",
    "PreprocessSpec",
    "canonical_axes",
    "normalize",
    "place",
    "prepare",
    "to_grid",
]
