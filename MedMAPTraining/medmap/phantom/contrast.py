"""From tissue to signal: mean intensities of every tissue in T1, T1ce, T2 and FLAIR, per case.

Numbers are z-scores over brain voxels, measured in high-grade cases of BraTS 2013: mean and range
of case medians. Those of tumor are set such that a synthetic case, z-scored over its own brain
after all artifacts, has the measured values. Tissues that were not measured follow from MR physics:
blood products shorten T1 and T2, iron darkens the pallidum in T2, and vessels are flow voids in T2.

A case draws around these numbers and then restores the order that physics demands, so that a
modality remains itself however far a draw strays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medmap.phantom.anatomy import TISSUES
from medmap.phantom.cohorts import Cohort, Range, require_cohort
from medmap.phantom.fields import Draw
from medmap.phantom.style import Style
from medmap.phantom.tumor_kinds import USUAL, shade_kind

Means = dict[str, dict[str, float]]
"""Modality -> tissue -> z."""

MODALITIES = ("t1", "t1ce", "t2", "flair")

TABLE: dict[str, dict[str, Range]] = {
    "t1": {
        "csf": (-1.95, -2.6, -1.4),
        "gm": (-0.14, -0.42, 0.36),
        "wm": (0.56, 0.32, 0.90),
        "striatum": (0.05, -0.35, 0.40),
        "pallidum": (0.50, 0.10, 0.85),
        "thalamus": (0.35, 0.0, 0.65),
        "cb_gm": (-0.25, -0.6, 0.2),
        "stem": (0.55, 0.2, 0.85),
        "vessel": (-0.5, -1.6, 0.9),
        "choroid": (-0.7, -1.3, 0.0),
        "wmh": (0.2, -0.3, 0.6),
        "ed": (-0.04, -0.60, 0.50),
        "solid": (-0.25, -0.95, 0.40),
        "necrosis": (-0.80, -1.9, 0.30),
        "blood": (1.5, 0.8, 2.6),
    },
    "t1ce": {
        "csf": (-1.95, -2.6, -1.3),
        "gm": (-0.28, -0.6, 0.22),
        "wm": (0.38, 0.10, 0.72),
        "striatum": (-0.05, -0.4, 0.3),
        "pallidum": (0.3, 0.0, 0.65),
        "thalamus": (0.2, -0.1, 0.5),
        "cb_gm": (-0.25, -0.6, 0.2),
        "stem": (0.4, 0.1, 0.7),
        "vessel": (3.0, 0.8, 6.5),
        "choroid": (2.8, 1.0, 5.5),
        "wmh": (0.1, -0.3, 0.4),
        "ed": (-0.23, -0.69, 0.16),
        "solid": (-0.65, -1.30, 0.10),
        "necrosis": (-1.30, -2.1, 0.0),
        "blood": (1.2, 0.5, 2.2),
    },
    "t2": {
        "csf": (2.3, 1.5, 3.4),
        "gm": (-0.25, -0.51, 0.03),
        "wm": (-0.58, -0.78, -0.42),
        "striatum": (-0.4, -0.7, -0.1),
        "pallidum": (-0.9, -1.3, -0.6),
        "thalamus": (-0.4, -0.6, -0.15),
        "cb_gm": (-0.2, -0.5, 0.1),
        "stem": (-0.55, -0.8, -0.3),
        "vessel": (-1.0, -1.8, 0.6),
        "choroid": (1.0, 0.2, 1.8),
        "wmh": (0.1, -0.3, 0.6),
        "ed": (1.0, 0.50, 1.55),
        "solid": (0.90, 0.40, 1.6),
        "necrosis": (1.9, 0.7, 3.2),
        "blood": (-0.6, -1.5, 0.8),
    },
    "flair": {
        "csf": (-2.0, -2.8, -1.4),
        "gm": (-0.15, -0.5, 0.15),
        "wm": (-0.30, -0.7, 0.25),
        "striatum": (-0.15, -0.45, 0.15),
        "pallidum": (-0.6, -1.0, -0.2),
        "thalamus": (-0.25, -0.5, 0.05),
        "cb_gm": (-0.2, -0.5, 0.15),
        "stem": (-0.25, -0.6, 0.1),
        "vessel": (-0.8, -1.8, 0.8),
        "choroid": (0.2, -0.6, 1.0),
        "wmh": (0.6, 0.2, 1.2),
        "ed": (0.70, 0.20, 1.45),
        "solid": (0.75, 0.20, 1.6),
        "necrosis": (0.4, -1.4, 1.8),
        "blood": (0.0, -1.0, 1.8),
    },
}
"""Modality -> tissue -> (middle, low, high) in z over brain voxels.

