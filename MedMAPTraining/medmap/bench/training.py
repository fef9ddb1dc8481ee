"""Cost of a training step, against the published way of training the same network, in one run.

Published (mmFormer's and PASSION's released code): eager float32, batch size 1, all encoders
whatever a sample shows, PASSION's students decoded one after the other, data made between the
steps. Ours: what ``medmap train`` does on the same device. Speed is given in samples per second.
That both learn the same is checked first: with float32 and batch size 1 both ways give the same
losses on the same samples.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medmap.bench.peer import load_peer
from medmap.bench.process import MIB, read_clock
from medmap.bench.published_passion import decode_in_turn
from medmap.devices import resolve_device
from medmap.task import BRATS
from medmap.training.batch import Batch, Sampler
from medmap.training.cache import write_case_record
from medmap.training.dataset import PatchSampler
from medmap.training.distributed import Team, launch
from medmap.training.loop import RuntimeOptions, Training
from medmap.training.missingness import random_subset
from medmap.training.objectives import passion
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective

METHODS: dict[str, tuple[str, dict]] = {
    "plain": ("plain", {}),
    "auxiliary": ("sls", {}),
    "PASSION": ("passion", {"variant": "released"}),
}
"""Name -> objective and its options."""

CASE = (140, 170, 140)
"""Voxels of a brain's box at 1 mm."""


@dataclass(frozen=True)
class TrainingRow:
    """One method trained one way.

    Attributes:
        method: one of ``METHODS``.
        way: ``published`` or ``ours``.
        precision, batch, workers: how.
        seconds: median time of a step: processor time on a CPU without data loader processes,
            else wall clock.
        samples: samples per second.
        waiting: share of the time spent waiting for data, 0..1.
        peak_mib: largest memory that tensors held on a GPU; None on a CPU.
        loss_difference: largest relative difference of the losses of the two ways in float32 with
            batch size 1; None for a peer.
    """

    method: str
    way: str
    precision: str
    batch: int
    workers: int
    seconds: float
    samples: float
    waiting: float
    peak_mib: float | None
    loss_difference: float | None


