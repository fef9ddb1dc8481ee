"""What every command shares: the application, consoles, options, progress, interrupts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medmap import NOTICE

if TYPE_CHECKING:
    from medmap.bundle.loading import Bundle

# Into a file or a pipe tables are written wide, not folded to a terminal's 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True, highlight=False)
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

Scan = Annotated[Path | None, typer.Option(metavar="FILE")]
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle folder [default: the default model].")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")]


@contextmanager
def showing_progress() -> Iterator:
    """Yield ``report(fraction, text)``: a live bar on a terminal, a line per 10 % elsewhere."""
    if not err.is_terminal:
        last_tenth = -1

        def print_line(fraction: float, text: str) -> None:
            nonlocal last_tenth
            tenth = int(10 * fraction)
            if tenth > last_tenth:
                last_tenth = tenth
                err.print(f"{100 * fraction:3.0f} %  {text}", soft_wrap=True)

        yield print_line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda fraction, text: bar.update(task, completed=fraction, description=text)


@contextmanager
def interrupts() -> Iterator:
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
