"""Does a brain scan look like the modality that it is given for: T2 or not, and T1 or FLAIR beside a T2? numpy only.

What tells T2 from the others is physics: CSF is bright in it and dark in T1 and FLAIR, and it lies in the ventricles,
deep inside, and in the sulci, at the rim. So a scan is described by robust z-scores by depth below the brain's surface
and by distance from dark CSF, by tails, and by the shape of the bulk; a logistic model says T2 or not. Its weights are
in ``appearance_table``, fitted on synthetic heads by ``experiments/fit_appearance.py``.

T1 and FLAIR both have dark CSF, and one of them alone is too easily taken for the other. Beside a T2 they differ: where
CSF is left out, T1 falls where T2 rises (white matter against gray matter, edema), and FLAIR does not. T1 and T1ce are
one kind: where nothing enhances nobody can tell them apart. A wrong warning costs trust, so nothing is said unless the
evidence is strong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medmap.appearance_weights import CONSTANT, DEVIATION, MEAN, WEIGHTS
from medmap.volume import Volume

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""What something is known of."""
THIN_MM = 3.0
"""Voxels of about this size are looked at: a tenth of a second for a whole head at 1 mm."""
LAYERS_MM = (4.5, 9.0, 15.0, 27.0)
"""Borders of the layers below the brain's surface."""
FROM_CSF_MM = (3.5, 7.0, 11.0, 16.0)
"""Borders of the layers around dark CSF."""
CSF_Z = -1.5
"""Darker than this counts as CSF; in T2 it is nothing, and the layers then say so."""
FEW = 400
"""Fewer voxels say nothing."""
PERCENTILES = (1, 5, 25, 75, 95, 99)
NAMES = (
    *(f"layer {n}" for n in range(5)),
    *(f"from CSF {n}" for n in range(5)),
    "deep p3",
    "deep p97",
    *(f"p{p}" for p in PERCENTILES),
    "peak",
)
STRAY = 3.0
"""Features farther from those of the heads that were fitted on count as if they were this many deviations away."""
STRANGE = 2.5
"""Scans whose features are this many deviations away (root mean square) are nothing that the model knows."""
SURE = 3.0
"""Log-odds of T2, or of not T2, from which on something is said; of both together where two scans lean wrongly."""
EXCHANGED = 0.6
"""Difference of ``beside_t2`` from which on T1 and FLAIR are said to be exchanged; rightly placed it is about -1."""


@dataclass(frozen=True)
class Look:
    """What is kept of a scan.

    Attributes:
        z: [I, J, K] robust z-score on the thinned grid, NaN outside the brain.
        affine: [4, 4] of the thinned grid.
        features: [F] in the order of ``NAMES``.
    """

    z: np.ndarray
    affine: np.ndarray
    features: np.ndarray


def look(volume: Volume, brain: np.ndarray) -> Look | None:
    """Look at one skull-stripped scan; None where there is too little brain or no contrast to say anything.

    Args:
        volume: the scan.
        brain: [I, J, K] bool, as ``medmap.foreground.foreground`` finds it.
    """
    steps = np.maximum(1, np.round(THIN_MM / volume.grid.spacing)).astype(int)
    part = tuple(slice(None, None, int(step)) for step in steps)
    array, inside = volume.array[part], brain[part]
    if np.count_nonzero(inside) < FEW:
        return None
    values = array[inside].astype(np.float64)
    low, middle, high = np.percentile(values, [16, 50, 84])
    if not high > low:
        return None
    values = np.clip(2 * (values - middle) / (high - low), -6, 6)
    z = np.full(inside.shape, np.nan)
    z[inside] = values
    spacing = volume.grid.spacing * steps
    depth = _depth(inside, spacing)[inside]
    layers, deepest = _layers(values, depth, LAYERS_MM)
    tissue = inside & (np.nan_to_num(z, nan=-9.0) > CSF_Z)
    bulk = np.clip(z[tissue], -2, 2)
    around, _ = _layers(bulk - bulk.mean(), _depth(tissue, spacing)[tissue], FROM_CSF_MM)
    counts = np.convolve(
        np.histogram(values, np.arange(-3, 3.01, 0.25))[0], [0.25, 0.5, 0.25], "same"
    )
    tails = [*np.percentile(deepest, [3, 97]), *np.percentile(values, PERCENTILES)]
    features = np.array([*layers, *around, *tails, 10 * counts.max() / values.size])
    return Look(z, volume.affine @ np.diag([*steps.astype(float), 1.0]), features)


