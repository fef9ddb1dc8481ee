"""A procedural brain: half a template as signed distances, mirrored, placed, and cut into tissues.

Template axes are RAS in mm. z = 0 is the height of the anterior commissure, y = 0 the middle of
the brain (MNI's y plus 16). Shapes depend on |x|, so the template is symmetric; asymmetry comes
from the warp with which it is placed. Positions and radii of the shapes approximate an average
adult brain.

Sulci are zero-level sheets of a random field g: |g| / |grad g| is the distance to a sheet, to first
order (Taubin, PAMI 1991).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from medmap.phantom.fields import (
    Draw,
    RegularGrid,
    interpolate,
    partial_volume,
    random_field,
    upsample,
)
from medmap.phantom.style import Style

Point = tuple[float, float, float]
Shapes = dict[str, torch.Tensor]

HALF_GRID = RegularGrid((-5.0, -110.0, -90.0), 2.5, (40, 90, 75))
"""Grid of the template. x is |x|; the margin below zero keeps gradients at the midline sound."""

WORLD_GRID = RegularGrid((-106.5, -118.5, -106.5), 3.0, (72, 80, 72))
"""The coarse grid in world mm on which placement and tumor growth are computed."""

BROAD_GRID = RegularGrid((-110.0, -121.0, -110.0), 11.0, (21, 23, 21))
"""A coarser grid for fields that vary over many centimeters."""

CHANNELS = (
    "cerebrum",
    "sheet",
    "ventricle",
    "striatum",
    "pallidum",
    "thalamus",
    "cerebellum",
    "stem",
    "hull",
    "fold",
    "fold_slope",
    "sulcus_depth",
    "vein",
    "vein_slope",
    "trunk",
    "choroid",
    "hyper",
    "thickness",
)
"""Maps of the template: signed distances (mm, positive inside) and random fields with their slopes.

``hull`` is the smooth envelope of the brain, ``sheet`` the distance to falx, Sylvian fissure and
insula, ``fold`` the field whose zero sheets are sulci, ``trunk`` the large vessels.
"""

TISSUES = (
    "csf",
    "ventricle",
    "gm",
    "wm",
    "striatum",
    "pallidum",
    "thalamus",
    "cb_gm",
    "stem",
    "vessel",
    "choroid",
    "wmh",
    "ed",
    "solid",
    "necrosis",
    "blood",
)
"""Rows of tissue fractions: healthy tissue, white-matter hyperintensities, tumor, blood."""

_ROW = {name: row for row, name in enumerate(TISSUES)}


@dataclass(frozen=True)
class HealthyTissue:
    """Tissue at N points, and the distances that lesions need.

    Attributes:
        parts: [len(TISSUES), N] fractions that sum to one.
        hull: [N] mm inside the smooth envelope of the brain.
        ventricle: [N] mm inside the ventricles.
        pial: [N] mm inside the outer surface of gray matter.
    """

    parts: torch.Tensor
    hull: torch.Tensor
    ventricle: torch.Tensor
    pial: torch.Tensor


@dataclass(frozen=True)
class Landmarks:
    """Distances that decide where a tumor may start, [N] in mm.

    Attributes:
        cerebrum: inside the cerebrum.
        ventricle: inside the ventricles.
        sheet: from the falx and the large fissures, where they are known.
    """

    cerebrum: torch.Tensor
    ventricle: torch.Tensor
    sheet: torch.Tensor


class Atlas(Protocol):
    """The anatomy of one case in the template's frame: procedural or from a label map."""

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""

    def landmarks(self, template: torch.Tensor) -> Landmarks:
        """Distances at [3, N] template positions."""

    def hull(self, template: torch.Tensor) -> torch.Tensor:
        """[N] mm inside the smooth envelope of the brain at [3, N] template positions."""

    def side(self, template: torch.Tensor) -> torch.Tensor:
        """[N] mm right of the midline at [3, N] template positions; left is negative."""

    def tissues(
        self, template: torch.Tensor, width: float, squeeze: torch.Tensor | float = 0.0
    ) -> HealthyTissue:
        """Cut the anatomy into healthy tissues.

        Args:
            template: [3, N] template positions.
            width: mm over which a surface is blurred (partial volume): the size of a voxel.
            squeeze: [N] or a number, 0 to 1: how far the mass effect closes sulci.
        """


