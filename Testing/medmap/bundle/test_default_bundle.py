"""The default model on unseen generated cases: it finds tumors, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import load_bundle
from medmap.inference import segment_subsets
from medmap.metrics import dice
from medmap.phantom.generator import generate
from medmap.task import BRATS
from medmap.volume import Volume

SUBSETS = (BRATS.modality_names, ("t1", "t2", "flair"), ("t1ce", "t2", "flair"))
"""Modality subsets that were silent in tumor-free cases (docs/experiments/default_model.md)."""

LIMIT_ML = 2.0


@pytest.fixture(scope="module")
def default_bundle():
    return load_bundle(default_bundle_path())


def segmented_case(bundle, seed: int, tumor: bool):
    """Ground truth, label maps by subset, and ml per voxel of a procedural case at 1.5 mm."""
    case = generate(seed, shape=(128, 150, 120), spacing=1.5, tumor=tumor)
    volumes = {}
    for name, image in case.images.items():
        volumes[name] = Volume(image.numpy(), case.affine, name)
    label_maps = segment_subsets(volumes, bundle, SUBSETS)
    return case.label.numpy() > 0, label_maps, 1.5**3 / 1000


@pytest.mark.parametrize("seed", [9990, 9991, 9992])
def test_no_tumor_free_case_yields_more_than_two_ml(default_bundle, seed):
    ground_truth, label_maps, voxel_ml = segmented_case(default_bundle, seed, tumor=False)
    assert not ground_truth.any()
    volumes_ml = [(labels > 0).sum() * voxel_ml for labels in label_maps.values()]
    assert max(volumes_ml) <= LIMIT_ML


def test_a_tumor_is_segmented_from_the_same_subsets(default_bundle):
    ground_truth, label_maps, _ = segmented_case(default_bundle, 9990, tumor=True)
    scores = {key: dice(labels > 0, ground_truth) for key, labels in label_maps.items()}
    assert min(scores.values()) > 0.7, scores


def test_confidence_thresholds_are_for_subsets_of_the_task_and_leave_room(default_bundle):
    minimum = default_bundle.confidence.minimum
    assert set(minimum) <= {BRATS.subset_key(subset) for subset in BRATS.subsets()}
    assert np.isfinite(list(minimum.values())).all()
    # Tumors of the development cases had a confidence of .997 or more from FLAIR alone.
    assert all(0.5 < threshold <= 0.995 for threshold in minimum.values())


def test_the_card_states_patients_first_and_what_was_seen(default_bundle):
    card = default_bundle.card
    assert set(card["dice"]["subsets"]) == {BRATS.subset_key(s) for s in BRATS.subsets()}
    assert "real" in card["dice"]["data"]
    for source in ("BraTS-Africa", "BraTS 2021", "CC BY 4.0", "could not be compared"):
        assert source in card["data"]
    assert "before surgery" in card["population"]
