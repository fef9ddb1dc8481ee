"""A head from an anatomical label map of a person: FreeSurfer's and SynthSeg's ids, or anything that uses them.

The map is brought into the template's frame of ``anatomy.py`` (RAS in mm, midline at x = 0, thalami where the
procedural head has them), so that placement, tumor growth and contrast are the same code for both kinds of head.
What a label map lacks is drawn per case: vessels, choroid plexus, white-matter hyperintensities, and the case's warp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from medmap.errors import InputDataError, MissingInputError
from medmap.io.nifti import read_nifti
from medmap.phantom.anatomy import TISSUES, hyperintensities, paint
from medmap.phantom.fields import Draw, Lattice, cover, random_field, sample
from medmap.resampling import reorient

IDS: dict[str, tuple[int, ...]] = {
    "wm": (2, 41, 7, 46, 78, 79, 85, *range(251, 256), *range(3000, 5000)),
    "gm": (3, 42, 17, 53, 18, 54, 19, 20, 55, 56, 80, *range(1000, 3000)),
    "ventricle": (4, 43, 5, 44, 14, 15, 72),
    "cb_gm": (8, 47),
    "thalamus": (9, 10, 48, 49),
    "striatum": (11, 12, 26, 50, 51, 58),
    "pallidum": (13, 52),
    "stem": (16, 28, 60, 170, 171, 172, 173, 174, 175),
    "wmh": (25, 57, 77),
    "choroid": (31, 63),
    "csf": (24,),
}
"""Tissue -> ids of FreeSurfer's color table (surfer.nmr.mgh.harvard.edu, FreeSurferColorLUT)."""

LEFT = (
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    17,
    18,
    25,
    26,
    28,
    *range(1000, 2000),
    *range(3000, 4000),
)
RIGHT = (
    41,
    42,
    43,
    44,
    46,
    47,
    48,
    49,
    50,
    51,
    52,
    53,
    54,
    57,
    58,
    60,
    *range(2000, 3000),
    *range(4000, 5000),
)

THALAMI = (0.0, -3.0, 8.0)
"""Middle between the thalami in the template's frame."""

COARSE_MM = 2.0
FIELDS = Lattice((-110.0, -120.0, -110.0), 3.5, (64, 70, 64))
"""Where the random fields of one case live, in the template's frame."""


@dataclass(frozen=True)
class LabelMap:
    """One label map, prepared once.

    Attributes:
        tissue: [I, J, K] uint8 rows of ``TISSUES``, 255 outside the brain; on ``lattice``.
        lattice: 1 mm voxels in the template's frame.
        distances: [4, I', J', K'] float32 mm on ``coarse``: inside the smooth envelope, inside the cerebrum, inside
            the ventricles, and right of the midline.
        coarse: their lattice.
    """

    tissue: torch.Tensor
    lattice: Lattice
    distances: torch.Tensor
    coarse: Lattice


def find_label_maps(path: str | Path) -> tuple[Path, ...]:
    """A NIfTI file, or every one of a folder, sorted by name. Raises MissingInputError when there is none."""
    path = Path(path)
    found = (
        sorted(p for p in path.iterdir() if p.name.endswith((".nii", ".nii.gz")))
        if path.is_dir()
        else [path]
    )
    if not found or not found[0].is_file():
        raise MissingInputError(
            f"There is no label map at {path}.",
            "Give a NIfTI file with FreeSurfer ids, or a folder of such files.",
        )
    return tuple(found)


