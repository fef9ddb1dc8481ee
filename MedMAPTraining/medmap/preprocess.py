"""Scans -> one tensor in the network's space, and the record that leads back.

Everything here is computed for each modality from that modality alone, or from what is present: an
absent scan has no influence on crop, normalization or grid. Needs torch and numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmap.errors import BundleError, InputDataError, UsageError
from medmap.foreground import exact_foreground
from medmap.quantiles import percentiles
from medmap.resampling import (
    Orientation,
    lattice_offset,
    orientation_of,
    resample_to_grid,
    slice_axis_of,
    visible_box,
)
from medmap.task import Task
from medmap.threads import in_threads
from medmap.volume import Grid, Volume, choose_reference

LEAST_CONTRAST = 1e-6
"""Standard deviation inside the brain, relative to the mean, below which a scan has no contrast."""

HALF = 0.499
"""Share of a voxel from which it counts as brain. Just below a half: where spacings are
commensurate exact halves are common, and rounding must not decide."""

SCALINGS = ("zscore", "minmax")
"""How intensities are normalized."""

SAME_SPACING = 0.01
"""Spacings and directions that differ by less than this share count as the wanted ones."""

LARGEST_DRIFT_VOXELS = 0.1
"""A lattice that leaves the exact one by less than this at every corner is used as it is."""


@dataclass(frozen=True)
class PreprocessSpec:
    """How scans become the network's input; stored in the bundle, for training and inference alike.

    Attributes:
        spacing: edge in mm of the working grid's cubic voxels; with ``slices``, of square pixels.
        clip: z-scores are clipped to this interval.
        percentiles: mean and standard deviation are taken between these percentiles of the
            foreground.
        margin: mm of background kept around the brain.
        slices: the network sees the slices of the reference scan one by one, in two dimensions.
            They keep their places and their thickness: between thick slices nothing is
            interpolated.
        field: with ``slices``, edge in mm of the square in the middle of each slice that the
            network sees; cropped or padded to it. 0 takes the whole slice.
        scaling: ``zscore``, or ``minmax``: the two percentiles of the foreground become -1 and 1,
            and what lies beyond them is clipped (MedMAP's conference version scales intensities to
            [-1, 1]). Background is 0 in both.
    """

    spacing: float = 1.0
    clip: tuple[float, float] = (-4.0, 6.0)
    percentiles: tuple[float, float] = (0.5, 99.5)
    margin: float = 2.0
    slices: bool = False
    field: float = 0.0
    scaling: str = "zscore"

    def to_dict(self) -> dict:
        """Plain JSON-ready form; the default scaling is not named, as in earlier bundles."""
        content = asdict(self)
        if self.scaling == "zscore":
            del content["scaling"]
        return content

    @staticmethod
    def from_dict(data: Mapping) -> PreprocessSpec:
        """Rebuild; raises BundleError for unknown keys, since an unknown step cannot be honored."""
        values: dict[str, Any] = {}
        for key, value in data.items():
            values[key] = tuple(value) if isinstance(value, list) else value
        try:
            if values.get("scaling", "zscore") not in SCALINGS:
                raise TypeError(f"scaling {values['scaling']}")
            return PreprocessSpec(**values)
        except TypeError as error:
            raise BundleError(
                f"The bundle's preprocessing is not understood ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error


@dataclass(frozen=True)
class Prepared:
    """The network's input, and the way back to the reference scan.

    Attributes:
        image: [M, D, H, W] float32, normalized, background and absent modalities 0; axes are those
            of the reference scan and run about left -> right, posterior -> anterior, inferior ->
            superior.
        present: [M] bool.
        brain: [D, H, W] bool, foreground of any present modality; the field of view where a task's
            scans are not skull-stripped.
        grid: where ``image`` lies in the world.
        reference: name of the reference modality.
        reference_grid: grid on which the result is wanted.
        orientation: how the reference grid is turned to RAS.
        offset: [3] int index in ``grid`` of the first voxel of the reference scan, turned to RAS;
            None where the two are no common lattice, and results have to be interpolated.
        slice_axis: axis of ``grid`` along which a network of two dimensions takes slices; None for
            volumes.
    """

    image: Tensor
    present: Tensor
    brain: Tensor
    grid: Grid
    reference: str
    reference_grid: Grid
    orientation: Orientation
    offset: np.ndarray | None
    slice_axis: int | None = None


def prepared_on_own_grid(
    image: Tensor,
    present: Tensor,
    brain: Tensor,
    spacing: float,
    slice_axis: int | None = None,
) -> Prepared:
    """A case that is its own reference: results stay on the working grid.

    Args:
        image: [M, D, H, W] float32.
        present: [M] bool.
        brain: [D, H, W] bool.
        spacing: edge of a voxel in mm.
        slice_axis: axis across slices for a network of two dimensions; None for volumes.
    """
    depth, height, width = brain.shape
    grid = Grid((depth, height, width), np.diag([spacing, spacing, spacing, 1.0]))
    return Prepared(
        image=image,
        present=present,
        brain=brain,
        grid=grid,
        reference="",
        reference_grid=grid,
        orientation=orientation_of(grid),
        offset=np.zeros(3, int),
        slice_axis=slice_axis,
    )


def normalize(
    array: np.ndarray,
    foreground: np.ndarray,
    spec: PreprocessSpec,
    skull_stripped: bool = True,
    title: str = "A scan",
) -> tuple[np.ndarray, np.ndarray]:
    """Z-score one scan over its own foreground, or scale it to [-1, 1].

    Args:
        array: [I, J, K] intensities.
        foreground: [I, J, K] bool, voxels that are not background (``Volume.foreground``).
        spec: percentiles and clip.
        skull_stripped: whether background is no part of the organ (``Task.skull_stripped``).
        title: what messages call the scan.

    Returns:
        [I, J, K] float32 with background 0, and [I, J, K] bool organ; every voxel is organ where
        scans are not skull-stripped, though mean and deviation do not count the background's.

    Raises:
        InputDataError: nothing but background, or no contrast.
    """
    scaling = scaling_of(array[foreground], spec, title)
    organ = foreground
    if not skull_stripped:
        organ = np.ones(array.shape, bool)
    return scaling.applied(array, organ, spec), organ


@dataclass(frozen=True)
class Scaling:
    """How the intensities of one scan are normalized.

    Attributes:
        low, high: percentiles of the foreground.
        mean, deviation: of the intensities between them.
    """

    low: float
    high: float
    mean: float
    deviation: float

    def applied(self, array: np.ndarray, organ: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
        """[I, J, K] float32: the organ's intensities normalized, 0 elsewhere."""
        # In place: each copy of a brain takes as long as a step of the computation.
        values = array[organ].astype(np.float64)
        limits = spec.clip
        if spec.scaling == "minmax":
            values -= self.low
            values *= 2
            values /= self.high - self.low
            values -= 1
            limits = (-1.0, 1.0)
        else:
            values -= self.mean
            values /= self.deviation
        np.clip(values, *limits, out=values)
        result = np.zeros(array.shape, np.float32)
        result[organ] = values
        return result


