"""A procedural brain: the shapes of a template, cut into tissues.

The template is symmetric; asymmetry comes from the warp with which it is placed. Sulci are
zero-level sheets of a random field g: |g| / |grad g| is the distance to a sheet, to first order
(Taubin, PAMI 1991).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medmap.phantom.anatomy import (
    TISSUES,
    HealthyTissue,
    Landmarks,
    Leukoaraiosis,
    draw_leukoaraiosis,
    paint,
)
from medmap.phantom.fields import Draw, interpolate, partial_volume, random_field
from medmap.phantom.template import (
    HALF_GRID,
    Shapes,
    brain_shapes,
    deep_shapes,
    fissures,
    folding,
    vasculature,
)

_ROW = {name: row for row, name in enumerate(TISSUES)}


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
    white = parts[_ROW["wm"]]
    ventricle = channels["ventricle"]
    stem = partial_volume(channels["stem"], width)
    paint(parts, "stem", stem * (1.0 - parts[_ROW["gm"]]))
    # Nuclei end 4 mm below the envelope, so that none of them reaches the cortex.
    inside = partial_volume(channels["cerebrum"] - 4.0, 4.0)
    for name in ("striatum", "thalamus", "pallidum"):
        nucleus = partial_volume(channels[name], width)
        paint(parts, name, nucleus * inside)
    hyperintense = habit.leukoaraiosis.fraction(ventricle, channels["hyper"])
    paint(parts, "wmh", hyperintense * white)
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
    # Divided by the slope of the sine, folia / radius: about mm.
    to_wall = wave.abs() * radius / habit.folia

    depth = channels["cerebellum"]
    below_floor = (depth - 10.0).clamp(min=0.0)
    folium = (to_wall.square() + below_floor.square()).sqrt() - 0.25
    return torch.minimum(depth, folium)


def build_atlas(draw: Draw, device: torch.device | str) -> ProceduralAtlas:
    """Draw the template of one case. The order of the draws is part of a seed."""
    p = HALF_GRID.points(device)
    habit = _draw_habit(draw)
    shapes = brain_shapes(p, draw)
    shapes |= deep_shapes(p, draw, habit.age)
    shapes["sheet"] = fissures(p, draw)
    shapes |= folding(p, draw, shapes["cerebrum"])
    shapes |= vasculature(p, draw, shapes["hull"])
    wavelength = draw.uniform(9.0, 16.0)
    shapes["hyper"] = random_field(draw, HALF_GRID, wavelength, device=device)
    shapes["thickness"] = random_field(draw, HALF_GRID, 25.0, device=device)
    maps = torch.stack([shapes[name] for name in CHANNELS])
    return ProceduralAtlas(maps, habit)
