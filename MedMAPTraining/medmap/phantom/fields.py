"""Seeded random streams and smooth random fields: the only source of randomness in a phantom.

Every stream has a CPU generator of its own. A case therefore depends on its seed alone: not on the
global random state, and not on the device that computes it. Fields live on coarse grids that are
fixed in mm, so that a seed gives the same anatomy at any voxel size.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch.nn import functional

LARGEST_DEVIATION = 2.5
"""Normal draws are clipped here, in standard deviations, so that no case is absurd."""


class Draw:
    """A named stream of random numbers that belongs to one case.

    Streams of one case are independent of each other: more draws in one stream change no other.

    Args:
        seed: seed of the case.
        stream: purpose of the numbers, for example ``"anatomy"``. It is part of the seed.
    """

    def __init__(self, seed: int, stream: str):
        # A hash: streams of neighboring seeds must not resemble each other.
        name = f"{seed}/{stream}"
        digest = hashlib.sha256(name.encode()).digest()
        # torch accepts signed 64-bit seeds only: the top bit of the hash is dropped.
        stream_seed = int.from_bytes(digest[:8], "big") >> 1
        self._generator = torch.Generator(device="cpu")
        self._generator.manual_seed(stream_seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number, uniform between ``low`` and ``high``."""
        fraction = torch.rand((), generator=self._generator, dtype=torch.float64)
        return low + (high - low) * float(fraction)

    def normal(self, mean: float = 0.0, sd: float = 1.0) -> float:
        """One number from a normal distribution, clipped at ``LARGEST_DEVIATION``."""
        z = float(torch.randn((), generator=self._generator, dtype=torch.float64))
        return mean + sd * max(-LARGEST_DEVIATION, min(LARGEST_DEVIATION, z))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def around(self, middle: float, low: float, high: float, widen: float = 1.0) -> float:
        """One number near ``middle``, rarely outside ``low`` to ``high``.

        The distribution is a normal with a separate width on either side of ``middle``: measured
        ranges of tissue intensities are skewed. ``widen`` scales both widths.
        """
        z = self.normal()
        reach = middle - low
        if z > 0:
            reach = high - middle
        # At 0.55 the range ends at 1.8 standard deviations: 7 % of the draws lie outside.
        return middle + widen * 0.55 * z * reach

    def white(self, *shape: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """White noise, float32, drawn on the CPU and moved to ``device``."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32).to(device)


@dataclass(frozen=True)
class RegularGrid:
    """A regular grid of points in mm that carries coarse fields.

    Unlike ``medmap.volume.Grid`` it is isotropic and aligned with the axes.

    Attributes:
        origin: position of the first point along each axis, in mm.
        step: distance between neighboring points, in mm.
        shape: number of points along each axis.
    """

    origin: tuple[float, float, float]
    step: float
    shape: tuple[int, int, int]

    def axes(self, device: torch.device | str = "cpu") -> list[torch.Tensor]:
        """Three 1-D tensors: the positions along each axis, in mm."""
        positions = []
        for start, count in zip(self.origin, self.shape, strict=True):
            index = torch.arange(count, device=device)
            positions.append(start + self.step * index)
        return positions

    def points(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """[3, *shape] positions of all points, in mm."""
        return torch.stack(torch.meshgrid(*self.axes(device), indexing="ij"))


def random_field(
    draw: Draw,
    grid: RegularGrid,
    wavelength: float,
    spread: float = 0.35,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Band-limited Gaussian random field of zero mean and unit variance, periodic over the grid.

    White noise is filtered in Fourier space by a log-normal band around ``1 / wavelength``. The
    scale follows from the filter and not from the sample: a sum over the sample would round
    differently on each device.

    Args:
        draw: source of the noise.
        grid: where the field is defined.
        wavelength: in mm; zero crossings are about half of it apart.
        spread: standard deviation of the logarithm of the frequency.
        device: where the result is computed.

    Returns:
        [*grid.shape] float32.
    """
    band = _band(grid.shape, grid.step, wavelength, spread)
    noise = draw.white(*grid.shape, device=device)
    spectrum = torch.fft.rfftn(noise)
    filtered = spectrum * band.to(device)
    return torch.fft.irfftn(filtered, s=grid.shape)


def _band(
    shape: tuple[int, int, int], step: float, wavelength: float, spread: float
) -> torch.Tensor:
    """[I, J, K // 2 + 1] filter of the half spectrum; it keeps the variance of white noise."""
    squared = _squared_frequencies(shape, step) * wavelength**2
    # The mean of the field is suppressed; exactly zero would give log(0).
    squared[0, 0, 0] = 1e-18

    # exp(-(log(f * wavelength) / spread)^2 / 2), written for the square of the frequency f.
    deviations = torch.log(squared) / spread
    band = torch.exp(-0.125 * deviations**2)

    # The mean power of the full spectrum; divided by it, the field has unit variance.
    weights = _multiplicity(shape[2])
    voxels = shape[0] * shape[1] * shape[2]
    powers = band.double().square() * weights
    mean_power = powers.sum() / voxels
    return band / float(mean_power.sqrt())


def _squared_frequencies(shape: tuple[int, int, int], step: float) -> torch.Tensor:
    """[I, J, K // 2 + 1] squares of the spatial frequencies of rfftn, in 1 / mm^2."""
    count_i, count_j, count_k = shape
    squared_i = torch.fft.fftfreq(count_i, d=step).square()
    squared_j = torch.fft.fftfreq(count_j, d=step).square()
    # The spectrum of a real field is symmetric: rfftn stores half of the last axis.
    squared_k = torch.fft.rfftfreq(count_k, d=step).square()
    along_i = squared_i.view(-1, 1, 1)
    along_j = squared_j.view(1, -1, 1)
    along_k = squared_k.view(1, 1, -1)
    return along_i + along_j + along_k


def _multiplicity(count: int) -> torch.Tensor:
    """[count // 2 + 1] number of frequencies of the full spectrum that a plane of rfftn stands for.

    rfftn stores half of the spectrum: its end planes are their own mirror images.
    """
    planes = count // 2 + 1
    multiplicity = torch.full((planes,), 2.0, dtype=torch.float64)
    multiplicity[0] = 1.0
    if count % 2 == 0:
        multiplicity[-1] = 1.0
    return multiplicity


def interpolate(maps: torch.Tensor, grid: RegularGrid, points: torch.Tensor) -> torch.Tensor:
    """Linear interpolation at scattered points; positions outside take the value at the edge.

    Args:
        maps: [C, *grid.shape].
        grid: where the maps are defined.
        points: [3, N] positions in mm.

    Returns:
        [C, N].
    """
    scaled = []
    # grid_sample expects the last axis first, and -1 to 1 between the outermost points.
    for axis in (2, 1, 0):
        extent = grid.step * (grid.shape[axis] - 1)
        scaled.append(2.0 * (points[axis] - grid.origin[axis]) / extent - 1.0)
    locations = torch.stack(scaled, dim=-1)[None, None, None]
    values = functional.grid_sample(
        maps[None],
        locations,
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return values[0, :, 0, 0]


def upsample(maps: torch.Tensor, grid: RegularGrid, axes: list[torch.Tensor]) -> torch.Tensor:
    """Linear interpolation on the regular grid that three axes span.

    The interpolation is separable: one small matrix product per axis instead of eight neighbors
    per voxel.

    Args:
        maps: [C, *grid.shape].
        grid: where the maps are defined.
        axes: positions along i, j and k, in mm: tensors of lengths I, J and K.

    Returns:
        [C, I, J, K].
    """
    for axis in (2, 1, 0):
        weights = _linear_weights(grid, axis, axes[axis])
        maps = apply_along(maps, axis + 1, weights.to(maps))
    return maps


def apply_along(maps: torch.Tensor, axis: int, operator: torch.Tensor) -> torch.Tensor:
    """Multiply axis 1, 2 or 3 of a [C, I, J, K] tensor by an [out, in] matrix."""
    if axis == 3:
        return maps @ operator.T
    if axis == 2:
        return operator @ maps
    # The axes behind the first are merged: one matrix product instead of one per plane.
    channels, count_i, count_j, count_k = maps.shape
    flat = maps.reshape(channels, count_i, count_j * count_k)
    planes = operator @ flat
    count_out = operator.shape[0]
    return planes.reshape(channels, count_out, count_j, count_k)


def _linear_weights(grid: RegularGrid, axis: int, positions: torch.Tensor) -> torch.Tensor:
    """[N, grid.shape[axis]] weights of linear interpolation at N positions (mm) of one axis."""
    count = grid.shape[axis]
    index = (positions - grid.origin[axis]) / grid.step
    # Beyond the grid the outermost value goes on.
    index = index.clamp(0, count - 1)
    nodes = torch.arange(count, device=index.device)
    distances = (index[:, None] - nodes[None, :]).abs()
    return (1.0 - distances).clamp(min=0.0)


def partial_volume(distance: torch.Tensor, width: float) -> torch.Tensor:
    """Fraction of a voxel inside a surface.

    Args:
        distance: signed distance to the surface in mm, positive inside; any shape.
        width: size of the voxel in mm.

    Returns:
        0 to 1, in the shape of ``distance``.
    """
    return (0.5 + distance / width).clamp(0.0, 1.0)
