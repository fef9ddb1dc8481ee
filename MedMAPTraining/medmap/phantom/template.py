"""Shapes of a template brain as signed distances in mm, positive inside.

Half of the brain is stored: shapes depend on |x|. Positions and radii approximate an average adult
brain; see ``anatomy.py`` for the axes.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from medmap.phantom.fields import Draw, RegularGrid, interpolate, random_field

Point = tuple[float, float, float]
Shapes = dict[str, torch.Tensor]

HALF_GRID = RegularGrid((-5.0, -110.0, -90.0), 2.5, (40, 90, 75))
"""Grid of the template. x is |x|; the margin below zero keeps gradients at the midline sound."""


def _ellipsoid(p: torch.Tensor, center: Point, radii: Point) -> torch.Tensor:
    """Signed distance (positive inside), to first order: f / |grad f| (Taubin, PAMI 1991)."""
    c = p.new_tensor(center).view(3, 1, 1, 1)
    r = p.new_tensor(radii).view(3, 1, 1, 1)
    scaled = (p - c) / r
    norm = scaled.square().sum(0).sqrt()
    gradient = scaled / r
    slope = gradient.square().sum(0).sqrt()
    # At the center the gradient vanishes, and with it the meaning of a first-order distance.
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
    squared_length = along.square().sum()
    t = t.div(squared_length).clamp(0.0, 1.0)
    radius = start_radius + (end_radius - start_radius) * t
    offsets = relative - direction * t
    distance = offsets.square().sum(0).sqrt()
    return radius - distance


def _union(a: torch.Tensor, b: torch.Tensor, blend: float) -> torch.Tensor:
    """Smooth maximum of two signed distances: a union whose crease is rounded over ``blend`` mm."""
    # The polynomial smooth minimum of constructive geometry, with the sign turned: exact where the
    # bodies are more than ``blend`` apart.
    difference = (a - b).abs()
    h = (blend - difference).clamp(min=0.0) / blend
    rounding = h * h * blend * 0.25
    return torch.maximum(a, b) + rounding


def _intersection(a: torch.Tensor, b: torch.Tensor, blend: float) -> torch.Tensor:
    """Smooth minimum of two signed distances."""
    return -_union(-a, -b, blend)


def brain_shapes(p: torch.Tensor, draw: Draw) -> Shapes:
    """Cerebrum, cerebellum, brainstem, and the envelope of the three."""
    upper = _upper_cerebrum(p, draw)
    cerebrum = _union(upper, _temporal_lobe(p, draw), 8.0)
    # 1.2 mm of CSF between cerebellum and cerebrum.
    outside_cerebrum = -cerebrum - 1.2
    cerebellum = torch.minimum(_cerebellum(p, draw), outside_cerebrum)

    medulla = _tube(p, (0.0, -4.0, 2.0), (0.0, -22.0, -68.0), 15.0, 8.5)
    pons = _ellipsoid(p, (0.0, -9.0, -28.0), (17.0, 14.0, 15.0))
    stem = _union(medulla, pons, 5.0)

    hull = _union(cerebrum, cerebellum, 16.0)
    hull = _union(hull, stem, 14.0)
    return {
        "cerebrum": cerebrum,
        "cerebellum": cerebellum,
        "stem": stem,
        "hull": hull,
    }


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


def deep_shapes(p: torch.Tensor, draw: Draw, age: float) -> Shapes:
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


def fissures(p: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Distance to the falx, the Sylvian fissure and the insula (never negative)."""
    rise = draw.uniform(0.25, 0.4)
    inner_x = draw.uniform(36.0, 40.0)
    sylvian = _sylvian_fissure(p, rise, inner_x)
    return torch.minimum(_falx(p), sylvian)


def _falx(p: torch.Tensor) -> torch.Tensor:
    """Distance to the falx, which ends above the corpus callosum."""
    # The ellipse of the corpus callosum, as in edema.callosum.
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
    # Divided by the length of the normal: a distance, not a height.
    across = (z - plane_z) / math.sqrt(1 + rise * rise)
    beyond_ends = torch.maximum(y - 42.0, -38.0 - y).clamp(min=0.0)

    medial = (inner_x - x).clamp(min=0.0)
    squared = across.square() + medial.square()
    fissure = (squared + beyond_ends.square()).sqrt()

    above = (across.abs() - 11.0).clamp(min=0.0)
    squared = (x - inner_x).square() + above.square()
    insula = (squared + beyond_ends.square()).sqrt()
    return torch.minimum(fissure, insula)


def folding(p: torch.Tensor, draw: Draw, depth: torch.Tensor) -> Shapes:
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


def vasculature(p: torch.Tensor, draw: Draw, hull: torch.Tensor) -> Shapes:
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
    # Distances are divided by the slope: where a field is flat they must stay finite.
    vein_slope = _slope(vein).clamp(min=0.02)
    return {"vein": vein, "vein_slope": vein_slope, "trunk": trunk}
