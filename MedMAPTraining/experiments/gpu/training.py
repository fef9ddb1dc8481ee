"""The default training as it runs: augmentation by worker processes, steps on the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gpu.cases import Patches, generated_cases, packed_cases
from gpu.setup import REHEARSAL, Row, Setup
from gpu.training_steps import default_trainer


def training_rows(setup: Setup, path: Path | None) -> Iterator[Row]:
    """The default training with augmentation by worker processes: what a minute of it holds."""
    cases = packed_cases(path) if path else generated_cases(setup)
    precision = setup.precision
    trainer = default_trainer(setup, precision, compiled=False)
    workers = 0 if setup.sizes is REHEARSAL else 12
    loader = torch.utils.data.DataLoader(
        Patches(cases, setup.sizes.default_patch, 100_000), batch_size=None, num_workers=workers
    )
    losses = []
    waiting = 0.0
    started = time.perf_counter()
    asked = started
    for batch in loader:
        waiting += time.perf_counter() - asked
        losses.append(float(trainer.step(batch.to(setup.device))))
        asked = time.perf_counter()
        if asked - started > setup.sizes.training_seconds:
            break
    seconds = asked - started
    source = f"{len(cases)} packed real cases" if path else f"{len(cases)} generated cases"
    tenth = max(1, len(losses) // 10)
    first = statistics.mean(losses[:tenth])
    last = statistics.mean(losses[-tenth:])
    note = f"{source}; loss {first:.2f} to {last:.2f}; waiting {waiting / seconds:.0%} of the time"
    title = f"{len(losses)} steps, batch 1, {precision}, {workers} workers"
    yield Row("default training", title, f"{len(losses) / seconds:.2f} steps/s", note)
