"""One brain mask for all scans of a case: aligned scans vote on each other's masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from medmap.foreground import bounding_box, largest_parts
from medmap.resampling import resample_linear
from medmap.volume import Grid

FUSION_MM = 2.0
"""Voxels of the grid on which masks vote; they are interpolated, so that surfaces are finer."""

MARGIN_MM = 6.0


@dataclass(frozen=True)
class Ballot:
    """The mask of one scan, and how much it counts.

    Attributes:
        mask: [I, J, K] bool.
        grid: of the aligned scan.
        weight: larger for contrasts from which the brain is extracted better.
    """

    mask: np.ndarray
    grid: Grid
    weight: float


def fuse_masks(ballots: Mapping[str, Ballot]) -> dict[str, np.ndarray]:
    """Masks after a weighted vote, by name, each on its own grid.

    Where a scan's field of view ends, only the others vote.

    Args:
        ballots: masks of aligned scans; at least one.
    """
    common = _common_grid(ballots)
    votes = torch.zeros(common.shape)
    weights = torch.zeros(common.shape)
    for ballot in ballots.values():
        mask = torch.from_numpy(ballot.mask.astype(np.float32))
        layers = torch.stack([mask, torch.ones_like(mask)])
        on_common = resample_linear(layers, ballot.grid, common)
        votes += ballot.weight * on_common[0]
        weights += ballot.weight * on_common[1]
    share = votes / weights.clamp(min=1e-6)
    fused = {}
    for name, ballot in ballots.items():
        on_scan = resample_linear(share[None], common, ballot.grid)[0].numpy()
        fused[name] = largest_parts(on_scan > 0.5, ballot.grid.spacing.tolist())
    return fused


def _common_grid(ballots: Mapping[str, Ballot]) -> Grid:
    """Cubic voxels along the world's axes around all masks."""
    corners = [_corners(ballot) for ballot in ballots.values()]
    positions = np.concatenate(corners)
    low = positions.min(axis=0) - MARGIN_MM
    extent_mm = positions.max(axis=0) + MARGIN_MM - low
    size = np.ceil(extent_mm / FUSION_MM).astype(int) + 1
    affine = np.diag([FUSION_MM, FUSION_MM, FUSION_MM, 1.0])
    affine[:3, 3] = low
    return Grid((int(size[0]), int(size[1]), int(size[2])), affine)


def _corners(ballot: Ballot) -> np.ndarray:
    """[8, 3] world positions of the corners of the box around a mask."""
    box = bounding_box(ballot.mask) or tuple(slice(0, size) for size in ballot.mask.shape)
    ends = [(side.start, side.stop - 1) for side in box]
    voxels = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1).T
    return ballot.grid.world(voxels)
