"""Seeded draws and smooth random fields: the only source of chance in a phantom.

Every draw comes from a CPU generator of its own, so that a case depends on its seed alone: not on the global random
state, and not on the device that computes it. Fields live on coarse lattices fixed in mm, so that a seed is the same
head at any spacing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch.nn import functional


class Draw:
    """A named stream of random numbers of one case.

    Args:
        seed: the case.
        stream: what it is for; streams of one case are independent: drawing more in one does not change another.
    """

    def __init__(self, seed: int, stream: str):
        digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
        self._generator = torch.Generator(device="cpu")
        self._generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number, uniform between low and high."""
        return low + (high - low) * float(
            torch.rand((), generator=self._generator, dtype=torch.float64)
        )

    def normal(self, mean: float = 0.0, sd: float = 1.0) -> float:
        """One number, normal, cut at 2.5 sd so that no case is absurd."""
        z = float(torch.randn((), generator=self._generator, dtype=torch.float64))
        return mean + sd * max(-2.5, min(2.5, z))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def around(self, middle: float, low: float, high: float, widen: float = 1.0) -> float:
        """One number near ``middle``, rarely beyond ``low`` .. ``high``: a normal of its own width on either side."""
        z = self.normal()
        reach = (high - middle) if z > 0 else (middle - low)
        return middle + widen * 0.55 * z * reach

    def white(self, *shape: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """White noise, float32, drawn on the CPU and moved."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float32).to(device)


@dataclass(frozen=True)
class Lattice:
    """Regular points in space on which coarse fields live.

    Attributes:
        origin: mm position of the first point along each axis.
        step: mm between points.
        shape: number of points along each axis.
    """

    origin: tuple[float, float, float]
    step: float
    shape: tuple[int, int, int]

    def axes(self, device: torch.device | str = "cpu") -> list[torch.Tensor]:
        """Three 1-D tensors: the mm positions along each axis."""
        return [
            o + self.step * torch.arange(n, device=device)
            for o, n in zip(self.origin, self.shape, strict=True)
        ]

    def points(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """[3, *shape] mm positions."""
        return torch.stack(torch.meshgrid(*self.axes(device), indexing="ij"))


def random_field(
    draw: Draw,
    lattice: Lattice,
    wavelength: float,
    spread: float = 0.35,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Band-limited Gaussian random field of zero mean and unit variance, periodic over the lattice.

    White noise is filtered in Fourier space by a log-normal band around ``1 / wavelength``; the variance follows from
    the filter, not from the sample, so that no data-dependent sum decides the result.

    Args:
        draw: where the noise comes from.
        lattice: where the field lives.
        wavelength: mm; zero crossings lie about half of it apart.
        spread: standard deviation of log frequency.
        device: where the result goes.

    Returns:
        [*lattice.shape] float32.
    """
    band = _band(lattice.shape, lattice.step, wavelength, spread).to(device)
    noise = torch.fft.rfftn(draw.white(*lattice.shape, device=device))
    return torch.fft.irfftn(noise * band, s=lattice.shape)


def _band(
    shape: tuple[int, int, int], step: float, wavelength: float, spread: float
) -> torch.Tensor:
    """Half spectrum of the filter, scaled so that unit white noise keeps unit variance."""
    last = shape[2]
    axes = [torch.fft.fftfreq(n, d=step) for n in shape[:2]] + [torch.fft.rfftfreq(last, d=step)]
    kx, ky, kz = (
        axis.square().view([-1 if a == b else 1 for b in range(3)]) for a, axis in enumerate(axes)
    )
    squared = (kx + ky + kz) * wavelength**2
    squared[0, 0, 0] = 1e-18
    band = torch.exp(-0.125 * (torch.log(squared) / spread) ** 2)
    twice = torch.full(
        (band.shape[2],), 2.0, dtype=torch.float64
    )  # the other half of the spectrum mirrors this one
    twice[0] = 1.0
    if last % 2 == 0:
        twice[-1] = 1.0
    power = (band.double().square() * twice).sum() / (shape[0] * shape[1] * last)
    return band / float(power.sqrt())


def sample(maps: torch.Tensor, lattice: Lattice, points: torch.Tensor) -> torch.Tensor:
    """Linear interpolation of [C, *lattice.shape] at [3, N] mm positions -> [C, N]; clamped to the edge."""
    scaled = [
        2.0 * (points[a] - lattice.origin[a]) / (lattice.step * (lattice.shape[a] - 1)) - 1.0
        for a in (2, 1, 0)
    ]
    grid = torch.stack(scaled, dim=-1)[None, None, None]
    out = functional.grid_sample(
        maps[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return out[0, :, 0, 0]


def upsample(maps: torch.Tensor, lattice: Lattice, axes: list[torch.Tensor]) -> torch.Tensor:
    """Linear interpolation of [C, *lattice.shape] on the regular grid spanned by three axes (mm) -> [C, I, J, K]."""
    for a in (2, 1, 0):
        weights = _hat_weights(lattice, a, axes[a]).to(maps)
        maps = apply_along(maps, a + 1, weights)
    return maps


def apply_along(maps: torch.Tensor, axis: int, operator: torch.Tensor) -> torch.Tensor:
    """Multiply one axis of a [C, I, J, K] tensor by an [out, in] matrix."""
    if axis == 3:
        return maps @ operator.T
    if axis == 2:
        return operator @ maps
    c, i, j, k = maps.shape
    return (operator @ maps.reshape(c, i, j * k)).reshape(c, operator.shape[0], j, k)


def _hat_weights(lattice: Lattice, axis: int, positions: torch.Tensor) -> torch.Tensor:
    last = lattice.shape[axis] - 1
    at = ((positions - lattice.origin[axis]) / lattice.step).clamp(0, last)
    nodes = torch.arange(last + 1, device=at.device)
    return (1.0 - (at[:, None] - nodes[None, :]).abs()).clamp(min=0.0)


def cover(signed_mm: torch.Tensor, width: float) -> torch.Tensor:
    """Fraction of a voxel inside a surface, from the signed distance (positive inside) and the voxel's width in mm."""
    return (0.5 + signed_mm / width).clamp(0.0, 1.0)
