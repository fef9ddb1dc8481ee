"""Hearts: slices never mix, absent scans change nothing, and what else works on stacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from Testing.medmap.hearts.heart_cases import NAMES, SPEC
from Testing.medmap.small_networks import SMALL

from medmap.checks import check_inputs
from medmap.inference import segment, segment_subsets
from medmap.io.cohorts import find_cases
from medmap.io.nifti import read_nifti
from medmap.networks import NETWORKS
from medmap.postprocess.reference_labels import labels_on_reference
from medmap.preprocess import prepare
from medmap.resampling import slice_axis_of
from medmap.subset_comparison import what_if
from medmap.task import BRATS, MYOPS
from medmap.volume import Volume


def turned(volume: Volume) -> Volume:
    """The same voxels at the same places, stored with other axes."""
    array = np.ascontiguousarray(volume.array.transpose(2, 0, 1)[:, ::-1])
    change = np.array(
        [[0, -1, 0, volume.array.shape[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]
    )
    return Volume(array, volume.affine @ change, volume.name)


def test_slices_of_the_wanted_spacing_are_copied_voxel_for_voxel(hearts):
    prepared = prepare(hearts, MYOPS, SPEC, multiple=4)
    axis = prepared.slice_axis
    assert prepared.grid.shape[axis] == hearts["lge"].array.shape[2]
    assert [n for a, n in enumerate(prepared.grid.shape) if a != axis] == [64, 64]
    z = (hearts["lge"].array - hearts["lge"].array.mean()) / hearts["lge"].array.std()
    inside = prepared.image[MYOPS.index("lge")].movedim(axis, -1).numpy()
    middle = z[8:72, 8:72]
    flips = [middle[::a, ::b, ::c] for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    assert max(np.corrcoef(inside.ravel(), f.ravel())[0, 1] for f in flips) > 0.999


def test_every_stored_orientation_gives_the_same_tensor(hearts):
    expected = prepare(hearts, MYOPS, SPEC, multiple=4)
    again = prepare({n: turned(v) for n, v in hearts.items()}, MYOPS, SPEC, multiple=4)
    assert torch.equal(expected.image, again.image)
    assert expected.slice_axis == again.slice_axis


def test_a_field_larger_than_the_scan_is_padded_and_none_keeps_it_whole(hearts):
    axis = prepare(hearts, MYOPS, SPEC).slice_axis
    for field, size in ((512.0, 128), (0.0, 80)):
        prepared = prepare(hearts, MYOPS, replace(SPEC, field=field), multiple=16)
        assert [n for a, n in enumerate(prepared.grid.shape) if a != axis] == [size, size]
    assert not prepare(hearts, MYOPS, replace(SPEC, field=512.0)).brain.all()


@pytest.mark.parametrize("spacing", [4.0, 3.0])
@pytest.mark.parametrize("turn", [False, True])
def test_labels_come_back_to_their_places(challenge, hearts, spacing, turn):
    truth = read_nifti(find_cases(challenge, MYOPS)[0].label, modality="seg")
    volumes = {"t2": turned(hearts["t2"]) if turn else hearts["t2"]}
    truth = turned(truth) if turn else truth
    prepared = prepare(volumes, MYOPS, replace(SPEC, spacing=spacing), multiple=4)
    from medmap.resampling import to_grid

    masks = [truth.array == v for v in MYOPS.label_values()]
    probability = torch.stack(
        [to_grid(m.astype(np.float32), truth.grid, prepared.grid, True) for m in masks]
    )
    back = labels_on_reference(probability, prepared, MYOPS)
    assert back.dtype == np.int16
    heart = (truth.array > 0) | (back > 0)
    assert (back == truth.array)[heart].mean() > (0.999 if spacing == 4.0 else 0.85)


def test_across_thick_slices_nothing_is_interpolated(hearts):
    """A scan with other slices gives each of ours its nearest one, and none where it has none."""
    source = hearts["bssfp"]
    count = source.array.shape[2]
    shifted = source.affine.copy()
    shifted[:3, 3] += 0.3 * source.affine[:3, 2]
    numbered = np.broadcast_to(np.arange(1.0, count + 1), source.array.shape).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 1e-3, numbered.shape).astype(np.float32)
    prepared = prepare(
        {"bssfp": source, "lge": Volume(numbered + noise, shifted)},
        MYOPS,
        SPEC,
        reference="bssfp",
        multiple=4,
    )
    seen = prepared.image[MYOPS.index("lge")].movedim(prepared.slice_axis, 0)[:, 20:44, 20:44]
    levels = seen.flatten(1).mean(1)
    assert float(seen.flatten(1).std(1).max()) < 0.02
    steps = levels.diff().abs()
    assert torch.allclose(steps, steps[0].expand_as(steps), atol=0.02)


def test_a_slice_is_segmented_alone(hearts, bundle, network_logits):
    prepared = prepare(hearts, MYOPS, SPEC, multiple=4)
    (before,) = network_logits(bundle, prepared, [NAMES])
    axis = prepared.slice_axis
    image = prepared.image.clone()
    image.movedim(axis + 1, 0)[1] = torch.randn_like(image.movedim(axis + 1, 0)[1])
    (after,) = network_logits(bundle, replace(prepared, image=image), [NAMES])
    changed = (before != after).movedim(axis + 1, 0).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("subset", MYOPS.subsets()[:-1], ids="+".join)
@pytest.mark.parametrize("content", ["noise", "nan"])
def test_what_absent_scans_hold_changes_nothing(hearts, bundle, network_logits, subset, content):
    present = {name: hearts[name] for name in subset}
    expected = prepare(present, MYOPS, SPEC, multiple=4)
    (logits,) = network_logits(bundle, expected, [subset])
    filled = expected.image.clone()
    absent = ~expected.present
    filled[absent] = float("nan") if content == "nan" else torch.randn_like(filled[absent]) * 9
    (leaked,) = network_logits(bundle, replace(expected, image=filled), [subset])
    assert torch.equal(leaked, logits)
    together = prepare(hearts, MYOPS, SPEC, reference=expected.reference, multiple=4)
    for name in subset:
        assert torch.equal(together.image[MYOPS.index(name)], expected.image[MYOPS.index(name)])


@pytest.mark.parametrize("subset", [("t2",), ("bssfp", "lge")], ids="+".join)
@pytest.mark.parametrize("name", ["SubsetUNet", "RFNet", "UHeMIS"])
def test_backbones_in_two_dimensions_do_not_leak(name, subset):

    options = {**SMALL.get(name, {}), "modalities": 3, "classes": 6, "spatial_dims": 2}
    torch.manual_seed(0)
    network = NETWORKS[name](**options).eval()
    present = torch.tensor([MYOPS.presence(subset)])
    image = torch.randn(1, 3, 32, 32)
    other = torch.where(present[..., None, None], image, float("nan"))
    with torch.no_grad():
        assert torch.equal(network(image, present).logits, network(other, present).logits)


def test_checks_of_brains_do_not_look_at_hearts(hearts):
    assert not {f.check for f in check_inputs(hearts, MYOPS)} & {
        "skull-strip",
        "brain-volume",
        "field-of-view",
    }
    assert "skull-strip" in {f.check for f in check_inputs({"t2": hearts["t2"]}, BRATS)}


def test_all_seven_subsets_at_once_equal_each_alone(hearts, bundle):
    at_once = segment_subsets(hearts, bundle, MYOPS.subsets(), reference="bssfp")
    assert len(at_once) == 7
    for subset in (s for s in MYOPS.subsets() if "bssfp" in s):
        alone = segment({name: hearts[name] for name in subset}, bundle, reference="bssfp")
        assert np.array_equal(alone.labels, at_once[MYOPS.subset_key(subset)])


def test_what_if_takes_hearts(hearts, bundle):
    found = what_if(hearts, bundle)
    assert len(found.variants) == 7
    assert np.array_equal(found.labels, segment(hearts, bundle).labels)
    assert found.maps["entropy"].shape == hearts["lge"].array.shape


def test_the_axis_across_slices_is_that_of_the_largest_voxels(hearts):
    from medmap.resampling import canonical_grid

    grid = canonical_grid(hearts["t2"].grid)
    assert grid.spacing[slice_axis_of(grid)] == pytest.approx(max(grid.spacing))


def test_the_picture_of_a_stack_shows_its_slices(challenge, hearts, tmp_path):
    from PIL import Image

    from medmap.report.overlay import save_overlay
    from medmap.report.planes import prepare as arrange

    case = find_cases(challenge, MYOPS)[0]
    truth = read_nifti(case.label, modality="seg")
    labels = truth.array.astype(np.int16)
    arrays = {name: volume.array for name, volume in hearts.items()}
    shown = arrange(arrays, labels, None, truth.grid, MYOPS)
    count = labels.shape[2]
    with_labels = np.flatnonzero(labels.any((0, 1)))
    assert len(shown.planes) == min(3, len(with_labels))
    assert {plane.title.split()[0] for plane in shown.planes} == {"Slice"}
    assert {plane.title.split()[-1] for plane in shown.planes} == {str(count)}
    axis = shown.planes[0].normal
    for plane in shown.planes:
        masks = np.logical_or.reduce(list(shown.prediction.values()))
        assert masks.take(plane.at, axis).any()
    save_overlay(tmp_path / "a.png", arrays, labels, truth.grid, MYOPS, reference_labels=labels)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape[0] > 300
    colors = np.array([label.color for label in MYOPS.labels if (labels == label.value).sum() > 30])
    for color in colors:
        assert (np.abs(picture[..., :3].astype(int) - color).max(-1) < 12).sum() > 20
