"""Pieces of tumor: told apart, and dropped only where the bundle says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from medmap.errors import BundleError, InternalError
from medmap.postprocess.components import find_components, number_components
from medmap.postprocess.decoding import decode, decode_by_region, most_probable, nested_regions
from medmap.postprocess.prediction import predict, probabilities
from medmap.postprocess.reference_labels import (
    interpolated_labels,
    label_map,
    labels_on_reference,
)
from medmap.postprocess.spec import NO_POSTPROCESSING, PostprocessSpec
from medmap.resampling import resample_linear
from medmap.task import BRATS, Region
from medmap.training.recipe import Recipe
from medmap.volume import Grid

SPEC = PostprocessSpec(min_component_ml=1.0, min_component_fraction=0.1)


def islands(mask, voxel_ml, spec):
    """[D, H, W] bool: small components that a specification excludes."""
    found = find_components(mask, voxel_ml, spec)
    return found.is_small[found.numbers]


def labels_of(logits, prepared, spec):
    """The label map of logits, without confidence thresholds."""
    prediction = predict(logits, prepared, BRATS.modality_names, BRATS, spec)
    return label_map(prediction, prepared, spec, BRATS)


def cubes(*sizes: int) -> torch.Tensor:
    """Cubes of these edges in a row, eight voxels apart."""
    mask = torch.zeros(40, 40, sum(sizes) + 8 * len(sizes) + 4, dtype=torch.bool)
    start = 2
    for size in sizes:
        mask[2 : 2 + size, 2 : 2 + size, start : start + size] = True
        start += size + 8
    return mask


def test_a_small_piece_beside_a_large_one_is_dropped():
    mask = cubes(30, 5)
    dropped = islands(mask, 1e-3, SPEC)
    assert int(dropped.sum()) == 125
    assert not dropped[:, :, :33].any()


def test_a_small_piece_that_stands_alone_is_kept():
    assert not islands(cubes(5), 1e-3, SPEC).any()
    assert not islands(cubes(5, 5, 4), 1e-3, SPEC).any()


def test_a_piece_of_more_than_the_limit_is_kept_beside_a_large_one():
    assert not islands(cubes(30, 11), 1e-3, SPEC).any()


def test_nothing_is_dropped_from_nothing():
    assert not islands(torch.zeros(9, 8, 7, dtype=torch.bool), 1e-3, SPEC).any()
    assert int(number_components(torch.ones(6, 5, 4, dtype=torch.bool)).max()) == 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.01, 0.5))
def test_pieces_are_those_of_scipy_where_gaps_are_wide(seed, density):
    rng = np.random.default_rng(seed)
    coarse = rng.random((7, 6, 9)) < density
    mask = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    ours = number_components(torch.from_numpy(mask)).numpy()
    theirs, count = label(mask, np.ones((3, 3, 3)))
    assert ours.max() == count
    assert len({(a, b) for a, b in zip(ours.ravel(), theirs.ravel(), strict=True)}) == count + (
        not mask.all()
    )


def test_a_long_winding_piece_is_one():
    mask = torch.zeros(64, 64, 4, dtype=torch.bool)
    for row in range(0, 64, 8):
        mask[row, :, :] = True
        mask[row : row + 8, 63 if row % 16 == 0 else 0, :] = True
    assert int(number_components(mask).max()) == 1


def test_a_speck_of_enhancement_becomes_what_else_it_may_be(make_prepared):
    """Six voxels of 1 mm: fewer than 0.4 x 500 mm³, with NCR as second choice; 300 voxels stay."""
    shape = (12, 12, 12)
    brain = torch.ones(shape, dtype=torch.bool)
    grid = Grid(shape, np.eye(4))
    prepared = make_prepared(torch.zeros(4, *shape), brain, grid)
    logits = torch.zeros(4, *shape)
    logits[2, 2:9, 2:9, 2:9] = 3.0
    logits[3, 4, 4, 2:8] = 6.0
    logits[1, 4, 4, 2:8] = 5.0
    kept = labels_of(logits, prepared, PostprocessSpec(min_region_multiple=0.0))
    dropped = labels_of(logits, prepared, PostprocessSpec(min_region_multiple=0.4))
    assert (kept == 4).sum() == 6
    assert (dropped == 4).sum() == 0
    assert (dropped[4, 4, 2:8] == 1).all()
    assert np.array_equal(dropped[kept != 4], kept[kept != 4])
    logits[3, 2:9, 2:9, 2:8] = 6.0
    many = labels_of(logits, prepared, PostprocessSpec(min_region_multiple=0.4))
    assert (many == 4).sum() == 7 * 7 * 6


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_only_the_box_around_the_tumor_is_interpolated_and_nothing_is_lost(turn):
    """Against all voxels interpolated at once: finer, shifted, turned grids, a tumor at the rim."""
    torch.manual_seed(2)
    working = Grid((14, 12, 16), np.diag([1.5, 1.5, 1.5, 1.0]))
    cos, sin = np.cos(turn), np.sin(turn)
    affine = np.array([[cos, -sin, 0, -1.3], [sin, cos, 0, 0.4], [0, 0, 1.0, -0.7], [0, 0, 0, 1]])
    reference = Grid((22, 20, 25), affine)
    coarse = torch.randn(1, 4, 4, 4, 4)
    logits = 5 * torch.nn.functional.interpolate(coarse, size=working.shape, mode="trilinear")[0]
    logits[0, :, :, :9] += 20.0
    probability = torch.softmax(logits, 0)
    everywhere = resample_linear(probability[1:], working, reference)
    best, index = everywhere.max(0)
    classes = torch.where(best > 1 - everywhere.sum(0), index + 1, 0)
    expected = torch.tensor(BRATS.label_values(), dtype=torch.uint8)[classes]
    found = interpolated_labels(probability, working, reference, NO_POSTPROCESSING, BRATS)
    assert torch.equal(found, expected)
    assert 0 < int((found > 0).sum()) < found.numel() // 2
    probability[0], probability[1:] = 1.0, 0.0
    assert not interpolated_labels(probability, working, reference, NO_POSTPROCESSING, BRATS).any()


def test_an_unknown_step_is_refused():
    with pytest.raises(BundleError, match="post-processing"):
        PostprocessSpec.from_dict({"magic": 1})
    assert PostprocessSpec.from_dict(SPEC.to_dict()) == SPEC


def test_the_most_probable_class_is_that_of_argmax():
    probability = torch.rand(4, 7, 6, 5, generator=torch.Generator().manual_seed(0))
    probability[2, 0] = probability[1, 0]  # ties go to the first
    assert torch.equal(most_probable(probability), probability.argmax(0))


@pytest.mark.parametrize(
    ("probability", "label"),
    [
        ((0.1, 0.3, 0.35, 0.25), 1),  # core: .55 against edema's .35
        ((0.1, 0.2, 0.35, 0.35), 3),
        ((0.1, 0.2, 0.5, 0.2), 2),
        ((0.45, 0.1, 0.35, 0.1), 2),  # tumor: .55 against background's .45
        ((0.6, 0.1, 0.2, 0.1), 0),
        ((0.0, 0.0, 0.0, 1.0), 3),
    ],
)
def test_a_region_is_decided_by_the_sum_of_its_classes(probability, label):
    voxel = torch.tensor(probability).reshape(4, 1, 1, 1)
    assert int(decode_by_region(voxel, nested_regions(BRATS))) == label


def test_regions_are_decoded_from_the_outermost_inward():
    assert nested_regions(BRATS) == [(1, 2, 3), (1, 3), (3,)]
    siblings = replace(BRATS, regions=(*BRATS.regions, Region("ED", "Edema", ("ED",))))
    with pytest.raises(BundleError, match="not nested"):
        nested_regions(siblings)


def test_decoding_by_region_is_written_only_where_it_is_used():
    assert "by_region" not in SPEC.to_dict()
    spec = replace(SPEC, by_region=True)
    assert PostprocessSpec.from_dict(spec.to_dict()) == spec
    assert Recipe(postprocess=spec).digest() != Recipe(postprocess=SPEC).digest()


@pytest.mark.parametrize("spacing", [1.0, 1.5])
@pytest.mark.parametrize("component_ml", [0.0, 0.4])
@pytest.mark.parametrize("by_region", [False, True])
def test_labels_from_logits_are_those_from_probabilities(
    spacing, component_ml, by_region, make_prepared
):
    """Copied voxel for voxel on the reference's own lattice, interpolated elsewhere."""
    torch.manual_seed(4)
    shape = (24, 20, 28)
    affine = np.diag([-spacing, spacing, spacing, 1.0])
    reference = Grid(shape, affine)
    brain = torch.zeros(shape, dtype=torch.bool)
    brain[2:-2, 3:-1, 2:-4] = True
    coarse = torch.randn(1, 4, 6, 5, 7)
    logits = 4 * torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0]
    moved = np.eye(4)
    moved[0, 3] = -spacing * (shape[0] - 1) if spacing == 1.0 else -30.0
    prepared = make_prepared(torch.zeros(4, *shape), brain, Grid(shape, moved), reference)
    spec = PostprocessSpec(component_ml, 0.5, by_region=by_region)
    prediction = predict(logits, prepared, BRATS.modality_names, BRATS, spec)
    probability = probabilities(prediction, prepared, spec, BRATS)
    expected = labels_on_reference(probability, prepared, BRATS, spec)
    found = labels_of(logits, prepared, spec)
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) == 4
    few = PostprocessSpec(component_ml, 0.5, min_region_multiple=1e6, by_region=by_region)
    probability = probabilities(prediction, prepared, few, BRATS)
    expected = labels_on_reference(probability, prepared, BRATS, few)
    found = labels_of(logits, prepared, few)
    assert np.array_equal(found, expected)
    assert sorted(np.unique(found)) == [0, 1, 2]
    logits[2, 3, 4, 5] = float("inf")
    with pytest.raises(InternalError, match="not finite"):
        labels_of(logits, prepared, spec)


