"""Leaving out what the network is not sure of. torch and numpy only.

A single scan can be bright on one side because of the coil that received it. The network then finds tumor there, but
with less certainty than where there is one: so pieces are judged by how sure it is of them. How sure it is of true ones
depends on the scans that it sees, and so does the limit (measured by ``MedMAPTraining/experiments/certainty.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medmap.errors import BundleError
from medmap.postprocess import PostprocessSpec, components, islands_among, most_probable
from medmap.preprocess import Prepared
from medmap.task import Task

QUANTILE = 0.9
"""Of the probabilities in a piece: above the doubt of its border, below its single most certain voxels."""


@dataclass(frozen=True)
class DoubtSpec:
    """Which pieces a bundle is too unsure of to show them; stored in the bundle.

    The certainty of a connected piece is the 90th percentile, over its voxels, of the probability of any tumor.

    Attributes:
        least: by set of scans (``Task.subset_key``), the certainty below which a piece is left out; with a set that is
            not named, none is.
    """

    least: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain JSON-ready form."""
        return {"least": dict(self.least)}

    @staticmethod
    def from_dict(data: Mapping) -> DoubtSpec:
        """Rebuild; raises BundleError for what is not understood, since an unknown step cannot be honored."""
        try:
            spec = DoubtSpec(**data)
            return DoubtSpec({str(key): float(value) for key, value in dict(spec.least).items()})
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"The bundle's way with doubt is not understood ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error


NO_DOUBT = DoubtSpec()


def without_doubtful(
    logits: Tensor,
    prepared: Prepared,
    subset: Sequence[str],
    task: Task,
    postprocess: PostprocessSpec,
    spec: DoubtSpec,
) -> tuple[Tensor, float]:
    """Leave out the pieces that are too doubtful for their set of scans.

    Args:
        logits: [C, D, H, W] an answer, background first.
        prepared: the case it was given for.
        subset: names of the scans that it was given from.
        task, postprocess, spec: the bundle's.

    Returns:
        Logits, and how many ml were left out. Where a piece was, background is just the most probable class, so that a
        map of uncertainty still shows it.
    """
    least = spec.least.get(task.subset_key(subset), 0.0)
    if least <= 0:
        return logits, 0.0
    numbers, certainty = pieces(logits, prepared, postprocess)
    doubtful = torch.tensor([False] + [value < least for value in certainty])
    if not doubtful.any():
        return logits, 0.0
    # Islands are small beside the largest piece, which may be the one that goes: they must not come back.
    gone = (most_probable(logits) > 0) & (numbers == 0) | doubtful[numbers]
    logits = logits.clone()
    logits[0, gone] = logits[1:, gone].amax(0) + 0.01
    return logits, float(doubtful[numbers].sum()) * prepared.grid.voxel_ml


def tumor_probability(logits: Tensor) -> Tensor:
    """[C, ...] -> [...] probability of any class but background, which is the first."""
    return torch.sigmoid(logits[1:].logsumexp(0) - logits[0])


def pieces(
    logits: Tensor, prepared: Prepared, postprocess: PostprocessSpec
) -> tuple[Tensor, list[float]]:
    """[D, H, W] numbers of the connected pieces that count, 0 elsewhere, and the certainty of each from 1 on.

    Args:
        logits: [C, D, H, W].
        prepared: gives the head.
        postprocess: says which islands do not count.
    """
    numbers = components((most_probable(logits) > 0) & prepared.brain)
    counts = ~islands_among(numbers, prepared.grid.voxel_ml, postprocess)
    counts[0] = False
    numbers = (counts.cumsum(0) * counts)[numbers]
    found = numbers > 0
    owner, probability = numbers[found], tumor_probability(logits[:, found])
    order = torch.argsort(probability)
    owner, probability = owner[order], probability[order]
    certainty = []
    for n in range(1, int(numbers.max()) + 1):
        own = probability[owner == n]
        certainty.append(float(own[int(QUANTILE * len(own))]))
    return numbers, certainty
