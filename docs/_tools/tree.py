"""Writes the tree of the repository into docs/explanation/architecture.md, a line per file.

usage: python docs/_tools/tree.py [--check]

What stands beside a Python file is the first sentence of its docstring, so that the page cannot
disagree with the code. ``--check`` writes nothing and exits with 1 if the page is out of date.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/explanation/architecture.md"
START = "<!-- tree: written by docs/_tools/tree.py -->"
END = "<!-- end of the tree -->"

FOLDERS = ["MedMAPTraining/medmap", "MedMAPSegment"]
WIDTH = 34


def first_sentence(path: Path) -> str:
    """First sentence of a module's docstring, without its period; empty where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence, _, _ = paragraph.partition(". ")
    # The tree is a block of code, in which the marks of code would be shown.
    return sentence.rstrip(".").replace("``", "")


def lines_of(folder: Path, depth: int) -> list[str]:
    """Lines of one folder: its modules first, then its packages, each in alphabetical order."""
    lines = []
    modules = sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
    for module in modules:
        name = "  " * depth + module.name
        lines.append(f"{name:<{WIDTH}}  {first_sentence(module)}".rstrip())
    for package in sorted(p for p in folder.iterdir() if p.is_dir() and list(p.glob("*.py"))):
        docstring = ""
        if (package / "__init__.py").exists():
            docstring = first_sentence(package / "__init__.py")
        name = "  " * depth + package.name + "/"
        lines.append(f"{name:<{WIDTH}}  {docstring}".rstrip())
        lines += lines_of(package, depth + 1)
    return lines


def tree() -> str:
    """The whole tree as a fenced block."""
    lines = []
    for folder in FOLDERS:
        lines.append(f"{folder}/")
        lines += lines_of(ROOT / folder, 1)
    return "\n".join(["```text", *lines, "```"])


def page() -> str:
    """The page with the tree of today."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{tree()}\n{END}{after}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
