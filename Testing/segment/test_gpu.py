"""The panel's logic on a CUDA device: same labels, memory given back, warm second run, forced lack
of memory.

Figures are printed (``pytest -s -m gpu Testing/segment/test_gpu.py``). Skips itself where there is
no such device.
"""

from __future__ import annotations

import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("slicer")

from medmap.errors import UnavailableError  # noqa: E402
from MedMAPSegmentLib.logic import SegmentationLogic  # noqa: E402
from MedMAPSegmentLib.mrml.sample import addPhantomPatient  # noqa: E402
from MedMAPSegmentLib.mrml.scene import labelsOf, provenanceOf  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SAME = 0.999
"""Least share of voxels with the same label: convolutions add up in another order, which decides
ties only.
"""
MIB = 2**20


@pytest.fixture
def logic(scene):
    made = SegmentationLogic(scene)
    yield made
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def scans(scene):
    return addPhantomPatient(scene).volumes


def test_labels_are_those_of_the_processor_and_memory_is_given_back(logic, scans):
    ours = {}
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for device in ("cpu", "cuda", "cuda"):
        started = time.perf_counter()
        ours[device] = labelsOf(logic.process(scans, device=device), logic.task)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / MIB
    kept = torch.cuda.memory_reserved() / MIB
    weights = sum(p.numel() * p.element_size() for p in logic.bundle().network.parameters()) / MIB
    same = float((ours["cpu"] == ours["cuda"]).mean())
    print(
        f"\n{torch.cuda.get_device_name()}: processor {seconds[0]:.2f} s, first run "
        f"{seconds[1]:.2f} s, ",
        end="",
    )
    print(
        f"second {seconds[2]:.2f} s; peak {peak:.0f} MiB, kept {kept:.0f} MiB (weights "
        f"{weights:.0f}); ",
        end="",
    )
    print(f"{same:.5f} of the voxels have the processor's label")
    assert same >= SAME
    assert kept <= weights + 64, "cached memory is for volume rendering again"
    assert seconds[2] < seconds[1]


def test_a_card_that_is_too_full_uses_smaller_windows_or_says_so(logic, scans):
    logic.process(scans, device="cuda")
    total = torch.cuda.get_device_properties(0).total_memory
    for share in (600 * MIB, 60 * MIB):
        torch.cuda.set_per_process_memory_fraction(min(1.0, share / total))
        torch.cuda.reset_peak_memory_stats()
        node, said = None, ""
        try:
            node = logic.process(scans, device="cuda")
        except UnavailableError as error:
            print(f"\n{share // MIB} MiB: {error}")
            said = error.cause
        if node is None:
            assert "memory" in said
            continue
        found = provenanceOf(node)
        print(f"\n{share // MIB} MiB: window {found['run']['window']}")
        shrunk = any(finding["check"] == "memory" for finding in found["findings"])
        assert shrunk or torch.cuda.max_memory_allocated() <= share


def test_devices_are_listed_with_their_free_memory():
    from MedMAPSegmentLib.devices import listDevices

    texts = {device.name: device.text for device in listDevices()}
    assert "GB free" in texts["cuda:0"]
    assert texts["auto"].startswith("Automatic (")
