"""Whole heads as training data for brain extraction, made on the fly like other generated cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from medmap.foreground import exact_foreground
from medmap.phantom.whole_head import generate_head
from medmap.preprocess import PreprocessSpec, normalize
from medmap.training.dataset import MOST_TUMOR_VOXELS
from medmap.training.generated import GeneratedCase, Generation

BRAIN_TASK = "brain"
"""Name of the task that these cases belong to."""


def make_head_case(
    number: int,
    plan: Generation,
    spec: PreprocessSpec,
    anatomy: Sequence[Path] = (),
    device: torch.device | str = "cpu",
) -> GeneratedCase:
    """A whole head, normalized exactly as inference does it (``medmap.preprocess``).

    Args:
        number: of the case; its seed is ``plan.first_seed`` later.
        plan: which cases; pool, reuse and seed are used.
        spec: of the bundle.
        anatomy: label maps with structures outside the brain.
        device: where the case is held.

    Raises:
        UsageError, InputDataError: as ``generate_head``.
    """
    seed = plan.first_seed + number
    head = generate_head(seed, anatomy, spec.spacing)
    array = head.image.numpy()
    foreground, _ = exact_foreground(array)
    scan, _ = normalize(array, foreground, spec, skull_stripped=False)
    voxels = head.brain.nonzero()
    every = max(1, len(voxels) // MOST_TUMOR_VOXELS)
    # Half precision: a pool holds many heads in memory.
    image = torch.from_numpy(scan)[None].half().to(device)
    label = head.brain.to(torch.uint8).to(device)
    # Every voxel counts: the task's scans are not stripped.
    everywhere = torch.ones_like(label, dtype=torch.bool)
    return GeneratedCase(image, label, everywhere, voxels[::every])
