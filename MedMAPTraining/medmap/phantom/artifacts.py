"""Acquisition artifacts and imperfect preprocessing.

Blur, thick slices, misregistration, ghosting, bias field, Rician noise, gain curves, saturation,
and skull stripping that removes too much or too little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from medmap.phantom.anatomy import BROAD_GRID, paint
from medmap.phantom.contrast import MODALITIES
from medmap.phantom.fields import Draw, apply_along, partial_volume, random_field, upsample
from medmap.phantom.style import Style

THICK_SLICE_SHARE = {"t1": 0.45, "t1ce": 0.45, "t2": 1.0, "flair": 1.0}
"""Factor on ``Style.thick_slices``: T1 and T1ce are acquired as 3-D volumes more often."""

SATURATED_SHARE = 0.15
"""Probability that the brightest voxels of a modality are clipped."""


def axis_operator(
    count: int, spacing: float, sigma_mm: float, shift_mm: float, slice_mm: float
) -> torch.Tensor:
    """Acquisition along one axis as a matrix: blur and displacement, then thick slices.

    Args:
        count: voxels along the axis.
        spacing: of the voxels, in mm.
        sigma_mm: standard deviation of the Gaussian blur.
        shift_mm: displacement of the image.
        slice_mm: slice thickness; up to 1.25 voxels it has no effect.

    Returns:
        [count, count] float32. Rows sum to one: a constant image stays constant.
    """
    positions = torch.arange(count, dtype=torch.float64) * spacing
    # A Gaussian much narrower than a voxel would leave rows without any weight.
    sigma = max(sigma_mm, 0.3 * spacing)
    blur = _shifted_gaussian(positions, sigma, shift_mm)
    if slice_mm <= 1.25 * spacing:
        return blur.float()

    slices = max(math.ceil(count * spacing / slice_mm), 2)
    middles = torch.arange(slices, dtype=torch.float64) + 0.5
    centers = middles * slice_mm - 0.5 * spacing
    averaging = _slice_averaging(positions, centers, spacing, slice_mm)
    interpolation = _slice_interpolation(positions, centers, slice_mm)
    return (interpolation @ averaging @ blur).float()


def _shifted_gaussian(positions: torch.Tensor, sigma: float, shift: float) -> torch.Tensor:
    """[N, N] weights that blur values at positions (mm), and displace them by ``shift`` mm."""
    offsets = positions[:, None] + shift - positions[None, :]
    deviations = offsets / sigma
    weights = torch.exp(-0.5 * deviations**2)
    return _normalize_rows(weights)


def _normalize_rows(matrix: torch.Tensor) -> torch.Tensor:
    sums = matrix.sum(1, keepdim=True)
    return matrix / sums.clamp(min=1e-6)


def _slice_averaging(
    positions: torch.Tensor, centers: torch.Tensor, spacing: float, slice_mm: float
) -> torch.Tensor:
    """[slices, voxels]: a slice is the mean over its thickness (a box profile)."""
    distances = (positions[None, :] - centers[:, None]).abs()
    # Voxels at the border of a slice count by their overlap.
    beyond_border = distances - 0.5 * slice_mm
    overlap = 1.0 - beyond_border / spacing - 0.5
    weights = overlap.clamp(0.0, 1.0)
    return _normalize_rows(weights)


def _slice_interpolation(
    positions: torch.Tensor, centers: torch.Tensor, slice_mm: float
) -> torch.Tensor:
    """[voxels, slices]: linear, as cohorts such as BraTS resample thick slices to 1 mm."""
    # Beyond the outermost centers there is nothing to interpolate to: the last slice goes on.
    first = float(centers[0])
    last = float(centers[-1])
    clamped = positions[:, None].clamp(min=first, max=last)
    distances = (clamped - centers[None, :]).abs()
    weights = 1.0 - distances / slice_mm
    return weights.clamp(min=0.0)


def ghosting_operator(
    count: int, spacing: float, strength: float, distance_mm: float
) -> torch.Tensor:
    """[count, count] matrix of one axis that adds faint copies ``distance_mm`` to either side.

    Periodic motion during the acquisition repeats the image along the phase-encoding axis.
    """
    hop = max(1, round(distance_mm / spacing))
    copies = torch.zeros(count, count)
    if hop < count:
        ones = torch.ones(count - hop)
        copies += torch.diag(ones, hop)
        copies += torch.diag(ones, -hop)

    identity = torch.eye(count)
    return (1.0 - strength) * identity + 0.5 * strength * copies


def darken_border(draw: Draw, images: torch.Tensor, brain: torch.Tensor) -> None:
    """Darken the border of the brain, in place, in half of the modalities.

    Interpolation of a skull-stripped image mixes the border with the empty background.

    Args:
        draw: random stream.
        images: [4, I, J, K].
        brain: [I, J, K] bool.
    """
    mask = brain[None, None].float()
    brain_share = functional.avg_pool3d(mask, 3, 1, 1)[0, 0]
    brain_share = brain_share.clamp(min=0.03)
    for image in images:
        if draw.chance(0.5):
            exponent = draw.uniform(0.3, 2.0)
            image.mul_(brain_share**exponent)


@dataclass(frozen=True)
class Acquisition:
    """Artifacts of one modality.

    Attributes:
        slice_mm: slice thickness; 0 for none.
        slice_axis: 0, 1 or 2: the axis across the slices.
        blur_mm: standard deviation of the blur.
        ghosts: strength of ghosting, 0 for none.
        ghost_distance_mm: distance of the ghosts.
        phase_axis: the axis of the ghosts.
        gamma: exponent of the gain curve.
        noise: sigma of the Rician noise, relative to the mean of the brain.
        bias: standard deviation of the logarithm of the bias field.
        noise_first: noise is added before the blur, where it becomes correlated, not after it.
    """

    slice_mm: float
    slice_axis: int
    blur_mm: float
    ghosts: float
    ghost_distance_mm: float
    phase_axis: int
    gamma: float
    noise: float
    bias: float
    noise_first: bool

    def record(self) -> dict[str, float]:
        """The parameters that a case reports, ready for JSON."""
        return {
            "slice_mm": self.slice_mm,
            "gamma": self.gamma,
            "noise": self.noise,
            "bias": self.bias,
            "motion": self.ghosts,
        }


def draw_acquisition(draw: Draw, modality: str, style: Style) -> Acquisition:
    """Draw the artifacts of one modality."""
    slice_mm = 0.0
    if draw.chance(style.thick_slices * THICK_SLICE_SHARE[modality]):
        slice_mm = draw.uniform(2.0, 7.0)
    # Axial slices are the clinical default.
    slice_axis = 2
    if not draw.chance(0.65):
        slice_axis = int(draw.uniform(0, 2.999))
    blur_range = (0.85, 1.5)
    if draw.chance(0.85):
        blur_range = (0.25, 0.85)
    blur_mm = draw.uniform(*blur_range)
    ghosts = 0.0
    ghost_distance_mm = 0.0
    if draw.chance(style.motion):
        ghosts = draw.uniform(0.02, 0.12)
        ghost_distance_mm = draw.uniform(4.0, 30.0)
    phase_axis = 1
    if draw.chance(0.5):
        phase_axis = 0
    # Uniform in the logarithm: brightening and darkening curves are equally frequent.
    gamma = math.exp(draw.uniform(math.log(style.gamma[0]), math.log(style.gamma[1])))
    return Acquisition(
        slice_mm=slice_mm,
        slice_axis=slice_axis,
        blur_mm=blur_mm,
        ghosts=ghosts,
        ghost_distance_mm=ghost_distance_mm,
        phase_axis=phase_axis,
        gamma=gamma,
        noise=draw.uniform(*style.noise),
        bias=draw.uniform(0.0, style.bias),
        noise_first=draw.chance(0.5),
    )


def add_acquisition_artifacts(
    draw: Draw, signals: torch.Tensor, axes: list[torch.Tensor], spacing: float, style: Style
) -> tuple[torch.Tensor, dict[str, dict[str, float]]]:
    """Turn clean signals into images as a scanner gives them.

    Args:
        draw: random stream.
        signals: [4, I, J, K] in the order of ``MODALITIES``, mean of the brain about 1.
        axes: positions along i, j and k, in mm.
        spacing: in mm.
        style: how strong artifacts are.

    Returns:
        [4, I, J, K] images, and a record of the artifacts per modality.
    """
    images = []
    records = {}
    for modality, signal in zip(MODALITIES, signals, strict=True):
        acquisition = draw_acquisition(draw, modality, style)
        records[modality] = acquisition.record()
        image = _acquire(draw, signal[None], acquisition, axes, spacing, style)
        images.append(image[0])
    return torch.stack(images), records


def _acquire(
    draw: Draw,
    signal: torch.Tensor,
    acquisition: Acquisition,
    axes: list[torch.Tensor],
    spacing: float,
    style: Style,
) -> torch.Tensor:
    """One clean signal [1, I, J, K] -> an image, in the order in which a scanner degrades it."""
    image = signal.clamp(min=0.0) ** acquisition.gamma
    if acquisition.noise_first:
        # The blur averages noise away: 1.5 makes up for a part of it.
        image = _add_rician_noise(draw, image, 1.5 * acquisition.noise)
    image = _resample(draw, image, spacing, acquisition, style.shift_mm)
    image = _apply_bias_field(draw, image, axes, acquisition.bias)
    if not acquisition.noise_first:
        image = _add_rician_noise(draw, image, acquisition.noise)
    if draw.chance(SATURATED_SHARE):
        brightest = draw.uniform(1.5, 3.0)
        image = image.clamp(max=brightest)
    return image


def _resample(
    draw: Draw,
    image: torch.Tensor,
    spacing: float,
    acquisition: Acquisition,
    largest_shift_mm: float,
) -> torch.Tensor:
    """Misregistration, blur, thick slices and ghosts of one modality, [1, I, J, K]."""
    for axis in range(3):
        count = image.shape[axis + 1]
        shift_mm = draw.uniform(-largest_shift_mm, largest_shift_mm)
        slice_mm = 0.0
        if axis == acquisition.slice_axis:
            slice_mm = acquisition.slice_mm
        operator = axis_operator(count, spacing, acquisition.blur_mm, shift_mm, slice_mm)

        if axis == acquisition.phase_axis and acquisition.ghosts:
            ghosting = ghosting_operator(
                count,
                spacing,
                acquisition.ghosts,
                acquisition.ghost_distance_mm,
            )
            operator = ghosting @ operator
        image = apply_along(image, axis + 1, operator.to(image))
    return image


def _apply_bias_field(
    draw: Draw, image: torch.Tensor, axes: list[torch.Tensor], strength: float
) -> torch.Tensor:
    """Multiply [1, I, J, K] by a bias field: it is drawn in the logarithm, thus positive."""
    # Sensitivities of receive coils vary over 10 to 20 cm.
    wavelength = draw.uniform(110.0, 220.0)
    field = random_field(draw, BROAD_GRID, wavelength, 0.4, image.device)
    fine_field = upsample(field[None], BROAD_GRID, axes)
    logarithm = strength * fine_field
    return image * torch.exp(logarithm)


def _add_rician_noise(draw: Draw, image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz, MRM 1995)."""
    real_noise = draw.white(*image.shape, device=image.device)
    real = image + sigma * real_noise
    imaginary_noise = draw.white(*image.shape, device=image.device)
    imaginary = sigma * imaginary_noise
    power = real.square() + imaginary.square()
    return power.sqrt()


