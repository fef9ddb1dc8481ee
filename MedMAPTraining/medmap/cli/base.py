"""What every command shares: the application, consoles, options, progress, interrupts."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from medmap import NOTICE
from medmap.progress import Progress

if TYPE_CHECKING:
    from medmap.bundle.loading import Bundle


def _is_terminal() -> bool:
    """Whether standard output is a terminal; it is None where a program was started without one."""
    return sys.stdout is not None and sys.stdout.isatty()


# Into a file or a pipe tables are written wide, not folded to a terminal's 80 columns.
# Markup is off: paths may hold brackets.
out = Console(highlight=False, markup=False, width=None if _is_terminal() else 150)
err = Console(stderr=True, highlight=False, markup=False)
app = typer.Typer(
    help=f"Segment brain tumors from any subset of T1, T1ce, T2 and FLAIR.\n\n{NOTICE}",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

bench = typer.Typer(
    help="Benchmark runtime and memory.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(bench, name="bench")

Scan = Annotated[Path | None, typer.Option(metavar="FILE", help="NIfTI file of this modality.")]
# A list, so that a second file for a modality is refused instead of replacing the first.
ScanFiles = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="NIfTI file of this modality.")
]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle folder [default: the default model].")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")]
Precision = Annotated[
    str, typer.Option(help="fp32, bf16, or auto: bf16 where the device computes it.")
]
Labels = Annotated[
    str,
    typer.Option(
        "--labels",
        "--label-convention",
        help="Convention of the label files: brats2012, brats2017, brats2023, brats2024, "
        "brats-ped, msd, or task (the task's own values) [default: recognized by the "
        "names of the cases].",
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME|FILE",
        help="Task: a name of medmap task list, a TOML or JSON file, or nnU-Net's dataset.json "
        "[default: the recipe's].",
    ),
]
Affine = Annotated[
    str | None,
    typer.Option(
        help="sform or qform: which one to use in files where the two contradict each other."
    ),
]
AssumeOrientation = Annotated[
    bool,
    typer.Option(
        "--assume-orientation",
        help="Accept files without orientation; the axes are taken as right, front, top.",
    ),
]
Prepare = Annotated[
    str,
    typer.Option(
        metavar="auto|always|never",
        help="Brain extraction and alignment before the segmentation: auto does what the scans "
        "lack, always does both for every scan, never takes the scans as they are.",
    ),
]
KeepPrepared = Annotated[
    bool,
    typer.Option(
        "--keep-prepared",
        help="Also write the extracted and aligned scans, their brain masks, and the transforms.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")]


class Verbosity:
    """How much the commands print; set once, from ``-q`` and ``-v``, before a command runs."""

    quiet = False
    verbose = False

    @classmethod
    def choose(cls, *, quiet: bool, verbose: bool) -> None:
        """Quiet: warnings and errors only. Verbose: every step of the progress, and notes."""
        cls.quiet = quiet
        cls.verbose = verbose
        out.quiet = quiet


class ProgressLines:
    """Progress off a terminal (a scheduler's log): a line per 10 %, and at least one a minute.

    A step that takes longer than a minute repeats its line with the time that has passed.

    Args:
        interval_s: time after which a line is due; it comes at most a quarter of it later.
    """

    def __init__(self, interval_s: float = 45.0):
        self._interval_s = interval_s
        self._started = time.monotonic()
        self._last_time = self._started
        self._last_tenth = -1
        self._line = ""
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._watch = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> ProgressLines:
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._watch.join()

    def __call__(self, fraction: float, text: str) -> None:
        """Report the completed fraction and what is being done."""
        with self._lock:
            self._line = f"{100 * fraction:3.0f} %  {text}"
            tenth = int(10 * fraction)
            silence_s = time.monotonic() - self._last_time
            is_due = silence_s >= self._interval_s
            # A fraction that falls begins another stage: cases are prepared, then the training.
            if tenth != self._last_tenth or is_due or Verbosity.verbose:
                self._last_tenth = tenth
                self._print(self._line)

    def _repeat(self) -> None:
        while not self._is_over.wait(self._interval_s / 4):
            with self._lock:
                time_s = time.monotonic()
                silence_s = time_s - self._last_time
                if self._line and silence_s >= self._interval_s:
                    minutes = (time_s - self._started) / 60
                    self._print(f"{self._line} (running for {minutes:.0f} min)")

    def _print(self, line: str) -> None:
        self._last_time = time.monotonic()
        err.print(line, soft_wrap=True, markup=False)


@contextmanager
def showing_progress() -> Iterator[Progress]:
    """Yield ``report(fraction, text)``: a live bar on a terminal, lines elsewhere."""
    if Verbosity.quiet:
        yield lambda fraction, text: None
        return
    if not err.is_terminal or Verbosity.verbose:
        with ProgressLines() as lines:
            yield lines
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def update(fraction: float, text: str) -> None:
            bar.update(task, completed=fraction, description=escape(text))

        yield update


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; a second Ctrl-C stops at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def loaded_bundle(path: Path | None) -> Bundle:
    """The bundle of a folder, or the default model."""
    from medmap.bundle.format import default_bundle_path
    from medmap.bundle.loading import load_bundle

    return load_bundle(path or default_bundle_path())
