"""Which modalities a training sample has: pure functions of case, epoch and generator, never all missing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medmap.errors import BundleError, UsageError
from medmap.task import Task

Missingness = Callable[[str, int, np.random.Generator], np.ndarray]
"""``mask(case_id, epoch, rng) -> [M] bool``, True = present."""


def full(task: Task) -> Missingness:
    """Every sample has every modality."""
    return lambda case_id, epoch, rng: np.ones(len(task.modalities), bool)


def random_subset(task: Task) -> Missingness:
    """Each sample shows one of the non-empty subsets, uniformly (RFNet, Ding et al., ICCV 2021; 15 for BraTS)."""
    masks = np.array([task.presence(subset) for subset in task.subsets()])
    return lambda case_id, epoch, rng: masks[rng.integers(len(masks))]


PROTOCOLS = {"full": full, "random-subset": random_subset}


def build_missingness(name: str, task: Task, options: dict) -> Missingness:
    """Build a protocol from plain data, as a recipe states it.

    Raises:
        UsageError: the name is unknown.
        BundleError: an option is unknown.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"The missingness '{name}' is unknown.", f"Use one of {', '.join(PROTOCOLS)}.")
    try:
        return PROTOCOLS[name](task, **options)
    except TypeError as error:
        raise BundleError(f"The options of the missingness {name} do not fit ({error}).", "Correct them.") from error
