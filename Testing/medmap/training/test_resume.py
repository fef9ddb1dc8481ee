"""Killed at any moment (SIGKILL), a training resumes to the same bits.

It never leaves only unreadable checkpoints.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field

import lightning_fabric  # noqa: F401 (imported here once, for all children)
import pytest
import torch
import torch.utils.tensorboard

from medmap.task import BRATS
from medmap.training.checkpoint import load_checkpoint
from medmap.training.dataset import PatchSampler
from medmap.training.log import TrainingLog, duration
from medmap.training.loop import train
from medmap.training.missingness import random_subset
from medmap.training.recipe import Recipe

TINY = Recipe(
    network_options={"widths": (4, 8)},
    steps=12,
    batch=1,
    patch=(16, 16, 16),
    large_patch=(16, 16, 16),
    seed=7,
)


def run(folders, folder, workers=0, report=None) -> None:
    """Train with a checkpoint after every step, so that many kills fall into one."""
    sampler = PatchSampler(folders, random_subset(BRATS), TINY.seed, TINY.augmentation)
    with TrainingLog(folder, TINY.steps, lambda share, text: None) as log:

        def log_and_report(step, figures):
            log(step, figures)
            if report is not None:
                report()

        settings = {"device": "cpu", "precision": "fp32", "save_every": 1, "workers": workers}
        train(TINY, BRATS, sampler, folder, **settings, report=log_and_report)


class KillAfter:
    """Kills its own process during one of the steps that follow so many.

    Counted in steps and in the length of a step, so that a busy machine changes nothing.
    """

    def __init__(self, steps: int, fraction: float):
        self.steps = steps
        self.fraction = fraction
        self.reported = 0
        self.started = time.monotonic()

    def __call__(self) -> None:
        self.reported += 1
        if self.reported == self.steps:
            step_seconds = (time.monotonic() - self.started) / self.steps
            delay = self.fraction * step_seconds
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


def in_child(folders, folder, report=None) -> bool:
    """Train in a process of its own; returns whether it was killed."""

    def child():
        torch.set_num_threads(1)
        run(folders, folder, report=report)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def same(one, two) -> bool:
    """Whether two states are bit-identical, optimizers included."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return one == two


@dataclass
class Outcome:
    """What kills did to trainings.

    Attributes:
        resumed_from: step of the checkpoint after each kill.
        is_identical: of each training, whether it ended with the bits of an unbroken one.
    """

    resumed_from: list[int] = field(default_factory=list)
    is_identical: list[bool] = field(default_factory=list)


def kill_and_resume(folders, root, kills: int, seed: int) -> Outcome:
    """Kill trainings at random moments until ``kills`` have struck; each resumes to its end."""
    unbroken = root / "unbroken"
    in_child(folders, unbroken)
    expected = load_checkpoint(unbroken)
    rng = random.Random(seed)
    outcome = Outcome()
    while len(outcome.resumed_from) < kills:
        folder = root / f"broken-{len(outcome.is_identical)}"
        is_running = True
        while is_running:
            report = None
            if len(outcome.resumed_from) < kills:
                report = KillAfter(rng.randint(2, TINY.steps // 2), rng.uniform(0, 2))
            is_running = in_child(folders, folder, report)
            if is_running:
                # Raises where no checkpoint is intact.
                outcome.resumed_from.append(load_checkpoint(folder)["step"])
        outcome.is_identical.append(same(load_checkpoint(folder), expected))
        lines = (folder / "log.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == list(range(1, TINY.steps + 1)), "every step is in the log once"
        assert not list(folder.glob(".tmp-*.pt"))
        shutil.rmtree(folder)
    return outcome


def check(outcome: Outcome, kills: int) -> None:
    assert len(outcome.resumed_from) == kills
    assert all(outcome.is_identical), outcome
    assert 0 < min(outcome.resumed_from) < TINY.steps, "kills struck in the middle"


def test_killed_trainings_resume_to_the_same_bits(cached_heads, tmp_path):
    check(kill_and_resume(cached_heads, tmp_path, 3, seed=1), 3)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(cached_heads, tmp_path, capsys):
    outcome = kill_and_resume(cached_heads, tmp_path, 20, seed=2)
    with capsys.disabled():
        print(f"\n20 kills -9 in {len(outcome.is_identical)} trainings: {outcome.resumed_from}")
    check(outcome, 20)


def test_workers_of_a_killed_training_end_with_it(cached_heads, tmp_path):
    def child():
        run(cached_heads, tmp_path / "run", workers=1)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    before = time.monotonic()
    while not _children(process.pid) and process.is_alive() and time.monotonic() - before < 60:
        time.sleep(0.02)
    time.sleep(1.0)  # beyond the worker's start
    workers = _children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 60
    while (
        any(os.path.exists(f"/proc/{pid}") and not _zombie(pid) for pid in workers)
        and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}") and not _zombie(pid)]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]
    except OSError:
        return []


def _zombie(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_the_time_left_is_told_in_words(tmp_path):
    said = []
    (tmp_path / "run").mkdir()
    with TrainingLog(tmp_path / "run", 100, lambda share, text: said.append(text)) as log:
        log(1, {"loss": 1.0, "seconds": 10.0})
        log(11, {"loss": 0.5, "seconds": 20.0, "validation_dice": 0.25})
    assert said[1] == "step 11 of 100, loss 0.500, validation Dice 0.250, 89 s left"
    assert [duration(s) for s in (5, 600, 12000, 200000)] == [
        "5 s",
        "10 min",
        "3 h 20 min",
        "2 d 7 h",
    ]
    assert list((tmp_path / "run/tensorboard").iterdir())
