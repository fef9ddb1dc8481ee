"""What a NIfTI file says about itself, believed only after checking. numpy only, so that it also lives inside Slicer.

Slicer's own reader (ITK) accepts truncated files and rewrites the orientation of contradictory ones without a word,
nibabel accepts a wrong gzip checksum and repairs headers silently; so the bytes are read and judged here.
Field positions, types and codes: NIfTI-1 and NIfTI-2 (nifti1.h, nifti2.h, https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medmap.errors import InputDataError, IOFailure, MissingInputError

MOST_VOXELS = 2**29
"""Largest scan that is read (800 x 800 x 800)."""

_CHUNK = 1 << 18
_DEFLATE_AT_MOST = 1040  # no deflate stream expands farther (1032, and gzip's frame)

_NAMES = [
    "dim",
    "datatype",
    "pixdim",
    "offset",
    "slope",
    "inter",
    "units",
    "qcode",
    "scode",
    "quat",
    "qoff",
    "srow",
]
_FIELDS = {
    348: {
        "names": _NAMES,
        "formats": [
            "(8,)i2",
            "i2",
            "(8,)f4",
            "f4",
            "f4",
            "f4",
            "u1",
            "i2",
            "i2",
            "(3,)f4",
            "(3,)f4",
            "(3,4)f4",
        ],
        "offsets": [40, 70, 76, 108, 112, 116, 123, 252, 254, 256, 268, 280],
        "itemsize": 348,
    },
    540: {
        "names": _NAMES,
        "formats": [
            "(8,)i8",
            "i2",
            "(8,)f8",
            "i8",
            "f8",
            "f8",
            "i4",
            "i4",
            "i4",
            "(3,)f8",
            "(3,)f8",
            "(3,4)f8",
        ],
        "offsets": [16, 12, 104, 168, 176, 184, 500, 344, 348, 352, 376, 400],
        "itemsize": 540,
    },
}
_MAGIC_AT = {348: slice(344, 348), 540: slice(4, 12)}
_SINGLE = {348: b"n+1\0", 540: b"n+2\0\r\n\x1a\n"}
_PAIR = {348: b"ni1\0", 540: b"ni2\0\r\n\x1a\n"}
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_NOT_AN_IMAGE = {
    1: "binary",
    32: "complex64",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}
_OTHER_KINDS = (
    (128, b"DICM", "a DICOM file"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"PK\3\4", "a ZIP archive"),
)


@dataclass(frozen=True)
class Header:
    """The checked part of a NIfTI header; what could name a patient is not read.

    Attributes:
        version: 1 or 2.
        dims: voxels along every axis that the file has, 3 to 7 of them.
        dtype: of the stored voxels, with byte order.
        offset: where the voxels begin, in bytes.
        slope, inter: intensity = slope * stored + inter, as stored (0 or NaN slope: no scaling).
        pixdim: [4] qfac and voxel size in mm along i, j, k, as stored.
        units: the xyzt_units byte.
        qform_code, sform_code: 0 when the matrix is not given.
        quatern, qoffset, srow: [3], [3], [3, 4] as stored.
    """

    version: int
    dims: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    pixdim: np.ndarray
    units: int
    qform_code: int
    sform_code: int
    quatern: np.ndarray
    qoffset: np.ndarray
    srow: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        return self.dims[:3]

    @property
    def end(self) -> int:
        """Size in bytes of the whole file, uncompressed."""
        return self.offset + math.prod(self.dims) * self.dtype.itemsize

    @property
    def sform(self) -> np.ndarray | None:
        """[4, 4] voxel -> world RAS in mm; None when the file gives no sform."""
        return np.vstack([self.srow, [0, 0, 0, 1]]) if self.sform_code > 0 else None

    @property
    def qform(self) -> np.ndarray | None:
        """[4, 4] voxel -> world RAS in mm (NaN if the quaternion is no rotation); None when the file gives no qform."""
        return self._rotated() if self.qform_code > 0 else None

    @property
    def unoriented(self) -> np.ndarray:
        """[4, 4] what the standard's method 1 assumes without sform and qform: right, front, top; origin in voxel 0."""
        return np.diag([*self.pixdim[1:4], 1.0])

    def _rotated(self) -> np.ndarray:
        b, c, d = (float(x) for x in self.quatern)
        rest = 1.0 - (b * b + c * c + d * d)
        if not rest > -1e-4:
            return np.full((4, 4), np.nan)
        a = math.sqrt(max(rest, 0.0))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        affine = np.eye(4)
        with np.errstate(all="ignore"):  # what is not finite is refused by whoever uses the matrix
            affine[:3, :3] = rotation * self.pixdim[1:4] * [1, 1, -1 if self.pixdim[0] < 0 else 1]
        affine[:3, 3] = self.qoffset
        return affine


