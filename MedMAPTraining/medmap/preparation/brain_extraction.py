"""Brain extraction by interchangeable methods: a scan of any contrast in, a brain mask out.

A mask holds everything inside the dura: brain, cerebrospinal fluid and tumor, filled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medmap.checks import MAX_BRAIN_ML
from medmap.errors import InputDataError, UnavailableError, UsageError
from medmap.preparation import deepbet_masks, network_masks
from medmap.preparation.availability import brain_bundle_is_installed, deepbet_is_installed
from medmap.preparation.skull import has_skull
from medmap.volume import Volume

MIN_MASK_ML = 50.0
"""A smaller mask is no brain, not even the part of one that a limited field of view shows."""

STRIPPED = "already stripped"
"""Name of the method where nothing had to be done."""

GIVEN = "given mask"
"""Name of the method where the mask was made elsewhere."""

BORROWED = "mask of another scan"
"""Name of the method where a scan of the same patient lent its mask."""


@dataclass(frozen=True)
class BrainMask:
    """The brain in one scan.

    Attributes:
        mask: [I, J, K] bool on the scan's grid.
        method: name in ``METHODS``, ``STRIPPED``, ``GIVEN`` or ``BORROWED``.
        volume_ml: volume of the mask.
        seconds: run time.
    """

    mask: np.ndarray
    method: str
    volume_ml: float
    seconds: float


@dataclass(frozen=True)
class ExtractionMethod:
    """One way to extract a brain.

    Attributes:
        is_available: whether it can run here; imports nothing heavy.
        extract: scan of a head -> [I, J, K] bool. Raises ValueError if it finds no brain.
        remedy: how to make it available.
    """

    is_available: Callable[[], bool]
    extract: Callable[[Volume], np.ndarray]
    remedy: str


METHODS: dict[str, ExtractionMethod] = {
    "deepbet": ExtractionMethod(
        deepbet_is_installed, deepbet_masks.extract, "install the extra medmap[clinic]"
    ),
    "network": ExtractionMethod(
        brain_bundle_is_installed, network_masks.extract, "add MedMAP's brain extraction model"
    ),
}
"""Methods by name. Masks that were made elsewhere need none."""


@dataclass(frozen=True)
class Contrast:
    """How the brain is extracted from scans of one contrast.

    Attributes:
        methods: names of methods, the default one first; the first available one is taken.
        weight: of its mask where aligned scans vote on each other's (``fuse_masks``).
    """

    methods: tuple[str, ...]
    weight: float


CONTRASTS: dict[str, Contrast] = {
    "t1": Contrast(("deepbet", "network"), 1.2),
    "t1ce": Contrast(("deepbet", "network"), 1.1),
    "flair": Contrast(("deepbet", "network"), 1.0),
    "t2": Contrast(("deepbet", "network"), 0.8),
}
"""The table that decides. Weights follow the Dice of deepbet with HD-BET's masks of a raw glioma
patient (5.5 mm slices): T1 .978, T1ce .972, FLAIR .961, T2 .937. docs/experiments/preparation.md
has the methods' measurements; a method becomes the default where it is better there."""

OTHER_CONTRAST = Contrast(("deepbet", "network"), 0.8)


def extract_brain(
    volume: Volume, contrast: str, *, method: str | None = None, keeps_stripped: bool = True
) -> BrainMask:
    """Mask of the brain in one scan.

    Args:
        volume: scan of a head, of any contrast, orientation and slice thickness.
        contrast: modality name, by which ``CONTRASTS`` chooses the method.
        method: a name in ``METHODS`` instead.
        keeps_stripped: leave a scan alone that is stripped already: its foreground is the mask. Run
            again on stripped scans, extraction loses 1 to 14 % of the brain.

    Raises:
        UsageError: there is no such method.
        UnavailableError: no method for this contrast is installed.
        InputDataError: no brain was found.
    """
    started = time.perf_counter()
    if keeps_stripped and not has_skull(volume):
        name = STRIPPED
        mask = volume.foreground
    else:
        name = method or default_method(contrast)
        if name not in METHODS:
            raise UsageError(
                f"There is no brain extraction method '{name}'.",
                f"Use one of {', '.join(METHODS)}.",
            )
        mask = _checked(METHODS[name], volume, contrast)
    volume_ml = float(np.count_nonzero(mask)) * volume.grid.voxel_ml
    return BrainMask(mask, name, volume_ml, time.perf_counter() - started)


def default_method(contrast: str) -> str:
    """The first available method for a contrast. Raises UnavailableError if there is none."""
    methods = CONTRASTS.get(contrast, OTHER_CONTRAST).methods
    for name in methods:
        if METHODS[name].is_available():
            return name
    remedies = " or ".join(METHODS[name].remedy for name in methods)
    raise UnavailableError(
        f"{contrast} shows a skull, and no method of brain extraction is installed.",
        f"Either {remedies}, use a brain mask made elsewhere, or skull-strip the scans yourself.",
        option="brain-mask FILE",
    )


def _checked(method: ExtractionMethod, volume: Volume, contrast: str) -> np.ndarray:
    if not method.is_available():
        raise UnavailableError(
            "This method of brain extraction is not installed.", f"To use it, {method.remedy}."
        )
    try:
        mask = method.extract(volume)
    except ValueError:
        mask = np.zeros(volume.array.shape, bool)
    volume_ml = float(np.count_nonzero(mask)) * volume.grid.voxel_ml
    if not MIN_MASK_ML <= volume_ml <= MAX_BRAIN_ML:
        raise InputDataError(
            f"No brain could be extracted from {contrast}: the mask has {volume_ml:.0f} ml.",
            "Check that the scan shows a head, or use a brain mask made elsewhere.",
            option="brain-mask FILE",
        )
    return mask


def apply_mask(volume: Volume, mask: np.ndarray) -> np.ndarray:
    """[I, J, K] float32 intensities of the brain; 0 outside, and nowhere inside.

    Background is recognized as one exact value. Where the brain holds values at or near 0 or below,
    it is raised as a whole; normalization does not see that.
    """
    values = volume.array[mask]
    if values.size == 0:
        return np.zeros(volume.array.shape, np.float32)
    low = float(values.min())
    # Not the maximum: a vessel may be many times as bright as the brain.
    high = float(np.percentile(values, 99.5))
    width = high - low
    gap = RAISED_SHARE * width
    offset = 0.0
    if low < gap:
        offset = gap - low
    result = np.zeros(volume.array.shape, np.float32)
    result[mask] = values + np.float32(offset)
    return result


RAISED_SHARE = 0.03
"""Distance between background and darkest voxel, as a share of the brain's range:
``medmap.foreground`` takes values within 0.01 for noise of the background."""
