"""A model of another task in the panel's library: three slots, hearts in, nothing said about
brains.
"""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

import torch  # noqa: E402

from medmap.bundle.format import InferenceSpec, NetworkSpec  # noqa: E402
from medmap.bundle.loading import load_bundle, save_bundle  # noqa: E402
from medmap.networks import build_network  # noqa: E402
from medmap.phantom import generate_heart  # noqa: E402
from medmap.preprocess import PreprocessSpec  # noqa: E402
from medmap.task import MYOPS  # noqa: E402
from MedMAPSegmentLib.expected_performance import expectedPerformance  # noqa: E402
from MedMAPSegmentLib.inputs import SlotState, readSlots  # noqa: E402
from MedMAPSegmentLib.logic import SegmentationLogic  # noqa: E402
from MedMAPSegmentLib.models.catalog import readEntry  # noqa: E402
from MedMAPSegmentLib.mrml.geometry_checks import checkGeometry  # noqa: E402
from MedMAPSegmentLib.mrml.modality_detection import detectModalities  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(2)
    options = {"modalities": 3, "classes": 6, "spatial_dims": 2, "widths": [8, 8]}
    return save_bundle(
        tmp_path_factory.mktemp("models") / "heart",
        name="heart",
        version="1.0.0",
        task=MYOPS,
        network=build_network("SubsetUNet", options),
        network_spec=NetworkSpec("SubsetUNet", options),
        preprocess=PreprocessSpec(spacing=4.0, slices=True, field=256.0),
        inference=InferenceSpec(),
        card={"description": "Hearts."},
    )


@pytest.fixture
def nodes(mrml):
    heart = generate_heart(5, spacing=4.0)
    names = {
        "bssfp": "myops_training_101_C0",
        "lge": "myops_training_101_DE",
        "t2": "myops_training_101_T2",
    }
    return {
        m: mrml.volume(heart.images[m].numpy(), heart.affine, names[m])
        for m in MYOPS.modality_names
    }


def test_the_slots_are_the_three_of_the_models_task(bundle, nodes):
    entry = readEntry(bundle, "heart")
    assert entry.task == MYOPS
    found = readSlots(entry.task, {"lge": nodes["lge"], "t2": nodes["t2"]})
    assert [(s.title, s.state) for s in found.slots] == [
        ("bSSFP", SlotState.MISSING),
        ("LGE", SlotState.USED),
        ("T2", SlotState.USED),
    ]
    assert found.problems == ()


def test_the_challenges_names_fall_into_their_slots(nodes):
    found = detectModalities(list(nodes.values()), MYOPS)
    assert {name: match.series.name for name, match in found.assigned.items()} == {
        name: node.GetName() for name, node in nodes.items()
    }


def test_the_card_knows_what_two_of_three_scans_are(bundle):
    card = expectedPerformance(MYOPS, readEntry(bundle, "heart").card, ["bssfp", "t2"])
    assert card.title == "bSSFP + T2"
    assert any("scar" in warning for warning in card.warnings)


def test_a_heart_is_segmented_from_two_of_three_volumes(scene, bundle, nodes):
    logic = SegmentationLogic(scene)
    logic.setModel(lambda: load_bundle(bundle), MYOPS)
    request = logic.prepare({"lge": nodes["lge"], "bssfp": nodes["bssfp"], "t2": None})
    result = logic.compute(request)
    assert result.labels.shape == tuple(nodes["lge"].GetImageData().GetDimensions())
    assert set(np.unique(result.labels)) <= set(MYOPS.label_values())
    assert result.provenance.missing == ("t2",)
    assert not {f.check for f in result.findings} & {"skull-strip", "brain-volume", "field-of-view"}


def test_the_panels_own_checks_say_nothing_about_skulls(nodes):
    report = checkGeometry(nodes, MYOPS, None, ["HDBrainExtractionTool"])
    assert report.notStripped == ()
    assert report.skullStrippers == ()
    assert not [n for n in report.findings if n.level == "error"]
