"""What a training step costs, against the published way of training the same network, in one run.

Published (mmFormer's and PASSION's released code): eager float32, one sample a step, all encoders whatever a sample
shows, PASSION's students decoded one after the other, data made between the steps. Ours: what ``medmap train`` does on
the same device. Speed is told in samples a second. That both learn the same is checked first: with float32 and one
sample a step, both ways give the same losses on the same samples.
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
from torch import Tensor, nn

from medmap.bench.networks import now
from medmap.bench.peer import load_peer
from medmap.devices import resolve_device
from medmap.networks import Output
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.cache import write_case_record
from medmap.training.dataset import PatchSampler
from medmap.training.distributed import Team, launch
from medmap.training.loop import RuntimeOptions, Training
from medmap.training.missingness import random_subset
from medmap.training.objectives import passion
from medmap.training.objectives.self_distillation import Students, decode_together
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
        seconds: median time of a step.
        samples: samples a second.
        waiting: share of the time spent waiting for data, 0..1.
        peak_mib: largest memory that tensors held on a GPU; None on a CPU.
        apart: largest relative difference of the losses of the two ways, float32, one sample a step; None of a peer's.
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
    apart: float | None


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
        against: a peer's training step (``load_peer``), timed last: ``callable(image, label)`` gets one sample,
            [1, 4, *patch] with absent channels 0 and [1, *patch] class indices, on the device.
        progress: called with a line before each part.

    Raises:
        UnavailableError: the device is not there.
    """
    say = progress or (lambda text: None)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folders = _cases(Path(place), case)
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
        theirs = RuntimeOptions(device=device, precision="fp32")
        for method in methods:
            objective, options = METHODS[method]
            recipe = replace(base, objective=objective, objective_options=options)
            say(f"{method}: whether both ways agree")
            apart = _apart(recipe, folders, theirs)
            for way, engine, size in (("published", theirs, 1), ("ours", ours, batch)):
                say(f"{method}, {way}")
                timed = _timed(
                    replace(recipe, batch=size), folders, engine, way == "published", steps
                )
                rows.append(
                    TrainingRow(method, way, engine.precision, size, engine.workers, *timed, apart)
                )
        if against:
            say(against)
            rows.append(_peer(against, base, folders, resolve_device(device), steps))
    return rows


def training_table(rows: Sequence[TrainingRow]) -> list[list[str]]:
    """Rows for people: a header, then one row each, with the ratio of samples a second to the published way."""
    table = [
        [
            "method",
            "way",
            "step (s)",
            "samples / s",
            "ratio",
            "waiting for data",
            "peak MiB",
            "losses apart",
        ]
    ]
    published = {row.method: row.samples for row in rows if row.way == "published"}
    first = next(
        iter(published.values()), None
    )  # a peer's step is told as a ratio to the first method's
    for row in rows:
        how = f"{row.way}: {row.precision}, batch {row.batch}, {row.workers} workers"
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        base = published.get(row.method, first)
        ratio = f"{row.samples / base:.2f}x" if base else ""
        waiting = f"{100 * row.waiting:.1f} %"
        apart = "" if row.apart is None else f"{row.apart:.1e}"
        numbers = [f"{row.seconds:.3f}", f"{row.samples:.2f}", ratio, waiting, peak, apart]
        table.append([row.method, how, *numbers])
    return table