@dataclass(frozen=True)
class Leukoaraiosis:
    """Age-related white-matter hyperintensities of one case: bright in FLAIR, not tumor.

    Attributes:
        caps: strength of caps and bands along the ventricles.
        haze: strength of a broad haze around the ventricles.
        haze_mm: distance over which the haze fades.
        spot_level: threshold of the random field above which there are spots; low values give many.
    """

    caps: float
    haze: float
    haze_mm: float
    spot_level: float

    def fraction(self, ventricle: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        """[N] 0 to 1: the affected part of white matter.

        Args:
            ventricle: [N] mm inside the ventricles.
            field: [N] unit-variance field.
        """
        distance = (-ventricle).clamp(min=0.0)
        caps = self.caps * torch.exp(-distance / 2.5)
        caps = caps * (1.0 + 0.4 * field)
        haze = self.haze * torch.exp(-distance / self.haze_mm)
        haze = haze * (1.0 + 0.2 * field)
        periventricular = torch.maximum(caps, haze).clamp(0.0, 1.0)

        # Spots cluster within about 12 mm of the ventricles.
        beyond = (-ventricle - 12.0).clamp(min=0.0)
        proximity = torch.exp(-beyond / 10.0)
        level = field + 0.8 * proximity - self.spot_level
        spots = torch.sigmoid(level / 0.12)
        return torch.maximum(periventricular, spots)


def draw_leukoaraiosis(draw: Draw, age: float) -> Leukoaraiosis:
    """Draw the hyperintensities of a case; ``age`` is 0 (young adult) to 1 (old)."""
    return Leukoaraiosis(
        caps=draw.uniform(0.0, 0.9) * (0.3 + 0.7 * age),
        haze=draw.uniform(0.0, 0.6),
        haze_mm=draw.uniform(5.0, 18.0),
        spot_level=3.6 - 1.9 * age * draw.uniform(),
    )


@dataclass(frozen=True)
class Habit:
    """Individual traits of one procedural brain.

    Attributes:
        age: 0 (young adult) to 1 (old).
        sulcus: half width of sulci in mm, at depth.
        fissure: half width of the falx and the large fissures in mm.
        cortex: thickness of the cortex in mm.
        leukoaraiosis: white-matter hyperintensities.
        vein_radius: radius of cortical veins in mm.
        vein_share: threshold of the field above which veins are visible.
        folia: number of folia of the cerebellum per radian.
    """

    age: float
    sulcus: float
    fissure: float
    cortex: float
    leukoaraiosis: Leukoaraiosis
    vein_radius: float
    vein_share: float
    folia: float


def _draw_habit(draw: Draw) -> Habit:
    # Age widens ventricles and sulci and adds white-matter hyperintensities.
    age = draw.uniform()
    return Habit(
        age=age,
        sulcus=0.15 + 0.75 * age * draw.uniform(0.5, 1.0) + draw.uniform(0.0, 0.25),
        fissure=draw.uniform(0.3, 0.8) + 0.6 * age,
        cortex=draw.uniform(2.3, 3.2),
        leukoaraiosis=draw_leukoaraiosis(draw, age),
        vein_radius=draw.uniform(0.6, 1.4),
        vein_share=draw.uniform(-0.6, 1.3),
        folia=draw.uniform(12.0, 17.0),
    )


@dataclass(frozen=True)
class ProceduralAtlas:
    """The template of one case.

    Attributes:
        maps: [len(CHANNELS), *HALF_GRID.shape].
        habit: individual traits.
    """

    maps: torch.Tensor
    habit: Habit

    @property
    def device(self) -> torch.device:
        """See ``Atlas``."""
        return self.maps.device

    def channels(self, template: torch.Tensor) -> Shapes:
        """Every channel at [3, N] template positions, as [N] tensors."""
        mirrored = _mirror(template)
        values = interpolate(self.maps, HALF_GRID, mirrored)
        return dict(zip(CHANNELS, values, strict=True))

    def landmarks(self, template: torch.Tensor) -> Landmarks:
        """See ``Atlas``."""
        channels = self.channels(template)
        return Landmarks(
            cerebrum=channels["cerebrum"],
            ventricle=channels["ventricle"],
            sheet=channels["sheet"],
        )

    def hull(self, template: torch.Tensor) -> torch.Tensor:
        """See ``Atlas``."""
        row = CHANNELS.index("hull")
        hull = self.maps[row : row + 1]
        mirrored = _mirror(template)
        return interpolate(hull, HALF_GRID, mirrored)[0]

    def side(self, template: torch.Tensor) -> torch.Tensor:
        """See ``Atlas``."""
        return template[0]

    def tissues(
        self, template: torch.Tensor, width: float, squeeze: torch.Tensor | float = 0.0
    ) -> HealthyTissue:
        """See ``Atlas``."""
        channels = self.channels(template)
        habit = self.habit
        pial = _pial_distance(channels, habit, 1.0 - 0.85 * squeeze)

        parts = _cerebral_mantle(pial, channels["thickness"], habit, width)
        _paint_cerebellum(parts, template, channels, habit, width)
        _paint_deep_structures(parts, channels, habit, width)

        veins = _cortical_veins(channels, habit, width)
        trunks = partial_volume(channels["trunk"], width)
        paint(parts, "vessel", torch.maximum(veins, trunks))
        return HealthyTissue(
            parts=parts,
            hull=channels["hull"],
            ventricle=channels["ventricle"],
            pial=pial,
        )


def _mirror(template: torch.Tensor) -> torch.Tensor:
    """Template positions in the half that is stored."""
    x = template[0].abs()
    y = template[1]
    z = template[2]
    return torch.stack([x, y, z])


def _cerebral_mantle(
    pial: torch.Tensor, thickness: torch.Tensor, habit: Habit, width: float
) -> torch.Tensor:
    """[len(TISSUES), N] fractions of white matter, cortex and CSF.

    Args:
        pial: [N] mm inside the outer surface of gray matter.
        thickness: [N] unit-variance field of the cortex's thickness.
        habit: individual traits.
        width: of a voxel in mm.
    """
    cortex_mm = habit.cortex * (1.0 + 0.12 * thickness)
    brain = partial_volume(pial, width)
    white = partial_volume(pial - cortex_mm, width)

    parts = torch.zeros(len(TISSUES), len(pial), device=pial.device)
    parts[_ROW["wm"]] = white
    parts[_ROW["gm"]] = brain - white
    parts[_ROW["csf"]] = 1.0 - brain
    return parts


def _pial_distance(channels: Shapes, habit: Habit, openness: torch.Tensor | float) -> torch.Tensor:
    """[N] mm inside the outer surface of gray matter: the envelope minus sulci and fissures."""
    depth = channels["cerebrum"]
    to_wall = channels["fold"].abs() / channels["fold_slope"]
    below_floor = (depth - channels["sulcus_depth"]).clamp(min=0.0)
    to_sulcus = (to_wall.square() + below_floor.square()).sqrt()

    # Sulci widen toward the surface.
    superficial = torch.exp(-depth.clamp(min=0.0) / 4.0)
    widening = 1.0 + 1.2 * superficial
    sulcus = to_sulcus - habit.sulcus * widening * openness
    fissure = channels["sheet"] - habit.fissure * openness
    surface = torch.minimum(depth, sulcus)
    return torch.minimum(surface, fissure)


def _paint_deep_structures(
    parts: torch.Tensor, channels: Shapes, habit: Habit, width: float
) -> None:
    """Paint brainstem, basal ganglia, hyperintensities, ventricles and choroid plexus, in place."""
    stem = partial_volume(channels["stem"], width)
    paint(parts, "stem", stem * (1.0 - parts[_ROW["gm"]]))
    inside = partial_volume(channels["cerebrum"] - 4.0, 4.0)
    for name in ("striatum", "thalamus", "pallidum"):
        paint(parts, name, partial_volume(channels[name], width) * inside)
    ventricle = channels["ventricle"]
    hyperintense = habit.leukoaraiosis.fraction(ventricle, channels["hyper"])
    paint(parts, "wmh", hyperintense * parts[_ROW["wm"]])
    paint(parts, "ventricle", partial_volume(ventricle, width))
    choroid = torch.minimum(channels["choroid"], ventricle + 0.8)
    paint(parts, "choroid", partial_volume(choroid, width))


def _cortical_veins(channels: Shapes, habit: Habit, width: float) -> torch.Tensor:
    """[N] fraction of veins: they run in sulci and on the surface, where a field crosses zero."""
    to_wall = channels["fold"].abs() / channels["fold_slope"]
    to_surface = torch.minimum(to_wall, channels["hull"].abs())
    to_crossing = channels["vein"] / channels["vein_slope"]
    distance = (to_surface.square() + to_crossing.square()).sqrt()
    veins = partial_volume(habit.vein_radius - distance, width)

    above_floor = channels["sulcus_depth"] - channels["cerebrum"]
    veins = veins * partial_volume(above_floor, 4.0)
    # Only a part of the veins is visible.
    visibility = (channels["thickness"] - habit.vein_share) / 0.25
    return veins * torch.sigmoid(visibility)


def paint(parts: torch.Tensor, name: str, weight: torch.Tensor) -> None:
    """Paint a tissue over the others, in place.

    Args:
        parts: [len(TISSUES), N] fractions; they keep summing to one.
        name: one of ``TISSUES``.
        weight: [N] 0 to 1.
    """
    parts.mul_(1.0 - weight)
    parts[_ROW[name]].add_(weight)


def _paint_cerebellum(
    parts: torch.Tensor, template: torch.Tensor, channels: Shapes, habit: Habit, width: float
) -> None:
    """Paint cerebellar cortex and white matter, in place."""
    pial = _cerebellar_pial_distance(template, channels, habit)
    cerebellum = partial_volume(pial, width)
    paint(parts, "cb_gm", cerebellum)

    white = partial_volume(pial - 1.7, width)
    white = torch.minimum(white, cerebellum)
    inside = partial_volume(channels["cerebellum"] - 1.0, 1.0)
    paint(parts, "wm", white * inside)


def _cerebellar_pial_distance(
    template: torch.Tensor, channels: Shapes, habit: Habit
) -> torch.Tensor:
    """[N] mm inside the cerebellar cortex.

    Folia radiate from a center: they are the zeros of a sine of the angle around it.
    """
    y = template[1] + 34.0
    z = template[2] + 36.0
    radius = (y.square() + z.square()).sqrt()
    angle = torch.atan2(z, -y)
    wave = torch.sin(habit.folia * angle + 0.8 * channels["thickness"])
    to_wall = wave.abs() * radius / habit.folia

    depth = channels["cerebellum"]
    below_floor = (depth - 10.0).clamp(min=0.0)
    folium = (to_wall.square() + below_floor.square()).sqrt() - 0.25
    return torch.minimum(depth, folium)


def _ellipsoid(p: torch.Tensor, center: Point, radii: Point) -> torch.Tensor:
    """Signed distance (positive inside), to first order: f / |grad f| (Taubin, PAMI 1991)."""
    c = p.new_tensor(center).view(3, 1, 1, 1)
    r = p.new_tensor(radii).view(3, 1, 1, 1)
    scaled = (p - c) / r
    norm = scaled.square().sum(0).sqrt()
    slope = (scaled / r).square().sum(0).sqrt()
    slope = slope.clamp(min=1e-3)
    return norm * (1.0 - norm) / slope


def _tube(
    p: torch.Tensor, start: Point, end: Point, start_radius: float, end_radius: float
) -> torch.Tensor:
    """Signed distance (positive inside) to a round segment with a linearly varying radius."""
    origin = p.new_tensor(start).view(3, 1, 1, 1)
    along = p.new_tensor([q - o for o, q in zip(start, end, strict=True)])
    direction = along.view(3, 1, 1, 1)
    relative = p - origin

    # The nearest point of the segment: 0 is the start, 1 the end.
    t = (relative * direction).sum(0)
    t = t.div(along.square().sum()).clamp(0.0, 1.0)
    radius = start_radius + (end_radius - start_radius) * t
    offsets = relative - direction * t
    return radius - offsets.square().sum(0).sqrt()


def _union(a: torch.Tensor, b: torch.Tensor, blend: float) -> torch.Tensor:
    """Smooth maximum of two signed distances: a union whose crease is rounded over ``blend`` mm."""
    difference = (a - b).abs()
    h = (blend - difference).clamp(min=0.0) / blend
    rounding = h * h * blend * 0.25
    return torch.maximum(a, b) + rounding


def _intersection(a: torch.Tensor, b: torch.Tensor, blend: float) -> torch.Tensor:
    """Smooth minimum of two signed distances."""
    return -_union(-a, -b, blend)


def build_atlas(draw: Draw, device: torch.device | str) -> ProceduralAtlas:
    """Draw the template of one case. The order of the draws is part of a seed."""
    p = HALF_GRID.points(device)
    habit = _draw_habit(draw)
    shapes = _brain_shapes(p, draw)
    shapes |= _deep_shapes(p, draw, habit.age)
    shapes["sheet"] = _fissures(p, draw)
    shapes |= _folding(p, draw, shapes["cerebrum"])
    shapes |= _vasculature(p, draw, shapes["hull"])
    shapes["hyper"] = random_field(draw, HALF_GRID, draw.uniform(9.0, 16.0), device=device)
    shapes["thickness"] = random_field(draw, HALF_GRID, 25.0, device=device)
    return ProceduralAtlas(torch.stack([shapes[name] for name in CHANNELS]), habit)


def _brain_shapes(p: torch.Tensor, draw: Draw) -> Shapes:
    """Cerebrum, cerebellum, brainstem, and the envelope of the three."""
    upper = _upper_cerebrum(p, draw)
    cerebrum = _union(upper, _temporal_lobe(p, draw), 8.0)
    # 1.2 mm of CSF between cerebellum and cerebrum.
    cerebellum = torch.minimum(_cerebellum(p, draw), -cerebrum - 1.2)

    medulla = _tube(p, (0.0, -4.0, 2.0), (0.0, -22.0, -68.0), 15.0, 8.5)
    pons = _ellipsoid(p, (0.0, -9.0, -28.0), (17.0, 14.0, 15.0))
    stem = _union(medulla, pons, 5.0)

    hull = _union(cerebrum, cerebellum, 16.0)
    hull = _union(hull, stem, 14.0)
    return {"cerebrum": cerebrum, "cerebellum": cerebellum, "stem": stem, "hull": hull}


def _cerebellum(p: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Cerebellar hemispheres and vermis."""
    jitter = partial(draw.normal, 0.0)
    hemisphere = _ellipsoid(
        p,
        (22.0, -50.0 + jitter(2), -40.0 + jitter(1)),
        (31.0 + jitter(1), 28.0 + jitter(1), 22.0 + jitter(1)),
    )
    vermis = _ellipsoid(p, (0.0, -48.0, -36.0), (13.0, 24.0, 22.0))
    return _union(hemisphere, vermis, 6.0)


def _upper_cerebrum(p: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Frontal, parietal and occipital lobes, above the orbital roof and the tentorium."""
    y = p[1]
    z = p[2]
    jitter = partial(draw.normal, 0.0)
    ellipsoid = _ellipsoid(
        p,
        (0.0, 0.0, 18.0 + jitter(1)),
        (67.0 + jitter(2), 87.0 + jitter(2), 60.0 + jitter(2)),
    )
    # The frontal lobes are narrower than the parietal lobes.
    taper = 0.055 * y.clamp(min=0.0) ** 1.25 * 0.35
    # Orbital roof in front, tentorium behind.
    floor = torch.where(y > 0, -20.0 + 0.06 * y, -20.0 - 0.13 * y)
    return _intersection(ellipsoid - taper, z - floor, 14.0)


def _temporal_lobe(p: torch.Tensor, draw: Draw) -> torch.Tensor:
    jitter = partial(draw.normal, 0.0)
    return _ellipsoid(
        p,
        (43.0 + jitter(1), 6.0 + jitter(2), -19.0 + jitter(1)),
        (24.0 + jitter(1), 47.0 + jitter(2), 25.0 + jitter(1)),
    )


def _deep_shapes(p: torch.Tensor, draw: Draw, age: float) -> Shapes:
    """Ventricles, basal ganglia, thalamus, choroid plexus; wide ventricles displace the nuclei."""
    size = draw.uniform(0.85, 1.3) + 0.75 * age * draw.uniform(0.3, 1.0)
    jitter = partial(draw.normal, 0.0)
    caudate = _caudate(p, size, 5.0 + jitter(0.3))
    putamen = _ellipsoid(
        p,
        (27.0, 17.0 + jitter(1), 2.0),
        (5.0 + jitter(0.3), 17.0, 10.5),
    )
    thalamus = _ellipsoid(
        p,
        (11.5 + size, -3.0 + jitter(1), 8.0),
        (8.5, 15.0, 9.0),
    )
    return {
        "ventricle": _ventricles(p, size),
        "striatum": torch.maximum(caudate, putamen),
        "pallidum": _ellipsoid(p, (20.5, 11.0, 0.0), (4.0, 9.0, 6.5)),
        "thalamus": thalamus,
        "choroid": _choroid(p, size, draw),
    }


def _caudate(p: torch.Tensor, size: float, width: float) -> torch.Tensor:
    """Head and body of the caudate nucleus, lateral to a ventricle of this size."""
    lateral = 2.5 * size
    frontal_part = _ellipsoid(
        p,
        (14.5 + lateral, 28.0, 9.0),
        (width, 10.0, 9.0),
    )
    body = _tube(
        p,
        (16.0 + lateral, 20.0, 16.0),
        (21.0 + lateral, -12.0, 24.0),
        4.0,
        2.0,
    )
    return _union(frontal_part, body, 3.0)


_VENTRICLE_NODES: dict[str, tuple[Point, float]] = {
    "tip": ((8.0, 47.0, 4.0), 3.0),
    "horn": ((10.0, 30.0, 15.0), 5.2),
    "body": ((11.0, 6.0, 23.0), 4.6),
    "bend": ((19.0, -20.0, 21.0), 5.2),
    "atrium": ((26.0, -29.0, 10.0), 6.6),
    "back": ((23.0, -58.0, 6.0), 1.8),
    "inferior": ((36.0, -10.0, -13.0), 2.2),
    "end": ((33.0, 8.0, -20.0), 1.2),
}
"""Center line of the lateral ventricle, frontal to temporal horn: positions and radii in mm."""

_VENTRICLE_LINKS = (
    ("tip", "horn"),
    ("horn", "body"),
    ("body", "bend"),
    ("bend", "atrium"),
    ("atrium", "back"),
    ("atrium", "inferior"),
    ("inferior", "end"),
)

_VENTRICLE_SCALE = (1.25, 1.0, 0.8)
"""Space is scaled so that round tubes become ventricles that are higher than wide."""


def _ventricles(p: torch.Tensor, size: float) -> torch.Tensor:
    """Lateral, third and fourth ventricles; ``size`` scales their width."""
    # The septum pellucidum separates the lateral ventricles.
    septum = p[0] - 0.8
    lateral = torch.minimum(_lateral_ventricle(p, size), septum)
    third = _ellipsoid(
        p,
        (0.0, 4.0, 0.0),
        (1.2 + 2.0 * size, 14.0, 10.0),
    )
    fourth = _ellipsoid(
        p,
        (0.0, -30.0, -34.0),
        (2.0 + 4.0 * size, 5.0, 9.0),
    )
    return torch.maximum(lateral, torch.maximum(third, fourth))


def _lateral_ventricle(p: torch.Tensor, size: float) -> torch.Tensor:
    """A chain of tubes; ``size`` scales their radii."""
    scaled = p * p.new_tensor(_VENTRICLE_SCALE).view(3, 1, 1, 1)
    scale_x, scale_y, scale_z = _VENTRICLE_SCALE
    nodes = {}
    for name, ((x, y, z), radius) in _VENTRICLE_NODES.items():
        position = (x * scale_x, y * scale_y, z * scale_z)
        nodes[name] = (position, radius * size)

    tubes = []
    for start_name, end_name in _VENTRICLE_LINKS:
        start, start_radius = nodes[start_name]
        end, end_radius = nodes[end_name]
        tubes.append(_tube(scaled, start, end, start_radius, end_radius))
    lateral = tubes[0]
    for tube in tubes[1:]:
        lateral = _union(lateral, tube, 4.0)
    return lateral


def _choroid(p: torch.Tensor, size: float, draw: Draw) -> torch.Tensor:
    """Choroid plexus: a glomus in the atrium and a strand along the body of the ventricle."""
    (x, y, z), _ = _VENTRICLE_NODES["atrium"]
    glomus = _ellipsoid(
        p,
        (x - 1.0, y + 3.0, z),
        (2.6 * size, 5.0 * size, 3.2 * size),
    )
    strand = _tube(p, (8.0, 10.0, 18.0), (18.0, -20.0, 17.0), 0.8, 1.2)
    plexus = torch.maximum(glomus, strand)
    return plexus + draw.uniform(-0.8, 0.6)


def _fissures(p: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Distance to the falx, the Sylvian fissure and the insula (never negative)."""
    rise = draw.uniform(0.25, 0.4)
    inner_x = draw.uniform(36.0, 40.0)
    sylvian = _sylvian_fissure(p, rise, inner_x)
    return torch.minimum(_falx(p), sylvian)


def _falx(p: torch.Tensor) -> torch.Tensor:
    """Distance to the falx, which ends above the corpus callosum."""
    y_share = (p[1] - 10.0) / 40.0
    z_share = (p[2] - 6.0) / 23.0
    callosum = 1.0 - (y_share**2 + z_share**2).sqrt()
    # 25 mm turn the relative distance into mm.
    below_edge = (callosum * 25.0).clamp(min=0.0)
    return (p[0].square() + below_edge.square()).sqrt()


def _sylvian_fissure(p: torch.Tensor, rise: float, inner_x: float) -> torch.Tensor:
    """Distance to the Sylvian fissure, an inclined plane, and to the insula at its inner end."""
    x, y, z = p
    plane_z = -4.0 - rise * (y - 12.0)
    across = (z - plane_z) / math.sqrt(1 + rise * rise)
    beyond_ends = torch.maximum(y - 42.0, -38.0 - y).clamp(min=0.0)

    medial = (inner_x - x).clamp(min=0.0)
    squared = across.square() + medial.square()
    fissure = (squared + beyond_ends.square()).sqrt()

    above = (across.abs() - 11.0).clamp(min=0.0)
    squared = (x - inner_x).square() + above.square()
    insula = (squared + beyond_ends.square()).sqrt()
    return torch.minimum(fissure, insula)


def _folding(p: torch.Tensor, draw: Draw, depth: torch.Tensor) -> Shapes:
    """The field whose zero sheets are sulci, drawn so that sheets run down from the surface."""
    wavelength = draw.uniform(17.0, 22.0)
    field = random_field(draw, HALF_GRID, wavelength, 0.2, p.device)
    center = p.new_tensor((20.0, 0.0, 12.0)).view(3, 1, 1, 1)
    outward = p - center
    length = outward.square().sum(0).sqrt()
    outward = outward / length.clamp(min=5.0)

    # Reading the field further out makes it nearly constant along most of a sulcus's depth: its
    # walls are perpendicular to the surface.
    lift = 0.75 * depth.clamp(0.0, 30.0)
    lifted = p + lift * outward
    fold = interpolate(field[None], HALF_GRID, lifted.reshape(3, -1))
    fold = fold.reshape(p.shape[1:])

    mean_depth = 16.0 + draw.uniform(0.0, 6.0)
    variation = random_field(draw, HALF_GRID, 35.0, device=p.device)
    return {
        "fold": fold,
        "fold_slope": _slope(fold).clamp(min=0.03),
        "sulcus_depth": mean_depth + 6.0 * variation,
    }


def _slope(field: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude per mm on the template's grid."""
    gradient = torch.gradient(field, spacing=HALF_GRID.step)
    components = torch.stack(gradient)
    return components.square().sum(0).sqrt()


_VESSELS: tuple[tuple[Point, Point, float, float], ...] = (
    ((0.0, -26.0, 12.0), (0.0, -62.0, 2.0), 1.4, 2.2),  # vein of Galen, straight sinus
    ((5.0, 12.0, -19.0), (22.0, 15.0, -16.0), 1.3, 1.2),  # middle cerebral artery
    ((22.0, 15.0, -16.0), (38.0, 14.0, -6.0), 1.2, 1.1),  # its insular part
    ((2.0, 14.0, -18.0), (1.5, 44.0, -2.0), 1.0, 0.8),  # anterior cerebral artery
    ((0.0, 4.0, -24.0), (0.0, 3.0, -48.0), 1.3, 1.5),  # basilar artery
    ((28.0, -74.0, -20.0), (56.0, -38.0, -24.0), 2.2, 2.4),  # transverse sinus
)
"""Start and end of straight vessels in the template, and their radii, in mm."""


def _vasculature(p: torch.Tensor, draw: Draw, hull: torch.Tensor) -> Shapes:
    """Large vessels, and the field that places cortical veins."""
    wavelength = draw.uniform(22.0, 34.0)
    vein = random_field(draw, HALF_GRID, wavelength, device=p.device)

    # The superior sagittal sinus runs along the midline of the envelope, above and behind.
    from_midline = p[0].square()
    from_envelope = (hull - 1.0).square()
    sinus_radius = draw.uniform(1.5, 5.0)
    sinus = sinus_radius - (from_midline + from_envelope).sqrt()
    is_upper = (p[2] > 0) | (p[1] < -60)
    trunk = torch.where(is_upper, sinus, torch.full_like(sinus, -9.0))

    for start, end, start_radius, end_radius in _VESSELS:
        vessel = _tube(p, start, end, start_radius, end_radius)
        trunk = torch.maximum(trunk, vessel)
    return {"vein": vein, "vein_slope": _slope(vein).clamp(min=0.02), "trunk": trunk}


@dataclass(frozen=True)
class Warp:
    """How far the placement may deform an anatomy.

    Attributes:
        largest_mm: largest amplitude of the smooth warp.
        size: range of the overall scale.
    """

    largest_mm: float
    size: tuple[float, float]


PROCEDURAL_WARP = Warp(2.6, (0.89, 0.985))


def place(draw: Draw, device: torch.device | str, style: Style, warp: Warp) -> torch.Tensor:
    """Place an anatomy in the world: rotation, shear, scale, shift, smooth warp.

    Args:
        draw: random stream. The order of the draws is part of a seed.
        device: where the result is computed.
        style: largest rotation and shift.
        warp: largest deformation.

    Returns:
        [3, *WORLD_GRID.shape] template position of every point of the coarse world grid.
    """
    largest = style.angle_deg
    angles = [math.radians(draw.uniform(-largest, largest)) for _ in range(3)]
    linear = _rotation(angles) + _shear(draw).double()
    matrix = _scale(draw, warp) @ linear
    matrix = matrix.to(device, torch.float32)

    shifts = [draw.normal(0.0, style.head_shift_mm / 2) for _ in range(3)]
    shift = torch.tensor(shifts, device=device, dtype=torch.float32)
    # The commissures, where z = 0, lie below the middle of the brain's extent.
    shift[2] -= 8.0

    world = WORLD_GRID.points(device)
    centered = world - shift.view(3, 1, 1, 1)
    moved = matrix @ centered.reshape(3, -1)
    return moved.reshape(world.shape) + _smooth_warp(draw, device, warp)


def _scale(draw: Draw, warp: Warp) -> torch.Tensor:
    """[3, 3] float64: the inverse scale along each axis, on the diagonal."""
    size = draw.uniform(*warp.size)
    scales = []
    for _ in range(3):
        # Axes differ by a few percent.
        axis_size = size * (1.0 + draw.normal(0.0, 0.02))
        scales.append(1.0 / axis_size)
    return torch.diag(torch.tensor(scales)).double()


def _smooth_warp(draw: Draw, device: torch.device | str, warp: Warp) -> torch.Tensor:
    """[3, *WORLD_GRID.shape] displacements in mm."""
    amplitude = draw.uniform(0.4 * warp.largest_mm, warp.largest_mm)
    fields = []
    for _ in range(3):
        wavelength = draw.uniform(60.0, 110.0)
        fields.append(random_field(draw, BROAD_GRID, wavelength, device=device))
    axes = WORLD_GRID.axes(device)
    return amplitude * upsample(torch.stack(fields), BROAD_GRID, axes)


def _rotation(angles: Sequence[float]) -> torch.Tensor:
    """[3, 3] float64: rotations about x, then y, then z by angles in radians."""
    rotation = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(angles):
        first = (axis + 1) % 3
        second = (axis + 2) % 3
        about_axis = torch.eye(3, dtype=torch.float64)
        about_axis[first, first] = math.cos(angle)
        about_axis[second, second] = math.cos(angle)
        about_axis[first, second] = -math.sin(angle)
        about_axis[second, first] = math.sin(angle)
        rotation = about_axis @ rotation
    return rotation


def _shear(draw: Draw) -> torch.Tensor:
    """[3, 3] float32: a small random shear, zero on the diagonal."""
    shear = torch.zeros(3, 3)
    for row in range(3):
        for column in range(3):
            if row != column:
                shear[row, column] = draw.normal(0.0, 0.012)
    return shear


def template_at(coarse: torch.Tensor, axes: list[torch.Tensor]) -> torch.Tensor:
    """[3, I, J, K] template positions on a regular world grid, from the coarse placement."""
    return upsample(coarse, WORLD_GRID, axes)
