"""From tissue to signal: mean intensities of every tissue in T1, T1ce, T2 and FLAIR, drawn anew for each case.

The numbers are z-scores over brain voxels (mean [min..max] of case medians) measured on BraTS 2013 high-grade cases,
those of tumor set so that a generated head, z-scored over its own brain, comes out there after all artifacts; values
for tissues that were not measured are set from MR physics. A case draws around them and is then put back into the order
that physics demands, so that a modality keeps its identity however widely the draw strays.
"""

from __future__ import annotations

import torch

from medmap.phantom.anatomy import TISSUES
from medmap.phantom.fields import Draw
from medmap.phantom.style import Style

MODALITIES = ("t1", "t1ce", "t2", "flair")

TABLE: dict[str, dict[str, tuple[float, float, float]]] = {
    "t1": {
        "csf": (-1.95, -2.6, -1.4), "gm": (-0.14, -0.42, 0.36), "wm": (0.56, 0.32, 0.90),
        "striatum": (0.05, -0.35, 0.40), "pallidum": (0.50, 0.10, 0.85), "thalamus": (0.35, 0.0, 0.65),
        "cb_gm": (-0.25, -0.6, 0.2), "stem": (0.55, 0.2, 0.85), "vessel": (-0.5, -1.6, 0.9),
        "choroid": (-0.7, -1.3, 0.0), "wmh": (0.2, -0.3, 0.6), "ed": (-0.04, -0.60, 0.50),
        "solid": (-0.25, -0.95, 0.40), "necrosis": (-0.80, -1.9, 0.30), "blood": (1.5, 0.8, 2.6),
    },
    "t1ce": {
        "csf": (-1.95, -2.6, -1.3), "gm": (-0.28, -0.6, 0.22), "wm": (0.38, 0.10, 0.72),
        "striatum": (-0.05, -0.4, 0.3), "pallidum": (0.3, 0.0, 0.65), "thalamus": (0.2, -0.1, 0.5),
        "cb_gm": (-0.25, -0.6, 0.2), "stem": (0.4, 0.1, 0.7), "vessel": (3.0, 0.8, 6.5),
        "choroid": (2.8, 1.0, 5.5), "wmh": (0.1, -0.3, 0.4), "ed": (-0.23, -0.69, 0.16),
        "solid": (-0.65, -1.30, 0.10), "necrosis": (-1.30, -2.1, 0.0), "blood": (1.2, 0.5, 2.2),
    },
    "t2": {
        "csf": (2.3, 1.5, 3.4), "gm": (-0.25, -0.51, 0.03), "wm": (-0.58, -0.78, -0.42),
        "striatum": (-0.4, -0.7, -0.1), "pallidum": (-0.9, -1.3, -0.6), "thalamus": (-0.4, -0.6, -0.15),
        "cb_gm": (-0.2, -0.5, 0.1), "stem": (-0.55, -0.8, -0.3), "vessel": (-1.0, -1.8, 0.6),
        "choroid": (1.0, 0.2, 1.8), "wmh": (0.1, -0.3, 0.6), "ed": (1.0, 0.50, 1.55),
        "solid": (0.90, 0.40, 1.6), "necrosis": (1.9, 0.7, 3.2), "blood": (-0.6, -1.5, 0.8),
    },
    "flair": {
        "csf": (-2.0, -2.8, -1.4), "gm": (-0.15, -0.5, 0.15), "wm": (-0.30, -0.7, 0.25),
        "striatum": (-0.15, -0.45, 0.15), "pallidum": (-0.6, -1.0, -0.2), "thalamus": (-0.25, -0.5, 0.05),
        "cb_gm": (-0.2, -0.5, 0.15), "stem": (-0.25, -0.6, 0.1), "vessel": (-0.8, -1.8, 0.8),
        "choroid": (0.2, -0.6, 1.0), "wmh": (0.6, 0.2, 1.2), "ed": (0.70, 0.20, 1.45),
        "solid": (0.75, 0.20, 1.6), "necrosis": (0.4, -1.4, 1.8), "blood": (0.0, -1.0, 1.8),
    },
}  # fmt: skip
"""Tissue -> (middle, low, high) in z over brain voxels; CSF is pure here, so more extreme than measured voxels."""

