"""Clock, peak memory and processes of their own: what every measurement needs."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

MIB = 2**20
OUT_OF_MEMORY = "ended by the system, probably out of memory"

Result = TypeVar("Result")


class ProcessEnded(Exception):
    """The process ended without a result, as the system ends those that take too much memory."""


def read_clock(device: torch.device) -> float:
    """Seconds on a clock, read once the device has finished all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_mib(device: torch.device) -> float | None:
    """Largest memory so far in MiB; None where the system does not report it.

    On a CPU it is the resident memory of this process, libraries included; on a GPU what tensors
    held.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    # /proc before ``ru_maxrss``: on Linux that of a child starts at what its parent held when it
    # was forked.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return None
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, other systems KiB.
    if sys.platform == "darwin":
        return peak / MIB
    return peak / 1024


def in_fresh_process(work: Callable[..., Result], *arguments: object) -> Result:
    """``work(*arguments)`` in a new process with this one's number of threads.

    Raises:
        ProcessEnded: it ended without a result; what ``work`` raises is raised here, too.
    """
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool as error:
            raise ProcessEnded(OUT_OF_MEMORY) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread for a while: PyTorch, and with it ``medmap.threads``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
