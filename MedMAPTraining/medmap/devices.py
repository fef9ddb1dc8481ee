"""Which device computes, in which precision, and how much memory it has.

Standard library and torch only.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import cache
from pathlib import Path

import torch

from medmap.errors import UnavailableError, UsageError

AUTO = "auto"
"""The device, or the precision, that computes fast and safely."""

INFERENCE_PRECISIONS = ("fp32", "bf16", AUTO)

SMALLEST_DEEPEST_GRID = 3
"""Voxels per side of the deepest feature maps below which bf16 is not safe on a CPU: with PyTorch
2.13 and AVX512-BF16, weight gradients of convolutions whose kernel is wider than the grid
(3 x 3 x 3 on 2 voxels, 4 x 4 x 4 on 3) read uninitialized memory."""


def resolve_device(device: str) -> torch.device:
    """Return the device of that name, after a small computation on it succeeded.

    Args:
        device: a name that PyTorch understands (``cpu``, ``cuda:1``), or ``auto``: a CUDA device
            on which the computation succeeds, otherwise the CPU.

    Raises:
        UsageError: no device has this name.
        UnavailableError: the device does not exist or fails.
    """
    if device == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    name = "cuda" if device == "auto" else device
    _check_name(name)
    try:
        return _tested_device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if device == "auto":
            return torch.device("cpu")
        message_lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = message_lines[0].rstrip(".")
        raise UnavailableError(
            f"The device '{device}' is not available here ({reason}).",
            "Choose the CPU.",
            option="device cpu",
        ) from error


def _check_name(device: str) -> None:
    """Raises UsageError for a name that means no device on any computer."""
    try:
        torch.device(device)
    except RuntimeError as error:
        # PyTorch's own text lists twenty kinds of devices.
        raise UsageError(
            f"'{device}' is not a device.", "Use one of cpu, cuda, cuda:1, mps, auto."
        ) from error


@cache
def _tested_device(name: str) -> torch.device:
    """The device, once a small convolution has succeeded on it; errors of PyTorch pass through.

    PyTorch lists a GPU as available even when it is too new for this build, or when its libraries
    do not match: both fail only when something is computed. Failures are not cached.
    """
    device = torch.device(name)
    ones = torch.ones(1, 1, 3, 3, 3, device=device)
    torch.nn.functional.conv3d(ones, ones).item()
    return device


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16; others emulate it, at ten times the cost."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def inference_precision(precision: str, device: torch.device, deepest_grid: int) -> str:
    """The precision in which a network is run.

    Args:
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the device computes it.
        device: where to compute.
        deepest_grid: voxels along the shortest side of the deepest feature map; where it is small,
            ``auto`` takes fp32.

    Returns:
        ``fp32`` or ``bf16``.

    Raises:
        UsageError: the precision is unknown.
    """
    if precision not in INFERENCE_PRECISIONS:
        raise UsageError(
            f"The precision '{precision}' is unknown.",
            f"Use one of {', '.join(INFERENCE_PRECISIONS)}.",
        )
    if precision != AUTO:
        return precision
    if computes_bf16(device) and deepest_grid >= SMALLEST_DEEPEST_GRID:
        return "bf16"
    return "fp32"


def available_bytes() -> int | None:
    """Memory in bytes that a program can still take without swapping; None if unknown."""
    if sys.platform == "win32":
        return _windows_bytes()
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available_line = next(line for line in lines if line.startswith("MemAvailable:"))
        system_bytes = int(available_line.split()[1]) * 1024
        # A container's limit may be lower than what the machine has.
        return min(system_bytes, _container_bytes() or system_bytes)
    # macOS has no /proc and does not report free memory: use all installed memory instead.
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _container_bytes() -> int | None:
    """Bytes that remain below a container's limit (cgroup 2); None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return limit - int(Path("/sys/fs/cgroup/memory.current").read_text())
    return None


def _windows_bytes() -> int | None:
    """Free physical memory in bytes as Windows reports it (``MEMORYSTATUSEX``)."""
    if sys.platform != "win32":
        return None
    import ctypes

    sizes = ("total", "free", "page", "page_free", "virtual", "v_free", "ext")

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in sizes),
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.free)
