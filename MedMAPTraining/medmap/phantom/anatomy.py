"""A procedural head: half of a template brain as signed distances, mirrored, placed and cut into tissues.

Template axes are RAS in mm with the anterior commissure's height at z = 0 and the brain's middle at y = 0 (MNI's y
plus 16). All shapes depend on |x|, so the template is symmetric; asymmetry comes from the warp
with which it is placed.
Sulci are zero-level sheets of a random field: |g| / |grad g| is the distance to the sheet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from medmap.phantom.fields import Draw, Lattice, cover, random_field, sample, upsample

HALF = Lattice((-5.0, -110.0, -90.0), 2.5, (40, 90, 75))
"""The template's lattice; x runs over |x| with a margin below zero so that gradients at the midline are sound."""

WORLD = Lattice((-106.5, -118.5, -106.5), 3.0, (72, 80, 72))
"""The coarse lattice in world mm on which placement and tumor growth are computed."""

BROAD = Lattice((-110.0, -121.0, -110.0), 11.0, (21, 23, 21))
"""A coarser one for fields that vary over many centimeters."""

CHANNELS = (
    *(
        "cerebrum",
        "sheet",
        "ventricle",
        "striatum",
        "pallidum",
        "thalamus",
        "cerebellum",
        "stem",
        "hull",
    ),
    *(
        "fold",
        "fold_slope",
        "sulcus_depth",
        "vein",
        "vein_slope",
        "trunk",
        "choroid",
        "hyper",
        "thickness",
    ),
)

TISSUES = (
    *(
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
    ),
    *("wmh", "ed", "solid", "necrosis", "blood"),
)
_ROW = {name: row for row, name in enumerate(TISSUES)}


