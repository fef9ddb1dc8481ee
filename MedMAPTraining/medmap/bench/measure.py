"""Measuring honestly: every figure in a process of its own, wall clock and processor time side by side.

Seconds are comparable within one run on an idle machine only. On a loaded machine processor seconds still are, as long
as one thread computes; that is why both are printed and ratios are of processor time where the device is a CPU.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import torch
from rich.table import Table

from medmap.bench.networks import now, peak_mib
from medmap.errors import MedMAPError


@dataclass(frozen=True)
class Cost:
    """What one thing took.

    Attributes:
        name: what was measured, in words.
        seconds: median wall-clock time over the repeats.
        cpu_seconds: processor time of the same repeat, over all threads.
        peak_mib: largest memory of its process, as ``NetworkRow.peak_mib``; None where it is not known.
        note: what to know, such as a difference of the results.
        failure: why there are no figures; empty if there are.
        device: where it ran.
        threads: CPU threads.
        repeats: how often.
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

    def ratio(self, base: Cost) -> float | None:
        """How many times the base this costs: processor time on a CPU, wall clock on a GPU; None without figures."""
        pair = [(c.seconds if c.device != "cpu" else c.cpu_seconds) for c in (self, base)]
        return None if None in pair or not pair[1] else pair[0] / pair[1]


def timed(
    name: str, work: Callable[[], object], device: str, repeats: int, *, warm_up: bool = True
) -> Cost:
    """Run ``work`` repeatedly in this process; what it returns as text becomes the note."""
    place, found, note = torch.device(device), [], ""
    for _ in range(repeats + warm_up):
        started, spent = now(place), time.process_time()
        result = work()
        found.append((now(place) - started, time.process_time() - spent))
        note = result if isinstance(result, str) else note
    found = found[warm_up:]
    middle = statistics.median_low([seconds for seconds, _ in found])
    cpu = next(cpu for seconds, cpu in found if seconds == middle)
    return Cost(
        name,
        middle,
        cpu,
        peak_mib(place),
        note,
        device=device,
        threads=torch.get_num_threads(),
        repeats=repeats,
    )


def isolated(name: str, work: Callable[..., Cost], *arguments) -> Cost:
    """``work(*arguments)`` in a fresh process with this one's number of threads; a failure becomes a row."""
    threads = torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            return Cost(
                name, failure="ended by the system, probably out of memory", threads=threads
            )
        except MedMAPError as error:
            return Cost(name, failure=error.cause, threads=threads)
        except (
            MemoryError,
            RuntimeError,
            ValueError,
            TypeError,
            ImportError,
            AttributeError,
        ) as error:
            return Cost(
                name, failure=(str(error) or type(error).__name__).splitlines()[0], threads=threads
            )


def cost_table(
    title: str, costs: Sequence[Cost], base: Cost, base_words: str, caption: str = ""
) -> Table:
    """Costs as a table for a terminal; the ratio says how many times ``base`` each takes."""
    device = ", ".join(sorted({cost.device for cost in costs}))
    threads = "/".join(sorted({str(cost.threads) for cost in costs}))
    kind = "processor time" if base.device == "cpu" else "wall clock"
    words = f"{device}, {threads} thread(s), median of {base.repeats}. Ratio: {kind} over that of {base_words}."
    table = Table(title=title, caption=f"{words} {caption}".strip())
    table.add_column("what")
    for column in ("seconds", "CPU seconds", "peak MiB", "ratio"):
        table.add_column(column, justify="right")
    table.add_column("note")
    for cost in costs:
        ratio = cost.ratio(base)
        figures = (
            "–" if cost.seconds is None else f"{cost.seconds:.2f}",
            "–" if cost.cpu_seconds is None else f"{cost.cpu_seconds:.2f}",
            "–" if cost.peak_mib is None else f"{cost.peak_mib:,.0f}",
            "–" if ratio is None else f"{ratio:.2f}",
        )
        table.add_row(
            cost.name, *figures, cost.failure or cost.note, style="dim" if cost.failure else None
        )
    return table