CSF is pure here, and therefore more extreme than in measured voxels.
"""

LOW_GRADE = {
    "t1": (-0.75, -1.6, 0.0),
    "t1ce": (-0.75, -1.6, 0.0),
    "t2": (1.7, 0.9, 2.8),
    "flair": (0.9, 0.3, 1.8),
}
"""Core of a glioma that does not enhance: darker in T1 and brighter in T2 than edema."""

SHARPNESS = {"t1": (1.8, 3.6), "t1ce": (1.8, 3.8), "t2": (1.4, 2.5), "flair": (1.8, 3.4)}
"""Range of s in signal = 1 + z / s.

It gives the ratio of mean to standard deviation over the brain that real volumes have (T1 2.3-4.7,
T1ce 2.4-5.5, T2 1.7-2.8, FLAIR 2.3-3.8).
"""

GRAIN = {
    "csf": 0.10,
    "ventricle": 0.04,
    "vessel": 0.4,
    "choroid": 0.4,
    "ed": 0.24,
    "solid": 0.30,
    "necrosis": 0.32,
}
"""Standard deviation in z of each tissue's texture; ``OTHER_GRAIN`` for all other tissues.

Measured deviations within a tissue are larger (GM 0.55-0.85, WM 0.4-0.5, ED 0.5-0.75). Most of that
is partial volume, bias field and noise, which are added later.
"""

OTHER_GRAIN = 0.18

MISMATCH_SHARE = 0.2
"""Probability of the T2-FLAIR mismatch sign (Patel et al., 2017) without enhancement."""


def draw_means(draw: Draw, style: Style, enhancing: bool = True, kind: str = USUAL) -> Means:
    """Draw the z of every tissue per modality for one case.

    Args:
        draw: random stream. The order of the draws is part of a seed.
        style: ``jitter`` 1 spans the ranges of ``TABLE``.
        enhancing: False for the contrast of a tumor that does not enhance.
        kind: of the tumor, see ``medmap.phantom.tumor_kinds``.

    Returns:
        z of every tissue per modality, and of ``enhancing`` in T1ce.
    """
    cohort = require_cohort(style.cohort)
    table = table_of(cohort)
    means: Means = {}
    for modality, ranges in table.items():
        tissues = {}
        for tissue, (middle, low, high) in ranges.items():
            tissues[tissue] = draw.around(middle, low, high, widen=style.jitter)
        means[modality] = tissues

    _follow_t1(means, table)
    _draw_tumor_means(means, draw, style, enhancing)
    _restore_order(means, draw, enhancing)
    shade_kind(draw, means, kind)

    t1ce = means["t1ce"]
    _weaken_contrast(t1ce, draw, style)
    t1ce["enhancing"] = _draw_enhancing_mean(t1ce, draw, style)
    # No number is drawn where the probability is 0, so that such a style keeps its cases.
    if style.flat and draw.chance(style.flat):
        for tissues in means.values():
            _flatten(tissues, draw.uniform(0.1, 0.6))
    for tissues in means.values():
        tissues["ventricle"] = tissues["csf"] + draw.normal(0.0, 0.12)
    return means


def table_of(cohort: Cohort) -> dict[str, dict[str, Range]]:
    """``TABLE`` with the tumors of a cohort."""
    table = {}
    for modality, ranges in TABLE.items():
        own_ranges = cohort.tissues.get(modality, {})
        table[modality] = {**ranges, **own_ranges}
    return table


def _draw_enhancing_mean(t1ce: dict[str, float], draw: Draw, style: Style) -> float:
    """z of enhancing tumor in T1ce: always above white matter and the other parts of the tumor."""
    brightest = max(t1ce["wm"], t1ce["solid"], t1ce["ed"] - 0.2)
    cohort = require_cohort(style.cohort)
    uptake = draw.around(*cohort.enhanced, widen=style.jitter)
    contrast = draw.uniform(*cohort.least_uptake)
    return max(uptake, brightest + contrast)


def _follow_t1(means: Means, table: dict[str, dict[str, Range]]) -> None:
    """Correlate T1ce with T1, in place: without uptake of contrast agent they are one sequence."""
    t1 = means["t1"]
    t1ce = means["t1ce"]
    for tissue, (middle, _, _) in table["t1ce"].items():
        # Vessels and choroid plexus take up contrast agent in every case.
        if tissue in ("vessel", "choroid"):
            continue
        t1_middle = table["t1"][tissue][0]
        common = 0.8 * (t1[tissue] - t1_middle)
        own_part = 0.6 * (t1ce[tissue] - middle)
        t1ce[tissue] = middle + common + own_part


def _draw_tumor_means(means: Means, draw: Draw, style: Style, enhancing: bool) -> None:
    """Draw the tumor's core and necrosis, in place."""
    cohort = require_cohort(style.cohort)
    # Otherwise proteins brighten it.
    if draw.chance(cohort.suppressed_necrosis):
        means["flair"]["necrosis"] = draw.uniform(-1.6, 0.2)
    else:
        means["flair"]["necrosis"] = draw.uniform(0.3, 1.4)
    if not enhancing:
        _draw_low_grade_core(means, draw, style)
    elif draw.chance(cohort.hidden_core):
        for modality in MODALITIES:
            means[modality]["solid"] = means[modality]["ed"] + draw.normal(0.0, 0.08)


