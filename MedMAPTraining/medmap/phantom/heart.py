"""A synthetic heart after an infarct, as MyoPS2020 shows it: a short-axis stack of thick slices in three contrasts.

What each contrast tells is different by construction, as it is in patients: bSSFP separates blood from muscle and shows
neither scar nor edema; in LGE normal muscle is nulled and scar is bright; T2 (black blood, fat suppressed) shows the
edema within which the scar lies. Signals are plausible, not calibrated; the shapes are discs, rings and crescents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from medmap.errors import UsageError
from medmap.phantom.fields import Draw, Lattice, cover, random_field, upsample

TISSUES = ("air", "lung", "fat", "muscle", "liver", "blood", "myocardium", "edema", "scar")
SIGNALS = {
    "bssfp": (0.03, 0.08, 0.90, 0.33, 0.50, 1.00, 0.42, 0.46, 0.42),
    "lge": (0.03, 0.09, 0.70, 0.22, 0.35, 0.60, 0.13, 0.17, 1.00),
    "t2": (0.03, 0.07, 0.16, 0.36, 0.40, 0.14, 0.46, 0.88, 0.80),
}
"""Mean signal of every tissue in every contrast; bSSFP does not tell scar from muscle, LGE hardly tells edema."""
LABELS = ("NMYO", "LVB", "RVB", "ED", "SCAR")
"""Class indices 1..5, as in ``medmap.task.MYOPS``."""
FIELD_MM = 320.0
_SUBSLICES = 3
_CHEST = Lattice((-168.0, -168.0, -80.0), 6.0, (57, 57, 28))


@dataclass(frozen=True)
class Heart:
    """A synthetic case. Array axes: i toward the patient's left and back, j upwards, k from base to apex.

    Attributes:
        images: modality name -> [I, J, K] float32, arbitrary units, positive; there is no constant background.
        label: [I, J, K] uint8 class indices, see ``LABELS``.
        affine: [4, 4] float64, voxel -> world RAS in mm; oblique, as short-axis slices are.
        facts: JSON-ready: ``seed``, ``volumes_ml`` per label, ``spacing_mm``.
    """

    images: dict[str, torch.Tensor]
    label: torch.Tensor
    affine: np.ndarray
    facts: dict


def generate_heart(seed: int, *, spacing: float = 1.0, device: torch.device | str = "cpu") -> Heart:
    """Make one case; the same seed is the same heart at any spacing.

    Args:
        seed: any integer.
        spacing: mm of a pixel within slices; slices are 3 to 6, and 10 to 14 mm thick.
        device: where to compute and where the tensors lie.

    Raises:
        UsageError: a spacing that no such scan has.
    """
    if not 0.5 <= spacing <= 4.0:
        raise UsageError(
            f"A heart at {spacing} mm cannot be made.", "Give a spacing between 0.5 and 4 mm."
        )
    with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        return _generate(int(seed), float(spacing), torch.device(device))


def _generate(seed: int, spacing: float, device: torch.device) -> Heart:
    draw = Draw(seed, "heart")
    count, thickness = int(draw.uniform(3, 6.999)), draw.uniform(10.0, 14.0)
    size = round(FIELD_MM / spacing)
    axis = (torch.arange(size, device=device) - (size - 1) / 2) * spacing
    slices = (torch.arange(count, device=device) - (count - 1) / 2) * thickness
    shape = _shape(draw, count * thickness)
    thorax = _thorax(Draw(seed, "thorax"))
    means = _means(Draw(seed, "contrast"), device)
    shifts = Draw(seed, "shift")
    offsets = [[shifts.uniform(-0.8, 0.8) for _ in range(2)] for _ in SIGNALS]
    images = torch.zeros(len(SIGNALS), size, size, count, device=device)
    for sub in range(_SUBSLICES):  # a thick slice is the mean over its thickness
        at = slices + ((sub + 0.5) / _SUBSLICES - 0.5) * thickness
        for n, (dx, dy) in enumerate(offsets):
            parts = _parts(shape, thorax, axis + dx, axis + dy, at, spacing)
            images[n] += torch.einsum("t,tijk->ijk", means[n], parts) / _SUBSLICES
    label = _label(_parts(shape, thorax, axis, axis, slices, 1e-3), shape, axis, slices)
    images = _scanned(Draw(seed, "scanner"), images, [axis, axis, slices])
    ml = spacing**2 * thickness / 1000.0
    counts = torch.bincount(label.flatten().long(), minlength=len(LABELS) + 1).tolist()
    facts = {
        "seed": seed,
        "volumes_ml": {name: round(counts[n] * ml, 2) for n, name in enumerate(LABELS, 1)},
        "spacing_mm": [spacing, spacing, round(thickness, 3)],
    }
    affine = _affine(Draw(seed, "placement"), (size, size, count), (spacing, spacing, thickness))
    return Heart(dict(zip(SIGNALS, images, strict=True)), label, affine, facts)


def _shape(draw: Draw, length: float) -> dict:
    """What one heart looks like: lengths in mm, angles in radians; angle 0 points to the patient's left."""
    cavity = draw.uniform(19.0, 28.0)
    septum = math.pi + draw.uniform(-0.5, 0.5)
    scar = draw.uniform(-math.pi, math.pi)
    return {
        "center": (draw.uniform(-14, 14), draw.uniform(-14, 14)),
        "lean": (draw.uniform(-0.12, 0.12), draw.uniform(-0.12, 0.12)),
        "length": length * draw.uniform(1.15, 1.6),
        "cavity": cavity,
        "wall": draw.uniform(8.0, 12.0),
        "wave": [(draw.uniform(0, 0.05), draw.uniform(-math.pi, math.pi)) for _ in range(3)],
        "septum": septum,
        "right": (
            cavity * draw.uniform(1.15, 1.45),
            draw.uniform(0.75, 0.95),
            draw.uniform(0.7, 0.85),
        ),
        "papillary": [
            (septum + math.pi + s * draw.uniform(0.7, 1.1), draw.uniform(3.0, 5.0)) for s in (-1, 1)
        ],
        # Half widths of the sector along the circumference and the axis, and how far it reaches through the wall.
        "scar": (
            scar,
            draw.uniform(0.35, 1.0),
            draw.uniform(-0.3, 0.3),
            draw.uniform(0.35, 0.8),
            draw.uniform(0.4, 1.1),
        ),
        "around": (draw.uniform(0.25, 0.6), draw.uniform(0.1, 0.3)),
    }


