"""What tumors and brains of a cohort are like: the numbers that a generated case is drawn around.

``Style.cohort`` names one. They differ in the tumor, the size of the brain, and the rows of
``medmap.phantom.contrast.TABLE`` that a cohort names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medmap.errors import UsageError

Range = tuple[float, float, float]
"""(middle, low, high) of a z-score over brain voxels."""


@dataclass(frozen=True)
class Cohort:
    """Measured tumors of one cohort.

    Attributes:
        tissues: modality -> tissue -> z, in place of the row of ``TABLE``.
        enhanced: z of enhancing tumor in T1ce.
        least_uptake: range of the least z between enhancing tumor and all that does not enhance.
        suppressed_necrosis: probability that FLAIR suppresses necrosis as it does CSF.
        hidden_core: probability that only T1ce distinguishes an enhancing tumor's core from edema.
        necrosis_start: range of the depth (mm) below the rim at which necrosis starts.
        median_ml: of the whole tumor.
        volume_spread: standard deviation of the logarithm of its volume.
        core_share: mean of the core's share of the whole tumor, of tumors that enhance.
        rim: range of the enhancing rim's thickness, relative to the radius of the core.
        nodules: range of the threshold of enhancing nodules, see ``Habit.nodules``.
        size: factor on the edges of the brain.
    """

    tissues: Mapping[str, Mapping[str, Range]] = field(default_factory=dict)
    enhanced: Range = (1.65, 0.6, 3.3)
    least_uptake: tuple[float, float] = (0.55, 1.0)
    suppressed_necrosis: float = 0.45
    hidden_core: float = 0.4
    necrosis_start: tuple[float, float] = (1.5, 5.5)
    median_ml: float = 84.0
    volume_spread: float = 0.58
    core_share: float = 0.39
    rim: tuple[float, float] = (0.25, 0.95)
    nodules: tuple[float, float] = (0.7, 2.2)
    size: float = 1.0


COHORTS = {
    "brats2013": Cohort(),
    "brats2021": Cohort(
        tissues={
            "t1": {
                "ed": (-0.25, -0.80, 0.30),
                "solid": (-0.20, -0.80, 0.50),
                "necrosis": (-1.20, -2.1, -0.1),
            },
            "t1ce": {
                "ed": (-0.42, -0.90, 0.10),
                "solid": (-1.00, -1.60, -0.10),
                "necrosis": (-1.60, -2.3, -0.4),
            },
            "t2": {
                "csf": (1.8, 1.1, 3.0),
                "ed": (1.20, 0.60, 1.90),
                "solid": (1.25, 0.50, 2.0),
                "necrosis": (2.9, 1.1, 4.2),
            },
            "flair": {
                "ed": (0.65, 0.20, 1.30),
                "solid": (0.35, 0.00, 1.10),
                "necrosis": (0.2, -1.4, 1.5),
            },
        },
        enhanced=(0.7, 0.1, 2.4),
        least_uptake=(0.25, 0.8),
        suppressed_necrosis=0.55,
        hidden_core=0.2,
        necrosis_start=(-0.5, 2.5),
        median_ml=135.0,
        volume_spread=0.5,
        core_share=0.33,
        rim=(0.4, 1.3),
        nodules=(0.3, 1.9),
        size=1.055,
    ),
}
"""Cohorts by name.

``brats2013``: intensities of high-grade cases of BraTS 2013, volumes of 123 cases of BraTS 2020.
``brats2021``: fitted, after all artifacts, to 42 gliomas of BraTS-Africa, 2021 and 2023
(``experiments/generator_realism.py``).
"""


def require_cohort(name: str) -> Cohort:
    """The cohort of a name. Raises UsageError if there is none."""
    if name not in COHORTS:
        raise UsageError(
            f"The generator has no cohort '{name}'.", f"Use one of {', '.join(COHORTS)}."
        )
    return COHORTS[name]
