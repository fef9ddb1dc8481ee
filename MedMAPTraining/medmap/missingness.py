"""Which modalities a training sample has: pure functions of case, epoch and generator, never all missing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medmap.task import Task

Protocol = Callable[[str, int, np.random.Generator], np.ndarray]
"""``protocol(case_id, epoch, rng) -> [M] bool``, True = present."""


def full(task: Task) -> Protocol:
    """Every sample has every modality."""
    return lambda case_id, epoch, rng: np.ones(len(task.modalities), bool)


def random_subset(task: Task) -> Protocol:
    """Each sample shows one of the non-empty subsets, uniformly (RFNet, Ding et al., ICCV 2021; 15 for BraTS)."""
    masks = np.array([task.presence(subset) for subset in task.subsets()])
    return lambda case_id, epoch, rng: masks[rng.integers(len(masks))]


PROTOCOLS = {"full": full, "random-subset": random_subset}
