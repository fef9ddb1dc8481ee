"""What is wrong with a NIfTI file is stated in one sentence."""

from __future__ import annotations

import gzip
import os
import re
import warnings

import nibabel as nib
import numpy as np
import pytest
from Testing.medmap.io.nifti_files import (
    AFFINE,
    FLOATS,
    GOOD,
    GOOD_GZ,
    SHAPE,
    dim,
    moved,
    nifti_bytes,
    saved,
    voxels,
    with_nan,
)

from medmap.errors import (
    InputDataError,
    IOFailure,
    MissingInputError,
)
from medmap.io.nifti import read_nifti

REFUSED = {
    "empty file": ("a.nii", b"", r"is empty \(0 bytes\)"),
    "empty gz file": ("a.nii.gz", b"", r"is empty \(0 bytes\)"),
    "text": ("a.nii", b"hello " * 200, "is not a NIfTI file"),
    "DICOM": ("a.nii", bytes(128) + b"DICM" + bytes(500), "is not a NIfTI file but a DICOM file"),
    "random bytes": ("a.nii", np.random.default_rng(3).bytes(5000), "is not a NIfTI file"),
    "text in gz": ("a.nii.gz", gzip.compress(b"hello " * 200), "is not a NIfTI file"),
    "gz in gz": ("a.nii.gz", gzip.compress(GOOD_GZ), "compressed twice"),
    "one byte": ("a.nii", b"\x5c", "is not a NIfTI file"),
    "truncated header": ("a.nii", GOOD[:200], "header is 200 of 348 bytes"),
    "truncated data": (
        "a.nii",
        GOOD[:-30],
        f"describes {len(GOOD)} bytes, the file cannot hold more than {len(GOOD) - 30}",
    ),
    "truncated gz": ("a.nii.gz", GOOD_GZ[: len(GOOD_GZ) // 2], "compressed data end after about"),
    "gz of truncated data": (
        "a.nii.gz",
        gzip.compress(GOOD[:-30]),
        f"{len(GOOD)} bytes, found {len(GOOD) - 30}",
    ),
    "gz without its checksum": ("a.nii.gz", GOOD_GZ[:-8], "compressed data end after about"),
    "wrong checksum": ("a.nii.gz", GOOD_GZ[:-8] + b"\0\0\0\0" + GOOD_GZ[-4:], r"damaged \(CRC\)"),
    "wrong gz length": ("a.nii.gz", GOOD_GZ[:-4] + b"\0\0\0\1", r"damaged \(CRC\)"),
    "data after the gz stream": ("a.nii.gz", GOOD_GZ + b"surplus", r"damaged \(CRC\)"),
    "more data than declared": ("a.nii", GOOD + b"x", "longer than the"),
    "gz with more than declared": (
        "a.nii.gz",
        gzip.compress(GOOD + bytes(10**6)),
        "longer than the",
    ),
    "gz named nii": ("a.nii", GOOD_GZ, "is gzip-compressed, but its name says otherwise"),
    "nii named gz": ("a.nii.gz", GOOD, "is not gzip-compressed, but its name says otherwise"),
    "wrong magic": ("a.nii", nifti_bytes(magic=b"abc"), "lacks the NIfTI mark"),
    "pair": ("a.hdr", nifti_bytes(magic=b"ni1"), "half of a .hdr/.img pair"),
    "no dimensions": ("a.nii", nifti_bytes(dim=dim()), "gives 0 dimensions"),
    "nine dimensions": ("a.nii", nifti_bytes(dim=[9, *SHAPE, 1, 1, 1, 1]), "gives 9 dimensions"),
    "negative frames": ("a.nii", nifti_bytes(dim=dim(*SHAPE, -1)), "size along axis 3 is -1"),
    "padding that is not zeros": ("a.nii", GOOD + bytes(511) + b"x", "longer than the"),
    "zero size": ("a.nii", nifti_bytes(dim=dim(5, 0, 7)), "size along axis 1 is 0"),
    "negative size": ("a.nii", nifti_bytes(dim=dim(5, 6, -7)), "size along axis 2 is -7"),
    "header bomb": (
        "a.nii",
        nifti_bytes(dim=dim(32767, 32767, 32767)),
        "claims to be 32767 x 32767 x 32767 voxels",
    ),
    "plausible bomb": ("a.nii", nifti_bytes(dim=dim(600, 600, 600)), "truncated"),
    "plausible gz bomb": (
        "a.nii.gz",
        gzip.compress(nifti_bytes(dim=dim(600, 600, 600))),
        "truncated",
    ),
    "NIfTI-2 bomb": (
        "a.nii",
        nifti_bytes(cls=nib.Nifti2Image, dim=dim(2**40, 2**40, 2**40)),
        "claims to be",
    ),
    "complex": ("a.nii", nifti_bytes(voxels().astype(np.complex64)), "datatype complex64"),
    "RGB": ("a.nii", nifti_bytes(datatype=128), "datatype RGB24"),
    "unknown datatype": ("a.nii", nifti_bytes(datatype=999), "datatype code 999"),
    "2-D": (
        "a.nii",
        nifti_bytes(voxels((30, 40))),
        r"single slice \(30 x 40\): MedMAP needs a 3-D volume",
    ),
    "one slice": ("a.nii", nifti_bytes(voxels((30, 40, 1))), "needs a 3-D volume"),
    "four frames": (
        "a.nii",
        nifti_bytes(voxels((5, 6, 7, 4))),
        r"holds 4 frames \(5 x 6 x 7 x 4\)",
    ),
    "2 x 3 frames": ("a.nii", nifti_bytes(voxels((5, 6, 7, 2, 3))), "holds 6 frames"),
    "offset within the header": ("a.nii", nifti_bytes(vox_offset=100), "cannot begin at byte 100"),
    "offset NaN": ("a.nii", nifti_bytes(vox_offset=np.nan), "cannot begin at byte nan"),
    "all NaN": (
        "a.nii",
        nifti_bytes(np.full(SHAPE, np.nan, np.float32)),
        "every voxel is NaN or infinite",
    ),
    "many NaN": ("a.nii", nifti_bytes(with_nan(9)), r"9 voxels \(0.1%\) are NaN or infinite"),
    "huge": ("a.nii", nifti_bytes(FLOATS * np.float32(1e33)), "intensities reach"),
    "huge by its slope": ("a.nii", nifti_bytes(scl_slope=1e30, scl_inter=0), "intensities reach"),
    "vanishing by its slope": (
        "a.nii",
        nifti_bytes(scl_slope=-1e-35, scl_inter=0),
        "intensities reach 1.0e-32",
    ),
    "singular": (
        "a.nii",
        nifti_bytes(srow_x=[-1, -1.2, 0, 90], srow_y=0),
        "the sform is singular.*--affine qform",
    ),
    "zero sform, no qform": (
        "a.nii",
        nifti_bytes(codes=(1, 0), srow_x=0),
        "no extent along an axis. Export it again.$",
    ),
    "zero sform": (
        "a.nii",
        nifti_bytes(srow_x=0, srow_y=0, srow_z=0),
        "the sform gives a voxel no extent",
    ),
    "NaN sform": (
        "a.nii",
        nifti_bytes(srow_x=np.nan),
        "the sform holds numbers that are not finite",
    ),
    "Inf offset": (
        "a.nii",
        nifti_bytes(codes=(0, 1), qoffset_x=np.inf),
        "the qform holds numbers that are not finite",
    ),
    "no rotation": (
        "a.nii",
        nifti_bytes(codes=(0, 1), quatern_b=3),
        "the qform holds numbers that are not finite",
    ),
    "sheared": (
        "a.nii",
        nifti_bytes(srow_x=[-1, 0.3, 0, 90]),
        "sform is sheared: axes i and j meet at 104.0 instead",
    ),
    "far away": ("a.nii", nifti_bytes(srow_x=[-1, 0, 0, 1e7]), "more than 100 m away"),
    "sform elsewhere": (
        "a.nii",
        nifti_bytes(**moved(25)),
        "place it up to 25.0 mm apart.*--affine sform or --affine qform",
    ),
    "sform turned": ("a.nii", nifti_bytes(srow_x=-AFFINE[0]), "sform and qform place it up to"),
    "neither": (
        "a.nii",
        nifti_bytes(codes=(0, 0)),
        "does not say how it lies.*--assume-orientation",
    ),
    "undefined code": ("a.nii", nifti_bytes(sform_code=77), "sform code 77 does not exist"),
    "pixdim contradicts": (
        "a.nii",
        nifti_bytes(codes=(1, 0), pixdim=[1, 3, 3, 3, 1, 1, 1, 1]),
        "3 x 3 x 3 mm by pixdim, 1 x 1.2 x 2 mm by the sform",
    ),
    "pixdim zero": (
        "a.nii",
        nifti_bytes(pixdim=[1, 0, 1.2, 2, 1, 1, 1, 1]),
        "voxel size in the header is 0 x 1.2 x 2",
    ),
    "pixdim negative": (
        "a.nii",
        nifti_bytes(pixdim=[1, -1, 1.2, 2, 1, 1, 1, 1]),
        "voxel size in the header is -1 x",
    ),
    "pixdim NaN": (
        "a.nii",
        nifti_bytes(pixdim=[1, np.nan, 1, 1, 1, 1, 1, 1]),
        "voxel size in the header is nan",
    ),
    "micrometers": ("a.nii", nifti_bytes(xyzt_units=3), "gives its lengths in micrometers"),
    "tiny voxels": (
        "a.nii",
        nifti_bytes(affine=np.diag([0.001] * 3 + [1])),
        "voxels of 0.001 x 0.001 x 0.001 mm",
    ),
    "large voxels": (
        "a.nii",
        nifti_bytes(affine=np.diag([1, 1, 40, 1])),
        "voxels of 1 x 1 x 40 mm",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_sentence(tmp_path, case):
    name, data, words = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputDataError) as caught:
            read_nifti(path, modality="t1ce")
    error = caught.value
    assert re.search(words, f"{error.cause} {error.command_line_remedy}")
    assert "--" not in str(error), "causes and remedies are neutral to the interface"
    assert error.exit_code == 65
    assert error.cause.startswith(f"t1ce ({name})")
    assert error.remedy.endswith(".")
    assert str(tmp_path) not in str(error)


def test_names_a_missing_file_a_folder_and_a_device(tmp_path):
    fifo = tmp_path / "pipe.nii"
    os.mkfifo(fifo)
    for path, words in (
        (tmp_path / "no.nii", "No such file"),
        (tmp_path, "it is a folder"),
        (fifo, "not a regular file"),
        ("a\0b.nii", "null"),
    ):
        with pytest.raises(MissingInputError, match=words) as caught:
            read_nifti(path)
        assert caught.value.exit_code == 66


def test_names_a_file_without_permission(tmp_path, monkeypatch):
    path = saved(tmp_path, GOOD)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(MissingInputError, match="Permission denied"):
        read_nifti(path)


def test_a_disk_error_while_reading_is_no_damaged_file(tmp_path, monkeypatch):
    path = saved(tmp_path, GOOD, "a.nii.gz")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(gzip.GzipFile, "read", fail)
    with pytest.raises(IOFailure, match="Input/output error"):
        read_nifti(path)
