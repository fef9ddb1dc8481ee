"""Real, tumor-free, transplanted, and generated cases as sources, in fixed proportions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmap.errors import UsageError
from medmap.training.batch import Batch, Sampler

CASES = "cases"
TUMOR_FREE = "tumor_free"
PSEUDO_HEALTHY = "pseudo_healthy"
TRANSPLANTED = "transplanted"
GENERATED = "generated"
SOURCES = (CASES, TUMOR_FREE, PSEUDO_HEALTHY, TRANSPLANTED, GENERATED)
"""What a recipe's ``sources`` may name: labeled cases with a tumor, cases whose label is empty,
cases of both kinds without their tumor, cases of both kinds that carry the tumor of another case,
generated cases."""

_STREAM = 0x50C5
"""Keeps the choice of the source apart from the samplers' draws, which begin with the same seed and
step."""


class MixedSampler:
    """Takes each sample from one of several samplers, chosen at random in fixed proportions.

    The source of a sample is a pure function of seed, step and the sample's number, and so is the
    sample.

    Args:
        samplers: by name of the source.
        shares: weight of each source, of the same names; only proportions matter.
        seed: of the choice.
    """

    def __init__(self, samplers: Mapping[str, Sampler], shares: Mapping[str, float], seed: int):
        self.samplers = dict(samplers)
        self.seed = seed
        weights = np.array([float(shares[name]) for name in self.samplers])
        self._bounds = np.cumsum(weights / weights.sum())
        self._source_by_case = {}
        for name, sampler in self.samplers.items():
            self._source_by_case.update(dict.fromkeys(sampler.case_ids, name))
        self.case_ids = tuple(self._source_by_case)

    @property
    def device(self) -> torch.device:
        """Where batches are assembled: a GPU as soon as one source works there."""
        cpu = torch.device("cpu")
        for sampler in self.samplers.values():
            device = getattr(sampler, "device", cpu)
            if device.type != "cpu":
                return device
        return cpu

    @property
    def seconds(self) -> float:
        """Seconds that training has waited for generated cases."""
        return sum(getattr(sampler, "seconds", 0.0) for sampler in self.samplers.values())

    def available(self, case_id: str) -> np.ndarray:
        """[M] bool: the modalities that training may ever show of a case."""
        return self.samplers[self._source_by_case[case_id]].available(case_id)

    def source(self, step: int, number: int) -> str:
        """Name of the source that a step's sample comes from."""
        draw = np.random.default_rng([self.seed, step, number, _STREAM]).random()
        return list(self.samplers)[int(np.searchsorted(self._bounds[:-1], draw, side="right"))]

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """Samples ``first`` to ``first + size - 1`` of a step, [size, M, *patch]."""
        singles = []
        for number in range(first, first + size):
            sampler = self.samplers[self.source(step, number)]
            single = sampler.batch(step, 1, patch, number)
            singles.append(single.to(self.device))
        return concatenated(singles)


def concatenated(batches: Sequence[Batch]) -> Batch:
    """One batch of several, in order; their random variation has been carried out already."""
    if len(batches) == 1:
        return batches[0]
    tensors: dict[str, Any] = {}
    for field in fields(Batch):
        values = [getattr(batch, field.name) for batch in batches]
        if isinstance(values[0], torch.Tensor):
            tensors[field.name] = torch.cat(values)
    case_ids = sum((batch.case_id for batch in batches), ())
    modalities: set[int] = set()
    for batch in batches:
        modalities.update(batch.modalities or ())
    return Batch(case_id=case_ids, modalities=tuple(sorted(modalities)), **tensors)


def by_tumor(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Cached cases with a tumor and without one, by name of the source."""
    sorted_folders: dict[str, list[Path]] = {CASES: [], TUMOR_FREE: []}
    for folder in folders:
        label = np.load(folder / "label.npy", mmap_mode="r")
        name = TUMOR_FREE
        if label.any():
            name = CASES
        sorted_folders[name].append(folder)
    return sorted_folders


def require_sources(
    shares: Mapping[str, float], folders: Mapping[str, Sequence[Path]] | None
) -> None:
    """Check a recipe's sources before training.

    Args:
        shares: weight of each source by name.
        folders: cached cases by source; None without ``--data``.

    Raises:
        UsageError: an unknown source, a weight that is not positive, or a source without cases.
    """
    require_known_sources(shares)
    for name in (CASES, TUMOR_FREE, PSEUDO_HEALTHY, TRANSPLANTED):
        if name not in shares:
            continue
        if folders is None:
            raise UsageError(
                f"The recipe's source '{name}' needs cases.", "Name their folder.", option="data"
            )
        kind = _lacking(name, folders)
        if kind:
            raise UsageError(
                f"The recipe's source '{name}' needs {kind}, and there are none to train on.",
                f"Add some, or remove '{name}' from the recipe's sources.",
            )


def _lacking(name: str, folders: Mapping[str, Sequence[Path]]) -> str:
    """The kind of cases that a source lacks; empty if it has all it needs."""
    tumors = len(folders[CASES])
    tumor_free = len(folders[TUMOR_FREE])
    if name == TUMOR_FREE and not tumor_free:
        return "cases without a tumor (an empty label)"
    if name in (CASES, TRANSPLANTED) and not tumors:
        return "cases with a tumor"
    if name == TRANSPLANTED and tumors + tumor_free < 2:
        return "two cases, one of them with a tumor"
    return ""


def require_known_sources(shares: Mapping[str, float]) -> None:
    """Raises UsageError for an unknown source, or a weight that is not positive."""
    unknown = sorted(set(shares) - set(SOURCES))
    are_positive = all(share > 0 for share in shares.values())
    if unknown or not are_positive:
        raise UsageError(
            f"The sources {dict(shares)} are not understood.",
            f"Give positive weights to some of {', '.join(SOURCES)}.",
        )
