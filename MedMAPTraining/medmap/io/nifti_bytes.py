"""Reading a NIfTI file to its last byte, gzip checksum included.

3D Slicer's own reader (ITK) accepts truncated files and rewrites contradictory orientations without
a warning, nibabel accepts a wrong gzip checksum and repairs headers without a warning; so the bytes
are read and checked here. numpy only, so that the 3D Slicer panel can use it; where ISA-L is
installed, it decompresses in a third of zlib's time.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from medmap.errors import InputDataError, IOFailure, MissingInputError
from medmap.io.nifti_header import HEADER_BYTES, Header, parse_header
from medmap.io.other_formats import refuse_other_format

_GZIP_MARK = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 18
_START_BYTES = 4096
"""Read to recognize a format; the header of a NIfTI file unpacks from fewer."""
_MAX_EXPANSION = 1040
"""No deflate stream expands farther (1032, plus the frame of gzip)."""
_MAX_PADDING_BYTES = 1 << 16
"""Archives and block devices fill the last block of a file with zeros: 512 bytes to 64 KiB."""


def read_verified(path: str | os.PathLike, label: str = "") -> tuple[Header, bytearray]:
    """Read a .nii or .nii.gz to its last byte, checksum included.

    Args:
        path: the file; only opened for reading.
        label: what messages call it; the file name when empty.

    Returns:
        The checked header and exactly ``header.end`` bytes.

    Raises:
        MissingInputError: no such file, not a regular file, or it may not be read.
        InputDataError: not NIfTI, damaged, truncated, longer than it says by more than a block of
            zeros, or of a kind that is no 3-D image.
        IOFailure: reading broke off.
    """
    fast_reader = _fast_reader()
    if fast_reader is not None:
        # zlib decides what is refused, and in which words: other readers have other errors.
        with contextlib.suppress(Exception):
            return _read_by(fast_reader, path, label)
    return _read_by(gzip.GzipFile, path, label)


@functools.cache
def _fast_reader() -> type[gzip.GzipFile] | None:
    """The reader of ISA-L; None where it is not installed."""
    try:
        from isal import igzip
    except ImportError:
        return None
    return igzip.GzipFile


def _read_by(
    reader: type[gzip.GzipFile], path: str | os.PathLike, label: str
) -> tuple[Header, bytearray]:
    """``read_verified`` with one reader of compressed files."""
    with _uncompressed(path, label, reader) as (stream, max_size, label):
        block = _read_up_to(stream, bytearray(), HEADER_BYTES, label)
        header = parse_header(bytes(block), label)
        # Checked before reading, so that a damaged header cannot ask for all memory.
        if header.end > max_size:
            raise _truncated(label, header, f"the file cannot hold more than {max_size}")
        data = _read_up_to(stream, block, header.end, label)
        if len(data) < header.end:
            raise _truncated(label, header, f"found {len(data)}")
        surplus = data[header.end :]
        del data[header.end :]
        # Some programs pad files with zeros; anything else says that the header is wrong.
        surplus = _read_up_to(stream, surplus, _MAX_PADDING_BYTES + 1, label)
        is_padding = len(surplus) <= _MAX_PADDING_BYTES and not any(surplus)
        if not is_padding:
            raise InputDataError(
                f"{label} is longer than the {header.end} bytes its header describes.",
                "The header is wrong or the file damaged: export the scan again.",
            )
    return header, data


def read_header(path: str | os.PathLike, label: str = "") -> Header:
    """The checked header alone, without a look at the voxels; raises as ``read_verified`` does."""
    with _uncompressed(path, label) as (stream, _, label):
        block = _read_up_to(stream, bytearray(), HEADER_BYTES, label)
        return parse_header(bytes(block), label)


@contextlib.contextmanager
def _uncompressed(
    path: str | os.PathLike, label: str, reader: type[gzip.GzipFile] = gzip.GzipFile
) -> Iterator[tuple[BinaryIO, int, str]]:
    """Yield a stream of uncompressed bytes, the most bytes that it can hold, and the label."""
    path = Path(path)
    label = label or path.name
    with _open_file(path, label) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise InputDataError(f"{label} is empty (0 bytes).", "Copy or export it again.")
        start = bytes(_read_up_to(file, bytearray(), _START_BYTES, label))
        file.seek(0)
        compressed = start[:2] == _GZIP_MARK
        content = start
        if compressed:
            content = _unpacked(start)
        # The content first: renaming a file of another format would not help.
        refuse_other_format(content, label)
        _check_suffix(path, compressed, label)
        if not compressed:
            yield file, size, label
        else:
            with reader(fileobj=file) as stream:
                yield cast(BinaryIO, stream), size * _MAX_EXPANSION, label


def _unpacked(start: bytes) -> bytes:
    """First bytes of a gzip stream, as many as its beginning yields; none of a damaged one."""
    try:
        return zlib.decompressobj(wbits=31).decompress(start, HEADER_BYTES)
    except zlib.error:
        return b""


def _check_suffix(path: Path, compressed: bool, label: str) -> None:
    name = path.name.lower()
    if compressed and not name.endswith(".gz"):
        raise InputDataError(
            f"{label} is gzip-compressed, but its name says otherwise.",
            "Rename it to end in .nii.gz.",
        )
    if not compressed and name.endswith(".gz"):
        raise InputDataError(
            f"{label} is not gzip-compressed, but its name says otherwise.",
            "Rename it to end in .nii.",
        )


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


def _read_up_to(stream: BinaryIO, data: bytearray, end: int, label: str) -> bytearray:
    """Read on until ``data`` has ``end`` bytes or the stream ends.

    In chunks, so that memory grows with what the file holds, not with what its header claims.
    """
    try:
        while len(data) < end:
            chunk = stream.read(min(_CHUNK_BYTES, end - len(data)))
            if not chunk:
                break
            data += chunk
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


def _truncated(label: str, header: Header, problem: str) -> InputDataError:
    return InputDataError(
        f"{label} is truncated: its header describes {header.end} bytes, {problem}.",
        "Copy or export it again.",
    )
