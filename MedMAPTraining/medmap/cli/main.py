"""The entry point: every error becomes two lines and its exit code."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from medmap import NOTICE, __version__
from medmap.cli import (  # noqa: F401 (each adds its commands)
    analyze,
    bench,
    bench_train,
    cohort,
    cohort_describe,
    curves,
    evaluate,
    info,
    phantom,
    prepare,
    recipes,
    report,
    segment,
    split,
    table,
    task,
    train,
)
from medmap.cli.base import Verbosity, app, err, out
from medmap.errors import (
    Cancelled,
    InternalError,
    MedMAPError,
    UnavailableError,
    UsageError,
    is_out_of_memory,
)

ARENAS = "MALLOC_ARENA_MAX"
"""glibc reads this variable when a process starts."""

MALLOPT_ARENAS = -8
"""``M_ARENA_MAX`` of malloc.h, for a process that runs already."""


def _fail(error: MedMAPError) -> int:
    err.print(f"error: {error.cause}", soft_wrap=True, markup=False)
    err.print(f"fix: {error.command_line_remedy}", soft_wrap=True, markup=False)
    return error.exit_code


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into a KeyboardInterrupt, which cleans up on its way out.

    Yields the list of signals that were received.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A forked worker: a terminal sends Ctrl-C to all processes, and the parent answers it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        received.append(number)
        raise KeyboardInterrupt

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def main() -> None:
    """Run the command line; every MedMAPError becomes two lines and its exit code."""
    # Set before PyTorch allocates: large tensors then lie in pages of 2 MiB (Linux). With small
    # pages a third of a segmentation's processor time goes into page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _share_freed_memory()
    _accept_any_console()
    flags, other_arguments = _global_flags(sys.argv[1:])
    plugins, arguments = _plugin_files(other_arguments)
    debug = "--debug" in flags
    Verbosity.choose(quiet=bool(flags & QUIET), verbose=bool(flags & VERBOSE))
    with _signals_as_interrupts() as received:
        try:
            _load_plugins(plugins)
            app(arguments, prog_name="medmap", standalone_mode=True)
        except MedMAPError as error:
            if debug:
                raise
            sys.exit(_fail(error))
        except KeyboardInterrupt:
            sys.exit(_fail(_STOPPED))
        except SystemExit:
            # typer turns a KeyboardInterrupt into a silent exit.
            if received:
                sys.exit(_fail(_STOPPED))
            raise
        except Exception as error:
            if debug:
                raise
            if received:
                sys.exit(_fail(_STOPPED))
            sys.exit(_fail(_unforeseen(error)))


def _share_freed_memory() -> None:
    """Let all threads allocate from one pool (glibc; nothing elsewhere).

    By default every thread that reads a scan gets a pool of its own, and what it frees stays there:
    that costs a process with two threads 270 MiB, and a cohort's workers for as long as they run.
    """
    if sys.platform != "linux" or ARENAS in os.environ:
        return
    # For processes that this one starts: workers of a cohort, rows of a benchmark.
    os.environ[ARENAS] = "1"
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(MALLOPT_ARENAS, 1)


def _accept_any_console() -> None:
    """Print what a console cannot show as an escape: ASCII consoles have no mm³."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


QUIET = {"-q", "--quiet"}
VERBOSE = {"-v", "--verbose"}


def _global_flags(arguments: Sequence[str]) -> tuple[set[str], list[str]]:
    """The flags of every command, wherever they stand, and the other arguments.

    They may stand before or behind the name of the command. Behind ``--`` everything is an
    argument.
    """
    end = len(arguments)
    if "--" in arguments:
        end = list(arguments).index("--")
    known_flags = {"--debug", *QUIET, *VERBOSE}
    flags: set[str] = set()
    other_arguments: list[str] = []
    for argument in arguments[:end]:
        if argument in known_flags:
            flags.add(argument)
        else:
            other_arguments.append(argument)
    return flags, [*other_arguments, *arguments[end:]]


def _plugin_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of ``--plugin``, wherever they stand before ``--``, and the other arguments."""
    files = []
    other_arguments: list[str] = []
    remaining_arguments = iter(arguments)
    for argument in remaining_arguments:
        if argument == "--":
            other_arguments += [argument, *remaining_arguments]
        elif argument == "--plugin":
            files.append(next(remaining_arguments, ""))
        elif argument.startswith("--plugin="):
            files.append(argument.removeprefix("--plugin="))
        else:
            other_arguments.append(argument)
    return files, other_arguments


def _load_plugins(files: Sequence[str]) -> None:
    """Load the plug-ins named on the command line, and installed ones.

    The tables that they are added to need PyTorch, which takes seconds to import: without a plug-in
    it is left to the commands that need it.
    """
    from medmap.plugins import installed_plugins

    if "" in files:
        raise UsageError("--plugin names no file.", "Write --plugin FILE.py.")
    if files or installed_plugins():
        from medmap.commands.plugins import load_plugins

        load_plugins(files)


_STOPPED = Cancelled(
    "Stopped.",
    "Finished parts are kept; run the same command again to continue.",
)


EXTRAS = {
    "lightning_fabric": "train",
    "tensorboard": "train",
    "monai": "train",
    "sklearn": "report",
    "ray": "ray",
    "pydicom": "clinic",
    "highdicom": "clinic",
    "SimpleITK": "clinic",
    "deepbet": "clinic",
}
"""Extra of the package that brings a library, by the name under which it is imported."""


def _absent_library(name: str) -> UnavailableError:
    """What to install for a library that is not there."""
    package = name.split(".")[0]
    library = {"torch": "PyTorch"}.get(package, package)
    extra = EXTRAS.get(package)
    if extra is None:
        return UnavailableError(
            f"{library} is not installed.", f"Install it: pip install {package}."
        )
    return UnavailableError(
        f"{library} is not installed.", f'Install it: pip install "medmap[{extra}]".'
    )


def _unforeseen(error: Exception) -> MedMAPError:
    """A MedMAPError for an exception that no part of the program has handled."""
    if isinstance(error, ModuleNotFoundError):
        return _absent_library(error.name or "medmap")
    if is_out_of_memory(error):
        return UnavailableError(
            "Out of memory.", "Close other programs, or use a computer with more memory."
        )
    kind = type(error).__name__
    return InternalError(
        f"Unexpected {kind}: {error}.",
        "Run the command again with the full traceback and report it.",
        option="debug",
    )


# The British spelling, which earlier versions had.
app.command("analyse", hidden=True)(analyze.analyze)


@app.callback(invoke_without_command=True)
def _global_options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print every step of the progress, and notes.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error.")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(
            "--plugin",
            help="Python file with networks, objectives, missingness protocols, tasks or "
            "layouts of your own; repeatable.",
        ),
    ] = None,
) -> None:
    if version:
        out.print(f"medmap {__version__}. {NOTICE}", soft_wrap=True)
        raise typer.Exit()