def _thorax(draw: Draw) -> dict:
    return {
        "body": (draw.uniform(150, 185), draw.uniform(105, 125)),
        "fat": draw.uniform(8, 22),
        "lung": [
            (
                s * draw.uniform(75, 90),
                draw.uniform(0, 20),
                draw.uniform(48, 60),
                draw.uniform(55, 75),
            )
            for s in (-1, 1)
        ],
        "liver": (
            draw.uniform(-70, -40),
            draw.uniform(-85, -70),
            draw.uniform(60, 80),
            draw.uniform(25, 35),
        ),
        "aorta": (draw.uniform(45, 65), draw.uniform(-45, -20), draw.uniform(10, 14)),
    }


def _polar(
    shape: dict, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Radius, angle about the left ventricle's axis, and the place along it (0 base, 1 apex) on the grid [I, J, K]."""
    along = (z / shape["length"] + 0.42)[None, None, :]
    dx = x[:, None, None] - shape["center"][0] - shape["lean"][0] * z[None, None, :]
    dy = y[None, :, None] - shape["center"][1] - shape["lean"][1] * z[None, None, :]
    return torch.hypot(dx, dy), torch.atan2(dy, dx), along.expand(len(x), len(y), len(z))


def _walls(
    shape: dict, angle: torch.Tensor, along: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Radius of the inner and of the outer border of the left ventricle's wall, in mm."""
    taper = (1 - along.clamp(0, 0.97) ** 2.2).sqrt()
    wave = sum(a * torch.cos((n + 2) * angle + p) for n, (a, p) in enumerate(shape["wave"]))
    inner = shape["cavity"] * taper * (1 + wave) - 2 * along
    outer = inner.clamp(min=0) + shape["wall"] * (1 - 0.25 * along)
    return inner, torch.where(along > 0.97, -1.0, outer)


def _parts(
    shape: dict, thorax: dict, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, width: float
) -> torch.Tensor:
    """Share of every tissue in every voxel, [tissues, I, J, K]."""
    radius, angle, along = _polar(shape, x, y, z)
    inner, outer = _walls(shape, angle, along)
    parts = torch.zeros(len(TISSUES), *radius.shape, device=radius.device)
    parts[0] = 1

    def lay(name: str, share: torch.Tensor) -> None:
        parts.mul_(1 - share)
        parts[TISSUES.index(name)] += share

    xx, yy = x[:, None, None].expand_as(radius), y[None, :, None].expand_as(radius)
    body = _ellipse(xx, yy, 0, 0, *thorax["body"])
    lay("fat", cover(body, width))
    lay("muscle", cover(body - thorax["fat"], width))
    for side in thorax["lung"]:
        lay("lung", cover(_ellipse(xx, yy, *side), width))
    lay("liver", cover(_ellipse(xx, yy, *thorax["liver"]), width))
    ax, ay, size = thorax["aorta"]
    lay("blood", cover(size - torch.hypot(xx - ax, yy - ay), width))
    right = _right(shape, xx, yy, z, along)
    lay("fat", cover(torch.maximum(outer - radius + 5, right + 6), width))
    lay("myocardium", cover(right + 3, width))
    lay("blood", cover(torch.minimum(right, radius - outer), width))
    lay("myocardium", cover(outer - radius, width))
    edema, scar = _infarct(shape, radius, angle, along, inner, outer)
    wall = cover(torch.minimum(outer - radius, radius - inner), width)
    lay("edema", wall * cover(edema, width))
    lay("scar", wall * cover(scar, width))
    lay("blood", cover(inner - radius, width))
    for where, size in shape["papillary"]:
        px, py = 0.6 * inner * math.cos(where), 0.6 * inner * math.sin(where)
        near = torch.hypot(radius * torch.cos(angle) - px, radius * torch.sin(angle) - py)
        lay(
            "myocardium",
            0.9 * cover(torch.minimum(size * (1 - along) - near, inner - radius), width),
        )
    return parts


def _ellipse(
    x: torch.Tensor, y: torch.Tensor, cx: float, cy: float, a: float, b: float
) -> torch.Tensor:
    """About the distance in mm inside the border."""
    return (1 - torch.hypot((x - cx) / a, (y - cy) / b)) * min(a, b)


def _right(
    shape: dict, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, along: torch.Tensor
) -> torch.Tensor:
    """mm inside the right ventricle: an ellipse behind the septum, from which the left ventricle is cut later."""
    size, flat, end = shape["right"]
    scale = (1 - (along / end).clamp(0, 1) ** 2).clamp(min=1e-4).sqrt()
    far = (shape["cavity"] + shape["wall"]) * 0.95
    cos, sin = math.cos(shape["septum"]), math.sin(shape["septum"])
    dx = x - shape["center"][0] - shape["lean"][0] * z - far * cos
    dy = y - shape["center"][1] - shape["lean"][1] * z - far * sin
    across, down = dx * cos + dy * sin, -dx * sin + dy * cos
    reach = torch.hypot(across / (size * flat * scale), down / (size * 1.25 * scale))
    return torch.where(scale > 0.02, (1 - reach) * size * flat * scale, -9.0)


def _infarct(shape: dict, radius, angle, along, inner, outer) -> tuple[torch.Tensor, torch.Tensor]:
    """mm inside the edema and inside the scar; both are sectors of the wall, the scar grows from the inner border."""
    where, wide, height, tall, through = shape["scar"]
    apart = torch.remainder(angle - where + math.pi, 2 * math.pi) - math.pi
    middle = 0.5 * (inner + outer).clamp(min=1)
    more_wide, more_tall = shape["around"]
    up = along - 0.45 - height
    edema = torch.minimum(
        (wide + more_wide - apart.abs()) * middle, (tall + more_tall - up.abs()) * 60
    )
    ragged = 0.12 * torch.cos(5 * angle + 3 * where)
    depth = inner + (through + ragged) * (outer - inner).clamp(min=0) - radius
    scar = torch.minimum(
        torch.minimum((wide - apart.abs()) * middle, (tall - up.abs()) * 60), depth
    )
    return edema, scar


def _label(parts: torch.Tensor, shape: dict, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Classes from sharp parts; papillary muscles belong to the blood pool, the right ventricle's wall to nothing."""
    radius, angle, along = _polar(shape, x, x, z)
    inner, outer = _walls(shape, angle, along)
    left = radius < outer
    blood = parts[TISSUES.index("blood")] > 0.5
    xx, yy = x[:, None, None].expand_as(radius), x[None, :, None].expand_as(radius)
    right = (_right(shape, xx, yy, z, along) > 0) & ~left & blood
    label = torch.zeros(radius.shape, dtype=torch.uint8, device=radius.device)
    label[right] = 3
    label[left] = 1
    label[left & (parts[TISSUES.index("edema")] > 0.5)] = 4
    label[left & (parts[TISSUES.index("scar")] > 0.5)] = 5
    label[left & (radius < inner)] = 2
    return label


def _means(draw: Draw, device: torch.device) -> torch.Tensor:
    """[contrasts, tissues]; every mean varies by about a tenth, and what a contrast does not tell stays untold."""
    rows = []
    for name, row in SIGNALS.items():
        values = [v * math.exp(draw.normal(0, 0.1)) for v in row]
        normal, edema, scar = (TISSUES.index(t) for t in ("myocardium", "edema", "scar"))
        if name == "bssfp":
            values[scar] = values[normal]
            values[edema] = values[normal] * 1.05
        if name == "lge":
            values[edema] = values[normal] * 1.15
        if name == "t2":
            values[scar] = values[edema] * draw.uniform(0.85, 1.0)
        rows.append(values)
    return torch.tensor(rows, device=device)


def _scanned(draw: Draw, images: torch.Tensor, axes: list[torch.Tensor]) -> torch.Tensor:
    """Texture, coil sensitivity, Rician noise, gain."""
    out = []
    for image in images:
        fine = random_field(draw, _CHEST, draw.uniform(14.0, 20.0), 0.4, image.device)
        broad = random_field(draw, _CHEST, draw.uniform(150.0, 240.0), 0.4, image.device)
        texture, coil = upsample(torch.stack([fine, broad]), _CHEST, axes)
        image = image * torch.exp(0.06 * texture + draw.uniform(0.1, 0.35) * coil)
        sigma = draw.uniform(0.015, 0.05)
        real = image + sigma * draw.white(*image.shape, device=image.device)
        image = torch.hypot(real, sigma * draw.white(*image.shape, device=image.device))
        out.append(image * math.exp(draw.uniform(math.log(150.0), math.log(900.0))))
    return torch.stack(out)


def _affine(
    draw: Draw, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> np.ndarray:
    """Short-axis slices: their normal runs along the heart's axis, to the left, to the front and down."""
    normal = np.array([-0.65, 0.55, -0.52]) + [draw.uniform(-0.08, 0.08) for _ in range(3)]
    normal /= np.linalg.norm(normal)
    across = np.cross([0, 0, 1], normal)
    across /= np.linalg.norm(across)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across, np.cross(normal, across), normal], 1) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine
