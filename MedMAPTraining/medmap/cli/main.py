"""The entry point: every error becomes two lines and its exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from medmap import NOTICE, __version__
from medmap.cli import (  # noqa: F401 (each adds its commands)
    analyse,
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
from medmap.errors import Cancelled, InternalError, MedMAPError, UnavailableError


def _fail(error: MedMAPError) -> int:
    err.print(f"error: {error.cause}", soft_wrap=True, markup=False)
    err.print(f"fix: {error.remedy}", soft_wrap=True, markup=False)
    return error.exit_code


def main() -> None:
    """Run the command line; every MedMAPError becomes two lines and its exit code."""
    # Asked before PyTorch allocates: a network's large tensors in pages of 2 MiB (Linux). In small ones a third of a
    # segmentation's processor time goes into page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(arguments, prog_name="medmap", standalone_mode=True)
    except MedMAPError as error:
        if debug:
            raise
        sys.exit(_fail(error))
    except KeyboardInterrupt:
        sys.exit(_fail(Cancelled()))
    except ModuleNotFoundError as error:
        if debug:
            raise
        library = {"torch": "PyTorch"}.get(error.name, error.name)
        sys.exit(
            _fail(
                UnavailableError(f"{library} is not installed.", f"Install it: pip install {error.name or 'medmap'}.")
            )
        )
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        sys.exit(
            _fail(InternalError(f"Unexpected {kind}: {error}.", "Run again with --debug and report what it says."))
        )


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False) -> None:
    if version:
        out.print(f"medmap {__version__}. {NOTICE}", soft_wrap=True)
        raise typer.Exit()
