"""Parts of the auxiliary losses that several backbones have: image errors, means over what is
present.

All are computed in float32, whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from medmap.networks.blocks import mask_absent


def mean_over_present(values: Sequence[Tensor | None], present: Tensor) -> Tensor:
    """Mean of per-sample values over the modalities that are present.

    Args:
        values: one [B] per modality, None where no sample has it.
        present: [B, M] bool.

    Returns:
        A scalar, zero where nothing is present.
    """
    total = present.new_zeros((), dtype=torch.float32)
    count = present.new_zeros((), dtype=torch.float32)
    for value, available in zip(values, present.unbind(1), strict=True):
        if value is None:
            continue
        # Selected, not multiplied: what an absent modality gave may be NaN.
        zeros = torch.zeros_like(value, dtype=torch.float32)
        counted = torch.where(available, value.float(), zeros)
        total = total + counted.sum()
        count = count + available.sum()
    return total / count.clamp(min=1)


def sum_of_means(values: Sequence[Tensor | None], present: Tensor) -> Tensor:
    """Sum over the modalities of each one's mean over the samples that have it; as
    ``mean_over_present``.
    """
    total = present.new_zeros((), dtype=torch.float32)
    for value, available in zip(values, present.unbind(1), strict=True):
        if value is None:
            continue
        only_this_modality = available[:, None]
        total = total + mean_over_present([value], only_this_modality)
    return total


def reconstruction_errors(
    reconstructions: Sequence[Tensor], image: Tensor, present: Tensor, power: int
) -> list[Tensor]:
    """Mean of |reconstruction - image|^power for every modality, each [B].

    Args:
        reconstructions: one [B, 1, *S] per modality; empty for a network built without image
            decoders.
        image: [B, M, *S]; absent channels may hold anything.
        present: [B, M] bool.
        power: 1 for L1, 2 for the squared error.
    """
    errors = []
    for modality, reconstruction in enumerate(reconstructions):
        channel = image[:, modality : modality + 1]
        available = present[:, modality]
        # An absent channel may hold NaN, and an error against it would be NaN as well.
        target = mask_absent(channel, available)
        difference = (reconstruction.float() - target).abs()
        voxel_errors = difference.pow(power).flatten(1)
        errors.append(voxel_errors.mean(1))
    return errors


def ring_l1(features: Sequence[Tensor | None], present: Tensor) -> Tensor:
    """L1 between neighbors in the ring of modalities (ShaSpec), mean over elements, summed over
    pairs.

    Only pairs of which a sample has both count, averaged over the batch; the released code also
    compares the features of empty images.
    """
    number = len(features)
    pairs = list(pairwise(range(number)))
    # Two modalities are one pair: closing their ring would count it twice.
    if number > 2:
        pairs.append((number - 1, 0))
    total = present.new_zeros((), dtype=torch.float32)
    for i, j in pairs:
        first = features[i]
        second = features[j]
        if first is None or second is None:
            continue
        distance = (first.float() - second.float()).abs().flatten(1).mean(1)
        has_both = present[:, i] & present[:, j]
        total = total + torch.where(has_both, distance, torch.zeros_like(distance)).mean()
    return total
