"""Sound NIfTI files are read as nibabel reads them, with a note on whatever was assumed."""

from __future__ import annotations

import gzip
import hashlib

import nibabel as nib
import numpy as np
import pytest
from Testing.medmap.io.nifti_files import (
    AFFINE,
    GOOD,
    GOOD_GZ,
    SHAPE,
    dim,
    moved,
    nifti_bytes,
    rotated,
    saved,
    voxels,
    with_nan,
)

from medmap.errors import (
    InputDataError,
    UsageError,
)
from medmap.io.nifti import read_nifti


@pytest.mark.parametrize("name", ["t1ce.nii", "T1CE.NII.GZ", "scan of Müller.nii.gz"])
def test_reads_a_scan_and_leaves_the_file_alone(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(GOOD_GZ if name.lower().endswith("gz") else GOOD)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    volume = read_nifti(str(path))
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    assert volume.array.flags.writeable
    assert np.array_equal(volume.array, voxels())
    assert np.array_equal(volume.affine, AFFINE.astype(np.float32))
    assert volume.name == name
    assert [(n.level, n.check) for n in volume.notes] == [("info", "affine")]


DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("cls", "endian"), [(nib.Nifti1Image, "<"), (nib.Nifti1Image, ">"), (nib.Nifti2Image, "<")]
)
def test_agrees_with_nibabel_on_every_datatype(tmp_path, dtype, cls, endian):
    array = (voxels() % 100).astype(dtype)
    path = saved(tmp_path, nifti_bytes(array, cls=cls, endian=endian, scl_slope=0.5, scl_inter=-3))
    theirs = nib.load(path)
    ours = read_nifti(path)
    assert np.array_equal(ours.array, theirs.get_fdata(dtype=np.float32))
    assert np.array_equal(ours.affine, theirs.affine)


def test_a_header_extension_is_skipped(tmp_path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.header.extensions.append(
        nib.nifti1.Nifti1Extension("comment", b"some words about a patient")
    )
    assert np.array_equal(read_nifti(saved(tmp_path, image.to_bytes())).array, voxels())


def test_a_gz_of_several_members_is_read(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(GOOD[:300]) + gzip.compress(GOOD[300:]))
    assert np.array_equal(read_nifti(path).array, voxels())


def test_an_unused_axis_of_time_is_one_frame(tmp_path):
    path = saved(tmp_path, nifti_bytes(dim=dim(*SHAPE, 0)))
    assert np.array_equal(read_nifti(path).array, voxels())


@pytest.mark.parametrize("count", [1, 160, 511, 1 << 16])
@pytest.mark.parametrize("name", ["t1ce.nii", "t1ce.nii.gz"])
def test_zeros_that_fill_the_last_block_of_a_file_are_no_damage(tmp_path, count, name):
    path = saved(tmp_path, GOOD + bytes(count), name)
    assert np.array_equal(read_nifti(path).array, voxels())


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (5, 6, 7, 1, 1)])
def test_one_frame_is_read_as_a_volume_and_said(tmp_path, shape):
    volume = read_nifti(saved(tmp_path, nifti_bytes(voxels(shape))), modality="t2")
    assert volume.array.shape == SHAPE
    assert ("warning", "frames") in [(n.level, n.check) for n in volume.notes]


@pytest.mark.parametrize(
    ("slope", "inter", "said"),
    [
        (0, 0, False),
        (np.nan, np.nan, False),
        (1, 0, False),
        (np.inf, 0, True),
        (1, np.nan, True),
        (0, 5, True),
    ],
)
def test_a_scaling_without_sense_is_ignored_and_said(tmp_path, slope, inter, said):
    volume = read_nifti(saved(tmp_path, nifti_bytes(scl_slope=slope, scl_inter=inter)))
    assert np.array_equal(volume.array, voxels())
    assert ("scaling" in [n.check for n in volume.notes]) == said


def test_a_few_not_finite_voxels_become_background_and_are_counted(tmp_path):
    volume = read_nifti(saved(tmp_path, nifti_bytes(with_nan(8))))
    assert np.isfinite(volume.array).all()
    assert set(np.unique(volume.array)) == {7, 9}
    note = next(n for n in volume.notes if n.check == "not-finite")
    assert note.level == "warning"
    assert "8 voxels (0.10%)" in note.message
    assert "set to 7" in note.message


def test_the_user_decides_between_contradicting_statements(tmp_path):
    path = saved(tmp_path, nifti_bytes(**moved(25)))
    by_sform, by_qform = read_nifti(path, affine="sform"), read_nifti(path, affine="qform")
    assert np.allclose(by_sform.affine[:3, 3] - by_qform.affine[:3, 3], [25, 0, 0])
    assert "sform, as chosen" in by_sform.notes[0].message
    with pytest.raises(UsageError, match="is not a way to place a scan"):
        read_nifti(path, affine="best")


def test_a_choice_made_for_another_scan_does_no_harm(tmp_path):
    volume = read_nifti(saved(tmp_path, nifti_bytes(codes=(1, 0))), affine="qform")
    assert np.array_equal(volume.affine, AFFINE.astype(np.float32))
    assert volume.notes[0].message.endswith("by its sform.")
    with pytest.raises(InputDataError, match="does not say how it lies"):
        read_nifti(saved(tmp_path, nifti_bytes(codes=(0, 0))), affine="qform")


def test_a_small_disagreement_is_rounding(tmp_path):
    volume = read_nifti(saved(tmp_path, nifti_bytes(**moved(0.3))))
    assert volume.affine[0, 3] == np.float32(90.3)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1)])
def test_one_statement_is_enough(tmp_path, codes):
    affine = rotated(20)
    volume = read_nifti(saved(tmp_path, nifti_bytes(affine=affine, codes=codes)))
    assert np.allclose(volume.affine, affine, atol=1e-4)
    assert ("sform" if codes[0] else "qform") in volume.notes[0].message


def test_no_statement_needs_consent_and_a_warning(tmp_path):
    path = saved(tmp_path, nifti_bytes(codes=(0, 0)))
    volume = read_nifti(path, assume_orientation=True)
    assert np.allclose(volume.affine, np.diag([1, 1.2, 2, 1]))
    assert ("warning", "orientation") in [(n.level, n.check) for n in volume.notes]


def test_the_chosen_sform_may_differ_from_pixdim(tmp_path):
    path = saved(tmp_path, nifti_bytes(codes=(1, 0), pixdim=[1, 3, 3, 3, 1, 1, 1, 1]))
    assert np.array_equal(read_nifti(path, affine="sform").affine, AFFINE.astype(np.float32))


def test_an_identity_sform_is_accepted(tmp_path):
    volume = read_nifti(saved(tmp_path, nifti_bytes(affine=np.eye(4), codes=(2, 0))))
    assert np.array_equal(volume.affine, np.eye(4))
