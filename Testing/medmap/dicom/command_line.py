"""The command line in this process, which spares the imports."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from medmap.cli.main import main


def medmap(*arguments):
    """Run the command line."""
    stdout, stderr = io.StringIO(), io.StringIO()
    command = ["medmap", *map(str, arguments)]
    code = 0
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as exit_request:
            code = exit_request.code or 0
    return Run(code, stdout.getvalue(), stderr.getvalue())


@dataclass(frozen=True)
class Run:
    returncode: int
    stdout: str
    stderr: str
