"""The repository's tests with the marker ``gpu``."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gpu.setup import REHEARSAL, Row, Setup

ROOT = Path(__file__).resolve().parents[3]


def marked_test_rows(setup: Setup) -> Iterator[Row]:
    """The tests that need a GPU, where pytest is there."""
    needed = ("pytest", "nibabel", "hypothesis")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        yield Row("tests", "marker gpu", "not run", f"{', '.join(missing)} is not installed")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    folders = ["Testing/medmap", "Testing/segment"]
    if setup.sizes is REHEARSAL:
        folders = ["Testing/medmap/bench"]
    finished = subprocess.run(
        [*command, *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    summary = finished.stdout.strip().splitlines()[-1:]
    figure = "passed" if finished.returncode == 0 else "FAILED"
    yield Row("tests", "marker gpu", figure, json.dumps("".join(summary)))
