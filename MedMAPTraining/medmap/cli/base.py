"""What every command shares: the application, consoles, options, progress, interrupts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medmap import NOTICE

# Into a file or a pipe tables are written wide, not folded to a terminal's 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True, highlight=False)
app = typer.Typer(
    help=f"Segment brain tumors from whatever MRI a patient has.\n\n{NOTICE}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

bench = typer.Typer(
    help="Measure cost: ratios from one run.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(bench, name="bench")

Scan = Annotated[Optional[Path], typer.Option(metavar="FILE")]  # noqa: UP045 (typer evaluates annotations on 3.10)
BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Bundle folder [default: the one shipped].")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that are already there.")
]


@contextmanager
def showing_progress() -> Iterator:
    """Yield ``report(fraction, text)``: a live bar on a terminal, one line a tenth elsewhere."""
    if not err.is_terminal:
        told = [-1]

        def plain(fraction: float, text: str) -> None:
            if int(10 * fraction) > told[0]:
                told[0] = int(10 * fraction)
                err.print(f"{100 * fraction:3.0f} %  {text}", soft_wrap=True)

        yield plain
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
    """Yield a function that says whether Ctrl-C was pressed; a second Ctrl-C stops at once."""
    pressed = []

    def handle(number, frame) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def loaded_bundle(path: Path | None):
    """The bundle of that folder, or the one that ships."""
    from medmap.bundle.loading import default_bundle_path, load_bundle

    return load_bundle(path or default_bundle_path())