def _draw_low_grade_core(means: Means, draw: Draw, style: Style) -> None:
    """Draw the core of a tumor that does not enhance, in place.

    One deviation serves all modalities: more water darkens T1 and brightens T2 and FLAIR.
    """
    water = draw.normal()
    for modality, (middle, low, high) in LOW_GRADE.items():
        deviation = -water
        if modality in ("t2", "flair"):
            deviation = water
        reach = middle - low
        if deviation > 0:
            reach = high - middle
        deviation = 0.4 * deviation + draw.normal(0.0, 0.3)
        means[modality]["solid"] = middle + style.jitter * reach * deviation
    # Bright in T2, but largely suppressed in FLAIR except for a rim.
    if draw.chance(MISMATCH_SHARE):
        means["flair"]["solid"] = draw.uniform(-0.3, 0.5)


def _restore_order(means: Means, draw: Draw, enhancing: bool) -> None:
    """Restore the order of tissues that defines each modality, in place."""
    for modality in ("t1", "t1ce"):
        _restore_order_in_t1(means[modality], draw.uniform(0.35, 0.5))
    _restore_order_in_t2(means["t2"])
    _restore_order_in_flair(means["flair"], enhancing)


def _restore_order_in_t1(z: dict[str, float], contrast: float) -> None:
    """WM > GM > CSF, tumor below WM. ``contrast`` is the least difference of WM and GM."""
    darkest_white = z["gm"] + contrast
    brightest_csf = z["gm"] - 0.8
    # In this order: tissues of the tumor are limited by white matter as it is afterwards.
    z["wm"] = max(z["wm"], darkest_white)
    z["csf"] = min(z["csf"], brightest_csf)

    brightest_edema = z["wm"] - 0.2
    brightest_core = z["wm"] - 0.1
    z["ed"] = min(z["ed"], brightest_edema)
    z["solid"] = min(z["solid"], brightest_core)
    brightest_necrosis = z["solid"] - 0.05
    z["necrosis"] = min(z["necrosis"], brightest_necrosis)
    z["wmh"] = min(z["wmh"], z["wm"])


