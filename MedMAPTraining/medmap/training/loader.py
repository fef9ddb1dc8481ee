"""Batches ahead of time, made by worker processes.

Every batch is made by its number, so that the number of workers changes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType

import torch
from torch.utils.data import DataLoader, Dataset

from medmap.devices import resolve_device
from medmap.errors import UnavailableError
from medmap.training.batch import Batch, Sampler

AHEAD = 3
"""Batches that each worker holds ready."""

SHARED_MEMORY = Path("/dev/shm")
"""Where workers hand batches over on Linux; containers often give it 64 MB."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one step that one process takes in one forward pass, in patches of this size."""

    step: int
    first: int
    size: int
    patch: tuple[int, ...]


class _MicroBatches(Dataset):
    def __init__(
        self,
        make_batch: Callable[..., Batch],
        micro_batch: Callable[[int], MicroBatch],
        count: int,
    ):
        self.make_batch = make_batch
        self.micro_batch = micro_batch
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        micro_batch = self.micro_batch(number)
        return self.make_batch(
            micro_batch.step, micro_batch.size, micro_batch.patch, micro_batch.first
        )


def batches(
    sampler: Sampler,
    micro_batch: Callable[[int], MicroBatch],
    count: int,
    *,
    workers: int,
    device: torch.device,
    seed: int,
) -> Iterator[Batch]:
    """The batches of the first ``count`` micro-batches, in order, on the device.

    A batch is a pure function of its micro-batch, so neither the number of workers nor a break of
    the training changes it. With a GPU a sampler that can give batches without their augmentation
    (``plain_batch``) has it computed there; the drawn gains and shifts are the same, the noise
    comes from the device's generator.

    Args:
        sampler: where batches come from.
        micro_batch: what is needed, by number.
        count: how many there are.
        workers: processes that work ahead; 0 makes each batch when it is needed, as do systems
            without ``fork`` and samplers that work on the device (``device``).
        device: where the batches go.
        seed: of the workers' own generators, which samplers do not use.

    Raises:
        UnavailableError: the shared memory of the system cannot hold the workers' batches.
    """
    make_plain_batch = getattr(sampler, "plain_batch", None)
    make_batch: Callable[..., Batch] = sampler.batch
    if device.type == "cuda" and make_plain_batch is not None:
        make_batch = make_plain_batch
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    works_on_device = getattr(sampler, "device", torch.device("cpu")).type != "cpu"
    if not can_fork or works_on_device:
        workers = 0
    if workers and count:
        _require_shared_memory(sampler, micro_batch, count, workers)
    parent = os.getpid()
    is_over = multiprocessing.RawValue("b", 0)

    def end() -> None:
        is_over.value = 1

    def obey_when_over(number: int, frame: FrameType | None) -> None:
        # A scheduler signals every process of a job, and the parent still needs batches to end its
        # step. Exit code 0: torch turns any other end of a worker into an exception in the parent,
        # at whatever line the parent happens to be.
        if is_over.value:
            os._exit(0)

    def start_worker(worker: int) -> None:
        # torch's own watch compares with the parent at this moment, which is the system already if
        # the real one was killed early.
        if os.getppid() != parent:
            os._exit(1)
        signal.signal(signal.SIGTERM, obey_when_over)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    loader = DataLoader(
        _MicroBatches(make_batch, micro_batch, count),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        # Samplers hold functions, which only a fork hands over; they keep off the device.
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=start_worker if workers else None,
        # A private generator: otherwise each loader would draw its seed from the stream that the
        # networks draw from.
        generator=torch.Generator().manual_seed(seed),
        pin_memory=device.type == "cuda",
    )
    with _sigterm_blocked_while_forking(workers):
        host_batches = iter(loader)
    # A process that ends with batches left terminates its workers, and waits
    # for them without a limit.
    at_exit = Finalize(None, end, exitpriority=0)
    try:
        for batch in host_batches:
            yield batch.to(device).augmented()
    finally:
        at_exit()


def _require_shared_memory(
    sampler: Sampler, micro_batch: Callable[[int], MicroBatch], count: int, workers: int
) -> None:
    """Workers would wait for ever, or die by a signal, where shared memory is too small.

    The largest of the next batches is estimated from one sample: image, label and brain of a patch.
    """
    if not SHARED_MEMORY.is_dir():
        return
    free = shared_memory_bytes()
    channels = len(sampler.available(sampler.case_ids[0]))
    largest = 0
    for number in range(min(count, 100)):
        needed = micro_batch(number)
        voxels = needed.size
        for side in needed.patch:
            voxels *= side
        # float32 image, int64 label, bool brain
        largest = max(largest, voxels * (4 * channels + 8 + 1))
    ready = workers * (AHEAD + 1) * largest
    if ready > free:
        raise UnavailableError(
            f"The shared memory of this system has {free / 2**20:.0f} MiB free, and {workers} "
            f"workers need {ready / 2**20:.0f} MiB.",
            "Train without workers, or give the container more (docker run --ipc=host "
            "or --shm-size).",
            option="workers",
        )


def shared_memory_bytes() -> int:
    """Free bytes of /dev/shm."""
    status = os.statvfs(SHARED_MEMORY)
    return status.f_bavail * status.f_frsize


@contextmanager
def _sigterm_blocked_while_forking(workers: int) -> Iterator[None]:
    """A SIGTERM to the whole group waits until each worker can answer it.

    The parent gets its own afterwards.
    """
    if not workers:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def default_workers(device: str, processes: int) -> int:
    """Workers per process: up to eight cores each for a GPU, at most one on a CPU.

    On a CPU more workers would take the cores that the network computes on.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    if resolve_device(device).type == "cpu":
        return 1 if cores > processes else 0
    return max(1, min(8, cores // processes - 1))