def _timed(
    recipe: Recipe, folders: Sequence[Path], engine: RuntimeOptions, published: bool, steps: int
) -> tuple[float, float, float, float | None]:
    """Seconds a step, samples a second, share of waiting, and peak memory in MiB."""
    warm = max(1, steps // 5)
    with _training(replace(recipe, steps=warm + steps), folders, engine, published) as training:
        seconds, waiting, before = [], [], time.perf_counter()
        for step, figures in training.steps():
            now = time.perf_counter()  # the figures have been read, so the device has done the step
            if step > warm:
                seconds.append(now - before)
                waiting.append(figures["waiting"] * (now - before))
            elif step == warm and training.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(training.device)
            before = now
        cuda = training.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(training.device) / 2**20 if cuda else None
    return (
        statistics.median(seconds),
        recipe.batch * len(seconds) / sum(seconds),
        sum(waiting) / sum(seconds),
        peak,
    )


def _peer(
    target: str, recipe: Recipe, folders: Sequence[Path], device: torch.device, steps: int
) -> TrainingRow:
    """A peer's steps, one sample each, made between them as the published way does."""
    peer, sampler = (
        load_peer(target),
        PatchSampler(folders, random_subset(BRATS), recipe.seed, recipe.augmentation),
    )
    seconds, waiting, warm = [], [], max(1, steps // 5)
    for step in range(warm + steps):
        began = now(device)
        batch = sampler.batch(step, 1, recipe.patch).to(device)
        made = now(device)
        peer(batch.image, batch.label)
        if step >= warm:
            seconds.append(now(device) - began)
            waiting.append(made - began)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    figures = (
        statistics.median(seconds),
        len(seconds) / sum(seconds),
        sum(waiting) / sum(seconds),
        peak,
    )
    return TrainingRow("a peer's", target, "as it is", 1, 0, *figures, None)


def _apart(
    recipe: Recipe, folders: Sequence[Path], engine: RuntimeOptions, steps: int = 2
) -> float:
    """Largest relative difference of the losses, step by step, of the published way and ours on the same samples.

    Without dropout: the two ways draw its random numbers for different tensors, and no two draws could be compared.
    """
    losses = []
    for published in (True, False):
        with _training(replace(recipe, steps=steps), folders, engine, published) as training:
            for module in training.objective.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
                elif isinstance(getattr(module, "dropout", None), float):
                    module.dropout = 0.0
            losses.append([figures["loss"] for _, figures in training.steps()])
    return max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(*losses, strict=True))


@contextlib.contextmanager
def _training(
    recipe: Recipe, folders: Sequence[Path], engine: RuntimeOptions, published: bool
) -> Iterator[Training]:
    """A training in a folder that vanishes, the published way or ours."""
    kind = EveryEncoder if published else PatchSampler
    sampler = kind(folders, random_subset(BRATS), recipe.seed, recipe.augmentation)
    before = passion.decode_together
    passion.decode_together = decode_in_turn if published else decode_together
    try:
        with tempfile.TemporaryDirectory() as run:
            torch.manual_seed(recipe.seed)
            objective = make_objective(recipe, BRATS, sampler)
            team = Team(launch(engine.device, engine.precision))
            yield Training(recipe, objective, sampler, Path(run), engine, team)
    finally:
        passion.decode_together = before


class EveryEncoder(PatchSampler):
    """Patches of which nobody says what they show: every encoder runs, and the processor varies them."""

    plain_batch = None

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """As ``PatchSampler.batch``."""
        made = PatchSampler.plain_batch(self, step, size, patch, first).augmented()
        return replace(made, modalities=tuple(range(made.present.shape[1])))


def decode_in_turn(
    network, features, present: Tensor, students: Students, want=(), deepest=None
) -> tuple[Output, Output]:
    """``decode_together``, one student after the other: what the released code does."""
    teacher, alone = network.decode(features, present, want), []
    for sample, modality in zip(students.sample.tolist(), students.modality.tolist(), strict=True):
        shown = torch.zeros_like(present[:1])
        shown[0, modality] = True
        one = [
            None
            if levels is None
            else [level[sample : sample + 1] * (m == modality) for level in levels]
            for m, levels in enumerate(features)
        ]
        if deepest and modality in deepest and features[deepest[modality]] is not None:
            one[modality] = [
                *one[modality][:-1],
                features[deepest[modality]][-1][sample : sample + 1],
            ]
        alone.append(network.decode(one, shown, want))
    if not alone:
        return teacher, teacher
    return teacher, Output(
        torch.cat([output.logits for output in alone]),
        {name: _joined([output.taps[name] for output in alone]) for name in alone[0].taps},
        {name: _joined([output.aux[name] for output in alone]) for name in alone[0].aux},
    )


def _joined(values: list):
    if isinstance(values[0], list):
        return [
            None if level[0] is None else torch.cat(level) for level in zip(*values, strict=True)
        ]
    return torch.cat(values)


def _cases(root: Path, shape: Sequence[int], count: int = 4) -> list[Path]:
    """Cached cases of noise with a box for a tumor: what is in them does not change what a step costs."""
    rng, folders = np.random.default_rng(0), []
    for n in range(count):
        folder = root / f"case-{n}"
        folder.mkdir()
        for name in BRATS.modality_names:
            np.save(
                folder / f"{name}.npy", rng.standard_normal(shape, np.float32).astype(np.float16)
            )
        label = np.zeros(shape, np.uint8)
        for index, part in enumerate((3, 4, 6), 1):
            label[
                tuple(
                    slice(size // 2 - size // (2 * part), size // 2 + size // (2 * part))
                    for size in shape
                )
            ] = index
        np.save(folder / "label.npy", label)
        np.save(folder / "brain.npy", np.ones(shape, np.uint8))
        write_case_record(folder, BRATS.modality_names, BRATS.modality_names)
        folders.append(folder)
    return folders
