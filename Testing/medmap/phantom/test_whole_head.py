"""Whole heads from label maps: the mask is the brain, contrast is anything, seeds decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medmap.errors import InputDataError, UsageError
from medmap.io.nifti import write_labels
from medmap.phantom.whole_head import generate_head
from medmap.preparation.network_masks import extract_with, filled
from medmap.preprocess import PreprocessSpec
from medmap.task import find_task
from medmap.training.generated import Generation
from medmap.training.generated_heads import BRAIN_TASK, make_head_case
from medmap.volume import Grid, Volume


@pytest.fixture(scope="module")
def label_maps(tmp_path_factory):
    """An egg-shaped head: skin, bone, fluid, cortex, white matter, ventricles, a spinal canal."""
    shape = (140, 170, 150)
    axes = [np.arange(size) - (size - 1) / 2 for size in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt((x / 66) ** 2 + (y / 80) ** 2 + ((z - 5) / 66) ** 2)
    ids = np.zeros(shape, np.int16)
    for limit, value in ((1.0, 511), (0.93, 515), (0.85, 24), (0.8, 3), (0.7, 2), (0.2, 4)):
        ids[radius < limit] = value
    canal = (np.hypot(x, y) < 8) & (z < -45)
    ids[canal] = 24
    folder = tmp_path_factory.mktemp("maps")
    write_labels(folder / "map.nii.gz", ids, Grid(shape, np.eye(4)))
    return (folder / "map.nii.gz",)


def test_the_same_seed_gives_the_same_head_and_another_seed_another_one(label_maps):
    head = generate_head(1, label_maps, 3.0)
    again = generate_head(1, label_maps, 3.0)
    assert torch.equal(head.image, again.image)
    assert torch.equal(head.brain, again.brain)
    assert not torch.equal(
        generate_head(2, label_maps, 3.0).image.ravel()[:99], head.image.ravel()[:99]
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_one_filled_body_within_the_skull(label_maps, seed):
    head = generate_head(seed, label_maps, 3.0)
    brain = head.brain.numpy()
    assert np.array_equal(filled(brain), brain)
    volume_ml = brain.sum() * 0.027
    assert 250 < volume_ml < 1500
    assert head.image.shape == head.brain.shape
    assert torch.isfinite(head.image).all()
    assert float(head.image.min()) >= 0


def test_a_case_is_what_training_expects(label_maps):
    spec = PreprocessSpec(spacing=3.0)
    case = make_head_case(0, Generation(first_seed=5), spec, label_maps)
    assert case.image.shape == (1, *case.label.shape)
    assert case.label.unique().tolist() == [0, 1]
    assert case.brain.all()
    assert float(case.image.min()) >= spec.clip[0]


def test_without_label_maps_or_without_a_head_around_the_brain_it_is_refused(label_maps, tmp_path):
    with pytest.raises(UsageError, match="generated from label maps"):
        generate_head(0, (), 3.0)
    ids = np.zeros((120, 120, 120), np.int16)
    ids[20:100, 20:100, 20:100] = 2
    write_labels(tmp_path / "brain.nii.gz", ids, Grid(ids.shape, np.eye(4)))
    with pytest.raises(InputDataError, match="shows no whole head"):
        generate_head(0, (tmp_path / "brain.nii.gz",), 3.0)


def test_an_extraction_bundle_masks_a_scan_on_its_own_grid(tmp_path):
    from medmap.bundle.format import InferenceSpec, NetworkSpec
    from medmap.bundle.loading import load_bundle, save_bundle
    from medmap.networks import build_network

    torch.manual_seed(0)
    options = {"modalities": 1, "classes": 2, "widths": [4, 8]}
    network = build_network("SubsetUNet", options)
    path = save_bundle(
        tmp_path / "brain",
        name="brain",
        version="1.0.0",
        task=find_task(BRAIN_TASK),
        network=network,
        network_spec=NetworkSpec("SubsetUNet", options),
        preprocess=PreprocessSpec(spacing=3.0),
        inference=InferenceSpec(),
        card={"description": "An untrained network for tests.", "data": "none"},
    )
    array = np.random.default_rng(0).random((40, 30, 12)).astype(np.float32)
    mask = extract_with(load_bundle(path), Volume(array, np.diag([2.0, 2.0, 5.0, 1.0])))
    assert mask.shape == array.shape
    assert mask.dtype == bool


def test_filling_closes_cavities_and_no_more():
    mask = np.zeros((20, 20, 20), bool)
    mask[4:16, 4:16, 4:16] = True
    hollow = mask.copy()
    hollow[8:12, 8:12, 8:12] = False
    assert np.array_equal(filled(hollow), mask)
    hollow[8:12, 8:12, 12:] = False
    assert np.array_equal(filled(hollow), hollow)
