"""The command line: the only package that prints and exits. A command group is a file here."""

from medmap.cli.main import app, main

__all__ = ["app", "main"]
