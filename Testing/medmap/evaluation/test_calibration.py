"""Calibration and uncertainty scores: by hand, against scikit-learn, and from files to files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medmap.commands.label_maps import MapOptions, score_maps
from medmap.commands.segment import Options, segment_files
from medmap.errors import InputDataError
from medmap.evaluation.calibration import (
    THRESHOLDS,
    pooled,
    reliability,
    uncertainty_of,
    uncertainty_scores,
)
from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.metrics import dice, region_masks
from medmap.task import BRATS


def test_a_calibrated_model_has_no_error_and_a_certain_one_has():
    rng = np.random.default_rng(0)
    probability = rng.random(200_000)
    reference = rng.random(200_000) < probability
    assert reliability(probability, reference).expected_calibration_error < 0.01
    overconfident = np.where(probability > 0.5, 1.0, 0.0)
    error = reliability(overconfident, reference).expected_calibration_error
    assert error == pytest.approx(0.25, abs=0.01)


def test_bins_are_those_of_scikit_learn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    probability = rng.beta(0.4, 0.8, 5000)
    reference = rng.random(5000) < probability**2
    diagram = reliability(probability, reference, bins=10)
    frequency, mean = calibration_curve(reference, probability, n_bins=10)
    np.testing.assert_allclose(diagram.frequency, frequency)
    np.testing.assert_allclose(diagram.probability, mean)
    halves = [reliability(probability[n::2], reference[n::2], bins=10) for n in (0, 1)]
    np.testing.assert_allclose(pooled(halves).frequency, diagram.frequency)


def test_uncertainty_scores_by_the_definition():
    """The challenge's procedure, threshold by threshold, on whole arrays."""
    rng = np.random.default_rng(2)
    shape = (12, 13, 11)
    prediction = rng.random(shape) < 0.3
    reference = rng.random(shape) < 0.3
    brain = rng.random(shape) < 0.9
    uncertainty = np.round(100 * rng.random(shape))
    curves = []
    for threshold in THRESHOLDS:
        certain = uncertainty <= threshold
        positives = prediction & reference & brain
        negatives = ~prediction & ~reference & brain
        curves.append(
            (
                dice(prediction & certain, reference & certain),
                (positives & ~certain).sum() / positives.sum(),
                (negatives & ~certain).sum() / negatives.sum(),
            )
        )
    expected = np.trapezoid(np.array(curves), THRESHOLDS, axis=0) / 100
    scores = uncertainty_scores(prediction, reference, uncertainty, brain)
    np.testing.assert_allclose((scores.dice_auc, scores.ftp_auc, scores.ftn_auc), expected)
    assert scores.score == pytest.approx((expected[0] + 2 - expected[1] - expected[2]) / 3)


def test_uncertain_errors_score_better_than_uncertain_hits():
    reference = np.zeros((20, 20), bool)
    reference[5:15, 5:15] = True
    prediction = np.roll(reference, 2, 0)
    wrong = prediction != reference
    everywhere = np.ones_like(reference)
    helpful = uncertainty_scores(prediction, reference, np.where(wrong, 90, 0), everywhere)
    useless = uncertainty_scores(prediction, reference, np.where(wrong, 0, 90), everywhere)
    assert helpful.score > 0.95 > 0.5 > useless.score
    assert list(uncertainty_of(np.array([0, 0.5, 1]))) == [0, 100, 0]


def test_what_is_no_probability_is_refused():
    with pytest.raises(InputDataError, match="no probabilities"):
        reliability(np.array([0.2, 1.7]), np.array([True, False]))
    with pytest.raises(InputDataError, match="shape"):
        reliability(np.zeros(3), np.zeros(4, bool))


def test_segment_writes_probabilities_and_evaluate_scores_them(tiny_bundle, tmp_path, make_case):
    volumes = make_case((32, 36, 30))
    (tmp_path / "scans").mkdir()
    scans = {}
    for name in ("t1ce", "flair"):
        scans[name] = tmp_path / f"scans/{name}.nii.gz"
        volume = volumes[name]
        write_volume(scans[name], volume.array.astype(np.int16)[::-1], volume.affine)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    result = segment_files(
        scans,
        predictions / "Case_1",
        tiny_bundle,
        Options(device="cpu", probabilities=True),
        progress=lambda fraction, text: None,
        cancel=lambda: False,
    )
    masks = region_masks(result.segmentation.labels, BRATS)
    for region in BRATS.regions:
        path = predictions / f"Case_1/probability_{region.name}.nii.gz"
        assert result.files[f"probability of {region.name}"] == path
        probability = read_nifti(path)
        assert probability.grid.distance(result.segmentation.grid) < 1e-3
        assert 0 <= probability.array.min() <= probability.array.max() <= 1
    whole = result.segmentation.probabilities["WT"]
    assert dice(whole > 0.5, masks["WT"]) > 0.95
    labels = tmp_path / "labels"
    labels.mkdir()
    reference = np.zeros(masks["WT"].shape, np.uint8)
    reference[10:20, 10:20, 10:20] = 2
    write_labels(labels / "Case_1.nii.gz", reference, result.segmentation.grid)
    scored = score_maps(
        predictions,
        labels,
        BRATS,
        MapOptions(output=tmp_path / "out"),
        lambda fraction, text: None,
        lambda: False,
    )
    content = json.loads((tmp_path / "out/calibration.json").read_text())
    assert content["WT"]["expected_calibration_error"] > 0.05, "an untrained network"
    assert scored.calibration["WT"].cases == 1
    assert (tmp_path / "out/reliability.png").stat().st_size > 5000


def test_without_the_option_no_probabilities_are_written(tiny_bundle, tmp_path, make_case):
    volume = make_case((24, 28, 22))["flair"]
    write_volume(tmp_path / "flair.nii.gz", volume.array.astype(np.int16), volume.affine)
    result = segment_files(
        {"flair": tmp_path / "flair.nii.gz"},
        tmp_path / "out",
        tiny_bundle,
        Options(device="cpu"),
        progress=lambda fraction, text: None,
        cancel=lambda: False,
    )
    assert result.segmentation.probabilities == {}
    assert len(list((tmp_path / "out").iterdir())) == 3
