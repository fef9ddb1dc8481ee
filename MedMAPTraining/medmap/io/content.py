"""Files known by their content: hashes, and sizes and times that spare reading a file again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_CLOCK_STEP_S = 2.0
"""A file that changed this recently may change again unnoticed: FAT counts in two seconds."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_record(path: Path, earlier: object = None) -> dict[str, str | int]:
    """Where a file lies, its size and times, and the SHA-256 of its bytes; JSON-ready.

    A file that changed within the last two seconds is recorded without the time of its
    modification, so that the next call reads it again.

    Args:
        path: an existing file.
        earlier: record of an earlier call, or anything else. Where path, size and both times are
            still the same, its hash is taken over and the file is not read. The time of the last
            change of the status is part of the comparison because a program that edits a file can
            set the time of modification back, but not this one.
    """
    status = path.stat()
    record: dict[str, str | int] = {
        "path": str(path.absolute()),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }
    if isinstance(earlier, Mapping) and "sha256" in earlier:
        unchanged = all(earlier.get(key) == value for key, value in record.items())
        if unchanged:
            return {**record, "sha256": str(earlier["sha256"])}
    if time.time() - status.st_mtime <= _CLOCK_STEP_S:
        del record["mtime_ns"]
    return {**record, "sha256": sha256_of(path)}


def same_content(record: object, earlier: object) -> bool:
    """Whether two records are of the same bytes, wherever the files lie."""
    if not isinstance(record, Mapping) or not isinstance(earlier, Mapping):
        return False
    return "sha256" in record and record["sha256"] == earlier.get("sha256")
