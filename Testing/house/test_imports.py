"""Imports point one way, heavy libraries stay where they belong, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "MedMAPTraining" / "medmap"

# From the bottom up: a module may import what stands on its own line or above, never below. The border is the line
# between what runs inside Slicer (torch, numpy, safetensors) and what serves training and the command line.
ORDER = [
    {
        "medmap",
        "errors",
    },
    {
        "task",
        "volume",
        "files",
        "brain",
        "appearance_table",
        "appearance",
    },
    {
        "checks",
        "geometry",
        "metrics",
    },
    {
        "networks",
        "preprocess",
    },
    {
        "postprocess",
        "alignment",
        "card",
        "memory",
    },
    {
        "doubt",
    },
    {
        "bundle",
    },
    {
        "provenance",
    },
    {
        "inference",
        "review",
    },
    {
        "whatif",
    },
    # ------------------------------------------------- border -------------------------------------------------
    {
        "nifti_header",
        "nifti_geometry",
        "nifti",
        "missingness",
        "phantom",
        "report",
        "splits",
        "parallel",
    },
    {
        "layouts",
        "bids",
    },
    {
        "cache",
    },
    {
        "dataset",
        "generated",
    },
    {
        "objectives",
        "checkpoint",
        "evaluate",
        "recipe",
        "loader",
        "tuning",
    },
    {
        "optimisers",
        "export",
        "published",
        "modality_gap",
    },
    {
        "validation",
        "training_log",
    },
    {
        "train",
    },
    {
        "workflow",
        "bench",
    },
    {
        "cli",
    },
]
BORDER = 10
LAZY = {"metrics.py": {"scipy"}, "review.py": {"scipy"}, "segresnet.py": {"monai"}}
HEAVY = {
    "nibabel": {"nifti", "nifti_header"},
    "monai": {"objectives", "networks", "bench"},
    "lightning_fabric": {"parallel", "train"},
    "matplotlib": {"report"},
    "sklearn": {"modality_gap"},
    "typer": {"cli"},
    "rich": {"cli", "bench"},
    "tensorboard": {"training_log"},
    "ray": {"workflow"},
}


def level(module: str) -> int:
    found = [n for n, names in enumerate(ORDER) if module in names]
    assert found, f"medmap.{module} has no place in ORDER: give it one"
    return found[0]


def top(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    name = relative.parts[0].removesuffix(".py")
    return "medmap" if name == "__init__" else name


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; say medmap."
            names = [node.module]
            if node.module == "medmap":
                names = [f"medmap.{a.name}" if (PACKAGE / f"{a.name}.py").exists() else "medmap" for a in node.names]
        for name in names:
            yield node, name


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = top(path)
    for node, name in imports(path):
        if name.split(".")[0] == "medmap":
            other = name.split(".")[1] if "." in name else "medmap"
            assert level(other) <= level(own), f"{path.name}:{node.lineno}: {own} may not import {other}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_have_one_home(path):
    for node, name in imports(path):
        library = name.split(".")[0]
        assert library not in ("slicer", "vtk", "qt", "ctk"), f"{path.name}:{node.lineno}: Slicer stays outside medmap"
        if library in HEAVY:
            assert top(path) in HEAVY[library], f"{path.name}:{node.lineno}: {library} belongs in {HEAVY[library]}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_above_the_border_only_what_slicer_has(path):
    if level(top(path)) >= BORDER:
        return
    allowed = {"medmap", "torch", "numpy", "safetensors", *sys.stdlib_module_names}
    if path.name in LAZY:  # imported by the one function that needs it
        allowed |= LAZY[path.name]
    for node, name in imports(path):
        assert name.split(".")[0] in allowed, f"{path.name}:{node.lineno}: {name} is not there inside Slicer"


def imported(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_importing_the_package_imports_nothing_heavy():
    assert not imported("import medmap") & {"torch", "numpy", "monai", "nibabel", "matplotlib", "scipy"}


def test_inference_imports_torch_numpy_and_safetensors_only():
    modules = imported("import medmap.inference")
    assert {"torch", "numpy", "safetensors"} <= modules
    assert not modules & {"monai", "nibabel", "matplotlib", "scipy", "typer", "rich", "torchvision"}


def test_help_does_not_import_torch():
    assert "torch" not in imported("import medmap.cli")
