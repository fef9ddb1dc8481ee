"""Tutorials are run when the website is built: their blocks work, and show what they print."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs/_tools"))
import notebook  # noqa: E402

PAGE = """<!-- executed -->
# A page

```python
number = 6
```

Text.

```python
from pathlib import Path
Path("made_here.txt").write_text("x")
print(number * 7)
```

```sh
this is not run
```
"""


def test_blocks_share_a_namespace_and_show_what_they_print():
    page = notebook.with_outputs(PAGE, "page.md")
    assert "```text\n42\n```" in page
    assert page.count("```text") == 1
    assert page.replace("\n```text\n42\n```\n", "") == PAGE
    assert not Path("made_here.txt").exists(), "blocks run in a folder of their own"


def test_a_block_that_fails_is_named():
    with pytest.raises(notebook.BlockError, match=r"page\.md, block 2 failed"):
        notebook.with_outputs(PAGE.replace("number * 7", "1 / 0"), "page.md")


def test_the_python_tutorial_is_run():
    pages = [p for p in (ROOT / "docs").rglob("*.md") if notebook.is_executed(p.read_text())]
    assert ROOT / "docs/tutorials/python.md" in pages
    text = (ROOT / "docs/tutorials/python.md").read_text()
    for topic in (
        "## Load",
        "## Segment",
        "## Compare subsets",
        "## Train on arrays",
        "## Evaluate",
    ):
        assert topic in text
    assert len(notebook.BLOCK.findall(text)) >= 6


@pytest.mark.slow
def test_every_executed_page_runs():
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text()
        if notebook.is_executed(text):
            assert notebook.with_outputs(text, page.name) != text
