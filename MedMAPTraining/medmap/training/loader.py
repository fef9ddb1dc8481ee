"""Batches ahead of time: made by worker processes by number, so that how many there are changes nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from medmap.inference import resolve_device
from medmap.training.dataset import Batch, Sampler

AHEAD = 3
"""Batches that each worker keeps ready."""


@dataclass(frozen=True)
class Piece:
    """What one forward pass of one process gets: these samples of this step, in patches of this size."""

    step: int
    first: int
    size: int
    patch: tuple[int, ...]


class _Pieces(Dataset):
    def __init__(self, sampler: Sampler, piece: Callable[[int], Piece], count: int, later: bool):
        self.sampler, self.piece, self.count, self.later = sampler, piece, count, later

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        piece = self.piece(number)
        make = self.sampler.plain_batch if self.later else self.sampler.batch
        return make(piece.step, piece.size, piece.patch, piece.first)


def batches(
    sampler: Sampler,
    piece: Callable[[int], Piece],
    count: int,
    *,
    workers: int,
    device: torch.device,
    seed: int,
) -> Iterator[Batch]:
    """The batches of the first ``count`` pieces, in order, on the device.

    A batch is a pure function of its piece, so neither the number of workers nor a break of the training changes it.
    With a GPU a sampler that can give batches without their random variation (``plain_batch``) has it computed there;
    the drawn gains and shifts are the same, the noise comes from the device's generator.

    Args:
        sampler: where batches come from.
        piece: what is wanted, by number.
        count: how many there are.
        workers: processes that work ahead; 0 makes each batch when it is asked for, as do systems without ``fork`` and
            samplers that work on the device (``device``).
        device: where the batches go.
        seed: of the workers' own generators, which samplers do not use.
    """
    later = device.type == "cuda" and getattr(sampler, "plain_batch", None) is not None
    forks = "fork" in multiprocessing.get_all_start_methods()
    on_device = getattr(sampler, "device", torch.device("cpu")).type != "cpu"
    workers = workers if forks and not on_device else 0
    parent = os.getpid()

    def begin(worker: int) -> None:
        # torch's own watch over the parent takes whoever that is by now for it: the system, if it was killed early.
        if os.getppid() != parent:
            os._exit(1)
        # Success: of a worker that ends otherwise torch makes an exception in the parent, wherever that is by then.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    loader = DataLoader(
        _Pieces(sampler, piece, count, later),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        # Samplers hold functions, which only a fork hands over; they keep off the device.
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=begin if workers else None,
        # A private generator: otherwise each loader would draw its seed from the stream that the networks draw from.
        generator=torch.Generator().manual_seed(seed),
        pin_memory=device.type == "cuda",
    )
    with _blocked_while_forking(workers):
        made = iter(loader)
    for batch in made:
        yield batch.to(device).varied()


@contextmanager
def _blocked_while_forking(workers: int) -> Iterator[None]:
    """A SIGTERM to the whole group waits until each worker can answer it; the parent gets its own afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if workers else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def default_workers(device: str, processes: int) -> int:
    """Workers a process: up to eight cores each for a GPU; on a CPU, where they would take the network's cores, one."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if resolve_device(device).type == "cpu":
        return 1 if cores > processes else 0
    return max(1, min(8, cores // processes - 1))