def bench_training(
    methods: Sequence[str] = tuple(METHODS),
    *,
    network: str = "mmFormer",
    network_options: dict | None = None,
    patch: int = 80,
    batch: int = 4,
    precision: str = "bf16",
    workers: int = 4,
    compiled: bool = False,
    device: str = "auto",
    steps: int = 10,
    case: Sequence[int] = CASE,
    against: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[TrainingRow]:
    """Time training steps both ways, each after a warm-up of a fifth.

    Args:
        methods: some of ``METHODS``.
        network, network_options: the backbone; it needs the tap ``decoder`` for PASSION.
        patch: side of the cubic patches, in voxels.
        batch, precision, workers, compiled: of our way.
        device: a torch device, or ``auto``.
        steps: timed steps of each way.
        case: voxels of the synthetic cases that patches are cut from.
        against: a peer's training step (``load_peer``), timed last: ``callable(image, label)`` gets
            one sample, [1, 4, *patch] with absent channels 0 and [1, *patch] class indices, on the
            device.
        progress: called with a line before each part.

    Raises:
        UnavailableError: the device is not there.
    """
    report = progress or (lambda text: None)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = _cases(Path(temporary), case)
        base = Recipe(
            network=network,
            network_options=network_options or {},
            patch=(patch,) * 3,
            large_patch=(patch,) * 3,
            large_share=0.0,
            schedule="constant",
            learning_rate=1e-4,
        )
        ours = RuntimeOptions(
            device=device, precision=precision, workers=workers, compiled=compiled
        )
        published = RuntimeOptions(device=device, precision="fp32", channels_last=False)
        for method in methods:
            objective, options = METHODS[method]
            recipe = replace(base, objective=objective, objective_options=options)
            report(f"{method}: comparing the losses of both ways")
            difference = _loss_difference(recipe, folders, published)
            report(f"{method}, published")
            one_sample = replace(recipe, batch=1)
            speed = _timed(one_sample, folders, published, steps, published=True)
            rows.append(_row(method, "published", published, 1, speed, difference))
            report(f"{method}, ours")
            full_batch = replace(recipe, batch=batch)
            speed = _timed(full_batch, folders, ours, steps, published=False)
            rows.append(_row(method, "ours", ours, batch, speed, difference))
        if against:
            report(against)
            rows.append(_peer(against, base, folders, resolve_device(device), steps))
    return rows


@dataclass(frozen=True)
class _Speed:
    """Seconds per step, samples per second, share of waiting, peak memory in MiB on a GPU."""

    seconds: float
    samples: float
    waiting: float
    peak_mib: float | None


def _row(
    method: str,
    way: str,
    runtime: RuntimeOptions,
    batch: int,
    speed: _Speed,
    difference: float,
) -> TrainingRow:
    return TrainingRow(
        method=method,
        way=way,
        precision=runtime.precision,
        batch=batch,
        workers=runtime.workers,
        seconds=speed.seconds,
        samples=speed.samples,
        waiting=speed.waiting,
        peak_mib=speed.peak_mib,
        loss_difference=difference,
    )


TABLE_HEAD = [
    "method",
    "way",
    "step (s)",
    "samples / s",
    "speed-up",
    "waiting for data",
    "peak MiB",
    "loss difference",
]


def training_table(rows: Sequence[TrainingRow]) -> list[list[str]]:
    """Texts of a table: a header, then one row each.

    The speed-up is that over the published way of the same method; a peer's is that over the
    published way of the first method.
    """
    table = [TABLE_HEAD]
    published = {row.method: row.samples for row in rows if row.way == "published"}
    first_published = next(iter(published.values()), None)
    for row in rows:
        base = published.get(row.method, first_published)
        speed_up = ""
        if base:
            speed_up = f"{row.samples / base:.2f}x"
        peak = ""
        if row.peak_mib is not None:
            peak = f"{row.peak_mib:.0f}"
        difference = ""
        if row.loss_difference is not None:
            difference = f"{row.loss_difference:.1e}"
        table.append(
            [
                row.method,
                f"{row.way}: {row.precision}, batch {row.batch}, {row.workers} workers",
                f"{row.seconds:.3f}",
                f"{row.samples:.2f}",
                speed_up,
                f"{100 * row.waiting:.1f} %",
                peak,
                difference,
            ]
        )
    return table


def _timed(
    recipe: Recipe,
    folders: Sequence[Path],
    runtime: RuntimeOptions,
    steps: int,
    *,
    published: bool,
) -> _Speed:
    """Speed of so many steps, after a warm-up of a fifth."""
    warm_up = max(1, steps // 5)
    seconds = []
    waiting = []
    complete = replace(recipe, steps=warm_up + steps)
    with _training(complete, folders, runtime, published=published) as training:
        clock = time.perf_counter
        if training.device.type == "cpu" and not runtime.workers:
            # On a busy machine the clock on the wall measures the other programs, too.
            clock = time.process_time
        previous = clock()
        for step, figures in training.steps():
            # The figures have been read, so the device has finished the step.
            current = clock()
            if step > warm_up:
                seconds.append(current - previous)
                waiting.append(figures["waiting"] * (current - previous))
            elif step == warm_up and training.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(training.device)
            previous = current
        peak = _gpu_peak_mib(training.device)
    return _speed(seconds, waiting, recipe.batch, peak)


def _speed(
    seconds: Sequence[float], waiting: Sequence[float], batch: int, peak: float | None
) -> _Speed:
    """Speed from the seconds of each step, and those of it spent waiting."""
    return _Speed(
        statistics.median(seconds),
        batch * len(seconds) / sum(seconds),
        sum(waiting) / sum(seconds),
        peak,
    )


def _gpu_peak_mib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / MIB


def _peer(
    target: str, recipe: Recipe, folders: Sequence[Path], device: torch.device, steps: int
) -> TrainingRow:
    """A peer's steps, one sample each, made between them as the published way does."""
    peer = load_peer(target)
    sampler = PatchSampler(folders, random_subset(BRATS), recipe.seed, recipe.augmentation)
    warm_up = max(1, steps // 5)
    seconds = []
    waiting = []
    for step in range(warm_up + steps):
        started = read_clock(device)
        batch = sampler.batch(step, 1, recipe.patch).to(device)
        ready = read_clock(device)
        peer(batch.image, batch.label)
        if step >= warm_up:
            seconds.append(read_clock(device) - started)
            waiting.append(ready - started)
    speed = _speed(seconds, waiting, 1, _gpu_peak_mib(device))
    return TrainingRow(
        method="a peer's",
        way=target,
        precision="as it is",
        batch=1,
        workers=0,
        seconds=speed.seconds,
        samples=speed.samples,
        waiting=speed.waiting,
        peak_mib=speed.peak_mib,
        loss_difference=None,
    )


def _loss_difference(
    recipe: Recipe, folders: Sequence[Path], runtime: RuntimeOptions, steps: int = 2
) -> float:
    """Largest relative difference of the losses of both ways on the same samples, over steps."""
    theirs = _losses(replace(recipe, steps=steps), folders, runtime, published=True)
    ours = _losses(replace(recipe, steps=steps), folders, runtime, published=False)
    differences = []
    for loss, other in zip(theirs, ours, strict=True):
        differences.append(abs(loss - other) / max(abs(loss), 1e-9))
    return max(differences)


def _losses(
    recipe: Recipe, folders: Sequence[Path], runtime: RuntimeOptions, *, published: bool
) -> list[float]:
    """The loss of every step, without dropout."""
    with _training(recipe, folders, runtime, published=published) as training:
        # The two ways draw dropout's random numbers for different tensors: their losses could not
        # be compared.
        for module in training.objective.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                vars(module)["dropout"] = 0.0
        return [figures["loss"] for _, figures in training.steps()]


@contextlib.contextmanager
def _training(
    recipe: Recipe, folders: Sequence[Path], runtime: RuntimeOptions, *, published: bool
) -> Iterator[Training]:
    """A training in a temporary folder, the published way or ours."""
    patches = PatchSampler(folders, random_subset(BRATS), recipe.seed, recipe.augmentation)
    sampler: Sampler = patches
    original = passion.decode_together
    if published:
        sampler = EveryEncoder(patches)
        passion.decode_together = decode_in_turn
    try:
        with tempfile.TemporaryDirectory() as run:
            torch.manual_seed(recipe.seed)
            objective = make_objective(recipe, BRATS, sampler)
            team = Team(launch(runtime.device, runtime.precision))
            yield Training(recipe, objective, sampler, Path(run), runtime, team)
    finally:
        passion.decode_together = original


class EveryEncoder:
    """A sampler whose batches name all modalities, so that every encoder runs.

    It has no ``plain_batch``, so the CPU augments the patches.
    """

    def __init__(self, sampler: PatchSampler):
        self.sampler = sampler
        self.case_ids = sampler.case_ids

    def available(self, case_id: str) -> np.ndarray:
        """As ``PatchSampler.available``."""
        return self.sampler.available(case_id)

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """As ``PatchSampler.batch``."""
        batch = self.sampler.batch(step, size, patch, first)
        return replace(batch, modalities=tuple(range(batch.present.shape[1])))


def _cases(root: Path, shape: Sequence[int], count: int = 4) -> list[Path]:
    """Cached cases of noise with boxes for a tumor: a step costs what it does with any case."""
    rng = np.random.default_rng(0)
    folders = []
    for number in range(count):
        folder = root / f"case-{number}"
        folder.mkdir()
        for name in BRATS.modality_names:
            image = rng.standard_normal(shape, np.float32).astype(np.float16)
            np.save(folder / f"{name}.npy", image)
        np.save(folder / "label.npy", _nested_boxes(shape))
        np.save(folder / "brain.npy", np.ones(shape, np.uint8))
        write_case_record(folder, BRATS.modality_names, BRATS.modality_names)
        folders.append(folder)
    return folders


def _nested_boxes(shape: Sequence[int]) -> np.ndarray:
    """Class indices [*shape]: three boxes in the center, a third to a sixth of the volume wide."""
    label = np.zeros(shape, np.uint8)
    for index, divisor in enumerate((3, 4, 6), 1):
        box = []
        for size in shape:
            half = size // (2 * divisor)
            box.append(slice(size // 2 - half, size // 2 + half))
        label[tuple(box)] = index
    return label