@lru_cache(maxsize=32)
def read_label_map(path: Path) -> LabelMap:
    """Read and prepare a label map (a few seconds, kept in memory: about 15 MB).

    Raises:
        InputDataError: it has no white matter and gray matter under FreeSurfer's ids, or voxels far from 1 mm.
    """
    volume = read_nifti(path, modality="labels")
    array, grid = reorient(np.asarray(volume.array), volume.grid)
    ids = np.rint(array).astype(np.int32)
    if np.abs(grid.spacing - 1.0).max() > 0.35:
        raise InputDataError(
            f"The label map {path.name} does not have voxels of about 1 mm.", "Resample it to 1 mm."
        )
    occupied = (ids > 0) & (ids < 500) & (ids != 24) | (ids >= 1000)
    if not occupied.any():
        raise InputDataError(f"The label map {path.name} is empty.", "Choose another file.")
    lines = (occupied.any(axis=(1, 2)), occupied.any(axis=(0, 2)), occupied.any(axis=(0, 1)))
    box = tuple(
        slice(max(int(w.argmax()) - 14, 0), len(w) - int(w[::-1].argmax()) + 14) for w in lines
    )
    ids = ids[box]
    tissue = _tissue_rows(ids)
    if not all((tissue == TISSUES.index(name)).sum() > 50_000 for name in ("wm", "gm")):
        raise InputDataError(
            f"The label map {path.name} has no white and gray matter under FreeSurfer's ids.",
            "Use the output of FreeSurfer, FastSurfer or SynthSeg (2/41 white matter, 3/42 cortex).",
        )
    origin = _origin(ids)
    lattice = Lattice(origin, 1.0, tissue.shape)
    coarse = Lattice(origin, COARSE_MM, tuple(-(-n // 2) for n in tissue.shape))
    distances = torch.from_numpy(_distances(ids[::2, ::2, ::2], tissue[::2, ::2, ::2], coarse))
    return LabelMap(torch.from_numpy(np.ascontiguousarray(tissue)), lattice, distances, coarse)


def _tissue_rows(ids: np.ndarray) -> np.ndarray:
    """Ids -> rows of TISSUES; unknown ids inside the brain take the nearest known tissue, 255 outside."""
    from scipy.ndimage import distance_transform_edt

    table = np.full(max(int(ids.max()), 5000) + 1, 254, np.uint8)
    table[0] = 255
    table[500:1000] = 255  # what lies around the brain, in SynthSeg's numbering
    for name, values in IDS.items():
        table[list(values)] = TISSUES.index(name)
    rows = table[np.clip(ids, 0, None)]
    unknown = rows == 254
    if unknown.any():
        known = (rows != 254) & (rows != 255)
        nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
        rows[unknown] = rows[tuple(n[unknown] for n in nearest)]
    return rows


def _origin(ids: np.ndarray) -> tuple[float, float, float]:
    """Position of voxel 0 in the template's frame: from the thalami, else from the brain's bounding box."""
    thalami = np.argwhere(np.isin(ids, IDS["thalamus"]))
    if len(thalami) > 1000:
        middle = thalami.mean(0)
        left, right = (np.argwhere(np.isin(ids, side))[:, 0] for side in ((2, 3), (41, 42)))
        if len(left) and len(right):
            middle[0] = 0.5 * (left.mean() + right.mean())
        target = THALAMI
    else:
        middle, target = (np.array(ids.shape) - 1) / 2, (0.0, 0.0, 4.0)
    return tuple(float(t - m) for t, m in zip(target, middle, strict=True))


def _distances(ids: np.ndarray, tissue: np.ndarray, coarse: Lattice) -> np.ndarray:
    """Signed distances in mm: envelope, cerebrum, ventricles, and side (right positive)."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    def signed(mask: np.ndarray, soften: float) -> np.ndarray:
        inner, outer = distance_transform_edt(mask), distance_transform_edt(~mask)
        return gaussian_filter(COARSE_MM * (inner - outer), soften).astype(np.float32)

    def closed(mask: np.ndarray, mm: float) -> np.ndarray:
        grown = distance_transform_edt(~mask) < mm / COARSE_MM
        return distance_transform_edt(grown) > mm / COARSE_MM

    rows = {name: TISSUES.index(name) for name in IDS}
    brain = (tissue != 255) & (tissue != rows["csf"])
    hind = np.isin(ids, (7, 8, 16, 46, 47, 15))
    left, right = np.isin(ids, LEFT), np.isin(ids, RIGHT)
    if left.any() and right.any():
        side = 0.5 * COARSE_MM * (distance_transform_edt(~left) - distance_transform_edt(~right))
    else:
        side = np.broadcast_to(coarse.axes()[0].numpy()[:, None, None], ids.shape)
    ventricle = signed(tissue == rows["ventricle"], 0.5)
    maps = (
        signed(closed(brain, 8.0), 0.8),
        signed(closed(brain & ~hind, 8.0), 0.5),
        ventricle,
        side,
    )
    return np.stack(maps).astype(np.float32)


@dataclass(frozen=True)
class LabelAtlas:
    """One case's head from a label map; the same methods as ``anatomy.Atlas``.

    Attributes:
        prepared: the label map.
        parts: [len(TISSUES), I, J, K] softened fractions on its lattice.
        distances: as in ``LabelMap``, on the device.
        fields: [4, *FIELDS.shape]: hyper, thickness, vein, slope of vein.
        habit: scalars of this head.
    """

    prepared: LabelMap
    parts: torch.Tensor
    distances: torch.Tensor
    fields: torch.Tensor
    habit: dict[str, float]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.parts.device

    def at(self, template: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the tumor needs to know at [3, N] template positions, as [N] tensors in mm."""
        _, cerebrum, ventricle, side = sample(self.distances, self.prepared.coarse, template)
        return {"cerebrum": cerebrum, "ventricle": ventricle, "sheet": side.abs()}

    def hull(self, template: torch.Tensor) -> torch.Tensor:
        """[N] mm inside the brain's smooth envelope at [3, N] template positions."""
        return sample(self.distances[:1], self.prepared.coarse, template)[0]

    def side(self, template: torch.Tensor) -> torch.Tensor:
        """[N] mm right of the midline (left is negative)."""
        return sample(self.distances[3:], self.prepared.coarse, template)[0]

    def tissues(
        self, template: torch.Tensor, width: float, squeeze: torch.Tensor | float = 0.0
    ) -> dict:
        """Tissue fractions and distances; see ``anatomy.tissues``."""
        hull, _, ventricle, side = sample(self.distances, self.prepared.coarse, template)
        parts = sample(self.parts, self.prepared.lattice, template)
        hyper, thickness, vein, slope = sample(self.fields, FIELDS, template)
        rows = {name: TISSUES.index(name) for name in TISSUES}
        closed = parts[rows["csf"]] * 0.8 * squeeze  # sulci close around a mass
        parts[rows["csf"]] -= closed
        parts[rows["gm"]] += closed
        csf = parts[rows["csf"]].clone()
        known = {"ventricle": ventricle, "hyper": hyper}
        paint(parts, "wmh", hyperintensities(known, self.habit) * parts[rows["wm"]])
        self._paint_choroid(parts, ventricle, hyper, template)
        course = (
            torch.minimum(hull.abs(), 6.0 * (1.0 - csf)).square() + (vein / slope).square()
        ).sqrt()
        veins = cover(self.habit["vein_radius"] - course, width) * cover(12.0 - hull, 4.0)
        veins = veins * torch.sigmoid((thickness - self.habit["vein_share"]) / 0.25)
        upper = (template[2] > 0.0) | (template[1] < -60.0)
        sinus = self.habit["sinus"] - (side.square() + (hull - 1.0).square()).sqrt()
        paint(
            parts, "vessel", torch.maximum(veins, cover(sinus, width) * upper) * (0.3 + 0.7 * csf)
        )
        return {"parts": parts, "hull": hull, "ventricle": ventricle, "pial": 2.0 * (0.5 - csf)}

    def _paint_choroid(self, parts, ventricle, hyper, template) -> None:
        where = cover(self.habit["choroid"] - (ventricle - 2.5).abs() + hyper, 1.0)
        body = (template[1] < 5.0) & (template[0].abs() > 3.0) & (ventricle > 0)
        paint(parts, "choroid", where * body)


def build_label_atlas(draw: Draw, paths: Sequence[Path], device: torch.device | str) -> LabelAtlas:
    """Draw one of the label maps, mirrored every other time, and this head's habits."""
    prepared = read_label_map(paths[min(int(draw.uniform(0, len(paths))), len(paths) - 1)])
    if draw.chance(0.5):
        prepared = _mirrored(prepared)
    age = draw.uniform()
    habit = {
        "age": age,
        "caps": draw.uniform(0.0, 0.9) * (0.3 + 0.7 * age),
        "haze": draw.uniform(0.0, 0.6),
        "haze_mm": draw.uniform(5.0, 18.0),
        "wmh_level": 3.6 - 1.9 * age * draw.uniform(),
        "vein_radius": draw.uniform(0.5, 1.3),
        "vein_share": draw.uniform(-0.6, 1.3),
        "sinus": draw.uniform(1.0, 4.5),
        "choroid": draw.uniform(-1.0, 1.2),
    }
    wavelengths = (draw.uniform(9.0, 16.0), 25.0, draw.uniform(22.0, 34.0))
    hyper, thickness, vein = (random_field(draw, FIELDS, w, device=device) for w in wavelengths)
    slope = (
        torch.stack(torch.gradient(vein, spacing=FIELDS.step))
        .square()
        .sum(0)
        .sqrt()
        .clamp(min=0.02)
    )
    fields = torch.stack([hyper, thickness, vein, slope])
    parts = _fractions(prepared.tissue.to(device), draw.uniform(0.45, 0.75))
    return LabelAtlas(prepared, parts, prepared.distances.to(device), fields, habit)


def _mirrored(prepared: LabelMap) -> LabelMap:
    """Left and right exchanged about x = 0."""

    def turned(lattice: Lattice) -> Lattice:
        last = lattice.origin[0] + lattice.step * (lattice.shape[0] - 1)
        return Lattice((-last, *lattice.origin[1:]), lattice.step, lattice.shape)

    distances = prepared.distances.flip(1).clone()
    distances[3] *= -1.0
    return LabelMap(
        prepared.tissue.flip(0), turned(prepared.lattice), distances, turned(prepared.coarse)
    )


def _fractions(tissue: torch.Tensor, sigma: float) -> torch.Tensor:
    """[len(TISSUES), *S] fractions: each tissue's voxels blurred by ``sigma`` mm; all that is no tissue is CSF."""
    side = math.exp(-0.5 / sigma**2)
    middle, side = 1.0 / (1.0 + 2.0 * side), side / (1.0 + 2.0 * side)
    rows = [
        int(row) for row in torch.unique(tissue).tolist() if row not in (255, TISSUES.index("csf"))
    ]
    hard = torch.stack([(tissue == row).float() for row in rows])
    for axis in (1, 2, 3):
        soft = hard * middle
        count = hard.shape[axis]
        for here, there in ((0, 1), (1, 0)):
            soft.narrow(axis, here, count - 1).add_(hard.narrow(axis, there, count - 1), alpha=side)
        hard = soft
    parts = torch.zeros(len(TISSUES), *tissue.shape, device=tissue.device)
    parts[rows] = hard
    parts[TISSUES.index("csf")] = (1.0 - hard.sum(0)).clamp(min=0.0)
    return parts