ENHANCED = (1.65, 0.6, 3.3)
"""z of enhancing tumor in T1ce."""

LOW_GRADE = {
    "t1": (-0.75, -1.6, 0.0),
    "t1ce": (-0.75, -1.6, 0.0),
    "t2": (1.7, 0.9, 2.8),
    "flair": (0.9, 0.3, 1.8),
}
"""The core of a glioma that does not enhance: darker in T1 and brighter in T2 than edema, and sharply bounded."""

SHARPNESS = {"t1": (1.8, 3.6), "t1ce": (1.8, 3.8), "t2": (1.4, 2.5), "flair": (1.8, 3.4)}
"""How z becomes signal, 1 + z / s: such that the brain's mean over its standard deviation comes out as in real scans
(T1 2.3-4.7, T1ce 2.4-5.5, T2 1.7-2.8, FLAIR 2.3-3.8)."""


def draw_means(draw: Draw, style: Style, enhancing: bool = True) -> dict[str, dict[str, float]]:
    """z of every tissue (and ``enhancing`` in T1ce) per modality for one case; ``style.jitter`` 1 spans the table.

    Without contrast agent in a tissue T1ce shows what T1 shows, so its draws follow those of T1.
    """
    jitter = style.jitter
    means = {
        m: {t: draw.around(*row, widen=jitter) for t, row in TABLE[m].items()} for m in MODALITIES
    }
    for t, (middle, _, _) in TABLE["t1ce"].items():
        if t not in ("vessel", "choroid"):
            same = 0.8 * (means["t1"][t] - TABLE["t1"][t][0])
            means["t1ce"][t] = middle + same + 0.6 * (means["t1ce"][t] - middle)
    means["flair"]["necrosis"] = (
        draw.uniform(-1.6, 0.2) if draw.chance(0.45) else draw.uniform(0.3, 1.4)
    )
    if not enhancing:
        stray = draw.normal()
        for m, (middle, low, high) in LOW_GRADE.items():
            toward = stray if m in ("t2", "flair") else -stray
            reach = (high - middle) if toward > 0 else (middle - low)
            means[m]["solid"] = middle + jitter * reach * (0.4 * toward + draw.normal(0.0, 0.3))
        if draw.chance(
            0.2
        ):  # the mismatch sign: bright in T2, largely suppressed in FLAIR but for a rim
            means["flair"]["solid"] = draw.uniform(-0.3, 0.5)
    elif draw.chance(0.4):  # a core that only T1ce tells from edema
        for m in MODALITIES:
            means[m]["solid"] = means[m]["ed"] + draw.normal(0.0, 0.08)
    _restore_order(means, draw, enhancing)
    t1ce = means["t1ce"]
    _weaken(t1ce, draw, style)
    base = max(t1ce["wm"], t1ce["solid"], t1ce["ed"] - 0.2)
    t1ce["enhancing"] = max(draw.around(*ENHANCED, widen=jitter), base + draw.uniform(0.55, 1.0))
    for m in MODALITIES:
        means[m]["ventricle"] = means[m]["csf"] + draw.normal(0.0, 0.12)
    return means


def _restore_order(means: dict[str, dict[str, float]], draw: Draw, enhancing: bool) -> None:
    """T1, T1ce: WM > GM > CSF, tumor not above WM; T2: CSF > ED > GM > WM, NCR >= core > GM; FLAIR: tumor first."""
    for m in ("t1", "t1ce"):
        z = means[m]
        z["wm"] = max(z["wm"], z["gm"] + draw.uniform(0.35, 0.5))
        z["csf"] = min(z["csf"], z["gm"] - 0.8)
        z["ed"] = min(z["ed"], z["wm"] - 0.2)
        z["solid"] = min(z["solid"], z["wm"] - 0.1)
        z["necrosis"] = min(z["necrosis"], z["solid"] - 0.05)
        z["wmh"] = min(z["wmh"], z["wm"])
    z = means["t2"]
    z["wm"] = min(z["wm"], z["gm"] - 0.15)
    z["ed"] = max(z["ed"], z["gm"] + 0.55)
    z["solid"] = max(z["solid"], z["gm"] + 0.5)
    z["necrosis"] = max(z["necrosis"], z["solid"])
    z["csf"] = max(z["csf"], z["ed"] + 0.5)
    z = means["flair"]
    z["wm"] = min(z["wm"], z["gm"] + 0.3)
    z["csf"] = min(z["csf"], z["wm"] - 0.8)
    z["ed"] = max(z["ed"], z["gm"] + 0.45, z["wm"] + 0.5)
    if enhancing:
        z["solid"] = max(z["solid"], z["gm"] + 0.45)


