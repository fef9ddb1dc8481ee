"""The workers of a loader: same batches as without them, and a quiet end."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from medmap.errors import UnavailableError
from medmap.training.loader import MicroBatch, batches

pytestmark = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="workers need fork"
)


@dataclass
class Numbers:
    values: torch.Tensor

    def to(self, device):
        return self

    def augmented(self):
        return self


class Counting:
    case_ids = ("case",)

    def available(self, case_id):
        return [True]

    def batch(self, step, size, patch, first):
        return Numbers(torch.arange(first, first + size) + 10 * step)


def pieces(number: int) -> MicroBatch:
    return MicroBatch(number, 0, 2, (8, 8, 8))


def started(count: int, workers: int):
    return batches(Counting(), pieces, count, workers=workers, device=torch.device("cpu"), seed=0)


def test_workers_change_no_batch():
    one, two = ([batch.values.tolist() for batch in started(5, workers)] for workers in (0, 2))
    assert one == two == [[10 * step, 10 * step + 1] for step in range(5)]


def test_workers_outlive_a_sigterm_and_end_with_their_parent():
    """A scheduler signals the whole group; the step that is running still needs its batches."""
    undisturbed = started(40, 2)
    expected = list(undisturbed)
    before = set(multiprocessing.active_children())
    incoming = started(40, 2)
    received = [next(incoming)]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    # By another process: torch takes a parent's own signal for its shutting down.
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    for _ in range(20):
        received.append(next(incoming))
    assert all(worker.is_alive() for worker in workers)
    # Closed in the middle, as a stopped training does.
    incoming.close()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0
    for batch, expected_batch in zip(received, expected[:21], strict=True):
        assert torch.equal(batch.values, expected_batch.values)


UNFINISHED = """
import sys
import time

import torch

from medmap.training.loader import MicroBatch, batches


class Numbers:
    def to(self, device):
        return self

    def augmented(self):
        return self


class Sampler:
    case_ids = ("case",)

    def available(self, case_id):
        return [True]

    def batch(self, step, size, patch, first):
        if sys.argv[1] == "busy" and step > 3:
            time.sleep(1000)
        return Numbers()


def micro_batch(number):
    return MicroBatch(number, 0, 2, (8, 8, 8))


incoming = batches(Sampler(), micro_batch, 1000, workers=2, device=torch.device("cpu"), seed=0)
next(incoming)
time.sleep(0.3)
if sys.argv[2] == "closed":
    incoming.close()
"""


@pytest.mark.parametrize("workers", ["waiting", "busy"])
@pytest.mark.parametrize("batches_left", ["closed", "open"])
def test_a_program_with_batches_left_ends(workers, batches_left):
    """Whether its workers wait or are within a batch; torch terminates them by SIGTERM."""
    command = [sys.executable, "-c", UNFINISHED, workers, batches_left]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        assert process.wait(120) == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_the_parent_hears_its_own_signals():
    made = started(10, 1)
    next(made)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    made.close()


def test_too_little_shared_memory_is_refused_before_a_worker_starts(monkeypatch):
    """Workers would wait for ever, or die by a signal: Docker gives containers 64 MB."""
    monkeypatch.setattr("medmap.training.loader.shared_memory_bytes", lambda: 64 << 10)
    wide = lambda number: MicroBatch(number, 0, 2, (64, 64, 64))  # noqa: E731
    incoming = batches(Counting(), wide, 3, workers=1, device=torch.device("cpu"), seed=0)
    with pytest.raises(UnavailableError, match="shared memory") as error:
        next(incoming)
    assert "without workers" in error.value.remedy
    assert error.value.exit_code == 69
