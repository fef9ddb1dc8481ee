"""Low-confidence components are removed from the result, and the result reports it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from medmap.bundle.loading import load_bundle, update_decisions
from medmap.devices import resolve_device
from medmap.errors import BundleError
from medmap.inference import predictions, segment
from medmap.postprocess.components import component_confidence, find_components, tumor_probability
from medmap.postprocess.decoding import most_probable
from medmap.postprocess.prediction import predict
from medmap.postprocess.reference_labels import label_map
from medmap.postprocess.spec import ConfidenceSpec, PostprocessSpec
from medmap.preprocess import prepare
from medmap.sliding_window import SlidingWindow
from medmap.task import BRATS
from medmap.volume import Grid

SHAPE = (60, 64, 60)
SPEC = PostprocessSpec(min_component_ml=1.0, min_component_fraction=0.1)
LEFT = (slice(4, 24), slice(10, 30), slice(10, 30))
RIGHT = (slice(36, 56),) * 3
SPECK = (slice(28, 31),) * 3


def three_components(left: float, right: float, speck: float = 0.0) -> torch.Tensor:
    """[4, ...] logits: three components of edema of these probabilities in certain background."""
    probability = torch.full(SHAPE, 1e-3)
    for box, value in ((LEFT, left), (RIGHT, right), (SPECK, speck)):
        probability[box] = max(value, 1e-3)
    unlikely = torch.full(SHAPE, -20.0)
    return torch.stack([torch.zeros(SHAPE), unlikely, torch.logit(probability), unlikely])


@pytest.fixture
def case(make_prepared):
    grid = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
    image = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    return make_prepared(image, torch.ones(SHAPE, dtype=torch.bool), grid, reference="flair")


@pytest.fixture
def predicted(case):
    def make(logits, minimum, subset=("flair",)):
        return predict(logits, case, subset, BRATS, SPEC, ConfidenceSpec(minimum))

    return make


def test_the_confidence_of_a_component_is_the_ninetieth_percentile_of_its_probability_of_tumor(
    case,
):
    logits = three_components(0.7, 0.9)
    # 15 % of the left component
    logits[2, 4:7, 10:30, 10:30] = float(torch.logit(torch.tensor(0.99)))
    found = find_components(most_probable(logits) > 0, case.grid.voxel_ml, SPEC)
    confidence = component_confidence(logits, found)
    by_box = [confidence[int(found.numbers[box][0, 0, 0])] for box in (LEFT, RIGHT)]
    assert by_box == pytest.approx([0.99, 0.9], abs=1e-4)
    assert len(confidence) == 2


def test_the_probability_of_tumor_is_that_of_all_classes_but_background():
    logits = torch.randn(4, 5, 6, 7, dtype=torch.float64)
    assert torch.allclose(tumor_probability(logits), 1 - torch.softmax(logits, 0)[0])


def test_a_low_confidence_component_is_suppressed_and_its_volume_reported(predicted):
    prediction = predicted(three_components(0.7, 0.99), {"flair": 0.95})
    assert (prediction.classes[RIGHT] > 0).all()
    assert not (prediction.classes[LEFT] > 0).any()
    assert prediction.suppressed[LEFT].all()
    assert int(prediction.suppressed.sum()) == 20**3
    assert prediction.suppressed_ml == pytest.approx(20**3 * 8 / 1000)


def test_the_logits_stay_what_the_network_gave(predicted):
    logits = three_components(0.7, 0.99)
    prediction = predicted(logits.clone(), {"flair": 0.95})
    assert torch.equal(prediction.logits, logits)


def test_a_small_component_beside_a_suppressed_one_does_not_come_back(predicted, case):
    prediction = predicted(three_components(0.7, 0.0, speck=0.999), {"flair": 0.95})
    assert not label_map(prediction, case, SPEC, BRATS).any()


def test_the_threshold_is_that_of_the_modality_subset(predicted):
    minimum = {"flair": 0.95, "t2+flair": 0.5}
    logits = three_components(0.7, 0.99)
    assert (predicted(logits, minimum, ("t2", "flair")).classes[LEFT] > 0).all()
    assert (predicted(logits, minimum, ("t1",)).classes[LEFT] > 0).all()
    assert not (predicted(logits, minimum).classes[LEFT] > 0).any()


def test_nothing_is_suppressed_where_everything_is_certain_or_empty(predicted):
    for logits in (three_components(0.99, 0.9995), three_components(0.0, 0.0)):
        prediction = predicted(logits, {"flair": 0.95})
        assert prediction.suppressed is None
        assert prediction.suppressed_ml == 0.0


@pytest.fixture
def strict_bundle(tiny_bundle):
    """The small bundle, which trusts nothing that it finds in two subsets."""
    return replace(tiny_bundle, confidence=ConfidenceSpec({"t1+flair": 1.0, "flair": 1.0}))


def predictions_of(bundle, prepared, subsets):
    windows = SlidingWindow(bundle.task, bundle.inference, bundle.stride, resolve_device("cpu"))
    by_position = {}
    for positions, prediction in predictions(bundle, windows, prepared, subsets):
        for position in positions:
            by_position[position] = prediction
    return [by_position[position] for position in range(len(subsets))]


def test_many_subsets_at_once_have_the_thresholds_of_each_alone(volumes, strict_bundle):
    prepared = prepare(volumes, BRATS, strict_bundle.preprocess, multiple=8)
    subsets = [("flair",), ("t1", "flair"), BRATS.modality_names]
    together = predictions_of(strict_bundle, prepared, subsets)
    assert [prediction.suppressed is not None for prediction in together] == [True, True, False]
    assert not together[0].classes.any()
    assert together[2].classes.any()
    for subset, prediction in zip(subsets, together, strict=True):
        (alone,) = predictions_of(strict_bundle, prepared, [subset])
        assert torch.equal(alone.logits, prediction.logits)
        assert torch.equal(alone.classes, prediction.classes)
        assert alone.suppressed_ml == prediction.suppressed_ml


def test_a_result_reports_what_was_removed(volumes, strict_bundle, tiny_bundle):
    result = segment({"flair": volumes["flair"]}, strict_bundle)
    before = segment({"flair": volumes["flair"]}, tiny_bundle)
    assert before.provenance.run.suppressed_ml == 0
    assert before.labels.any()
    assert not result.labels.any()
    suppressed_ml = result.provenance.run.suppressed_ml
    assert suppressed_ml == pytest.approx(before.volumes_ml["WT"], rel=0.05)
    warnings = [f for f in result.findings if f.check == "low-confidence"]
    assert len(warnings) == 1
    assert f"{suppressed_ml:.1f} ml" in warnings[0].message
    assert not [f for f in before.findings if f.check == "low-confidence"]


def test_a_bundle_stores_its_thresholds_and_an_older_one_has_none(tmp_path, tiny_bundle_path):
    assert load_bundle(tiny_bundle_path).confidence == ConfidenceSpec()
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_path, path)
    weights = (path / "model.safetensors").read_bytes()
    spec = ConfidenceSpec({"flair": 0.5})
    update_decisions(path, version="9.9.9", change="thresholds", confidence=spec)
    again = load_bundle(path)
    assert again.confidence == spec
    assert again.id.endswith("-9.9.9")
    assert (path / "model.safetensors").read_bytes() == weights
    assert next(iter(json.loads((path / "metadata.json").read_text())["changelog"])) == "9.9.9"


def test_thresholds_of_the_first_version_are_read():
    assert ConfidenceSpec.from_dict({"least": {"flair": 0.5}}) == ConfidenceSpec({"flair": 0.5})


@pytest.mark.parametrize("data", [{"most": 1}, {"minimum": 3}, {"minimum": {"flair": "x"}}])
def test_thresholds_that_are_not_understood_are_refused(data):
    with pytest.raises(BundleError, match="confidence thresholds"):
        ConfidenceSpec.from_dict(data)
