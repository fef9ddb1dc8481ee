"""The default model on unseen synthetic cases: it segments tumors, and nothing without a tumor."""

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

SETS = (BRATS.modality_names, ("t1", "t2", "flair"), ("t1ce", "t2", "flair"))
"""Modality subsets with no more than 2 ml in any held-out tumor-free case
(docs/experiments/default_model.md)."""
LIMIT_ML = 2.0


@pytest.fixture(scope="module")
def shipped():
    return load_bundle(default_bundle_path())


def found_in(bundle, seed: int, tumor: bool, sets=SETS):
    """Truth and label maps by set of scans, in a procedural head at 1.5 mm; and ml a voxel."""
    head = generate(seed, shape=(128, 150, 120), spacing=1.5, tumor=tumor)
    volumes = {
        name: Volume(image.numpy(), head.affine, name) for name, image in head.images.items()
    }
    return head.label.numpy() > 0, segment_subsets(volumes, bundle, sets), 1.5**3 / 1000


@pytest.mark.parametrize("seed", [9990, 9991, 9992])
def test_no_head_without_tumor_yields_more_than_two_ml(shipped, seed):
    truth, found, voxel_ml = found_in(shipped, seed, tumor=False)
    assert not truth.any()
    assert max((labels > 0).sum() * voxel_ml for labels in found.values()) <= LIMIT_ML


def test_and_a_tumor_is_found_from_the_same_scans(shipped):
    truth, found, _ = found_in(shipped, 9990, tumor=True)
    scores = {key: dice(labels > 0, truth) for key, labels in found.items()}
    assert min(scores.values()) > 0.7, scores


def test_its_limits_of_certainty_are_for_sets_that_there_are_and_leave_room(shipped):
    least = shipped.confidence.minimum
    assert set(least) <= {BRATS.subset_key(subset) for subset in BRATS.subsets()}
    assert 0.5 < min(least.values()) <= max(least.values()) <= 0.98, (
        "a real tumor had .975 from FLAIR alone"
    )
    assert least["flair"] <= 0.95
    assert np.isfinite(list(least.values())).all()
