"""A layer without PyTorch: what the panel shows before the first Apply needs none."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from Testing.house.test_imports import (
    PACKAGE,
    ROOT,
    SOURCES,
    TORCH_BORDER,
    _imported,
    imports,
    level,
    module_of,
)

PANEL = ROOT / "MedMAPSegment"
PANEL_SOURCES = sorted(PANEL.rglob("*.py"))
WITH_TORCH = {"torch", "safetensors", "monai", "nibabel"}
AFTER_APPLY = {
    "MedMAPSegmentLib/logic.py": {"_segment", "_loadDefaultBundle"},
    "MedMAPSegmentLib/models/catalog.py": {"load"},
    # Only where torch is installed: the weights are then tried, too.
    "MedMAPSegmentLib/models/importing.py": {"verifyFully"},
    "MedMAPSegmentLib/mrml/sample.py": {"addPhantomPatient"},
    "MedMAPSegmentLib/mrml/uncertainty.py": {"work"},
    "MedMAPSegmentLib/request.py": {"_carriedOut"},
}
"""Functions that run after ``dependencies.ensure``; they may import what needs PyTorch."""

TORCH_FREE_SOURCES = [path for path in SOURCES if level(module_of(path)) < TORCH_BORDER]


@pytest.mark.parametrize("path", TORCH_FREE_SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_above_the_first_border_no_file_imports_torch(path):
    for node, name in imports(path):
        assert name.split(".")[0] not in WITH_TORCH, f"{path.name}:{node.lineno} imports {name}"


def test_importing_the_torch_free_layer_leaves_torch_out():
    modules = ["medmap." + module_of(p) for p in TORCH_FREE_SOURCES if module_of(p) != "medmap"]
    code = f"import sys, {', '.join(modules)}; print(*sorted(sys.modules))"
    names = {name.split(".")[0] for name in output_of(code).split()}
    assert len(modules) > 12
    assert not names & {*WITH_TORCH, "scipy", "matplotlib"}


def panel_imports(path: Path):
    """(line, module, enclosing function or "") of every absolute import in a panel file."""

    def visit(node: ast.AST, function: str):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield child.lineno, alias.name, function
            elif isinstance(child, ast.ImportFrom) and child.level == 0:
                for alias in child.names:
                    yield child.lineno, _imported(child.module, alias.name), function
            elif isinstance(child, ast.FunctionDef):
                yield from visit(child, child.name)
            elif isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
                continue  # never run
            else:
                yield from visit(child, function)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), "")


@pytest.mark.parametrize("path", PANEL_SOURCES, ids=lambda p: str(p.relative_to(PANEL)))
def test_the_panel_imports_only_the_torch_free_layer_before_apply(path):
    allowed = AFTER_APPLY.get(str(path.relative_to(PANEL)), set())
    for line, name, function in panel_imports(path):
        top, _, module = name.partition(".")
        needs_torch = top in WITH_TORCH
        if top == "medmap":
            needs_torch = level(module or "medmap") >= TORCH_BORDER
        if needs_torch:
            assert function in allowed, (
                f"{path.name}:{line} imports {name} in {function or 'module'}"
            )


def test_models_cards_and_grids_need_no_torch():
    """With torch made impossible to import: list models, show the card, check grids."""
    code = """
import sys
sys.modules["torch"] = None
sys.modules["safetensors"] = None
import numpy as np
from medmap.checks import check_inputs
from medmap.detection.modality_detection import SeriesEvidence, detect_modalities
from medmap.task import BRATS
from medmap.volume import Volume, choose_reference
from MedMAPSegmentLib.expected_performance import expectedPerformance
from MedMAPSegmentLib.models.catalog import listModels

(entry,) = listModels("no such folder")
assert entry.verified, entry.error
assert entry.subsets == (None,)
card = expectedPerformance(entry.task, entry.card, ["t1ce", "flair"])
assert card.validated

rng = np.random.default_rng(0)
mm = np.stack(np.meshgrid(*3 * [np.arange(50) - 24.5], indexing="ij")) * 4
brain = (mm**2).sum(0) < 70**2
image = lambda: np.where(brain, rng.normal(500, 80, brain.shape), 0).astype(np.float32)
t1 = Volume(image(), np.diag([4.0, 4, 4, 1]))
t2 = Volume(image()[:, :, ::2], np.diag([4.0, 4, 8, 1]))
volumes = {"t1": t1, "t2": t2}
assert "grids" in {finding.check for finding in check_inputs(volumes, BRATS)}
assert choose_reference({name: volume.grid for name, volume in volumes.items()}) == "t1"
assert "t1" in detect_modalities([SeriesEvidence("T1 mprage")], BRATS).assigned
assert sys.modules["torch"] is None
print("done")
"""
    assert output_of(code).strip() == "done"


def output_of(code: str) -> str:
    """Output of code in a process of its own, with core and panel on the path."""
    paths = [str(ROOT / "MedMAPTraining"), str(PANEL)]
    start = f"import sys; sys.path[:0] = {paths!r}\n"
    command = [sys.executable, "-c", start + code]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout
