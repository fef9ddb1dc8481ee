"""The anatomy of one case from an anatomical label map.

What a label map lacks is drawn per case: vessels, choroid plexus, white-matter hyperintensities,
and a smooth warp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medmap.phantom.anatomy import (
    TISSUES,
    HealthyTissue,
    Landmarks,
    Leukoaraiosis,
    draw_leukoaraiosis,
    paint,
)
from medmap.phantom.fields import Draw, RegularGrid, interpolate, partial_volume, random_field
from medmap.phantom.labelmap import OUTSIDE, LabelMap, mirrored, read_label_map
from medmap.phantom.placement import Warp

FIELD_GRID = RegularGrid((-110.0, -120.0, -110.0), 3.5, (64, 70, 64))
"""Where the random fields of a case are defined, in the template's frame."""

LABEL_MAP_WARP = Warp(4.5, (0.92, 1.08))
"""Stronger than for procedural brains: a few label maps have to serve for many cases."""


@dataclass(frozen=True)
class Habit:
    """Individual traits of a case that its label map does not have.

    Attributes:
        leukoaraiosis: white-matter hyperintensities.
        vein_radius: radius of cortical veins in mm.
        vein_share: threshold of the field above which veins are visible.
        sinus: radius of the superior sagittal sinus in mm.
        choroid: half thickness of the choroid plexus in mm.
    """

    leukoaraiosis: Leukoaraiosis
    vein_radius: float
    vein_share: float
    sinus: float
    choroid: float


def _draw_habit(draw: Draw) -> Habit:
    # Age is 0 (young adult) to 1 (old).
    age = draw.uniform()
    return Habit(
        leukoaraiosis=draw_leukoaraiosis(draw, age),
        vein_radius=draw.uniform(0.5, 1.3),
        vein_share=draw.uniform(-0.6, 1.3),
        sinus=draw.uniform(1.0, 4.5),
        choroid=draw.uniform(-1.0, 1.2),
    )


@dataclass(frozen=True)
class LabelAtlas:
    """The anatomy of one case from a label map; see ``anatomy.Atlas``.

    Attributes:
        label_map: the label map.
        parts: [len(TISSUES), I, J, K] fractions, softened, on the grid of the label map.
        distances: as in ``LabelMap``, on the device.
        fields: [4, *FIELD_GRID.shape]: hyperintensities, thickness, vein, slope of vein.
        habit: individual traits.
    """

    label_map: LabelMap
    parts: torch.Tensor
    distances: torch.Tensor
    fields: torch.Tensor
    habit: Habit

    @property
    def device(self) -> torch.device:
        """See ``anatomy.Atlas``."""
        return self.parts.device

    def landmarks(self, template: torch.Tensor) -> Landmarks:
        """See ``anatomy.Atlas``. The falx is the only sheet that a label map shows."""
        _, cerebrum, ventricle, side = self._distances_at(template)
        return Landmarks(
            cerebrum=cerebrum,
            ventricle=ventricle,
            sheet=side.abs(),
        )

    def hull(self, template: torch.Tensor) -> torch.Tensor:
        """See ``anatomy.Atlas``."""
        return interpolate(self.distances[:1], self.label_map.coarse_grid, template)[0]

    def side(self, template: torch.Tensor) -> torch.Tensor:
        """See ``anatomy.Atlas``."""
        return interpolate(self.distances[3:], self.label_map.coarse_grid, template)[0]

    def tissues(
        self, template: torch.Tensor, width: float, squeeze: torch.Tensor | float = 0.0
    ) -> HealthyTissue:
        """See ``anatomy.Atlas``."""
        hull, _, ventricle, side = self._distances_at(template)
        parts = interpolate(self.parts, self.label_map.grid, template)
        fields = interpolate(self.fields, FIELD_GRID, template)
        _close_sulci(parts, squeeze)
        csf_fraction = parts[TISSUES.index("csf")].clone()

        white = parts[TISSUES.index("wm")]
        hyperintense = self.habit.leukoaraiosis.fraction(ventricle, fields[0])
        paint(parts, "wmh", hyperintense * white)
        self._paint_choroid(parts, template, ventricle, fields[0])

        veins = self._cortical_veins(hull, csf_fraction, fields, width)
        sinus = self._sagittal_sinus(template, hull, side, width)
        vessels = torch.maximum(veins, sinus)
        # Within tissue vessels are thin: they fill a part of a voxel.
        paint(parts, "vessel", vessels * (0.3 + 0.7 * csf_fraction))
        return HealthyTissue(
            parts=parts,
            hull=hull,
            ventricle=ventricle,
            # Where CSF fills half of a voxel, there is the surface of gray matter.
            pial=2.0 * (0.5 - csf_fraction),
        )

    def _sagittal_sinus(
        self, template: torch.Tensor, hull: torch.Tensor, side: torch.Tensor, width: float
    ) -> torch.Tensor:
        """[N] fraction of the superior sagittal sinus: on the midline, above and behind."""
        # On the midline, below the vault: the distance to that line, not to the envelope alone.
        from_envelope = (hull - 1.0).square()
        distance = (side.square() + from_envelope).sqrt()
        sinus = partial_volume(self.habit.sinus - distance, width)
        is_above = template[2] > 0.0
        is_behind = template[1] < -60.0
        return sinus * (is_above | is_behind)

    def _distances_at(self, template: torch.Tensor) -> torch.Tensor:
        """[4, N] distances at [3, N] template positions."""
        return interpolate(self.distances, self.label_map.coarse_grid, template)

    def _cortical_veins(
        self, hull: torch.Tensor, csf_fraction: torch.Tensor, fields: torch.Tensor, width: float
    ) -> torch.Tensor:
        """[N] fraction of veins: on the envelope or in CSF, where a field crosses zero."""
        _, thickness, vein, slope = fields
        # The distance from CSF is not stored; its fraction stands in for it.
        from_csf = 6.0 * (1.0 - csf_fraction)
        to_surface = torch.minimum(hull.abs(), from_csf)
        to_crossing = vein / slope
        distance = (to_surface.square() + to_crossing.square()).sqrt()

        veins = partial_volume(self.habit.vein_radius - distance, width)
        veins = veins * partial_volume(12.0 - hull, 4.0)
        visibility = (thickness - self.habit.vein_share) / 0.25
        return veins * torch.sigmoid(visibility)

    def _paint_choroid(
        self,
        parts: torch.Tensor,
        template: torch.Tensor,
        ventricle: torch.Tensor,
        field: torch.Tensor,
    ) -> None:
        """Paint choroid plexus 2.5 mm below the walls of the lateral ventricles, in place."""
        from_sheet = (ventricle - 2.5).abs()
        sheet = self.habit.choroid - from_sheet + field
        is_body = template[1] < 5.0
        is_lateral = template[0].abs() > 3.0
        allowed = is_body & is_lateral & (ventricle > 0)
        plexus = partial_volume(sheet, 1.0)
        paint(parts, "choroid", plexus * allowed)


