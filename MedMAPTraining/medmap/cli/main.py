"""The entry point: every error becomes two lines and its exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from medmap import NOTICE, __version__
from medmap.cli import (  # noqa: F401 (each adds its commands)
    analyze,
    bench,
    bench_train,
    cohort,
    curves,
    evaluate,
    phantom,
    recipes,
    report,
    segment,
    train,
)
from medmap.cli.base import app, err, out
from medmap.errors import Cancelled, InternalError, MedMAPError, UnavailableError, is_out_of_memory


def _fail(error: MedMAPError) -> int:
    err.print(f"error: {error.cause}", soft_wrap=True, markup=False)
    err.print(f"fix: {error.command_line_remedy}", soft_wrap=True, markup=False)
    return error.exit_code


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM become a KeyboardInterrupt, which cleans up on its way out; yields the signals that came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    owner = os.getpid()

    def stop(number, frame) -> None:
        if os.getpid() != owner:  # a forked worker leaves a terminal's Ctrl-C to its parent
            return None if number == signal.SIGINT else os._exit(128 + number)
        came.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command line; every MedMAPError becomes two lines and its exit code."""
    # Asked before PyTorch allocates: a network's large tensors in pages of 2 MiB (Linux). In small ones a third of a
    # segmentation's processor time goes into page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    with _stops() as came:
        try:
            app(arguments, prog_name="medmap", standalone_mode=True)
        except MedMAPError as error:
            if debug:
                raise
            sys.exit(_fail(error))
        except KeyboardInterrupt:
            sys.exit(_fail(_STOPPED))
        except SystemExit:
            if came:  # the library that parses the command line turns a KeyboardInterrupt into a silent end
                sys.exit(_fail(_STOPPED))
            raise
        except Exception as error:
            if debug:
                raise
            sys.exit(_fail(_STOPPED if came else _worded(error)))


_STOPPED = Cancelled(
    "Stopped.", "What was finished is kept; the same command goes on from there, or begins anew."
)


def _worded(error: Exception) -> MedMAPError:
    """What no part of the program has put into words."""
    if isinstance(error, ModuleNotFoundError):
        library = {"torch": "PyTorch"}.get(error.name, error.name)
        return UnavailableError(
            f"{library} is not installed.", f"Install it: pip install {error.name or 'medmap'}."
        )
    if is_out_of_memory(error):
        return UnavailableError(
            "The memory does not suffice.", "Close other programs, or use a larger computer."
        )
    kind = type(error).__name__
    return InternalError(
        f"Unexpected {kind}: {error}.", "Run again with --debug and report what it says."
    )


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        out.print(f"medmap {__version__}. {NOTICE}", soft_wrap=True)
        raise typer.Exit()