def _weaken(t1ce: dict[str, float], draw: Draw, style: Style) -> None:
    """What makes enhancement hard to tell: pale gray against white matter; a haze over all of the tumor."""
    if draw.chance(style.pale):
        contrast = draw.uniform(0.1, 0.8)
        for t in ("wm", "striatum", "pallidum", "thalamus", "cb_gm", "stem", "wmh"):
            t1ce[t] = t1ce["gm"] + contrast * (t1ce[t] - t1ce["gm"])
    if draw.chance(style.haze):
        level = t1ce["wm"] + draw.uniform(-0.15, 0.4)
        t1ce["solid"] = max(t1ce["solid"], level)
        t1ce["ed"] = max(t1ce["ed"], level - draw.uniform(0.0, 0.4))


_GRAIN = {
    "csf": 0.10,
    "ventricle": 0.04,
    "vessel": 0.4,
    "choroid": 0.4,
    "ed": 0.24,
    "solid": 0.30,
    "necrosis": 0.32,
}
"""Standard deviation in z of each tissue's texture; 0.10 for the others. (What is measured within a tissue, GM .55-.85,
WM .4-.5, ED .5-.75, is mostly partial volume, bias and noise, which come later.)"""
_SICK = [row for row, t in enumerate(TISSUES) if t in ("ed", "solid", "necrosis", "blood", "wmh")]
_HEALTHY = [row for row in range(len(TISSUES)) if row not in _SICK]


def signals(
    draw: Draw,
    parts: torch.Tensor,
    enhancing: torch.Tensor,
    textures: torch.Tensor,
    style: Style,
    takes_up: bool = True,
) -> tuple[torch.Tensor, dict]:
    """Mix tissue signals at points.

    Args:
        draw: chance.
        parts: [len(TISSUES), N] fractions.
        enhancing: [N] in 0..1, read for T1ce only.
        textures: [K, N] unit-variance fields shared by the modalities, finest first.
        style: how widely intensities vary.
        takes_up: False for the contrast of a tumor that does not enhance.

    Returns:
        [4, N] signals with brain mean about 1, in ``MODALITIES`` order, and the drawn z of every tissue.
    """
    means = draw_means(draw, style, takes_up)
    table = torch.tensor([[means[m][t] for t in TISSUES] for m in MODALITIES], device=parts.device)
    grain = torch.tensor(
        [[_GRAIN.get(t, 0.18) * draw.uniform(0.3, 1.6) for t in TISSUES] for _ in MODALITIES],
        device=parts.device,
    )
    z = table @ parts
    for rows, coarse in (
        (_HEALTHY, 0.3),
        (_SICK, 0.6),
    ):  # broad clouds in healthy tissue would look like lesions
        weights = torch.tensor(
            [[draw.normal() * coarse**k for k in range(len(textures))] for _ in MODALITIES]
        )
        weights = weights / weights.square().sum(1, keepdim=True).sqrt().clamp(min=0.1)
        z += (grain[:, rows] @ parts[rows]) * (weights.to(parts.device) @ textures)
    glow = means["t1ce"]["enhancing"] - means["t1ce"]["solid"]
    rough = draw.uniform(0.2, 0.6)
    uptake = (1.0 + rough * textures[0] + 0.5 * rough * textures[1]).clamp(0.25, 2.2)
    z[1] = z[1] + enhancing * ((means["t1ce"]["solid"] - z[1]) + glow * uptake)
    for row, m in enumerate(MODALITIES):
        z[row] /= draw.uniform(*SHARPNESS[m])
    return (1.0 + z).clamp(min=0.02), means