def scaling_of(values: np.ndarray, spec: PreprocessSpec, title: str) -> Scaling:
    """From the intensities of the foreground [N]; raises as ``normalize``."""
    if values.size == 0:
        raise _only_background(title)
    # Bright vessels and a few dark voxels at the rim would stretch the scale of a whole scan.
    low, high = percentiles(values, spec.percentiles)
    inner = values[(values >= low) & (values <= high)].astype(np.float64)
    mean = inner.mean()
    inner -= mean
    np.square(inner, out=inner)
    deviation = np.sqrt(inner.mean())
    # Relative to the intensities: scans of values around 1e-6 are as good as any.
    largest = max(float(values.max()), -float(values.min()))
    if not np.isfinite(deviation) or deviation <= LEAST_CONTRAST * largest:
        raise InputDataError(
            f"{title} has no contrast inside the organ: its intensities differ by {deviation:.1g} "
            f"around {mean:.4g}.",
            "Leave this modality out.",
        )
    return Scaling(low, high, mean, deviation)


@dataclass(frozen=True)
class _Scan:
    """Where one scan has what: [I, J, K] bool foreground and organ, and how its grid lies."""

    foreground: np.ndarray
    organ: np.ndarray
    grid: Grid
    orientation: Orientation

    @cached_property
    def end_positions(self) -> np.ndarray:
        """[N, 3] world positions of the voxels at both ends of the brain on every line along k.

        The extent of a set of voxels along any direction is that of these alone.
        """
        mask = self.organ
        i, j = np.nonzero(mask.any(2))
        lines = mask[i, j]
        first = lines.argmax(1)
        last = mask.shape[2] - 1 - lines[:, ::-1].argmax(1)
        first_voxels = np.stack([i, j, first], 1)
        last_voxels = np.stack([i, j, last], 1)
        return self.grid.world(np.concatenate([first_voxels, last_voxels]))


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
        reference: modality whose grid carries the result; None chooses (see ``choose_reference``).
        multiple: sizes are padded to multiples of this (the network's stride).

    Raises:
        UsageError: no scan, an unknown modality, or a reference that was not given.
        InputDataError: a scan has no foreground or no contrast.
    """
    reference = _checked_reference(volumes, reference)
    located = in_threads(lambda name: _scan(volumes[name], name, task), volumes)
    scans = dict(zip(volumes, located, strict=True))
    reference_grid = scans[reference].grid
    orientation = scans[reference].orientation
    slice_axis = None
    if spec.slices:
        grid, slice_axis = slice_grid(orientation.canonical, spec, multiple)
    else:
        center = _center(scans[reference], working_axes(orientation.canonical))
        lattice = working_lattice(orientation.canonical, spec.spacing, center)
        grid = _crop(lattice, scans, spec, multiple)
    image = torch.zeros((len(task.modalities), *grid.shape))
    brain = torch.zeros(grid.shape, dtype=torch.bool)

    def bring(name: str) -> Tensor:
        """Fill the scan's channel of the image; returns its brain [D, H, W] bool."""
        volume = volumes[name]
        scan = scans[name]
        title = task.modality(name).title
        scaling = scaling_of(volume.array[scan.foreground], spec, title)
        # Only what the grid shows: of full size, four normalized scans would take 140 MiB.
        box = visible_box(scan.grid, grid)
        organ = scan.organ[box]
        array = scaling.applied(volume.array[box], organ, spec)
        orientation = scan.orientation.within(box)
        image[task.index(name)] = resample_to_grid(array, orientation, grid, spec.slices)
        return resample_to_grid(organ, orientation, grid, spec.slices) > HALF

    for scan_brain in in_threads(bring, scans):
        brain |= scan_brain
    return Prepared(
        image=image,
        present=torch.tensor(task.presence(volumes)),
        brain=brain,
        grid=grid,
        reference=reference,
        reference_grid=reference_grid,
        orientation=orientation,
        offset=lattice_offset(orientation.canonical, grid),
        slice_axis=slice_axis,
    )


def _checked_reference(volumes: Mapping[str, Volume], reference: str | None) -> str:
    if not volumes:
        raise UsageError("No image was given.", "Give at least one modality.")
    if reference is None:
        return choose_reference({name: volume.grid for name, volume in volumes.items()})
    if reference not in volumes:
        raise UsageError(
            f"The reference '{reference}' is not among the given scans.",
            f"Choose one of {', '.join(volumes)}.",
        )
    return reference


def _scan(volume: Volume, name: str, task: Task) -> _Scan:
    """Raises InputDataError for a scan of nothing but background."""
    if task.skull_stripped:
        foreground = volume.foreground
        organ = foreground
    else:
        foreground, _ = exact_foreground(volume.array)
        organ = np.ones(volume.array.shape, bool)
    if not foreground.any():
        raise _only_background(task.modality(name).title)
    grid = volume.grid
    return _Scan(foreground, organ, grid, orientation_of(grid))


def _only_background(title: str) -> InputDataError:
    return InputDataError(f"{title} holds nothing but background.", "Leave this modality out.")


def slice_grid(canonical: Grid, spec: PreprocessSpec, multiple: int) -> tuple[Grid, int]:
    """The grid on which a network of two dimensions sees the slices of the reference scan.

    Its axes are the reference's own, permuted and flipped to lie closest to RAS; across slices it
    is the reference's. Within slices, pixels within 1 % of the wanted ones stay, so that nothing is
    interpolated. The square that remains lies in the middle of the slice; its sides are multiples
    of ``multiple``.

    Args:
        canonical: the reference grid, turned to RAS.
        spec: spacing and field.
        multiple: of the sides.

    Returns:
        The grid, and the axis across slices.
    """
    axis = slice_axis_of(canonical)
    affine = canonical.affine.copy()
    shape = list(canonical.shape)
    for a in set(range(3)) - {axis}:
        pixel = float(canonical.spacing[a])
        keeps_pixels = abs(pixel / spec.spacing - 1) < SAME_SPACING
        step = pixel if keeps_pixels else spec.spacing
        width_mm = spec.field or pixel * shape[a]
        # Rounded up: the slice is padded rather than cut.
        shape[a] = -(-round(width_mm / step) // multiple) * multiple
        old_extent_mm = (canonical.shape[a] - 1) * pixel
        new_extent_mm = (shape[a] - 1) * step
        offset = (old_extent_mm - new_extent_mm) / 2
        if step == pixel:
            # By whole pixels: half a pixel would interpolate what only has to be cut. Halves are
            # rounded up; alone, Python rounds them to even, and rounding errors either way.
            offset = round(offset / step + 1e-6) * step
        affine[:3, 3] += canonical.affine[:3, a] / pixel * offset
        affine[:3, a] *= step / pixel
    return Grid((shape[0], shape[1], shape[2]), affine), axis


def working_lattice(canonical: Grid, spacing: float, center: np.ndarray) -> Grid:
    """The unbounded lattice that the network works on.

    Its axes are those of the reference scan, permuted and flipped to lie closest to RAS: an oblique
    scan is worked on as it was acquired, so that a header that turns the whole patient changes
    nothing. Where the reference has voxels within 1 % of the wanted ones, its own lattice is used,
    and nothing is interpolated. Otherwise the lattice passes through the middle of the brain, so
    that neither the origin of the header nor padding decides where its points lie.

    Args:
        canonical: the reference grid, turned to RAS.
        spacing: mm.
        center: [3] middle of the brain in the reference scan, in world mm.

    Returns:
        A grid of shape (1, 1, 1).
    """
    rotation = working_axes(canonical)
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = canonical.affine[:3, 3]
    direction = canonical.affine[:3, :3] / spacing
    has_spacing = np.abs(direction - rotation).max() < SAME_SPACING
    if not has_spacing or _drift(canonical, affine) >= LARGEST_DRIFT_VOXELS:
        affine[:3, 3] = center
    return Grid((1, 1, 1), affine)


def working_axes(canonical: Grid) -> np.ndarray:
    """[3, 3] rotation whose columns are a grid's axes; those of the world if they nearly agree.

    Stored matrices are orthogonal to a few digits only; the closest rotation is exact.
    """
    direction = canonical.affine[:3, :3] / canonical.spacing
    if np.abs(direction - np.eye(3)).max() < SAME_SPACING:
        return np.eye(3)
    # Without its singular values, a matrix is the rotation closest to it (orthogonal Procrustes).
    output_basis, _, input_basis = np.linalg.svd(direction)
    return output_basis @ input_basis


def _drift(canonical: Grid, lattice: np.ndarray) -> float:
    """Largest distance of a scan's corners from the exact lattice of its origin, in voxels."""
    exact = Grid(canonical.shape, lattice)
    return exact.distance(canonical) / float(exact.spacing[0])


def _crop(lattice: Grid, scans: Mapping[str, _Scan], spec: PreprocessSpec, multiple: int) -> Grid:
    """The part of the lattice with the brain of every present scan and a margin, padded evenly."""
    positions = np.concatenate([scan.end_positions for scan in scans.values()])
    rotation = lattice.affine[:3, :3] / spec.spacing
    # Not as a matrix product: where other programs compute, the threads of the library that does it
    # wait for each other a hundred times longer than this takes.
    index = np.einsum("nk,kc->cn", positions - lattice.affine[:3, 3], rotation) / spec.spacing
    margin = spec.margin / spec.spacing
    # A thousandth of a voxel inward: rounding must not add a layer of voxels.
    low = np.floor(index.min(1) - margin + 1e-3).astype(int)
    high = np.ceil(index.max(1) + margin - 1e-3).astype(int)
    size = high - low + 1
    blocks = -(-size // multiple)
    if multiple > 1 and (blocks == 1).all():
        # One voxel at the coarsest level has no variance to normalize by.
        blocks += 1
    padding = blocks * multiple - size
    low -= padding // 2
    shape = blocks * multiple
    affine = lattice.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _center(scan: _Scan, rotation: np.ndarray) -> np.ndarray:
    """[3] world position of the middle of the brain's extent along the working axes."""
    positions = scan.end_positions @ rotation
    return rotation @ ((positions.min(0) + positions.max(0)) / 2)
