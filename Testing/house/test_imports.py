"""Imports point one way, and heavy libraries are imported where they belong and when needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "MedMAPTraining" / "medmap"

# From the bottom up: a module may import what stands on its own line or above, never below. Modules
# of one package may import each other as long as that makes no circle.

# Nothing here needs torch: the panel uses it before the first Apply (test_torch_free.py).
TORCH_FREE: list[set[str]] = [
    {"medmap"},
    {"errors", "progress", "comparison_names", "report.html", "threads", "quantiles", "boxes"},
    {"plugins", "option_names", "mask_parts"},
    {"task", "volume", "foreground", "appearance_weights", "appearance", "io.atomic"},
    {
        "checks",
        "metrics",
        "io.nifti_header",
        "io.other_formats",
        "io.nifti_bytes",
        "io.nifti_geometry",
        "bundle.format",
        "bundle.card",
        "bundle.training_cases",
        "detection",
    },
    {
        "agreement",
        "diameters",
        "preparation.availability",
        "preparation.motion",
        "preparation.skull",
        "preparation.misalignment",
        "preparation.plan",
        "preparation.registration",
    },
]
# Nothing up to here needs more than Slicer has: torch, numpy, safetensors.
INSIDE_SLICER: list[set[str]] = [
    {"tensors"},
    {"resampling"},
    {"networks", "preprocess"},
    {"postprocess", "training.alignment", "bundle.memory_estimate", "devices"},
    {"bundle"},
    {"provenance"},
    {"sliding_window"},
    {"preparation"},
    {"inference"},
    {"subset_comparison"},
]
OUTSIDE_SLICER: list[set[str]] = [
    {
        "io.nifti",
        "training.missingness",
        "phantom",
        "report",
        "evaluation.tables",
        "training.splits",
        "training.distributed",
    },
    {"io", "dicom"},
    {
        "training.batch",
        "training.cache",
        "training.augmentation",
        "training.checkpoint",
        "training.printed",
    },
    {"training.dataset", "training.options"},
    {
        "training.generated",
        "training.generated_heads",
        "training.sources",
        "training.loader",
        "training.objectives",
    },
    {"training.recipe", "training.acceleration", "training.run_cases", "evaluation"},
    {"training.optimizers", "training.export", "training.published", "training.log"},
    {"training.setup", "training.validation"},
    {"training"},
    {"commands", "bench"},
    {"tables"},
    {"api"},
    {"cli"},
    {"__main__"},
]
ORDER = [*TORCH_FREE, *INSIDE_SLICER, *OUTSIDE_SLICER]
TORCH_BORDER = len(TORCH_FREE)
BORDER = len(TORCH_FREE) + len(INSIDE_SLICER)
LAZY = {
    "metrics.py": {"scipy"},
    "diameters.py": {"scipy"},
    "segresnet.py": {"monai"},
    "deepbet_masks.py": {"deepbet"},
    "nifti_bytes.py": {"isal"},
}
HEAVY = {
    "nibabel": {"io"},
    "monai": {"training", "networks", "bench"},
    "lightning_fabric": {"training"},
    "matplotlib": {"report"},
    "sklearn": {"evaluation"},
    "typer": {"cli"},
    "rich": {"cli", "bench"},
    "tensorboard": {"training"},
    "ray": {"commands"},
    "pydicom": {"dicom"},
    "highdicom": {"dicom"},
}


def level(module: str) -> int:
    """Line of ORDER of a module; the longest name that is listed counts."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        lines = [n for n, names in enumerate(ORDER) if name in names]
        if lines:
            return lines[0]
    raise AssertionError(f"medmap.{module} has no line in ORDER: give it one")


def module_of(path: Path) -> str:
    """Dotted name under medmap: ``io.nifti``; ``medmap`` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts) or "medmap"


def top(path: Path) -> str:
    return module_of(path).split(".")[0]


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; say medmap."
            names = [_imported(node.module, alias.name) for alias in node.names]
        for name in names:
            yield node, name


def _imported(package: str, name: str) -> str:
    """Module that ``from package import name`` needs: the name itself where it is a module."""
    folder = PACKAGE.parent / package.replace(".", "/")
    if (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists():
        return f"{package}.{name}"
    return package


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    importer = module_of(path)
    # Docstrings only, and names that are imported on first use or for type checkers.
    if importer in ("medmap", "io", "bundle", "training"):
        return
    for node, name in imports(path):
        if name.split(".")[0] == "medmap":
            other = name.partition(".")[2] or "medmap"
            assert level(other) <= level(importer), (
                f"{path.name}:{node.lineno}: {importer} may not import {other}"
            )


def test_imports_make_no_circle():
    graph = {}
    for path in SOURCES:
        names = {name.partition(".")[2] for _, name in imports(path) if name.startswith("medmap.")}
        graph[module_of(path)] = names
    done, active = set(), []

    def visit(module: str) -> None:
        assert module not in active, " -> ".join([*active, module])
        if module in done or module not in graph:
            return
        active.append(module)
        for other in sorted(graph[module]):
            visit(other)
        active.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_have_one_home(path):
    for node, name in imports(path):
        library = name.split(".")[0]
        assert library not in ("slicer", "vtk", "qt", "ctk"), (
            f"{path.name}:{node.lineno}: Slicer stays outside medmap"
        )
        if library in HEAVY:
            assert top(path) in HEAVY[library], (
                f"{path.name}:{node.lineno}: {library} belongs in {HEAVY[library]}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_above_the_border_only_what_slicer_has(path):
    if level(module_of(path)) >= BORDER:
        return
    allowed = {"medmap", "torch", "numpy", "safetensors", *sys.stdlib_module_names}
    if path.name in LAZY:  # imported by the one function that needs it
        allowed |= LAZY[path.name]
    for node, name in imports(path):
        assert name.split(".")[0] in allowed, (
            f"{path.name}:{node.lineno}: {name} is not there inside Slicer"
        )


def imported(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_importing_the_package_imports_nothing_heavy():
    assert not imported("import medmap") & {
        "torch",
        "numpy",
        "monai",
        "nibabel",
        "matplotlib",
        "scipy",
    }


def test_inference_imports_torch_numpy_and_safetensors_only():
    modules = imported("import medmap.inference")
    assert {"torch", "numpy", "safetensors"} <= modules
    assert not modules & {"monai", "nibabel", "matplotlib", "scipy", "typer", "rich", "torchvision"}


def test_help_does_not_import_torch():
    assert "torch" not in imported("import medmap.cli")