def read_verified(path: str | os.PathLike, label: str = "") -> tuple[Header, bytearray]:
    """Read a .nii or .nii.gz to its last byte, checksum included.

    Args:
        path: the file; only opened for reading.
        label: how messages call it; the file name when empty.

    Returns:
        The checked header and exactly ``header.end`` bytes.

    Raises:
        MissingInputError: no such file, not a regular file, or it may not be read.
        InputDataError: not NIfTI, damaged, truncated, longer than it says, or of a kind that is no 3-D image.
        IOFailure: reading broke off.
    """
    with _opened(path, label) as (stream, size, label):
        block = _upto(stream, bytearray(), 540, label)
        header = parse_header(bytes(block), label)
        if header.end > size:
            raise _truncated(label, header, f"the file cannot hold more than {size}")
        data = _upto(stream, block, header.end, label)
        if len(data) < header.end:
            raise _truncated(label, header, f"found {len(data)}")
        if len(data) > header.end or _upto(stream, bytearray(), 1, label):
            raise InputDataError(
                f"{label} is longer than the {header.end} bytes its header describes.",
                "The header is wrong or the file damaged: export the scan again.",
            )
    return header, data


def read_header(path: str | os.PathLike, label: str = "") -> Header:
    """The checked header alone; raises as ``read_verified`` does, but does not look at the voxels."""
    with _opened(path, label) as (stream, _, label):
        return parse_header(bytes(_upto(stream, bytearray(), 540, label)), label)


def parse_header(block: bytes, label: str) -> Header:
    """Judge the first 540 (or, if there are fewer, all) bytes of a file. Raises InputDataError."""
    size, order = _kind(block, label)
    stored = np.frombuffer(block, np.dtype(_FIELDS[size]).newbyteorder(order), count=1)[0]
    with np.errstate(
        invalid="ignore"
    ):  # signaling NaN; what is not finite is refused where it matters
        raw = {
            name: stored[name].astype(float)
            for name in ("offset", "slope", "inter", "pixdim", "quat", "qoff", "srow")
        }
    magic = block[_MAGIC_AT[size]]
    if magic == _PAIR[size]:
        raise InputDataError(
            f"{label} is one half of a .hdr/.img pair.", "Convert it to a single .nii.gz file."
        )
    if magic != _SINGLE[size]:
        raise InputDataError(
            f"{label} lacks the NIfTI mark (it may be Analyze 7.5).", "Convert it to NIfTI."
        )
    least = size + 4
    return Header(
        version=1 if size == 348 else 2,
        dims=_dims(stored["dim"], label),
        dtype=_dtype(int(stored["datatype"]), order, label),
        offset=_offset(float(raw["offset"]), least, label),
        slope=float(raw["slope"]),
        inter=float(raw["inter"]),
        pixdim=raw["pixdim"][:4],
        units=int(stored["units"]),
        qform_code=_code(int(stored["qcode"]), "qform", label),
        sform_code=_code(int(stored["scode"]), "sform", label),
        quatern=raw["quat"],
        qoffset=raw["qoff"],
        srow=raw["srow"],
    )


def _kind(block: bytes, label: str) -> tuple[int, str]:
    """Header size (348 or 540) and byte order."""
    for size in _FIELDS:
        for order, name in (("<", "little"), (">", "big")):
            if block[:4] == size.to_bytes(4, name):
                if len(block) < size:
                    raise InputDataError(
                        f"{label} is truncated: its header is {len(block)} of {size} bytes.",
                        "Copy or export it again.",
                    )
                return size, order
    if block[:2] == b"\x1f\x8b":
        raise InputDataError(f"{label} is compressed twice.", "Unpack it once.")
    kind = next(
        (kind for at, mark, kind in _OTHER_KINDS if block[at : at + len(mark)] == mark), None
    )
    raise InputDataError(
        f"{label} is not a NIfTI file{f' but {kind}' if kind else ''}.",
        "Give a .nii or .nii.gz file, or convert it.",
    )


