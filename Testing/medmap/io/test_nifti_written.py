"""What is written is read back exactly, and names no patient."""

from __future__ import annotations

import struct
import subprocess
import sys
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from Testing.medmap.io.nifti_files import (
    AFFINE,
    GOOD,
    SHAPE,
    moved,
    nifti_bytes,
    rotated,
    saved,
    voxels,
)

from medmap.errors import (
    InputDataError,
    InternalError,
    UsageError,
)
from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.volume import Grid

ORIENTATIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((-1, 1), repeat=3)
]


@st.composite
def affines(draw) -> np.ndarray:
    """48 orientations x rotations up to 45 degrees x spacing x origin, as float32 can hold them."""
    order, signs = draw(st.sampled_from(ORIENTATIONS))
    axes = np.eye(3)[:, order] * signs
    for axis in range(3):
        angle = np.radians(draw(st.sampled_from([0.0, 1.5, -20.0, 45.0])))
        turn, (a, b) = np.eye(3), [x for x in range(3) if x != axis]
        turn[[a, a, b, b], [a, b, a, b]] = [
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        ]
        axes = turn @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes * [draw(st.floats(0.25, 9.5)) for _ in range(3)]
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine.astype(np.float32).astype(np.float64)


SHAPES = st.tuples(*[st.integers(2, 9)] * 3)
RUNS = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@RUNS
@given(
    affine=affines(), shape=SHAPES, whole=st.booleans(), suffix=st.sampled_from([".nii", ".nii.gz"])
)
def test_what_is_written_is_read_back_exactly(tmp_path, affine, shape, whole, suffix):
    array = voxels(shape) if whole else voxels(shape) / np.float32(7)
    path = tmp_path / f"a{suffix}"
    write_volume(path, array, affine)
    volume = read_nifti(path)
    assert np.array_equal(volume.array, array.astype(np.float32))
    assert np.array_equal(volume.affine, affine)
    assert np.array_equal(nib.load(path).affine, affine)
    assert nib.load(path).get_data_dtype() == (np.int16 if whole else np.float32)


@RUNS
@given(
    affine=affines(),
    shape=SHAPES,
    codes=st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 3)]),
    big=st.booleans(),
)
def test_labels_lie_exactly_where_their_scan_lies(tmp_path, affine, shape, codes, big):
    scan = saved(
        tmp_path, nifti_bytes(voxels(shape), affine, codes=codes, endian=">" if big else "<")
    )
    volume = read_nifti(scan)
    labels = (voxels(shape) % 5).astype(np.uint8)
    write_labels(tmp_path / "seg.nii.gz", labels, volume.grid, like=scan)
    back, theirs, original = (
        read_nifti(tmp_path / "seg.nii.gz"),
        nib.load(tmp_path / "seg.nii.gz"),
        nib.load(scan),
    )
    assert np.array_equal(back.array, labels)
    assert np.array_equal(back.affine, volume.affine)
    assert np.array_equal(theirs.affine, original.affine)
    geometry = ["qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"]
    geometry += ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
    for field in geometry:
        assert np.array_equal(theirs.header[field], original.header[field]), field
    assert np.array_equal(theirs.header["pixdim"][:4], original.header["pixdim"][:4])
    assert theirs.get_data_dtype() == np.uint8


def labels_like(tmp_path, scan_bytes: bytes, **read) -> bytes:
    scan = saved(tmp_path, scan_bytes)
    volume = read_nifti(scan, **read)
    write_labels(tmp_path / "seg.nii", np.ones(SHAPE, np.uint8), volume.grid, like=scan)
    return (tmp_path / "seg.nii").read_bytes()


def test_labels_carry_nothing_that_could_name_a_patient(tmp_path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    for field in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
        image.header[field] = b"MUELLER"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"MUELLER"))
    written = labels_like(tmp_path, image.to_bytes())
    assert b"MUELLER" in image.to_bytes()
    assert b"MUELLER" not in written
    assert len(written) == 352 + np.prod(SHAPE)
    assert struct.unpack("<ff", written[112:120]) == (1.0, 0.0)


def test_labels_of_a_contradicting_scan_contradict_alike(tmp_path):
    written = labels_like(tmp_path, nifti_bytes(**moved(25)), affine="qform")
    path = saved(tmp_path, written, "again.nii")
    with pytest.raises(InputDataError, match=r"25.0 mm apart"):
        read_nifti(path)


def test_labels_of_a_scan_without_orientation_have_none(tmp_path):
    path = saved(
        tmp_path,
        labels_like(tmp_path, nifti_bytes(codes=(0, 0)), assume_orientation=True),
        "again.nii",
    )
    with pytest.raises(InputDataError, match="does not say how it lies"):
        read_nifti(path)


def test_labels_of_a_nifti_2_scan_are_nifti_1_for_slicer(tmp_path):
    written = labels_like(tmp_path, nifti_bytes(cls=nib.Nifti2Image))
    assert written[344:348] == b"n+1\0"
    assert np.allclose(read_nifti(saved(tmp_path, written)).affine, AFFINE)


def test_a_label_map_like_its_scan_is_written_without_nibabel(tmp_path):
    scan = saved(tmp_path, GOOD)
    code = (
        "import sys; from medmap.io.nifti import read_nifti, write_labels; "
        f"scan = read_nifti({str(scan)!r}); labels = (scan.array > 0).astype('uint8'); "
        f"write_labels({str(tmp_path / 'seg.nii')!r}, labels, scan.grid, like={str(scan)!r}); "
        "assert 'nibabel' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    written = (tmp_path / "seg.nii").read_bytes()
    assert struct.unpack("<f", written[108:112]) == (352,)
    image = nib.load(tmp_path / "seg.nii")
    assert image.header["bitpix"] == 8
    assert np.array_equal(image.affine, nib.load(scan).affine)


def test_the_same_labels_give_the_same_bytes(tmp_path):
    labels = (voxels() % 5).astype(np.uint8)
    for name in ("a", "b"):
        write_labels(tmp_path / f"{name}.nii.gz", labels, Grid(SHAPE, AFFINE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert not (tmp_path / "a.nii.gz").read_bytes()[4:8].strip(b"\0")


def test_labels_that_do_not_fit_are_refused(tmp_path):
    grid = Grid(SHAPE, AFFINE)
    scan = saved(tmp_path, GOOD)
    elsewhere = Grid(SHAPE, rotated(10))
    for labels, where in ((np.zeros((5, 6, 8), np.uint8), grid), (np.zeros(SHAPE, int), grid)):
        with pytest.raises(InternalError, match="do not fit"):
            write_labels(tmp_path / "seg.nii", labels, where)
    with pytest.raises(InternalError, match="does not lie on the grid"):
        write_labels(tmp_path / "seg.nii", np.zeros(SHAPE, np.uint8), elsewhere, like=scan)
    with pytest.raises(UsageError, match=r"does not end in .nii"):
        write_labels(tmp_path / "seg.mha", np.zeros(SHAPE, np.uint8), grid)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t1ce.nii"]
