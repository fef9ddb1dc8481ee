"""What is measured on which device, and how: sizes, rows of the table, seconds and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from medmap.networks import Backbone, build_network
from medmap.task import BRATS

MODALITIES = range(len(BRATS.modalities))
MIB = 2**20


@dataclass(frozen=True)
class Sizes:
    """What is run.

    Attributes:
        box: working voxels of a brain at 1.5 mm.
        volume, window: voxels of a brain at 1 mm and side of the published windows.
        patch: side of the patches on which methods are compared.
        default_patch: patches of the default model's training.
        widths: channels of the default network.
        spacing: voxels of generated cases, in mm.
        repeats, steps: timed passes and training steps, after a warm-up.
        batches: of our training steps.
        training_seconds: how long the default training runs.
        total_seconds: no further part starts after it.
        backend: of ``torch.compile``.
    """

    box: tuple[int, int, int] = (96, 128, 112)
    volume: tuple[int, int, int] = (144, 176, 144)
    window: int = 128
    patch: int = 80
    default_patch: tuple[int, int, int] = (96, 112, 96)
    widths: tuple[int, ...] = (32, 48, 64, 96)
    spacing: float = 1.5
    repeats: int = 10
    steps: int = 10
    batches: tuple[int, ...] = (1, 4)
    training_seconds: float = 120.0
    total_seconds: float = 330.0
    backend: str = "inductor"


REHEARSAL = Sizes(
    box=(32, 32, 32),
    volume=(40, 32, 32),
    window=32,
    patch=32,
    default_patch=(32, 32, 32),
    widths=(4, 8),
    spacing=6.0,
    repeats=1,
    steps=1,
    batches=(1, 2),
    training_seconds=2.0,
    backend="eager",
)


FIELD_OF_VIEW_MM = (160, 192, 160)
"""Of generated cases."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    name: str
    figure: str
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """Where and how large everything is run."""

    device: torch.device
    sizes: Sizes

    @property
    def precision(self) -> str:
        """Of our own ways: half where the device computes it."""
        if self.has_bf16:
            return "bf16"
        return "fp32"

    @property
    def generated_shape(self) -> tuple[int, int, int]:
        """Voxels of a generated case."""
        i, j, k = (round(mm / self.sizes.spacing) for mm in FIELD_OF_VIEW_MM)
        return i, j, k

    @property
    def has_bf16(self) -> bool:
        """CPUs compute bf16, too, if slowly."""
        return self.device.type == "cpu" or torch.cuda.is_bf16_supported(False)


def release(device: torch.device) -> None:
    """Give cached memory back, so that each part has all of it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_note(device: torch.device) -> str:
    """Largest memory of tensors since ``release``."""
    if device.type != "cuda":
        return ""
    return f"peak {torch.cuda.max_memory_allocated(device) / MIB:.0f} MiB"


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after up to two to warm up: the first ones choose kernels."""
    warm_up = min(2, repeats)
    seconds = []
    for number in range(warm_up + repeats):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= warm_up:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Half precision for ``bf16``, nothing for ``fp32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def default_network(setup: Setup) -> Backbone:
    """The default model's network with random weights."""
    torch.manual_seed(0)
    options = {
        "modalities": len(MODALITIES),
        "classes": BRATS.num_classes,
        "widths": list(setup.sizes.widths),
    }
    return build_network("SubsetUNet", options).to(setup.device)
