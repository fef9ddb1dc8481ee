"""``make gpu`` runs unseen: every line is rehearsed on the CPU, with PyTorch and NumPy alone."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medmap.task import BRATS

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = ROOT / "MedMAPTraining/experiments"

BLOCKED = """
import importlib.machinery, sys
LIBRARIES = {"nibabel", "rich", "typer", "safetensors", "lightning_fabric", "scipy", "matplotlib",
             "PIL", "monai", "sklearn", "tensorboard", "SimpleITK", "pydicom", "hypothesis"}
class Blocker(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in LIBRARIES:
            return None
        return super().find_spec(name, path, target)
position = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[position] = Blocker
"""
"""What a machine with nothing but PyTorch and NumPy lacks."""


@pytest.fixture(scope="module")
def script():
    """Modules of the package ``gpu``, which lies in a folder of scripts."""
    sys.path.insert(0, str(EXPERIMENTS))
    names = ("cases", "parts", "setup")
    yield SimpleNamespace(**{name: importlib.import_module(f"gpu.{name}") for name in names})
    sys.path.remove(str(EXPERIMENTS))


def run_without_libraries(code: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT / "MedMAPTraining"), str(EXPERIMENTS)])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-c", f"{BLOCKED}\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_it_is_imported_with_pytorch_and_numpy_alone():
    finished = run_without_libraries("import gpu.__main__")
    assert finished.returncode == 0, finished.stderr


@pytest.mark.slow
def test_every_part_is_rehearsed_without_libraries(tmp_path):
    table = tmp_path / "gpu.md"
    arguments = ["gpu", "--rehearse", "--output", str(table)]
    code = f"""
import runpy, sys
sys.argv = {arguments!r}
runpy.run_module("gpu", run_name="__main__")
"""
    finished = run_without_libraries(code)
    assert finished.returncode == 0, finished.stderr
    text = table.read_text()
    assert "FAILED" not in text
    for part in ("inference", "training", "generator", "default training", "drills"):
        assert f"| {part} |" in text
    assert "is not installed" in text, "the tests cannot run here"


def test_prepared_cases_are_packed_within_the_limit_and_come_back(script, cached_heads, tmp_path):
    path = tmp_path / "cases.pt"
    script.cases.pack(cached_heads[0].parent, path)
    assert path.stat().st_size < script.cases.PACK_BYTES + 100_000
    cases = script.cases.packed_cases(path)
    assert len(cases) == len(cached_heads)
    for position, name in enumerate(BRATS.modality_names):
        stored = np.load(cached_heads[0] / f"{name}.npy")
        assert np.array_equal(cases[0].images[position], stored)


def test_only_as_many_cases_are_packed_as_fit(script, cached_heads, tmp_path, monkeypatch):
    case_bytes = sum(np.load(path).nbytes for path in cached_heads[0].glob("*.npy"))
    monkeypatch.setattr(script.cases, "PACK_BYTES", 2 * case_bytes)
    script.cases.pack(cached_heads[0].parent, tmp_path / "cases.pt")
    assert len(script.cases.packed_cases(tmp_path / "cases.pt")) == 2


def test_a_patch_depends_on_its_number_alone_and_absent_modalities_are_zero(
    script, cached_heads, tmp_path
):
    script.cases.pack(cached_heads[0].parent, tmp_path / "cases.pt")
    case = script.cases.packed_cases(tmp_path / "cases.pt")[0]
    first = script.cases.patch_of(case, (16, 16, 16), 5)
    second = script.cases.patch_of(case, (16, 16, 16), 5)
    assert torch.equal(first.image, second.image)
    assert not first.image[0, ~first.present[0]].any()
    assert first.label.shape == (1, 16, 16, 16)


def test_a_part_that_fails_is_reported_and_the_others_run(script, monkeypatch):
    def fail(setup):
        raise RuntimeError("no kernel")

    for name in ("inference_rows", "method_rows", "default_step_rows", "drill_rows"):
        monkeypatch.setattr(
            script.parts, name, lambda setup: iter([script.setup.Row("part", "x", "1 s")])
        )
    monkeypatch.setattr(script.parts, "training_rows", lambda setup, cases: iter([]))
    monkeypatch.setattr(script.parts, "marked_test_rows", lambda setup: iter([]))
    monkeypatch.setattr(script.parts, "generator_rows", fail)
    setup = script.setup.Setup(torch.device("cpu"), script.setup.REHEARSAL)
    rows = script.parts.run(setup, None)
    failed = [row for row in rows if row.figure == "FAILED"]
    assert [row.part for row in failed] == ["generator"]
    assert "no kernel" in failed[0].note
    assert sum(row.part == "part" for row in rows) == 4