def t2_odds(features: np.ndarray) -> float | None:
    """Log-odds that a scan is T2 rather than T1, T1ce or FLAIR; None for what does not look like a brain scan."""
    x = (features - np.array(MEAN)) / np.array(DEVIATION)
    if np.sqrt(np.mean(x**2)) > STRANGE:
        return None
    return float(np.clip(x, -STRAY, STRAY) @ np.array(WEIGHTS) + CONSTANT)


def beside_t2(one: Look, t2: Look) -> float | None:
    """How a scan with dark CSF goes with T2: about -1 for T1, about 0 for FLAIR; None where they hardly overlap.

    Outside CSF: the correlation with T2, less how much brighter than its median the scan is where T2 is darkest (white
    matter), in robust deviations.
    """
    inside = np.argwhere(np.isfinite(one.z))
    there = np.linalg.inv(t2.affine) @ one.affine
    there = np.rint(inside @ there[:3, :3].T + there[:3, 3]).astype(int)
    within = ((there >= 0) & (there < t2.z.shape)).all(axis=1)
    x, y = one.z[tuple(inside[within].T)], t2.z[tuple(there[within].T)]
    tissue = np.isfinite(y) & (x > -1.0)
    x, y = x[tissue], y[tissue]
    inner = x > -0.5
    if np.count_nonzero(inner) < FEW:
        return None
    a, b = np.clip(x[inner], -3, 3), np.clip(y[inner], -3, 3)
    if not (a.std() > 0 and b.std() > 0):
        return None
    white = x[y <= np.percentile(y, 30)].mean() - np.median(x)
    return float(np.corrcoef(a, b)[0, 1] - white)


def doubtful(
    odds: Mapping[str, float | None], beside: Mapping[str, float | None]
) -> list[tuple[tuple[str, ...], str]]:
    """Scans that look like another modality than they are given for.

    Args:
        odds: ``t2_odds`` of the scans by modality name.
        beside: ``beside_t2`` of T1, T1ce and FLAIR, where there is a T2.

    Returns:
        For each doubt the modalities it is about, and the rest of the sentence that begins with them.
    """
    found: list[tuple[tuple[str, ...], str]] = []
    known = {name: value for name, value in odds.items() if value is not None}
    for name, value in known.items():
        if name != "t2" and value > 0 > known.get("t2", 0) and value - known["t2"] > SURE:
            found.append(
                ((name, "t2"), "look exchanged: CSF is bright in the first and dark in the second")
            )
    told = {name for names, _ in found for name in names}
    for name, value in known.items():
        if name not in told and (value < -SURE if name == "t2" else value > SURE):
            ending = (
                "looks more like T1 or FLAIR: its CSF is dark"
                if name == "t2"
                else "looks more like T2"
            )
            found.append(((name,), ending))
    sure = {name for names, _ in found for name in names} | {
        name for name, value in odds.items() if value is None
    }
    flair = None if sure & {"t2", "flair"} else beside.get("flair")
    for name in ("t1", "t1ce"):
        other = None if name in sure else beside.get(name)
        if flair is not None and other is not None and other - flair > EXCHANGED:
            found.append(((name, "flair"), "look exchanged: beside T2 each looks like the other"))
    return found


def doubts(looks: Mapping[str, Look | None]) -> list[tuple[tuple[str, ...], str]]:
    """``doubtful`` of scans that were looked at, by modality name; what is not in ``MODALITIES`` is left out."""
    known = {name: seen for name, seen in looks.items() if seen is not None and name in MODALITIES}
    beside = {
        name: beside_t2(seen, known["t2"])
        for name, seen in known.items()
        if name != "t2" and "t2" in known
    }
    return doubtful({name: t2_odds(seen.features) for name, seen in known.items()}, beside)


def _depth(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance in mm to the nearest place outside a mask along the three axes; infinite where the volume ends first."""
    result = np.full(mask.shape, np.inf)
    for axis, mm in enumerate(spacing):
        at = np.arange(mask.shape[axis], dtype=float).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
        before = np.maximum.accumulate(np.where(mask, -np.inf, at), axis=axis)
        after = np.flip(
            np.minimum.accumulate(np.flip(np.where(mask, np.inf, at), axis), axis=axis), axis
        )
        result = np.minimum(result, mm * np.minimum(at - before, after - at))
    return result


def _layers(
    values: np.ndarray, depth: np.ndarray, borders: Sequence[float]
) -> tuple[list[float], np.ndarray]:
    """Mean of each layer, and the values of the deepest one; a layer of hardly any voxels repeats the one above."""
    means, deepest = [], values
    for low, high in zip((0.0, *borders), (*borders, np.inf), strict=True):
        layer = values[(depth > low) & (depth <= high)]
        if layer.size >= 0.01 * values.size:
            deepest = layer
        means.append(float(deepest.mean()))
    return means, deepest