def _close_sulci(parts: torch.Tensor, squeeze: torch.Tensor | float) -> None:
    """Replace CSF by gray matter around a mass, in place; ``squeeze`` is 0 to 1."""
    gm = TISSUES.index("gm")
    csf = TISSUES.index("csf")
    closed = parts[csf] * 0.8 * squeeze
    parts[csf] -= closed
    parts[gm] += closed


def build_label_atlas(draw: Draw, paths: Sequence[Path], device: torch.device | str) -> LabelAtlas:
    """Draw one of the label maps, mirrored in half of the cases, and the traits of the case.

    The order of the draws is part of a seed.
    """
    choice = int(draw.uniform(0, len(paths)))
    # Rounding may draw the upper bound itself.
    choice = min(choice, len(paths) - 1)
    label_map = read_label_map(paths[choice])
    if draw.chance(0.5):
        label_map = mirrored(label_map)

    habit = _draw_habit(draw)
    fields = _draw_fields(draw, device)
    blur_mm = draw.uniform(0.45, 0.75)
    tissue = label_map.tissue.to(device)
    return LabelAtlas(
        label_map=label_map,
        parts=_soft_fractions(tissue, blur_mm),
        distances=label_map.distances.to(device),
        fields=fields,
        habit=habit,
    )


def _draw_fields(draw: Draw, device: torch.device | str) -> torch.Tensor:
    """[4, *FIELD_GRID.shape]: hyperintensities, thickness, vein, slope of vein."""
    hyper_wavelength = draw.uniform(9.0, 16.0)
    vein_wavelength = draw.uniform(22.0, 34.0)
    hyper = random_field(draw, FIELD_GRID, hyper_wavelength, device=device)
    thickness = random_field(draw, FIELD_GRID, 25.0, device=device)
    vein = random_field(draw, FIELD_GRID, vein_wavelength, device=device)

    gradient = torch.stack(torch.gradient(vein, spacing=FIELD_GRID.step))
    slope = gradient.square().sum(0).sqrt()
    slope = slope.clamp(min=0.02)
    return torch.stack([hyper, thickness, vein, slope])


def _soft_fractions(tissue: torch.Tensor, sigma: float) -> torch.Tensor:
    """Tissue fractions at 1 mm: each tissue's voxels blurred, and CSF where there is no tissue.

    Hard labels would draw every tissue border along the voxels of the label map.

    Args:
        tissue: [I, J, K] uint8 rows of ``TISSUES``.
        sigma: of a Gaussian over three voxels, in mm.

    Returns:
        [len(TISSUES), I, J, K].
    """
    csf = TISSUES.index("csf")
    present = torch.unique(tissue).tolist()
    rows = [row for row in present if row not in (OUTSIDE, csf)]
    fractions = torch.stack([(tissue == row).float() for row in rows])
    for axis in (1, 2, 3):
        fractions = _blurred(fractions, axis, sigma)

    parts = torch.zeros(len(TISSUES), *tissue.shape, device=tissue.device)
    parts[rows] = fractions
    remainder = 1.0 - fractions.sum(0)
    parts[csf] = remainder.clamp(min=0.0)
    return parts


def _blurred(maps: torch.Tensor, axis: int, sigma: float) -> torch.Tensor:
    """Gaussian blur over three voxels of an axis; zero beyond the border."""
    neighbor = math.exp(-0.5 / sigma**2)
    total = 1.0 + 2.0 * neighbor
    # Weights add up to one: fractions of tissues keep their sum, except at the border.
    neighbor_weight = neighbor / total
    blurred = maps * (1.0 / total)
    length = maps.shape[axis] - 1
    lower = blurred.narrow(axis, 0, length)
    upper = blurred.narrow(axis, 1, length)
    lower.add_(maps.narrow(axis, 1, length), alpha=neighbor_weight)
    upper.add_(maps.narrow(axis, 0, length), alpha=neighbor_weight)
    return blurred
