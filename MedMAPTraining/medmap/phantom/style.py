"""Domain randomization: how widely synthetic cases vary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """Ranges and probabilities of the generator; the defaults are meant for training.

    Recipes and bundles store these fields by name.

    Attributes:
        jitter: variation of tissue intensities; 1 spans the ranges measured in real cases.
        angle_deg: largest rotation of the brain about each axis.
        shift_mm: largest misregistration between modalities along each axis, in mm.
        head_shift_mm: about the largest displacement of the brain in the field of view, in mm.
        low_grade: probability that a tumor does not enhance.
        pale: probability that T1ce separates gray from white matter less than T1 does.
        haze: probability that core and edema are slightly bright in T1ce without enhancement.
        multifocal: probability of more than one focus.
        small: probability that the tumor has 1.5 to 40 ml instead of the usual volumes.
        thick_slices: probability of slices of 2 to 7 mm in T2 and FLAIR (0.45 of it in T1, T1ce).
        gamma: range of the gain curve's exponent.
        noise: range of the Rician noise's sigma, relative to the mean of the brain.
        bias: largest standard deviation of the logarithm of the bias field.
        strip: amplitude with which the skull-stripped border wanders; 0 is exact.
        motion: probability that a modality has ghosts along one axis.
        distractors: probability of lacunes, and of hemorrhages.
        truncated: probability that a limited field of view cuts the brain, above or below.
        cohort: name in ``medmap.phantom.cohorts.COHORTS``: whose tumors and sizes of brains.
        cystic, diffuse, speck, bulky: probabilities of rare kinds of tumors
            (``medmap.phantom.tumor_kinds``); together at most 1.
        flat: probability that gray and white matter have weak contrast in every modality.
        grain: range of the factor on the texture of tissues.
    """

    jitter: float = 1.25
    angle_deg: float = 9.0
    shift_mm: float = 0.8
    head_shift_mm: float = 6.0
    low_grade: float = 0.18
    pale: float = 0.25
    haze: float = 0.2
    multifocal: float = 0.13
    small: float = 0.3
    thick_slices: float = 0.5
    gamma: tuple[float, float] = (0.7, 1.5)
    noise: tuple[float, float] = (0.006, 0.055)
    bias: float = 0.15
    strip: float = 1.0
    motion: float = 0.1
    distractors: float = 0.12
    truncated: float = 0.06
    cohort: str = "brats2013"
    cystic: float = 0.0
    diffuse: float = 0.0
    speck: float = 0.0
    bulky: float = 0.0
    flat: float = 0.0
    grain: tuple[float, float] = (0.3, 1.6)
