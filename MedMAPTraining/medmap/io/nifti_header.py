"""The header of a NIfTI file, believed only after checking.

numpy only, so that the 3D Slicer panel can use it before PyTorch is installed. Field positions,
types and codes: NIfTI-1 and NIfTI-2 (nifti1.h, nifti2.h, https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medmap.errors import InputDataError
from medmap.io.other_formats import refuse_other_format

MAX_VOXELS = 2**29
"""Largest scan that is read (800 x 800 x 800)."""

HEADER_BYTES = 540
"""Size of the longest header (NIfTI-2); NIfTI-1 has 348 bytes."""

VOXELS_AT = 352
"""Where voxels begin in a NIfTI-1 file without extensions."""

ByteOrder = Literal["<", ">"]
"""Little and big endian, as numpy writes them."""

_FIELDS_1 = (
    # name, type, position in bytes
    ("dim", "(8,)i2", 40),
    ("datatype", "i2", 70),
    ("pixdim", "(8,)f4", 76),
    ("offset", "f4", 108),
    ("slope", "f4", 112),
    ("inter", "f4", 116),
    ("units", "u1", 123),
    ("qcode", "i2", 252),
    ("scode", "i2", 254),
    ("quat", "(3,)f4", 256),
    ("qoff", "(3,)f4", 268),
    ("srow", "(3,4)f4", 280),
)
_FIELDS_2 = (
    ("dim", "(8,)i8", 16),
    ("datatype", "i2", 12),
    ("pixdim", "(8,)f8", 104),
    ("offset", "i8", 168),
    ("slope", "f8", 176),
    ("inter", "f8", 184),
    ("units", "i4", 500),
    ("qcode", "i4", 344),
    ("scode", "i4", 348),
    ("quat", "(3,)f8", 352),
    ("qoff", "(3,)f8", 376),
    ("srow", "(3,4)f8", 400),
)


_FIXED_1 = (
    # What is written and never read: its value follows from the other fields.
    ("header_size", "i4", 0),
    ("bits", "i2", 72),
    ("magic", "S4", 344),
)


def _layout(fields: tuple, size: int) -> np.dtype:
    names, formats, offsets = zip(*fields, strict=True)
    return np.dtype(
        {
            "names": list(names),
            "formats": list(formats),
            "offsets": list(offsets),
            "itemsize": size,
        }
    )


_FIELDS = {348: _layout(_FIELDS_1, 348), HEADER_BYTES: _layout(_FIELDS_2, HEADER_BYTES)}
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
_CODES = {name: code for code, name in _DTYPES.items()}
_WRITTEN = _layout((*_FIXED_1, *_FIELDS_1), 348).newbyteorder("<")
_NOT_AN_IMAGE = {
    1: "binary",
    32: "complex64",
    128: "RGB24",
    1536: "float128",
    1792: "complex128",
    2048: "complex256",
    2304: "RGBA32",
}


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
        columns, rows, slices = self.dims[:3]
        return columns, rows, slices

    @property
    def end(self) -> int:
        """Size in bytes of the whole file, uncompressed."""
        return self.offset + math.prod(self.dims) * self.dtype.itemsize

    @property
    def sform(self) -> np.ndarray | None:
        """[4, 4] voxel -> world RAS in mm; None when the file gives no sform."""
        if self.sform_code <= 0:
            return None
        return np.vstack([self.srow, [0, 0, 0, 1]])

    @property
    def qform(self) -> np.ndarray | None:
        """[4, 4] voxel -> world RAS in mm; None when the file gives no qform.

        NaN if the quaternion is no rotation.
        """
        if self.qform_code <= 0:
            return None
        return self._qform_matrix()

    @property
    def unoriented(self) -> np.ndarray:
        """[4, 4] what the standard's method 1 assumes without sform and qform.

        The axes run to the right, to the front and to the top; the origin is voxel 0.
        """
        return np.diag([*self.pixdim[1:4], 1.0])

    def _qform_matrix(self) -> np.ndarray:
        """Method 2 of nifti1.h: a unit quaternion (a, b, c, d), of which a >= 0 is not stored."""
        b, c, d = (float(x) for x in self.quatern)
        a_squared = 1.0 - (b * b + c * c + d * d)
        # Rounding to float32 may push the length a little beyond 1; NaN fails the comparison, too.
        if not a_squared > -1e-4:
            return np.full((4, 4), np.nan)
        a = math.sqrt(max(a_squared, 0.0))
        # The columns are where the voxel axes i, j and k point.
        i_axis = [
            a * a + b * b - c * c - d * d,
            2 * (b * c + a * d),
            2 * (b * d - a * c),
        ]
        j_axis = [
            2 * (b * c - a * d),
            a * a + c * c - b * b - d * d,
            2 * (c * d + a * b),
        ]
        k_axis = [
            2 * (b * d + a * c),
            2 * (c * d - a * b),
            a * a + d * d - b * b - c * c,
        ]
        rotation = np.array([i_axis, j_axis, k_axis]).T
        affine = np.eye(4)
        # pixdim[0] is "qfac": -1 for a left-handed voxel order, anything else counts as 1.
        qfac = 1
        if self.pixdim[0] < 0:
            qfac = -1
        with np.errstate(all="ignore"):  # what is not finite is refused by whoever uses the matrix
            affine[:3, :3] = rotation * self.pixdim[1:4] * [1, 1, qfac]
        affine[:3, 3] = self.qoffset
        return affine


def parse_header(block: bytes, label: str) -> Header:
    """Check the first ``HEADER_BYTES`` bytes of a file (or all, if it is shorter).

    Args:
        block: the bytes.
        label: what messages call the file.

    Raises:
        InputDataError: it is no NIfTI header, or of a kind that is no 3-D image.
    """
    size, order = _size_and_byte_order(block, label)
    stored = np.frombuffer(block, _FIELDS[size].newbyteorder(order), count=1)[0]
    real_fields = ("offset", "slope", "inter", "pixdim", "quat", "qoff", "srow")
    # Converting a signaling NaN warns; what is not finite is refused where it matters.
    with np.errstate(invalid="ignore"):
        raw = {name: stored[name].astype(float) for name in real_fields}
    magic = block[_MAGIC_AT[size]]
    if magic == _PAIR[size]:
        raise InputDataError(
            f"{label} is one half of a .hdr/.img pair.", "Convert it to a single .nii.gz file."
        )
    if magic != _SINGLE[size]:
        raise InputDataError(
            f"{label} lacks the NIfTI mark (it may be Analyze 7.5).", "Convert it to NIfTI."
        )
    # Four bytes that announce extensions lie between the header and the voxels.
    first_offset = size + 4
    return Header(
        version=1 if size == 348 else 2,
        dims=_dims(stored["dim"], label),
        dtype=_dtype(int(stored["datatype"]), order, label),
        offset=_offset(float(raw["offset"]), first_offset, label),
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


def header_like(like: Header, array: np.ndarray) -> bytes:
    """The NIfTI-1 header of an image that lies where another one does.

    Four bytes that announce no extensions follow it. Written here, since all of the geometry is
    copied: to import nibabel for it would take a fifth of a second.

    Args:
        like: sform, qform, their codes, voxel size and units are copied bit for bit, from NIfTI-2
            as float32. Nothing else is.
        array: [I, J, K] voxels of a type that NIfTI knows.

    Returns:
        352 bytes, little endian.
    """
    header = np.zeros((), _WRITTEN)
    header["header_size"] = 348
    header["magic"] = _SINGLE[348]
    header["dim"] = (3, *array.shape, 1, 1, 1, 1)
    header["datatype"] = _CODES[array.dtype.str[1:]]
    header["bits"] = 8 * array.dtype.itemsize
    header["offset"] = VOXELS_AT
    header["slope"] = 1
    header["pixdim"] = (*like.pixdim, 1, 1, 1, 1)
    # The two upper bits are no unit.
    header["units"] = like.units & 0x3F
    header["qcode"] = like.qform_code
    header["scode"] = like.sform_code
    header["quat"] = like.quatern
    header["qoff"] = like.qoffset
    header["srow"] = like.srow
    return header.tobytes() + bytes(4)


def _size_and_byte_order(block: bytes, label: str) -> tuple[int, ByteOrder]:
    """Header size (348 or 540) and byte order."""
    for size in _FIELDS:
        first_bytes: dict[ByteOrder, bytes] = {
            "<": size.to_bytes(4, "little"),
            ">": size.to_bytes(4, "big"),
        }
        for order, expected in first_bytes.items():
            if block[:4] == expected:
                if len(block) < size:
                    raise InputDataError(
                        f"{label} is truncated: its header is {len(block)} of {size} bytes.",
                        "Copy or export it again.",
                    )
                return size, order
    if block[:2] == b"\x1f\x8b":
        raise InputDataError(f"{label} is compressed twice.", "Unpack it once.")
    refuse_other_format(block, label)
    raise InputDataError(
        f"{label} is not a NIfTI file.", "Give a .nii or .nii.gz file, or convert it."
    )


def _dims(dim: np.ndarray, label: str) -> tuple[int, ...]:
    count = int(dim[0])
    if not 1 <= count <= 7:
        raise InputDataError(
            f"{label}: the header gives {count} dimensions.",
            "The file is damaged: export it again.",
        )
    sizes = [int(n) for n in dim[1 : count + 1]]
    # Some tools count axes of time that they do not use, and leave their size 0: one frame.
    frame_sizes = [n or 1 for n in sizes[3:]]
    dims = (*sizes[:3], *frame_sizes)
    for axis, n in enumerate(dims):
        if n < 1:
            raise InputDataError(
                f"{label}: the size along axis {axis} is {n}.", "Export the scan again."
            )
    size = " x ".join(str(n) for n in dims)
    frames = math.prod(dims[3:])
    if frames > 1:
        raise InputDataError(
            f"{label} holds {frames} frames ({size}).",
            "Split it and give one frame: MedMAP does not choose for you.",
        )
    if len(dims) < 3 or min(dims[:3]) < 2:
        raise InputDataError(
            f"{label} is a single slice ({size}): MedMAP needs a 3-D volume.",
            "Give the whole scan.",
        )
    if math.prod(dims) > MAX_VOXELS:
        raise InputDataError(
            f"{label} claims to be {size} voxels large; MedMAP reads up to {MAX_VOXELS}.",
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


def _offset(offset: float, first_offset: int, label: str) -> int:
    if offset == 0:  # written by some tools to mean "right after the header"
        return first_offset
    if not (offset >= first_offset and offset.is_integer() and offset < 2**40):
        raise InputDataError(
            f"{label}: voxels cannot begin at byte {offset:g} (the header ends at {first_offset}).",
            "Export the scan again.",
        )
    return int(offset)


def _code(code: int, name: str, label: str) -> int:
    if not 0 <= code <= 5:
        raise InputDataError(
            f"{label}: the {name} code {code} does not exist.", "Export the scan again."
        )
    return code
