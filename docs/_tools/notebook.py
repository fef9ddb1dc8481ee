"""Runs the Python blocks of a page, in order, and puts what they print beneath them.

A page is run if its first lines hold the comment ``<!-- executed -->``. All blocks share one
namespace, as the cells of a notebook do, and run in an empty folder. A block that fails fails the
build, so that no page shows code that does not work.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

MARK = "<!-- executed -->"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n", re.MULTILINE | re.DOTALL)


class BlockError(Exception):
    """A block raised an error; the text says which, and how."""


def is_executed(text: str) -> bool:
    """Whether a page asks to be run."""
    return MARK in text[:500]


def with_outputs(text: str, name: str) -> str:
    """The page with a block of output below each Python block that prints something.

    Args:
        text: the page.
        name: of the page, for messages.

    Raises:
        BlockError: a block failed.
    """
    namespace: dict = {"__name__": "__main__"}
    page_parts = []
    end = 0
    with tempfile.TemporaryDirectory() as folder, working_in(Path(folder)):
        for number, match in enumerate(BLOCK.finditer(text), 1):
            page_parts.append(text[end : match.end()])
            end = match.end()
            printed = run(match["code"], namespace, f"{name}, block {number}")
            if printed:
                page_parts.append(f"\n```text\n{printed}\n```\n")
    page_parts.append(text[end:])
    return "".join(page_parts)


def run(code: str, namespace: dict, title: str) -> str:
    """Run a block; returns what it prints. Raises BlockError."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(code, title, "exec"), namespace)
    except Exception as error:
        raise BlockError(f"{title} failed:\n{traceback.format_exc()}") from error
    return output.getvalue().rstrip()


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change the working directory for the time of a block."""
    previous = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(previous)