def leave_residue(draw: Draw, parts: torch.Tensor, hull: torch.Tensor, field: torch.Tensor) -> None:
    """Leave patches of dura and scalp just outside the brain's envelope, in half of the cases.

    Args:
        draw: random stream.
        parts: [len(TISSUES), N] fractions, changed in place.
        hull: [N] mm inside the envelope.
        field: [N] unit-variance field that decides where patches are.
    """
    if not draw.chance(0.5):
        return

    threshold = draw.uniform(0.5, 1.8)
    patches = torch.sigmoid((-field - threshold) / 0.15)
    strength = patches * draw.uniform(0.3, 1.0)
    outside = partial_volume(-0.5 - hull, 1.5)
    # Dura enhances and scalp is bright, as vessels are: the tissue lends its contrast.
    paint(parts, "vessel", strength * outside)


@dataclass(frozen=True)
class BrainSurface:
    """What skull stripping acts on, at N points.

    Attributes:
        hull: [N] mm inside the smooth envelope of the brain.
        pial: [N] mm inside the outer surface of gray matter.
        height: [N] world z in mm.
    """

    hull: torch.Tensor
    pial: torch.Tensor
    height: torch.Tensor


def strip_skull(
    draw: Draw, surface: BrainSurface, wander: torch.Tensor, style: Style
) -> torch.Tensor:
    """Imperfect skull stripping, and a limited field of view in some cases.

    Args:
        draw: random stream.
        surface: distances to the brain's surfaces.
        wander: [N] unit-variance field that moves the border.
        style: how imperfect the stripping is.

    Returns:
        [N] bool: the brain mask.
    """
    offset_mm = draw.uniform(-2.6, 0.8) * style.strip
    border = offset_mm + 0.7 * style.strip * wander
    mask = surface.hull > border

    # Some tools follow the gyri, others wrap them.
    if draw.chance(0.4):
        pial_border = draw.uniform(-0.6, 0.1)
        depth_mm = draw.uniform(3.0, 9.0)
        is_sulcus = surface.pial < pial_border
        is_shallow = surface.hull < depth_mm
        mask &= ~(is_sulcus & is_shallow)
    if draw.chance(style.truncated) and bool(mask.any()):
        mask &= _limited_field_of_view(draw, surface.height, mask)
    return mask


def _limited_field_of_view(draw: Draw, height: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N] bool: inside a field of view that cuts the top or the bottom of the brain."""
    low = float(height[mask].min())
    high = float(height[mask].max())
    # At most 30 % of the brain are missing, so that a case keeps most of its anatomy.
    missing_mm = draw.uniform(5.0, 35.0)
    missing_mm = min(missing_mm, 0.3 * (high - low))
    if draw.chance(0.5):
        return height > low + missing_mm
    return height < high - missing_mm
