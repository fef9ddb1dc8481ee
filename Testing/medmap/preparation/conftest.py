"""Synthetic heads for preparation: stripped, with a skull, displaced, in thick slices."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from medmap.phantom import generate
from medmap.preparation.motion import Motion
from medmap.resampling import resample_linear
from medmap.volume import Grid, Volume

SPACING_MM = 2.0
SKULL_MM = 7.0
SCALP_MM = 6.0
SKULL = 0.06
"""Signal of bone, as a share of the brain's median."""


@lru_cache(maxsize=2)
def patient(seed: int = 20287):
    return generate(seed, shape=(92, 108, 92), spacing=SPACING_MM)


def stripped_scan(name: str, seed: int = 20287) -> Volume:
    case = patient(seed)
    return Volume(case.images[name].numpy(), case.affine, name)


def brain_of(seed: int = 20287) -> np.ndarray:
    return patient(seed).brain.numpy()


@lru_cache(maxsize=8)
def head_array(name: str, seed: int = 20287) -> np.ndarray:
    """A scan in a shell of dark bone and one of scalp, with a little noise in the air."""
    brain = torch.from_numpy(brain_of(seed))[None, None].float()
    skull = grown(brain, SKULL_MM)
    scalp = grown(skull, SCALP_MM)
    scan = stripped_scan(name, seed).array
    level = float(np.median(scan[brain_of(seed)]))
    noise = np.random.default_rng(seed).rayleigh(0.01 * level, scan.shape)
    head = np.where(scalp[0, 0].numpy() > 0, 0.9 * level, 0.0)
    head = np.where(skull[0, 0].numpy() > 0, SKULL * level, head)
    return (np.where(brain_of(seed), scan, head) + noise).astype(np.float32)


def grown(mask: torch.Tensor, mm: float) -> torch.Tensor:
    for _ in range(round(mm / SPACING_MM)):
        mask = torch.nn.functional.max_pool3d(mask, 3, 1, 1)
    return mask


def head_scan(name: str, seed: int = 20287) -> Volume:
    return Volume(head_array(name, seed), patient(seed).affine, name)


def in_thick_slices(volume: Volume, spacing: tuple[float, float, float]) -> Volume:
    """The same scan in slices that are oblique by some degrees."""
    source = volume.grid
    center = source.affine[:3, :3] @ ((np.array(source.shape) - 1) / 2) + source.affine[:3, 3]
    extent_mm = np.array(source.shape) * source.spacing
    size = np.ceil(extent_mm / spacing).astype(int)
    affine = Motion.identity(center).turned(0, 7.0).matrix @ np.diag([*spacing, 1.0])
    affine[:3, 3] = center - affine[:3, :3] @ ((size - 1) / 2)
    grid = Grid((int(size[0]), int(size[1]), int(size[2])), affine)
    array = resample_linear(torch.from_numpy(volume.array)[None], source, grid)[0].numpy()
    return Volume(array, affine, volume.name)


def displaced(volume: Volume, motion: np.ndarray) -> Volume:
    """The scan of a patient who moved: its header says otherwise."""
    return Volume(volume.array, motion @ volume.affine, volume.name)


@pytest.fixture
def motion():
    """Function: degrees about an axis and mm -> [4, 4] motion about the middle of the head."""

    def build(degrees: float, shift_mm: tuple[float, float, float], axis: int = 0) -> np.ndarray:
        center = patient().affine[:3, :3] @ np.array([46.0, 54.0, 46.0]) + patient().affine[:3, 3]
        return Motion.identity(center).shifted(np.array(shift_mm)).turned(axis, degrees).matrix

    return build