def _restore_order_in_t2(z: dict[str, float]) -> None:
    """CSF > edema > GM > WM, and necrosis >= core > GM."""
    darkest_edema = z["gm"] + 0.55
    darkest_core = z["gm"] + 0.5
    brightest_white = z["gm"] - 0.15
    z["wm"] = min(z["wm"], brightest_white)
    z["ed"] = max(z["ed"], darkest_edema)
    z["solid"] = max(z["solid"], darkest_core)
    z["necrosis"] = max(z["necrosis"], z["solid"])
    # Last, since CSF must be above edema as it is now.
    darkest_csf = z["ed"] + 0.5
    z["csf"] = max(z["csf"], darkest_csf)


def _restore_order_in_flair(z: dict[str, float], enhancing: bool) -> None:
    """Tumor above GM and WM, CSF below them."""
    brightest_white = z["gm"] + 0.3
    z["wm"] = min(z["wm"], brightest_white)
    brightest_csf = z["wm"] - 0.8
    z["csf"] = min(z["csf"], brightest_csf)

    above_gray = z["gm"] + 0.45
    above_white = z["wm"] + 0.5
    z["ed"] = max(z["ed"], above_gray, above_white)
    # The mismatch sign of a low-grade tumor must survive.
    if enhancing:
        z["solid"] = max(z["solid"], above_gray)


def _weaken_contrast(t1ce: dict[str, float], draw: Draw, style: Style) -> None:
    """Make enhancement harder to recognize in some cases, in place.

    Real T1ce may separate gray from white matter less than T1 does. And a core or edema that is
    slightly bright in T1ce is not enhancing tumor.
    """
    if draw.chance(style.pale):
        _flatten(t1ce, draw.uniform(0.1, 0.8))

    if draw.chance(style.haze):
        level = t1ce["wm"] + draw.uniform(-0.15, 0.4)
        t1ce["solid"] = max(t1ce["solid"], level)
        level -= draw.uniform(0.0, 0.4)
        t1ce["ed"] = max(t1ce["ed"], level)


def _flatten(z: dict[str, float], factor: float) -> None:
    """Draw healthy tissues near gray matter, in place."""
    gm = z["gm"]
    for tissue in ("wm", "striatum", "pallidum", "thalamus", "cb_gm", "stem", "wmh"):
        difference = z[tissue] - gm
        z[tissue] = gm + factor * difference


_DISEASED = [
    row for row, name in enumerate(TISSUES) if name in ("ed", "solid", "necrosis", "blood", "wmh")
]
_HEALTHY = [row for row in range(len(TISSUES)) if row not in _DISEASED]


@dataclass(frozen=True)
class Mixture:
    """What N points consist of.

    Attributes:
        parts: [len(TISSUES), N] fractions.
        enhancing: [N] 0 to 1, uptake of contrast agent; T1ce alone shows it.
        textures: [K, N] unit-variance fields shared by the modalities, finest first; K >= 2.
    """

    parts: torch.Tensor
    enhancing: torch.Tensor
    textures: torch.Tensor


