"""The README's tree is true: every path it names exists, and nothing of the source is left out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> set[str]:
    block = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert block, "the README shows the tree in a ```text block"
    paths, stack = set(), []
    for line in block[1].splitlines():
        match = re.match(r"^( *)([\w./-]+)", line)
        if not match:
            continue
        depth = len(match[1]) // 2
        stack[depth:] = [match[2].rstrip("/")]
        paths.add("/".join(stack))
    return paths


def test_every_path_of_the_tree_exists():
    missing = sorted(p for p in tree() if not (ROOT / p).exists())
    assert not missing


def test_every_module_of_the_package_and_every_top_folder_is_in_the_tree():
    named = tree()
    package = ROOT / "MedMAPTraining/medmap"
    modules = {str(p.relative_to(ROOT)) for p in package.iterdir() if p.suffix == ".py" and p.name != "__init__.py"}
    modules |= {str(p.relative_to(ROOT)) for p in package.iterdir() if (p / "__init__.py").exists()}
    lib = ROOT / "MedMAPSegment/MedMAPSegmentLib"
    modules |= {str(p.relative_to(ROOT)) for p in lib.glob("*.py") if p.name != "__init__.py"}
    top = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and p.name not in ("demo", "runs", "build")}
    assert (modules | top) - named == set()


def test_the_two_commands_are_in_the_readme_and_in_ci():
    assert "make demo" in README
    assert "make test" in README
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
