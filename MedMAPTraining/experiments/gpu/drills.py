"""Drills: too little memory, and a device that fails."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch import nn

from gpu.setup import MODALITIES, Row, Setup, default_network, release
from medmap import devices
from medmap.bundle.format import InferenceSpec
from medmap.devices import resolve_device
from medmap.preprocess import Prepared
from medmap.resampling import lattice_offset, orientation_of
from medmap.sliding_window import SlidingWindow
from medmap.task import BRATS
from medmap.volume import Grid


def drill_rows(setup: Setup) -> Iterator[Row]:
    """Out of memory, and a device that fails: what happens is what the documentation states."""
    yield fallback_row()
    if setup.device.type == "cuda":
        yield out_of_memory_row(setup)


def fallback_row() -> Row:
    """``auto`` takes the CPU where a card lists itself and computes nothing."""

    def fail(*arguments: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    # The verdict on a device is cached: it must be neither found nor left behind.
    devices._tested_device.cache_clear()
    try:
        with (
            mock.patch.object(nn.functional, "conv3d", fail),
            mock.patch.object(torch.cuda, "is_available", return_value=True),
        ):
            device = resolve_device("auto")
    finally:
        devices._tested_device.cache_clear()
    if device.type != "cpu":
        raise RuntimeError("a failing device was chosen")
    return Row("drills", "a card that computes nothing", "CPU is used")


def out_of_memory_row(setup: Setup) -> Row:
    """Too little memory for one pass: smaller windows, and the same classes."""
    i, j, k = setup.sizes.box
    shape = (2 * i, 2 * j, 2 * k)
    grid = Grid(shape, np.diag([1.5, 1.5, 1.5, 1.0]))
    orientation = orientation_of(grid)
    prepared = Prepared(
        image=torch.randn(len(MODALITIES), *shape, generator=torch.Generator().manual_seed(0)),
        present=torch.ones(len(MODALITIES), dtype=torch.bool),
        brain=torch.ones(shape, dtype=torch.bool),
        grid=grid,
        reference="t1",
        reference_grid=grid,
        orientation=orientation,
        offset=lattice_offset(orientation.canonical, grid),
    )
    network = default_network(setup).eval()
    windows = SlidingWindow(
        BRATS, InferenceSpec(window=shape), network.stride, setup.device, precision="fp32"
    )
    release(setup.device)
    next(windows.logits(network, prepared, [BRATS.modality_names]))
    peak_bytes = torch.cuda.max_memory_allocated(setup.device)
    total = torch.cuda.get_device_properties(setup.device).total_memory
    release(setup.device)
    torch.cuda.set_per_process_memory_fraction(0.5 * peak_bytes / total)
    try:
        next(windows.logits(network, prepared, [BRATS.modality_names]))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    if windows.window == shape:
        raise RuntimeError("half of the memory sufficed: nothing was tried")
    size = " x ".join(map(str, windows.window))
    return Row("drills", "half of the memory that one pass needs", f"windows of {size}")
