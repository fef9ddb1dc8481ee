"""The fuzz run of ``make fuzz``, for seconds; and properties of the whole way that hold for
whatever comes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medmap.errors import InputDataError
from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.io.nifti_header import parse_header
from medmap.metrics import compare, region_volumes_ml
from medmap.task import BRATS
from medmap.volume import Grid

spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent / "fuzz.py")
fuzz = importlib.util.module_from_spec(spec)
sys.modules["fuzz"] = fuzz
spec.loader.exec_module(fuzz)

SETTINGS = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_malformed_files_are_read_or_refused_in_words():
    table = fuzz.run(count=1500)
    assert {
        name: row["wrong"] for name, row in table.items() if name != "seconds"
    } == dict.fromkeys(fuzz.TARGETS, 0)
    assert table["bundle, one bit"]["accepted"] == 0
    assert (
        table["NIfTI"]["accepted"] > 50
    )  # the damage is small enough that something is left to accept
    assert table["NIfTI"]["refused 65"] > 300


@settings(max_examples=400, derandomize=True, deadline=None)
@given(
    st.binary(max_size=600),
    st.sampled_from([b"", b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0"]),
)
def test_no_bytes_break_the_header(data, start):
    try:
        parse_header(start + data, "scan")
    except InputDataError:
        return


@SETTINGS
@given(
    st.integers(0, 10**6), st.tuples(*[st.integers(2, 9)] * 3), st.tuples(*[st.floats(0.3, 5)] * 3)
)
def test_reading_what_was_written_changes_nothing_however_often(tmp_path, seed, shape, spacing):
    array = np.random.default_rng(seed).normal(0, 100, shape).astype(np.float32)
    affine = np.diag([*np.float32(spacing), 1.0])
    path = tmp_path / "a.nii.gz"
    write_volume(path, array, affine)
    once = read_nifti(path)
    write_volume(path, once.array, once.affine)
    twice = read_nifti(path)
    assert np.array_equal(once.array, twice.array)
    assert np.array_equal(once.affine, twice.affine)
    assert np.array_equal(once.array, array)


@st.composite
def label_maps(draw, shape=(9, 8, 7)):
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    array = rng.choice(
        [0, 1, 2, 4],
        shape,
        p=draw(st.sampled_from([(1, 0, 0, 0), (0.7, 0.1, 0.1, 0.1), (0, 0, 1, 0)])),
    )
    return array.astype(np.uint8)


@SETTINGS
@given(label_maps())
def test_volumes_of_parts_add_up(labels):
    ml = region_volumes_ml(labels, BRATS, 0.012)
    count = {value: float((labels == value).sum()) * 0.012 for value in (1, 2, 4)}
    assert ml["WT"] == pytest.approx(sum(count.values()))
    assert ml["TC"] == pytest.approx(count[1] + count[4])
    assert ml["ET"] == pytest.approx(count[4])
    assert ml["WT"] >= ml["TC"] >= ml["ET"]


@SETTINGS
@given(label_maps(), label_maps())
def test_review_is_symmetric_in_its_two_inputs(one, other):
    grid = Grid(one.shape, np.diag([1.0, 1.2, 2.0, 1.0]))
    forth, back = compare(one, other, BRATS, grid), compare(other, one, BRATS, grid)
    for region in forth:
        a, b = forth[region], back[region]
        assert a.dice == b.dice
        assert a.hd95_mm == pytest.approx(b.hd95_mm, nan_ok=True)
        assert a.sensitivity == pytest.approx(b.precision, nan_ok=True)
        assert a.reference_ml == pytest.approx(b.prediction_ml)


@SETTINGS
@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3), st.integers(0, 1000))
def test_labels_keep_their_place_in_every_stored_orientation(tmp_path, order, flips, seed):
    labels = np.random.default_rng(seed).choice([0, 1, 2, 4], (5, 6, 7)).astype(np.uint8)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    turned = labels.transpose(order)
    moved = affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            turned = np.flip(turned, axis)
            moved[:3, 3] += moved[:3, axis] * (turned.shape[axis] - 1)
            moved[:3, axis] *= -1
    path = tmp_path / "labels.nii"
    write_labels(path, np.ascontiguousarray(turned), Grid(turned.shape, moved))
    back = read_nifti(path)
    spot = np.argwhere(labels == 4)[0]
    world = affine @ [*spot, 1]
    there = np.rint(np.linalg.solve(back.affine, world)[:3]).astype(int)
    assert back.array[tuple(there)] == 4
