"""Costs: every figure from a process of its own, wall clock and processor time side by side.

Seconds are comparable within one run on an idle machine only. On a loaded machine processor seconds
still are, as long as one thread computes; that is why both are printed and ratios are of processor
time where the device is a CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from medmap.bench.process import (
    ProcessEnded,
    first_line,
    in_fresh_process,
    peak_mib,
    read_clock,
)
from medmap.errors import MedMAPError


@dataclass(frozen=True)
class Cost:
    """The cost of one measurement.

    Attributes:
        name: what was measured, in words.
        seconds: median wall-clock time over the repeats.
        cpu_seconds: processor time of the same repeat, over all threads.
        peak_mib: largest memory of its process in MiB; None where it is not known.
        note: a remark, such as a difference of the results.
        failure: why there are no figures; empty if there are.
        device: where it ran.
        threads: CPU threads.
        repeats: number of timed runs.
    """

    name: str
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mib: float | None = None
    note: str = ""
    failure: str = ""
    device: str = "cpu"
    threads: int = 1
    repeats: int = 1

    @property
    def compared_seconds(self) -> float | None:
        """What ratios compare: processor time on a CPU, wall clock on a GPU."""
        if self.device == "cpu":
            return self.cpu_seconds
        return self.seconds

    def ratio(self, base: Cost) -> float | None:
        """How many times the base this costs; None without figures."""
        seconds = self.compared_seconds
        base_seconds = base.compared_seconds
        if seconds is None or not base_seconds:
            return None
        return seconds / base_seconds


def timed(
    name: str, work: Callable[[], object], device: str, repeats: int, *, warm_up: bool = True
) -> Cost:
    """Run ``work`` repeatedly in this process; what it returns as text becomes the note."""
    clock = torch.device(device)
    runs = []
    note = ""
    for _ in range(repeats + warm_up):
        started = read_clock(clock)
        cpu_started = time.process_time()
        result = work()
        runs.append((read_clock(clock) - started, time.process_time() - cpu_started))
        if isinstance(result, str):
            note = result
    runs = runs[warm_up:]
    median = statistics.median_low([seconds for seconds, _ in runs])
    cpu_seconds = next(cpu for seconds, cpu in runs if seconds == median)
    return Cost(
        name,
        median,
        cpu_seconds,
        peak_mib(clock),
        note,
        device=device,
        threads=torch.get_num_threads(),
        repeats=repeats,
    )


def isolated(name: str, work: Callable[..., Cost], *arguments: object) -> Cost:
    """``work(*arguments)`` in a fresh process; a failure becomes a row."""
    try:
        return in_fresh_process(work, *arguments)
    except MedMAPError as error:
        failure = error.cause
    except (
        AttributeError,
        ImportError,
        MemoryError,
        ProcessEnded,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        failure = first_line(error)
    return Cost(name, failure=failure, threads=torch.get_num_threads())


def cost_table(
    title: str, costs: Sequence[Cost], base: Cost, base_title: str, caption: str = ""
) -> Table:
    """Costs as a table for a terminal; the ratio says how many times ``base`` each takes."""
    devices = ", ".join(sorted({cost.device for cost in costs}))
    threads = "/".join(sorted({str(cost.threads) for cost in costs}))
    compared = "processor time" if base.device == "cpu" else "wall clock"
    conditions = (
        f"{devices}, {threads} thread(s), median of {base.repeats}. "
        f"Ratio: {compared} over that of {base_title}."
    )
    table = Table(title=title, caption=f"{conditions} {caption}".strip())
    table.add_column("measurement")
    for column in ("seconds", "CPU seconds", "peak MiB", "ratio"):
        table.add_column(column, justify="right")
    table.add_column("note")
    for cost in costs:
        table.add_row(
            cost.name,
            _figure(cost.seconds, ".2f"),
            _figure(cost.cpu_seconds, ".2f"),
            _figure(cost.peak_mib, ",.0f"),
            _figure(cost.ratio(base), ".2f"),
            cost.failure or cost.note,
            style="dim" if cost.failure else None,
        )
    return table


def _figure(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return format(value, form)
