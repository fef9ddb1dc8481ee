"""NIfTI in and out: whatever is wrong with a file is said in one sentence, whatever is right comes back exactly."""

from __future__ import annotations

import ast
import gzip
import hashlib
import os
import re
import struct
import warnings
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import medmap
from medmap.checks import affine_problem
from medmap.errors import (
    InputDataError,
    InternalError,
    IOFailure,
    MedMAPError,
    MissingInputError,
    UsageError,
)
from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.volume import Grid, Volume

SHAPE = (5, 6, 7)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1.2, 0, 126], [0, 0, 2, -72], [0, 0, 0, 1]])


def voxels(shape=SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)


def nifti_bytes(
    array=None, affine=AFFINE, cls=nib.Nifti1Image, endian="<", codes=(1, 1), **fields
) -> bytes:
    """A valid file written by nibabel, then with header fields overwritten as given."""
    array = voxels() if array is None else array
    header = cls.header_class(endianness=endian)
    header.set_data_dtype(array.dtype)
    image = cls(array, affine, header)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    data = bytearray(image.to_bytes())
    if codes[1] == 0:
        fields = {"quatern_b": 0, "quatern_c": 0, "quatern_d": 0, **fields}
    return patched(data, cls.header_class.template_dtype.newbyteorder(endian), fields)


def patched(data: bytes, dtype: np.dtype, fields: dict) -> bytes:
    header = np.frombuffer(data[: dtype.itemsize], dtype).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + bytes(data[dtype.itemsize :])


def saved(tmp_path: Path, data: bytes, name: str = "t1ce.nii") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def dim(*sizes: int) -> np.ndarray:
    return np.array([len(sizes), *sizes] + [1] * (7 - len(sizes)))


def rotated(degrees: float) -> np.ndarray:
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:2, :2] = [[c, -s], [s, c]]
    return turn @ AFFINE


def moved(mm: float) -> dict:
    return {"srow_x": [*AFFINE[0, :3], AFFINE[0, 3] + mm]}


# --- what is refused -------------------------------------------------------------------------------------------------

GOOD = nifti_bytes()
GOOD_GZ = gzip.compress(GOOD, mtime=0)
FLOATS = voxels().astype(np.float32)


def with_nan(count: int) -> np.ndarray:
    array = np.full((20, 20, 20), 7, np.float32)
    array[5:15, 5:15, 5:15] = 9
    array.reshape(-1)[np.linspace(3300, 4700, count).astype(int)] = [np.nan, np.inf][count % 2]
    return array


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


# --- what is read ----------------------------------------------------------------------------------------------------


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


# --- where voxels lie ------------------------------------------------------------------------------------------------


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


# --- what is written -------------------------------------------------------------------------------------------------

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


# --- whatever comes --------------------------------------------------------------------------------------------------


def mutants(data: bytes, count: int, seed: int, span: int):
    """Byte changes (one to four, within ``span``) and truncations of a file."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        changed = bytearray(data)
        if number % 5 == 0:
            del changed[int(rng.integers(len(changed))) :]
        for at in (
            rng.integers(min(span, len(changed)) or 1, size=int(rng.integers(1, 5)))
            if changed
            else ()
        ):
            changed[at] = int(rng.integers(256))
        yield bytes(changed)


def assert_read_or_refused(path: Path) -> bool:
    try:
        volume = read_nifti(path)
    except MedMAPError:
        return False
    assert isinstance(volume, Volume)
    assert np.isfinite(volume.array).all()
    assert affine_problem(volume.affine) is None
    return True


@pytest.mark.parametrize(
    ("name", "data", "span"),
    [
        ("a.nii", GOOD, 352),
        ("a.nii", nifti_bytes(FLOATS, codes=(2, 0)), 600),
        ("a.nii", nifti_bytes(cls=nib.Nifti2Image, codes=(0, 1)), 544),
        ("a.nii.gz", GOOD_GZ, len(GOOD_GZ)),
    ],
    ids=["header", "floats", "NIfTI-2", "gz"],
)
def test_any_damage_is_read_or_refused_but_never_crashes(tmp_path, name, data, span):
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accepted = 0
        for mutant in mutants(data, 500, seed=len(data), span=span):
            path.write_bytes(mutant)
            accepted += assert_read_or_refused(path)
    assert accepted < 450
    path.write_bytes(data)
    assert assert_read_or_refused(path)


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_field_with_an_extreme_value_is_read_or_refused(tmp_path, cls):
    """Every header field: what random bytes rarely hit."""
    path = tmp_path / "a.nii"
    fields = cls.header_class.template_dtype
    good = nifti_bytes(cls=cls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in fields.names:
            if fields[name].base.kind == "S":
                continue
            kind = fields[name].base
            limits = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
            special = [-1, np.nan, np.inf, -np.inf, 1e-38, 1e30] if kind.kind == "f" else []
            for value in (0, 1, 2, limits.min, limits.max, *special):
                path.write_bytes(patched(good, fields, {name: value}))
                assert_read_or_refused(path)


@pytest.mark.parametrize(
    "module",
    ["foreground", "checks", "io/atomic", "io/nifti_geometry", "io/nifti_header", "volume"],
)
def test_what_also_lives_in_slicer_needs_numpy_only(module):
    tree = ast.parse((Path(medmap.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    imported = {
        a.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for a in node.names
    }
    imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & {"nibabel", "torch", "monai", "scipy", "slicer"}