@pytest.mark.parametrize("by_region", [False, True])
def test_nothing_outside_the_box_can_be_tumor(make_prepared, by_region):
    torch.manual_seed(5)
    shape = (12, 14, 10)
    logits = torch.randn(4, *shape)
    logits[0, :6] += 12.0
    brain = torch.ones(shape, dtype=torch.bool)
    prepared = make_prepared(torch.zeros(4, *shape), brain, Grid(shape, np.eye(4)))
    spec = PostprocessSpec(by_region=by_region)
    prediction = predict(logits, prepared, BRATS.modality_names, BRATS, spec)
    probability = torch.softmax(logits, 0)
    assert torch.equal(prediction.classes, decode(probability, spec, BRATS))
    outside = torch.ones(shape, dtype=torch.bool)
    outside[prediction.box] = False
    assert outside.any()
    assert (probability[0][outside] > 0.5).all()
    logits[0] += 40.0
    nothing = predict(logits, prepared, BRATS.modality_names, BRATS, spec)
    assert nothing.box is None
    assert not label_map(nothing, prepared, spec, BRATS).any()


def test_fields_of_the_first_version_are_read():
    spec = PostprocessSpec.from_dict({"island_ml": 1.0, "island_share": 0.1, "small_regions": 0.4})
    assert spec == PostprocessSpec(1.0, 0.1, 0.4)
