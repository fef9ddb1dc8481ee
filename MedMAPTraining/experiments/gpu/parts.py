"""All parts one after the other, and the table of what they measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from gpu.cases import generator_rows
from gpu.drills import drill_rows
from gpu.inference import inference_rows
from gpu.marked_tests import marked_test_rows
from gpu.setup import Row, Setup, release
from gpu.training import training_rows
from gpu.training_steps import default_step_rows, method_rows


def run(setup: Setup, cases: Path | None) -> list[Row]:
    """All parts; one that fails is reported and the next one runs."""
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "inference": partial(inference_rows, setup),
        "training methods": partial(method_rows, setup),
        "default training step": partial(default_step_rows, setup),
        "generator": partial(generator_rows, setup),
        "default training": partial(training_rows, setup, cases),
        "drills": partial(drill_rows, setup),
        "tests": partial(marked_test_rows, setup),
    }
    started = time.monotonic()
    rows: list[Row] = []
    for name, part in parts.items():
        seconds = time.monotonic() - started
        if seconds > setup.sizes.total_seconds:
            rows.append(Row(name, "", "not run", f"{seconds:.0f} s had passed"))
            continue
        print(f"{seconds:5.0f} s  {name}", file=sys.stderr, flush=True)
        try:
            for row in part():
                rows.append(row)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            rows.append(Row(name, "", "FAILED", f"{type(error).__name__}: {lines[0][:120]}"))
        release(setup.device)
    rows.append(Row("all parts", "", f"{time.monotonic() - started:.0f} s"))
    return rows


def table(rows: Sequence[Row], setup: Setup) -> str:
    """Markdown."""
    name = "CPU (a rehearsal: tiny sizes)"
    if setup.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setup.device)
        memory_gib = properties.total_memory / 2**30
        name = f"{torch.cuda.get_device_name(setup.device)}, {memory_gib:.0f} GiB"
    lines = [f"{name}; PyTorch {torch.__version__}", "", "| | | | |", "|---|---|--:|---|"]
    for row in rows:
        lines.append(f"| {row.part} | {row.name} | {row.figure} | {row.note} |")
    return "\n".join(lines) + "\n"