def mix_signals(
    draw: Draw, mixture: Mixture, style: Style, enhancing: bool = True, kind: str = USUAL
) -> tuple[torch.Tensor, Means]:
    """Mix the signals of tissues.

    Args:
        draw: random stream.
        mixture: tissue fractions and textures.
        style: how widely intensities vary.
        enhancing: False for the contrast of a tumor that does not enhance.
        kind: of the tumor, see ``medmap.phantom.tumor_kinds``.

    Returns:
        [4, N] signals in the order of ``MODALITIES``, mean of the brain about 1, and the z of every
        tissue.
    """
    means = draw_means(draw, style, enhancing, kind)
    z = _tissue_contrast(means, mixture)

    grain = torch.tensor(_draw_grain(draw, style), device=z.device)
    # Broad clouds in healthy tissue would look like lesions: its texture is finer.
    z += _texture(draw, mixture, grain, _HEALTHY, 0.3)
    z += _texture(draw, mixture, grain, _DISEASED, 0.6)
    _add_uptake(draw, z[MODALITIES.index("t1ce")], mixture, means["t1ce"])

    for row, modality in enumerate(MODALITIES):
        # How many standard deviations of the brain its mean lies above zero.
        sharpness = draw.uniform(*SHARPNESS[modality])
        z[row] /= sharpness
    # Magnitude images are positive.
    signals = (1.0 + z).clamp(min=0.02)
    return signals, means


def _tissue_contrast(means: Means, mixture: Mixture) -> torch.Tensor:
    """[4, N] z: in every voxel the mean of its tissues, weighted by their fractions."""
    rows = []
    for modality in MODALITIES:
        z = means[modality]
        rows.append([z[tissue] for tissue in TISSUES])
    tissue_means = torch.tensor(rows, device=mixture.parts.device)
    return tissue_means @ mixture.parts


def _add_uptake(draw: Draw, z: torch.Tensor, mixture: Mixture, means: dict[str, float]) -> None:
    """Add the uptake of contrast agent to the [N] z of T1ce, in place.

    Enhancing voxels start from solid core, whatever tissue they contain.
    """
    solid = means["solid"]
    strength = means["enhancing"] - solid
    uptake = strength * _uneven_uptake(draw, mixture.textures)
    change = (solid - z) + uptake
    z += mixture.enhancing * change


def _draw_grain(draw: Draw, style: Style) -> list[list[float]]:
    """Standard deviation of the texture per modality and tissue."""
    grain = []
    for _ in MODALITIES:
        deviations = []
        for name in TISSUES:
            typical = GRAIN.get(name, OTHER_GRAIN)
            deviations.append(typical * draw.uniform(*style.grain))
        grain.append(deviations)
    return grain


def _texture(
    draw: Draw, mixture: Mixture, grain: torch.Tensor, rows: Sequence[int], decay: float
) -> torch.Tensor:
    """[4, N] texture of some tissues in z.

    Every modality weights the shared fields in its own way: textures of modalities correlate as in
    real tissue, but are not equal.

    Args:
        draw: random stream.
        mixture: tissue fractions and textures.
        grain: [4, len(TISSUES)] standard deviations.
        rows: the tissues.
        decay: factor on the weight of each field relative to the next finer one.
    """
    fields = mixture.textures
    drawn_weights = []
    for _ in MODALITIES:
        row = [draw.normal() * decay**k for k in range(len(fields))]
        drawn_weights.append(row)
    weights = torch.tensor(drawn_weights)
    # Unit norm, so that the standard deviation is the drawn grain; the floor keeps weights that are
    # all near zero from being blown up.
    norms = weights.square().sum(1, keepdim=True).sqrt()
    weights = weights / norms.clamp(min=0.1)

    amplitude = grain[:, rows] @ mixture.parts[rows]
    weighted = weights.to(fields.device) @ fields
    return amplitude * weighted


def _uneven_uptake(draw: Draw, textures: torch.Tensor) -> torch.Tensor:
    """[N] factor around 1 on the uptake of contrast agent."""
    rough = draw.uniform(0.2, 0.6)
    fine = rough * textures[0]
    broad = 0.5 * rough * textures[1]
    return (1.0 + fine + broad).clamp(0.25, 2.2)
