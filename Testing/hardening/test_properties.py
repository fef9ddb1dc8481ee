"""Properties of the whole way from scans to results, for whatever comes: orientation, sums,
conversion.

The leak law over every network is in ``../medmap/test_networks.py``; review symmetric in its two
inputs, writing and reading, sums of label maps in ``test_fuzz.py``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medmap.inference import segment
from medmap.io.nifti import read_nifti, write_labels
from medmap.preprocess import PreprocessSpec, normalize
from medmap.resampling import canonical_grid, reorient, to_grid
from medmap.task import BRATS
from medmap.volume import Grid, Volume

SOME = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TURNS = st.tuples(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))


def turned(volume: Volume, turn) -> Volume:
    """The same scan stored with its axes in another order and direction."""
    order, flips = turn
    array, affine = volume.array.transpose(order), volume.affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(array), affine, volume.name)


@SOME
@given(TURNS, TURNS, st.sampled_from([("t1",), ("flair", "t1ce"), ("t1", "t1ce", "t2", "flair")]))
def test_segmenting_turned_scans_is_turning_the_segmentation(
    volumes, tiny_bundle, reference_turn, other_turn, names
):
    """Every scan may be stored in its own orientation; the result has that of the reference."""
    given_scans = {name: volumes[name] for name in names}
    expected = segment(given_scans, tiny_bundle, reference=names[0])
    moved = {
        n: turned(v, reference_turn if n == names[0] else other_turn)
        for n, v in given_scans.items()
    }
    found = segment(moved, tiny_bundle, reference=names[0])
    back = turned(Volume(expected.labels, expected.grid.affine), reference_turn)
    assert np.allclose(found.grid.affine, back.affine)
    assert (found.labels == back.array).mean() > 0.9999
    assert found.volumes_ml == pytest.approx(expected.volumes_ml, rel=1e-3, abs=0.01)


@SOME
@given(st.permutations(["t1", "t1ce", "t2", "flair"]), st.integers(1, 4))
def test_volumes_are_the_voxels_times_their_size(volumes, tiny_bundle, order, count):
    found = segment({name: volumes[name] for name in order[:count]}, tiny_bundle)
    size = float(abs(np.linalg.det(found.grid.affine[:3, :3]))) / 1000
    for region in BRATS.regions:
        values = [label.value for label in BRATS.labels if label.name in region.labels]
        assert found.volumes_ml[region.name] == pytest.approx(
            np.isin(found.labels, values).sum() * size
        )
    assert found.volumes_ml["WT"] >= found.volumes_ml["TC"] >= found.volumes_ml["ET"]


@SOME
@given(TURNS)
def test_turning_to_the_canonical_order_twice_is_turning_once(volumes, turn):
    stored = turned(volumes["t2"], turn)
    once, grid = reorient(stored.array, stored.grid)
    twice, again = reorient(once, grid)
    assert np.array_equal(once, twice)
    assert np.array_equal(grid.affine, again.affine)
    assert np.array_equal(canonical_grid(stored.grid).affine, grid.affine)


@SOME
@given(st.floats(0.1, 1000), st.floats(0.5, 2.0))
def test_normalizing_forgets_the_gain_and_resampling_twice_is_once(volumes, gain, spacing):
    """The scanner's gain changes nothing, and a scan that lies on the working grid already is left
    as it is."""
    spec = PreprocessSpec(spacing=spacing)
    volume = volumes["flair"]
    once, _ = normalize(volume.array, volume.foreground, spec)
    louder = replace(volume, array=volume.array * np.float32(gain))
    scaled, _ = normalize(louder.array, louder.foreground, spec)
    assert np.abs(scaled - once).max() < 1e-3
    target = Grid(
        (30, 36, 27),
        np.diag([spacing, spacing, spacing, 1.0]) + np.array([[0, 0, 0, -20]] * 3 + [[0] * 4]),
    )
    first = to_grid(once, volume.grid, target)
    assert np.array_equal(to_grid(first.numpy(), target, target), first)


@SOME
@given(st.integers(0, 10**6), TURNS)
def test_converting_labels_twice_is_converting_them_once(tmp_path, seed, turn):
    """What we write is read as it was written, and written again it is the same file."""
    values = np.random.default_rng(seed).choice([0, 1, 2, 4], (6, 7, 8)).astype(np.float32)
    stored = turned(Volume(values, np.diag([1.0, 1.2, 2.0, 1.0])), turn)
    path = tmp_path / "labels.nii.gz"
    write_labels(path, stored.array.astype(np.uint8), stored.grid)
    once = read_nifti(path)
    bytes_once = path.read_bytes()
    write_labels(path, once.array.astype(np.uint8), once.grid)
    assert path.read_bytes() == bytes_once
    assert np.array_equal(read_nifti(path).array, stored.array)
