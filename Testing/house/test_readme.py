"""The README names the two commands, and the tree on the architecture page is the repository's."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tree_on_the_architecture_page_is_todays():
    """Run docs/_tools/tree.py when this fails."""
    command = [sys.executable, ROOT / "docs/_tools/tree.py", "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_every_module_begins_with_a_docstring():
    modules = [*(ROOT / "MedMAPTraining").rglob("*.py"), *(ROOT / "MedMAPSegment").rglob("*.py")]
    silent = []
    for path in modules:
        if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None:
            silent.append(str(path.relative_to(ROOT)))
    assert not silent


def test_the_two_commands_are_in_the_readme_and_in_ci():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
