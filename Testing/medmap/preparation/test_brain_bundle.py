"""The brain extraction model that ships: small, verified, and no brain is lost."""

from __future__ import annotations

import numpy as np
import pytest
from Testing.medmap.preparation.conftest import brain_of, head_scan, in_thick_slices

from medmap.bundle.loading import load_bundle
from medmap.preparation import brain_extraction
from medmap.preparation.availability import brain_bundle_path
from medmap.preparation.network_masks import extract_with
from medmap.resampling import resample_nearest
from medmap.training.generated_heads import BRAIN_TASK
from medmap.volume import Grid

MOST_BYTES = 2 * 2**20


@pytest.fixture(scope="module")
def bundle():
    path = brain_bundle_path()
    assert path is not None
    return load_bundle(path)


def test_it_ships_and_is_small(bundle):
    files = list(brain_bundle_path().iterdir())
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert bundle.task.name == BRAIN_TASK
    for source in ("BraTS-Africa", "Lesjak", "SynthSeg", "deepbet", "could not be compared"):
        assert source in bundle.card["data"]


@pytest.mark.parametrize("contrast", ["t1", "t1ce", "t2", "flair"])
def test_the_brain_of_a_head_lies_in_its_mask(bundle, contrast):
    brain = brain_of()
    mask = extract_with(bundle, head_scan(contrast))
    assert (mask & brain).sum() > 0.98 * brain.sum()
    # The synthetic heads have a gap between brain and skull, which belongs to the mask.
    assert mask.sum() < 1.35 * brain.sum()


def test_thick_slices_lose_no_more(bundle):
    scan = in_thick_slices(head_scan("flair"), (1.0, 1.0, 5.0))
    thin = head_scan("flair")
    brain = resample_nearest(
        brain_of().astype(np.uint8), Grid(thin.array.shape, thin.affine), scan.grid
    )
    mask = extract_with(bundle, scan)
    assert (mask & (brain > 0)).sum() > 0.96 * (brain > 0).sum()


def test_it_serves_where_deepbet_is_not_installed(monkeypatch):
    monkeypatch.setitem(
        brain_extraction.METHODS,
        "deepbet",
        brain_extraction.ExtractionMethod(lambda: False, lambda volume: None, ""),
    )
    for contrast in brain_extraction.CONTRASTS:
        assert brain_extraction.default_method(contrast) == "network"
    result = brain_extraction.extract_brain(head_scan("t2"), "t2")
    assert result.method == "network"
    assert 1200 < result.volume_ml < 2000
