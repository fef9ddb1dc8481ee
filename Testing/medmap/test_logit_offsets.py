"""Logit offsets of a bundle: they decide for their subset alone, and change no probability."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from medmap.bundle.loading import load_bundle, update_decisions
from medmap.errors import BundleError
from medmap.inference import segment, segment_subsets
from medmap.postprocess.prediction import predict, probabilities
from medmap.postprocess.reference_labels import label_map
from medmap.postprocess.spec import NO_OFFSETS, ConfidenceSpec, OffsetSpec, PostprocessSpec
from medmap.resampling import orientation_of
from medmap.task import BRATS
from medmap.volume import Grid

SHAPE = (16, 16, 16)
SPEC = PostprocessSpec(by_region=True)
CORE = (slice(4, 12),) * 3
NCR, ED, ET = 1, 2, 3


@pytest.fixture
def case(make_prepared):
    grid = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
    return make_prepared(torch.zeros(4, *SHAPE), torch.ones(SHAPE, dtype=torch.bool), grid)


def hesitant() -> torch.Tensor:
    """[4, ...] logits: a box of edema that might be necrosis, which might enhance."""
    logits = torch.full((4, *SHAPE), -8.0)
    logits[0] = 0.0
    for label, value in ((NCR, 1.0), (ED, 2.0), (ET, 0.0)):
        logits[(label, *CORE)] = value
    return logits


def test_a_class_that_gains_enough_is_decided_for(case):
    offsets = OffsetSpec({"flair": {"NCR": 1.5, "ET": 3.0}})
    before = predict(hesitant(), case, ("flair",), BRATS, SPEC)
    after = predict(hesitant(), case, ("flair",), BRATS, SPEC, offsets=offsets)
    assert before.classes[CORE].unique().tolist() == [ED]
    assert after.classes[CORE].unique().tolist() == [ET]
    assert not after.classes[:4].any()


def test_other_subsets_are_as_before(case):
    offsets = OffsetSpec({"flair": {"ET": 9.0}})
    prediction = predict(hesitant(), case, ("t1", "flair"), BRATS, SPEC, offsets=offsets)
    assert prediction.classes[CORE].unique().tolist() == [ED]
    assert torch.equal(prediction.logits, hesitant())


def test_the_network_s_own_logits_are_not_changed(case):
    logits = hesitant()
    predict(logits, case, ("t1",), BRATS, SPEC, offsets=OffsetSpec({"t1": {"ED": 1.0}}))
    assert torch.equal(logits, hesitant())


def test_probabilities_and_confidence_stay_the_network_s_own(case):
    offsets = OffsetSpec({"flair": {"ET": 9.0}})
    before = predict(hesitant(), case, ("flair",), BRATS, SPEC)
    after = predict(hesitant(), case, ("flair",), BRATS, SPEC, offsets=offsets)
    assert after.classes[CORE].unique().tolist() == [ET]
    own = probabilities(before, case, SPEC, BRATS)
    assert torch.equal(probabilities(after, case, SPEC, BRATS), own)
    # Edema of probability .88: below the threshold, whatever is decided.
    confidence = ConfidenceSpec({"flair": 0.99})
    assert predict(hesitant(), case, ("flair",), BRATS, SPEC, confidence, offsets).suppressed_ml > 0


def test_labels_between_voxels_are_decided_with_them(case):
    finer = Grid((32, 32, 32), np.diag([1.0, 1.0, 1.0, 1.0]))
    offsets = OffsetSpec({"flair": {"NCR": 1.5, "ET": 3.0}})
    on_finer = replace(case, offset=None, reference_grid=finer, orientation=orientation_of(finer))
    prediction = predict(hesitant(), case, ("flair",), BRATS, SPEC, offsets=offsets)
    labels = label_map(prediction, on_finer, SPEC, BRATS)
    assert sorted(np.unique(labels)) == [0, 4]


def test_what_a_small_region_gives_way_to_is_decided_with_them(case):
    # By class, a speck of enhancement below the minimum becomes the next most probable class.
    logits = hesitant()
    speck = (slice(6, 7),) * 3
    logits[(ET, *speck)] = 9.0
    spec = PostprocessSpec(min_region_multiple=1.0)
    offsets = OffsetSpec({"flair": {"NCR": 3.0}})
    for spec_offsets, expected in ((NO_OFFSETS, ED), (offsets, NCR)):
        prediction = predict(logits, case, ("flair",), BRATS, spec, offsets=spec_offsets)
        values = label_map(prediction, case, spec, BRATS)
        assert np.unique(values[CORE]).tolist() == [expected]


@pytest.fixture
def adjusted(tiny_bundle_path, tmp_path):
    """A bundle that never says edema from T1 alone."""
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_path, path)
    offsets = OffsetSpec({"t1": {"NCR": -50.0, "ED": -50.0, "ET": -50.0}})
    update_decisions(path, version="9.9.9", change="offsets", offsets=offsets)
    return path


def test_a_bundle_stores_them_and_keeps_all_else(adjusted, tiny_bundle_path):
    former = load_bundle(tiny_bundle_path)
    bundle = load_bundle(adjusted)
    assert former.offsets == NO_OFFSETS
    assert bundle.offsets.by_subset["t1"]["ED"] == -50.0
    assert bundle.confidence == former.confidence
    assert bundle.id.endswith("-9.9.9")
    weights = (adjusted / "model.safetensors").read_bytes()
    assert weights == (tiny_bundle_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("section", [{"t1": {"EDEMA": 1.0}}, {"t1+pd": {"ED": 1.0}}])
def test_a_label_or_modality_that_the_task_lacks_is_refused(section, tiny_bundle_path, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_path, path)
    update_decisions(path, version="9.9.9", change="offsets", offsets=OffsetSpec(section))
    with pytest.raises(BundleError, match="Invalid logit offsets"):
        load_bundle(path)


def test_every_way_to_segment_uses_them(adjusted, tiny_bundle_path, make_case):
    volumes = {name: volume for name, volume in make_case().items() if name in ("t1", "flair")}
    bundle = load_bundle(adjusted)
    former = load_bundle(tiny_bundle_path)
    t1 = {"t1": volumes["t1"]}
    assert segment(t1, former).labels.any()
    assert not segment(t1, bundle).labels.any()
    subsets = [("t1",), ("flair",), ("t1", "flair")]
    maps = segment_subsets(volumes, bundle, subsets)
    former_maps = segment_subsets(volumes, former, subsets)
    assert not maps["t1"].any()
    for key in ("flair", "t1+flair"):
        np.testing.assert_array_equal(maps[key], former_maps[key])


@pytest.mark.parametrize(
    "section", [{"t1": {"ED": "much"}}, {"t1": {"ED": float("nan")}}, {"t1": 3}, {"t1": [1, 2]}]
)
def test_offsets_that_are_no_finite_numbers_are_refused(section):
    with pytest.raises(BundleError, match="Invalid logit offsets"):
        OffsetSpec.from_dict(section)


def test_the_plain_form_is_json_and_back():
    offsets = OffsetSpec({"t1": {"ED": 0.5, "ET": 4.0}})
    assert OffsetSpec.from_dict(json.loads(json.dumps(offsets.to_dict()))) == offsets