@dataclass(frozen=True)
class Atlas:
    """One case's template.

    Attributes:
        maps: [len(CHANNELS), *HALF.shape] on the device.
        habit: scalars of this head: sulcal widths, cortex, how strong white-matter hyperintensities are.
    """

    maps: torch.Tensor
    habit: dict[str, float]

    def at(self, template: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every channel at [3, N] template positions, as [N] tensors."""
        mirrored = torch.stack([template[0].abs(), template[1], template[2]])
        return dict(zip(CHANNELS, sample(self.maps, HALF, mirrored), strict=True))

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.maps.device

    def hull(self, template: torch.Tensor) -> torch.Tensor:
        """[N] mm inside the brain's smooth envelope at [3, N] template positions."""
        mirrored = torch.stack([template[0].abs(), template[1], template[2]])
        row = CHANNELS.index("hull")
        return sample(self.maps[row : row + 1], HALF, mirrored)[0]

    def side(self, template: torch.Tensor) -> torch.Tensor:
        """[N] mm right of the midline (left is negative)."""
        return template[0]

    def tissues(
        self, template: torch.Tensor, width: float, squeeze: torch.Tensor | float = 0.0
    ) -> dict:
        """Healthy tissues at [3, N] template positions; see the function ``tissues``."""
        return tissues(self, template, width, squeeze)


def _ellipsoid(p: torch.Tensor, center: tuple, radii: tuple) -> torch.Tensor:
    """Signed distance (positive inside), to first order."""
    shape = (3, *([1] * (p.dim() - 1)))
    c, r = p.new_tensor(center).view(shape), p.new_tensor(radii).view(shape)
    q = (p - c) / r
    k0 = q.square().sum(0).sqrt()
    k1 = (q / r).square().sum(0).sqrt().clamp(min=1e-3)
    return k0 * (1.0 - k0) / k1


def _tube(p: torch.Tensor, a: tuple, b: tuple, ra: float, rb: float) -> torch.Tensor:
    """Signed distance (positive inside) to a round segment whose radius runs from ra to rb."""
    start, along = (
        p.new_tensor(a).view(3, 1, 1, 1),
        p.new_tensor([q - w for w, q in zip(a, b, strict=True)]),
    )
    rel = p - start
    t = (rel * along.view(3, 1, 1, 1)).sum(0).div(along.square().sum()).clamp(0.0, 1.0)
    return ra + (rb - ra) * t - (rel - along.view(3, 1, 1, 1) * t).square().sum(0).sqrt()


def _union(a: torch.Tensor, b: torch.Tensor, blend: float) -> torch.Tensor:
    """Smooth maximum of two signed distances: a union whose crease is rounded over ``blend`` mm."""
    h = (blend - (a - b).abs()).clamp(min=0.0) / blend
    return torch.maximum(a, b) + h * h * blend * 0.25


def _cut(a: torch.Tensor, b: torch.Tensor, blend: float) -> torch.Tensor:
    """Smooth minimum: what lies in both."""
    return -_union(-a, -b, blend)


def build_atlas(draw: Draw, device: torch.device | str) -> Atlas:
    """Draw one head's template."""
    p = HALF.points(device)
    age = (
        draw.uniform()
    )  # widens ventricles and sulci and brings white-matter hyperintensities, as years do
    habit = {
        "age": age,
        "sulcus": 0.15 + 0.75 * age * draw.uniform(0.5, 1.0) + draw.uniform(0.0, 0.25),
        "fissure": draw.uniform(0.3, 0.8) + 0.6 * age,
        "cortex": draw.uniform(2.3, 3.2),
        "caps": draw.uniform(0.0, 0.9) * (0.3 + 0.7 * age),
        "haze": draw.uniform(0.0, 0.6),
        "haze_mm": draw.uniform(5.0, 18.0),
        "wmh_level": 3.6 - 1.9 * age * draw.uniform(),
        "vein_radius": draw.uniform(0.6, 1.4),
        "vein_share": draw.uniform(-0.6, 1.3),
        "folia": draw.uniform(12.0, 17.0),
    }
    shapes = _brain_shapes(p, draw)
    shapes |= _deep_shapes(p, draw, age)
    shapes["sheet"] = _fissures(p, draw)
    shapes |= _folding(p, draw, shapes["cerebrum"], device)
    shapes |= _vasculature(p, draw, shapes["hull"])
    shapes["hyper"] = random_field(draw, HALF, draw.uniform(9.0, 16.0), device=device)
    shapes["thickness"] = random_field(draw, HALF, 25.0, device=device)
    return Atlas(torch.stack([shapes[name] for name in CHANNELS]), habit)


def _brain_shapes(p: torch.Tensor, draw: Draw) -> dict[str, torch.Tensor]:
    _, y, z = p
    j = partial(draw.normal, 0.0)
    main = _ellipsoid(p, (0.0, 0.0, 18.0 + j(1)), (67.0 + j(2), 87.0 + j(2), 60.0 + j(2)))
    taper = (
        0.055 * y.clamp(min=0.0) ** 1.25 * 0.35
    )  # the frontal lobes are narrower than the parietal
    floor = torch.where(
        y > 0, -20.0 + 0.06 * y, -20.0 - 0.13 * y
    )  # the orbital roof and the tentorium
    main = _cut(main - taper, z - floor, 14.0)
    temporal = _ellipsoid(
        p, (43.0 + j(1), 6.0 + j(2), -19.0 + j(1)), (24.0 + j(1), 47.0 + j(2), 25.0 + j(1))
    )
    cerebrum = _union(main, temporal, 8.0)
    lobe = _ellipsoid(
        p, (22.0, -50.0 + j(2), -40.0 + j(1)), (31.0 + j(1), 28.0 + j(1), 22.0 + j(1))
    )
    vermis = _ellipsoid(p, (0.0, -48.0, -36.0), (13.0, 24.0, 22.0))
    cerebellum = torch.minimum(_union(lobe, vermis, 6.0), -cerebrum - 1.2)
    stem = _tube(p, (0.0, -4.0, 2.0), (0.0, -22.0, -68.0), 15.0, 8.5)
    stem = _union(stem, _ellipsoid(p, (0.0, -9.0, -28.0), (17.0, 14.0, 15.0)), 5.0)
    hull = _union(_union(cerebrum, cerebellum, 16.0), stem, 14.0)
    return {"cerebrum": cerebrum, "cerebellum": cerebellum, "stem": stem, "hull": hull}


def _deep_shapes(p: torch.Tensor, draw: Draw, age: float) -> dict[str, torch.Tensor]:
    size = draw.uniform(0.85, 1.3) + 0.75 * age * draw.uniform(0.3, 1.0)
    nodes = {
        "tip": ((8.0, 47.0, 4.0), 3.0), "horn": ((10.0, 30.0, 15.0), 5.2), "body": ((11.0, 6.0, 23.0), 4.6),
        "bend": ((19.0, -20.0, 21.0), 5.2), "atrium": ((26.0, -29.0, 10.0), 6.6), "back": ((23.0, -58.0, 6.0), 1.8),
        "inferior": ((36.0, -10.0, -13.0), 2.2), "end": ((33.0, 8.0, -20.0), 1.2),
    }  # fmt: skip
    links = (
        "tip horn",
        "horn body",
        "body bend",
        "bend atrium",
        "atrium back",
        "atrium inferior",
        "inferior end",
    )
    lateral, flat = None, (1.25, 1.0, 0.8)  # higher than wide
    squeezed = p * p.new_tensor(flat).view(3, 1, 1, 1)
    for link in links:
        (a, ra), (b, rb) = (nodes[name] for name in link.split())
        a, b = (tuple(v * f for v, f in zip(node, flat, strict=True)) for node in (a, b))
        part = _tube(squeezed, a, b, ra * size, rb * size)
        lateral = part if lateral is None else _union(lateral, part, 4.0)
    third = _ellipsoid(p, (0.0, 4.0, 0.0), (1.2 + 2.0 * size, 14.0, 10.0))
    fourth = _ellipsoid(p, (0.0, -30.0, -34.0), (2.0 + 4.0 * size, 5.0, 9.0))
    septum = p[0] - 0.8
    ventricle = torch.maximum(torch.minimum(lateral, septum), torch.maximum(third, fourth))
    j = partial(draw.normal, 0.0)
    caudate = _union(
        _ellipsoid(p, (14.5 + 2.5 * size, 28.0, 9.0), (5.0 + j(0.3), 10.0, 9.0)),
        _tube(p, (16.0 + 2.5 * size, 20.0, 16.0), (21.0 + 2.5 * size, -12.0, 24.0), 4.0, 2.0),
        3.0,
    )
    putamen = _ellipsoid(p, (27.0, 17.0 + j(1), 2.0), (5.0 + j(0.3), 17.0, 10.5))
    return {
        "ventricle": ventricle,
        "striatum": torch.maximum(caudate, putamen),
        "pallidum": _ellipsoid(p, (20.5, 11.0, 0.0), (4.0, 9.0, 6.5)),
        "thalamus": _ellipsoid(p, (11.5 + size, -3.0 + j(1), 8.0), (8.5, 15.0, 9.0)),
        "choroid": _choroid(p, nodes["atrium"][0], size, draw),
    }


def _choroid(p: torch.Tensor, atrium: tuple, size: float, draw: Draw) -> torch.Tensor:
    glomus = _ellipsoid(
        p, (atrium[0] - 1.0, atrium[1] + 3.0, atrium[2]), (2.6 * size, 5.0 * size, 3.2 * size)
    )
    strand = _tube(p, (8.0, 10.0, 18.0), (18.0, -20.0, 17.0), 0.8, 1.2)
    return torch.maximum(glomus, strand) + draw.uniform(-0.8, 0.6)


def _fissures(p: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Distance to the falx, the Sylvian fissure and the insula's sheet (never negative)."""
    x, y, z = p
    callosum = 1.0 - (((y - 10.0) / 40.0) ** 2 + ((z - 6.0) / 23.0) ** 2).sqrt()
    falx = (x.square() + (callosum * 25.0).clamp(min=0.0).square()).sqrt()
    rise = draw.uniform(0.25, 0.4)
    across = (z - (-4.0 - rise * (y - 12.0))) / math.sqrt(1 + rise * rise)
    beyond = torch.maximum(y - 42.0, -38.0 - y).clamp(min=0.0)
    inner = draw.uniform(36.0, 40.0)
    sylvian = (across.square() + (inner - x).clamp(min=0.0).square() + beyond.square()).sqrt()
    insula = (
        (x - inner).square() + (across.abs() - 11.0).clamp(min=0.0).square() + beyond.square()
    ).sqrt()
    return torch.minimum(falx, torch.minimum(sylvian, insula))


def _folding(
    p: torch.Tensor, draw: Draw, depth: torch.Tensor, device: torch.device | str
) -> dict[str, torch.Tensor]:
    """The field whose zero sheets are sulci, drawn so that the sheets run down from the surface."""
    field = random_field(draw, HALF, draw.uniform(17.0, 22.0), 0.2, device)
    deep = depth.clamp(0.0, 30.0)
    middle = p.new_tensor((20.0, 0.0, 12.0)).view(3, 1, 1, 1)
    outward = p - middle
    outward = outward / outward.square().sum(0).sqrt().clamp(min=5.0)
    lifted = (
        p + 0.75 * deep * outward
    )  # walls follow the way out: the same field value along most of the depth
    fold = sample(field[None], HALF, lifted.reshape(3, -1)).reshape(p.shape[1:])
    slope = torch.stack(torch.gradient(fold, spacing=HALF.step)).square().sum(0).sqrt()
    reach = 16.0 + draw.uniform(0.0, 6.0) + 6.0 * random_field(draw, HALF, 35.0, device=device)
    return {"fold": fold, "fold_slope": slope.clamp(min=0.03), "sulcus_depth": reach}


def _vasculature(p: torch.Tensor, draw: Draw, hull: torch.Tensor) -> dict[str, torch.Tensor]:
    x = p[0]
    vein = random_field(draw, HALF, draw.uniform(22.0, 34.0), device=p.device)
    slope = torch.stack(torch.gradient(vein, spacing=HALF.step)).square().sum(0).sqrt()
    sinus = draw.uniform(1.5, 5.0) - (x.square() + (hull - 1.0).square()).sqrt()
    sinus = torch.where((p[2] > 0) | (p[1] < -60), sinus, -9.0 * torch.ones_like(sinus))
    trunks = [
        sinus,
        _tube(p, (0.0, -26.0, 12.0), (0.0, -62.0, 2.0), 1.4, 2.2),  # vein of Galen, straight sinus
        _tube(p, (5.0, 12.0, -19.0), (22.0, 15.0, -16.0), 1.3, 1.2),  # middle cerebral artery
        _tube(p, (22.0, 15.0, -16.0), (38.0, 14.0, -6.0), 1.2, 1.1),
        _tube(p, (2.0, 14.0, -18.0), (1.5, 44.0, -2.0), 1.0, 0.8),  # anterior cerebral artery
        _tube(p, (0.0, 4.0, -24.0), (0.0, 3.0, -48.0), 1.3, 1.5),  # basilar artery
        _tube(p, (28.0, -74.0, -20.0), (56.0, -38.0, -24.0), 2.2, 2.4),  # transverse sinus
    ]
    trunk = torch.stack(trunks).amax(0)
    return {"vein": vein, "vein_slope": slope.clamp(min=0.02), "trunk": trunk}


def place(
    draw: Draw,
    device: torch.device | str,
    angle_deg: float,
    shift_mm: float,
    warp_mm: float,
    size: tuple[float, float],
) -> torch.Tensor:
    """[3, *WORLD.shape] template position of every coarse world position: rotation, shear, scale, shift, warp."""
    angles = [math.radians(draw.uniform(-angle_deg, angle_deg)) for _ in range(3)]
    linear = torch.eye(3, dtype=torch.float64)
    for a, angle in enumerate(angles):
        turn = torch.eye(3, dtype=torch.float64)
        b, c = (a + 1) % 3, (a + 2) % 3
        turn[b, b] = turn[c, c] = math.cos(angle)
        turn[b, c], turn[c, b] = -math.sin(angle), math.sin(angle)
        linear = turn @ linear
    shear = torch.tensor(
        [[draw.normal(0.0, 0.012) if i != j else 0.0 for j in range(3)] for i in range(3)]
    )
    size = draw.uniform(*size)
    scale = torch.diag(
        torch.tensor([1.0 / (size * (1.0 + draw.normal(0.0, 0.02))) for _ in range(3)])
    )
    matrix = (scale.double() @ (linear + shear.double())).to(device, torch.float32)
    shift = torch.tensor(
        [draw.normal(0.0, shift_mm / 2) for _ in range(3)], device=device, dtype=torch.float32
    )
    shift[2] -= 8.0  # the brain's extent is not centered on the commissures' height
    world = WORLD.points(device)
    moved = (matrix @ (world - shift.view(3, 1, 1, 1)).reshape(3, -1)).reshape(world.shape)
    strength = draw.uniform(0.4 * warp_mm, warp_mm)
    warp = torch.stack(
        [random_field(draw, BROAD, draw.uniform(60.0, 110.0), device=device) for _ in range(3)]
    )
    return moved + strength * upsample(warp, BROAD, WORLD.axes(device))


def tissues(
    atlas: Atlas, template: torch.Tensor, width: float, squeeze: torch.Tensor | float = 0.0
) -> dict:
    """Cut a head into healthy tissues.

    Args:
        atlas: the head.
        template: [3, N] template positions.
        width: mm over which a surface is smeared (partial volume): the voxel's size.
        squeeze: [N] or number, 0..1: how far sulci are closed here (mass effect).

    Returns:
        ``parts`` [len(TISSUES), N] fractions that sum to one, and the signed distances that the tumor needs:
        ``hull``, ``ventricle``, ``pial`` [N] in mm.
    """
    m, habit = atlas.at(template), atlas.habit
    depth = m["cerebrum"]
    to_wall = m["fold"].abs() / m["fold_slope"]
    open_ = 1.0 - 0.85 * squeeze
    near_top = 1.0 + 1.2 * torch.exp(-depth.clamp(min=0.0) / 4.0)
    sulcus = (to_wall.square() + (depth - m["sulcus_depth"]).clamp(min=0.0).square()).sqrt()
    sulcus = sulcus - habit["sulcus"] * near_top * open_
    pial = torch.minimum(torch.minimum(depth, sulcus), m["sheet"] - habit["fissure"] * open_)
    cortex = habit["cortex"] * (1.0 + 0.12 * m["thickness"])
    parts = torch.zeros(len(TISSUES), depth.shape[0], device=depth.device)
    brain, white = cover(pial, width), cover(pial - cortex, width)
    parts[_ROW["wm"]], parts[_ROW["gm"]], parts[_ROW["csf"]] = white, brain - white, 1.0 - brain
    _paint_cerebellum(parts, template, m, habit, width)
    paint(parts, "stem", cover(m["stem"], width) * (1.0 - parts[_ROW["gm"]]))
    inside = cover(depth - 4.0, 4.0)
    for name in ("striatum", "thalamus", "pallidum"):
        paint(parts, name, cover(m[name], width) * inside)
    paint(parts, "wmh", hyperintensities(m, habit) * parts[_ROW["wm"]])
    paint(parts, "ventricle", cover(m["ventricle"], width))
    paint(parts, "choroid", cover(torch.minimum(m["choroid"], m["ventricle"] + 0.8), width))
    course = (
        torch.minimum(to_wall, m["hull"].abs()).square() + (m["vein"] / m["vein_slope"]).square()
    ).sqrt()
    veins = cover(habit["vein_radius"] - course, width) * cover(m["sulcus_depth"] - depth, 4.0)
    veins = veins * torch.sigmoid((m["thickness"] - habit["vein_share"]) / 0.25)
    paint(parts, "vessel", torch.maximum(veins, cover(m["trunk"], width)))
    return {
        "parts": parts,
        "hull": m["hull"],
        "ventricle": m["ventricle"],
        "pial": pial,
    }


def paint(parts: torch.Tensor, name: str, weight: torch.Tensor) -> None:
    """Lay a tissue over what is there, in place, so that the [len(TISSUES), N] fractions keep summing to one."""
    parts.mul_(1.0 - weight)
    parts[_ROW[name]].add_(weight)


def _paint_cerebellum(
    parts: torch.Tensor, template: torch.Tensor, m: dict, habit: dict, width: float
) -> None:
    y, z = template[1] + 34.0, template[2] + 36.0
    radius = (y.square() + z.square()).sqrt()
    wall = (
        (torch.sin(habit["folia"] * torch.atan2(z, -y) + 0.8 * m["thickness"])).abs()
        * radius
        / habit["folia"]
    )
    depth = m["cerebellum"]
    fold = (wall.square() + (depth - 10.0).clamp(min=0.0).square()).sqrt() - 0.25
    pial = torch.minimum(depth, fold)
    whole, white = cover(pial, width), cover(pial - 1.7, width)
    paint(parts, "cb_gm", whole)
    paint(parts, "wm", torch.minimum(white, whole) * cover(depth - 1.0, 1.0))


def hyperintensities(m: dict, habit: dict) -> torch.Tensor:
    """Caps, bands and a broad haze along the ventricles, spots in deep white matter: bright in FLAIR, not tumor."""
    caps = (
        habit["caps"]
        * torch.exp(-(-m["ventricle"]).clamp(min=0.0) / 2.5)
        * (1.0 + 0.4 * m["hyper"])
    )
    haze = habit["haze"] * torch.exp(-(-m["ventricle"]).clamp(min=0.0) / habit["haze_mm"])
    caps = torch.maximum(caps, haze * (1.0 + 0.2 * m["hyper"]))
    near = torch.exp(-((-m["ventricle"] - 12.0).clamp(min=0.0)) / 10.0)
    spots = torch.sigmoid((m["hyper"] + 0.8 * near - habit["wmh_level"]) / 0.12)
    return torch.maximum(caps.clamp(0.0, 1.0), spots)


def template_at(coarse: torch.Tensor, axes: list[torch.Tensor]) -> torch.Tensor:
    """[3, I, J, K] template positions on a regular world grid, from the coarse placement."""
    return upsample(coarse, WORLD, axes)
