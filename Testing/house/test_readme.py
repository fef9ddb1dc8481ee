"""The README names the two commands, and the tree on the architecture page is the repository's."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medmap import errors

ROOT = Path(__file__).resolve().parents[2]


def test_the_tree_on_the_architecture_page_is_todays():
    """Run docs/_tools/tree.py when this fails."""
    command = [sys.executable, ROOT / "docs/_tools/tree.py", "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_tables_of_measured_dice_are_the_default_models():
    """Run docs/_tools/performance.py when this fails."""
    command = [sys.executable, ROOT / "docs/_tools/performance.py", "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_every_exit_code_is_documented():
    page = (ROOT / "docs/reference/exit_codes.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE))
    classes = [errors.MedMAPError, *errors.MedMAPError.__subclasses__()]
    raised = {(str(c.exit_code), c.__name__) for c in classes if c is not errors.MedMAPError}
    assert documented == raised


def test_the_package_ships_the_license_of_the_repository():
    license_text = (ROOT / "LICENSE.txt").read_bytes()
    assert (ROOT / "MedMAPTraining/LICENSE.txt").read_bytes() == license_text


def links_of(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"(?<!`)\]\(([^)\s#]+)", text)
    return [link for link in links if "://" not in link and not link.startswith("mailto:")]


PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "Testing").rglob("*.md"),
    *(ROOT / ".github").rglob("*.md"),
]
GENERATED = ("cli.md", "recipe.md", "reference/api/")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
    """``make docs`` checks the anchors, too."""
    broken = [
        link
        for link in links_of(page)
        if not (page.parent / link).exists() and not any(name in link for name in GENERATED)
    ]
    assert not broken


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if page not in navigation]


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
