"""One brain mask for all scans of a case: aligned scans vote on each other's masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from medmap.boxes import bounding_box
from medmap.mask_parts import largest_parts
from medmap.resampling import resample_linear
from medmap.tensors import from_array, to_array
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
        mask = from_array(ballot.mask.astype(np.float32))
        # The field of view goes along: beyond it a scan has no vote, which is not a vote against.
        field_of_view = torch.ones_like(mask)
        layers = torch.stack([mask, field_of_view])
        mask_share, view_share = resample_linear(layers, ballot.grid, common)
        votes += ballot.weight * mask_share
        weights += ballot.weight * view_share
    # Where no field of view reaches there is no vote: 0 / 1e-6, which is no brain.
    share = votes / weights.clamp(min=1e-6)
    fused = {}
    for name, ballot in ballots.items():
        on_scan = to_array(resample_linear(share[None], common, ballot.grid)[0])
        # A majority, weighted by how much the masks are worth.
        is_brain = on_scan > 0.5
        spacing = ballot.grid.spacing.tolist()
        fused[name] = largest_parts(is_brain, spacing)
    return fused


def _common_grid(ballots: Mapping[str, Ballot]) -> Grid:
    """Cubic voxels along the world's axes around all masks."""
    corners = [_corners(ballot) for ballot in ballots.values()]
    positions = np.concatenate(corners)
    low = positions.min(axis=0) - MARGIN_MM
    high = positions.max(axis=0) + MARGIN_MM
    steps = np.ceil((high - low) / FUSION_MM).astype(int)
    # One voxel more than steps: a fence has one post more than panels.
    i, j, k = (int(count) + 1 for count in steps)
    affine = np.diag([FUSION_MM, FUSION_MM, FUSION_MM, 1.0])
    affine[:3, 3] = low
    return Grid((i, j, k), affine)


def _corners(ballot: Ballot) -> np.ndarray:
    """[8, 3] world positions of the corners of the box around a mask."""
    box = bounding_box(ballot.mask)
    if box is None:
        box = tuple(slice(0, size) for size in ballot.mask.shape)
    ends = [(side.start, side.stop - 1) for side in box]
    corners = np.array(np.meshgrid(*ends, indexing="ij"))
    voxels = corners.reshape(3, -1).T
    return ballot.grid.world(voxels)