def _dims(dim: np.ndarray, label: str) -> tuple[int, ...]:
    count = int(dim[0])
    if not 1 <= count <= 7:
        raise InputDataError(
            f"{label}: the header gives {count} dimensions.",
            "The file is damaged: export it again.",
        )
    dims = tuple(int(n) for n in dim[1 : count + 1])
    for axis, n in enumerate(dims):
        if n < 1:
            raise InputDataError(
                f"{label}: the size along axis {axis} is {n}.", "Export the scan again."
            )
    shown = " x ".join(str(n) for n in dims)
    if math.prod(dims[3:]) > 1:
        frames = math.prod(dims[3:])
        raise InputDataError(
            f"{label} holds {frames} frames ({shown}).",
            "Split it and give the one that is meant: MedMAP chooses none.",
        )
    if len(dims) < 3 or min(dims[:3]) < 2:
        raise InputDataError(
            f"{label} is a single slice ({shown}): MedMAP needs a 3-D volume.",
            "Give the whole scan.",
        )
    if math.prod(dims) > MOST_VOXELS:
        raise InputDataError(
            f"{label} claims to be {shown} voxels large; MedMAP reads up to {MOST_VOXELS}.",
            "The header is damaged, or crop or resample the scan.",
        )
    return dims


def _dtype(code: int, order: str, label: str) -> np.dtype:
    if code not in _DTYPES:
        name = _NOT_AN_IMAGE.get(code, f"code {code}")
        raise InputDataError(
            f"{label}: the datatype {name} is not that of an MR magnitude image.",
            "Convert it to integers or float32.",
        )
    return np.dtype(order + _DTYPES[code])


def _offset(offset: float, least: int, label: str) -> int:
    if offset == 0:  # written by some tools to mean "right after the header"
        return least
    if not (offset >= least and offset.is_integer() and offset < 2**40):
        raise InputDataError(
            f"{label}: voxels cannot begin at byte {offset:g} (the header ends at {least}).",
            "Export the scan again.",
        )
    return int(offset)


def _code(code: int, name: str, label: str) -> int:
    if not 0 <= code <= 5:
        raise InputDataError(
            f"{label}: the {name} code {code} does not exist.", "Export the scan again."
        )
    return code


@contextlib.contextmanager
def _opened(path: str | os.PathLike, label: str) -> Iterator[tuple[BinaryIO, int, str]]:
    """A stream of uncompressed bytes, the most that it can hold, and the label."""
    path = Path(path)
    label = label or path.name
    with _open_file(path, label) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise InputDataError(f"{label} is empty (0 bytes).", "Copy or export it again.")
        compressed = _upto(file, bytearray(), 2, label) == b"\x1f\x8b"
        file.seek(0)
        named_so = path.name.lower().endswith(".gz")
        if compressed != named_so:
            is_, should = (
                ("gzip-compressed", ".nii.gz") if compressed else ("not gzip-compressed", ".nii")
            )
            raise InputDataError(
                f"{label} is {is_}, but its name says otherwise.", f"Rename it to end in {should}."
            )
        if not compressed:
            yield file, size, label
        else:
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream, size * _DEFLATE_AT_MOST, label


def _open_file(path: Path, label: str) -> BinaryIO:
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            kind = "it is a folder" if path.is_dir() else "it is not a regular file"
            raise MissingInputError(
                f"{label}: cannot read {path}: {kind}.", "Give a .nii or .nii.gz file."
            )
        return open(path, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MissingInputError(
            f"{label}: cannot read {path}: {reason}.", "Check name and permissions."
        ) from error


def _upto(stream: BinaryIO, data: bytearray, end: int, label: str) -> bytearray:
    """Read on until ``data`` has ``end`` bytes or the stream ends; in pieces, so that memory grows with real data."""
    try:
        while len(data) < end:
            piece = stream.read(min(_CHUNK, end - len(data)))
            if not piece:
                break
            data += piece
    except EOFError as error:
        raise InputDataError(
            f"{label} is truncated: its compressed data end after about {len(data)} bytes.",
            "Copy or export it again.",
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputDataError(
            f"{label}: the compressed data are damaged (CRC).", "Copy or export it again."
        ) from error
    except OSError as error:
        raise IOFailure(
            f"{label}: reading broke off: {error.strerror}.", "Check the disk or the network."
        ) from error
    return data


def _truncated(label: str, header: Header, found: str) -> InputDataError:
    return InputDataError(
        f"{label} is truncated: its header describes {header.end} bytes, {found}.",
        "Copy or export it again.",
    )
