"""The panel under stand-ins for Qt and Slicer (``Testing/standin``) on real MRML.

With MEDMAP_REQUIRE_PANEL=1 it is a failure instead of a skip when PySide6 or slicer-core cannot be
loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medmap.errors import Cancelled
from medmap.preparation.workflow import Preparation
from medmap.volume import Grid

REPOSITORY = Path(__file__).resolve().parents[2]
PROBE = (
    "import os; os.environ['QT_QPA_PLATFORM'] = 'offscreen'; import slicer; from PySide6 import "
    "QtWidgets, QtUiTools; "
    "QtWidgets.QApplication([]).processEvents()"
)

for folder in ("MedMAPTraining", "MedMAPSegment", "Testing"):
    if str(REPOSITORY / folder) not in sys.path:
        sys.path.insert(0, str(REPOSITORY / folder))


@dataclass(frozen=True)
class ProvenanceOfTest:
    """The fields of ``medmap.provenance.Provenance`` that the panel reads."""

    run: SimpleNamespace
    modalities: dict
    findings: tuple

    def to_dict(self) -> dict:
        findings = [
            {"level": f.level, "message": f.message, "remedy": f.remedy} for f in self.findings
        ]
        run = {"device": self.run.device}
        return {"modalities": self.modalities, "run": run, "findings": findings}


@dataclass(frozen=True)
class ResultOfTest:
    """The fields of ``medmap.inference.Segmentation`` that the panel reads."""

    labels: np.ndarray
    grid: Grid
    reference: str
    findings: tuple
    provenance: ProvenanceOfTest
    preparation: Preparation | None = None


@pytest.fixture(scope="session")
def loadable():
    """Skips, with the reason, where the stand-ins cannot be loaded. In a process of its own: Qt
    aborts on failure.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        assert os.environ.get("MEDMAP_REQUIRE_PANEL") != "1", reason
        pytest.skip(f"PySide6 or slicer-core cannot be loaded here: {reason}")


@pytest.fixture
def application(loadable, tmp_path, monkeypatch):
    """The stand-ins in place; an exception that left a slot or an observer fails the test that did
    not expect it.
    """
    import standin

    monkeypatch.setenv("MEDMAP_MODEL_DIR", str(tmp_path / "models"))
    running = standin.install()
    yield running
    running.uninstall()
    assert not running.errors, "\n".join(running.errors)


@pytest.fixture
def computation():
    """What the worker does instead of a network; a test changes its fields."""
    held = SimpleNamespace(error=None, go=threading.Event(), findings=(), device="cpu", calls=[])
    held.go.set()

    def segment(volumes, bundle, *, progress, cancel, **options):
        held.calls.append((tuple(volumes), options))
        progress(0.25, "encoding T1")
        while not held.go.is_set():
            if cancel():
                raise Cancelled()
            time.sleep(0.005)
        error, held.error = held.error, None
        if error is not None:
            raise error
        name = options.get("reference") or next(iter(volumes))
        low, middle, high = 350, 450, 600
        array = volumes[name].array
        labels = np.select([array > high, array > middle, array > low], [2, 4, 1], 0).astype(
            np.uint8
        )
        provenance = ProvenanceOfTest(
            SimpleNamespace(device=held.device),
            {"used": {key: volume.name for key, volume in volumes.items()}, "reference": name},
            tuple(held.findings),
        )
        return ResultOfTest(labels, volumes[name].grid, name, tuple(held.findings), provenance)

    held.segment = segment
    yield held
    held.go.set()


@pytest.fixture
def panel(application, computation, monkeypatch):
    """The panel, with the computation in the place of the network."""
    opened = application.open(REPOSITORY / "MedMAPSegment/MedMAPSegment.py")
    monkeypatch.setattr(application.module.dependencies, "ensure", lambda installer: True)
    opened.logic._segment = computation.segment
    opened.logic._loadBundle = lambda: None
    yield opened
    computation.go.set()


@pytest.fixture
def patient(panel, application):
    """Modality name -> volume node of a synthetic patient in the scene."""
    from MedMAPSegmentLib.selftest import addSyntheticCase

    return addSyntheticCase(application.scene)


@pytest.fixture
def choose(panel):
    """Function that chooses volumes in the slots: ``choose(flair=node)``."""

    def chosen(**nodes):
        for name, node in nodes.items():
            panel.inputs.slots[name].selector.setCurrentNode(node)

    return chosen


@pytest.fixture
def finish(application, panel):
    """Function that runs the event loop until the panel is idle."""
    return lambda seconds=60.0: application.wait(lambda: not panel.isBusy(), seconds)


@pytest.fixture
def result(panel, patient, choose, finish):
    """The panel with a result from FLAIR and T2; the segmentation node."""
    choose(flair=patient["flair"], t2=patient["t2"])
    panel.ui.applyButton.click()
    finish()
    return panel.state.result


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory):
    """Function that saves an untrained, seeded network for a task; returns the folder."""
    torch = pytest.importorskip("torch")
    from medmap.bundle.format import InferenceSpec, NetworkSpec
    from medmap.bundle.loading import save_bundle
    from medmap.networks import build_network
    from medmap.preprocess import PreprocessSpec
    from medmap.task import BRATS

    def saved(task=BRATS, name="small", spacing=4.0):
        torch.manual_seed(3)
        options = {
            "modalities": len(task.modalities),
            "classes": task.num_classes,
            "widths": [8, 8, 8],
        }
        return save_bundle(
            tmp_path_factory.mktemp("bundles") / name,
            name=name,
            version="1.0.0",
            task=task,
            network=build_network("SubsetUNet", options),
            network_spec=NetworkSpec("SubsetUNet", options),
            preprocess=PreprocessSpec(spacing=spacing),
            inference=InferenceSpec(),
            card={"description": "An untrained network for tests.", "data": "none"},
        )

    return saved
