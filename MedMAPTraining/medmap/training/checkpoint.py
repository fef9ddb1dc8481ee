"""Training state on disk: written atomically with its hash, two generations kept, verified before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from pathlib import Path

import torch

from medmap.errors import BundleError
from medmap.io.atomic import write_bytes

LAST, PREVIOUS, BEST = "checkpoint.pt", "checkpoint-previous.pt", "best.pt"
PART_BYTES = 16 << 20
"""A larger state is spread over files of at most this size, so that a run can be kept where large files cannot."""

_MARK, _PARTS = b"MEDMAP-SHA256:", b"MEDMAP-PARTS:"
_log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: dict) -> Path:
    """Write ``checkpoint.pt`` and keep the one before; a kill at any moment leaves at least one that loads.

    What exceeds ``PART_BYTES`` lies in parts beside it, which the file names.

    Args:
        folder: the run's folder.
        state: tensors, numbers, strings, lists and dicts only (what ``weights_only`` loading admits).
    """
    data = _sealed(state)
    last = folder / LAST
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    _write(last, data)
    return last


def save_best(folder: Path, state: dict) -> Path:
    """Write ``best.pt``, the network that validation likes best; the one before stays until this one is whole."""
    path = folder / BEST
    _write(path, _sealed(state))
    return path


def load_checkpoint(folder: Path) -> dict | None:
    """The newest intact state of a run, or None when the run has none yet.

    Raises:
        BundleError: checkpoints exist but none is intact.
    """
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in found:
        state = _opened(path)
        if state is not None:
            return state
        _log.warning(
            "%s of the run %s is damaged; the one before it is taken.", path.name, folder.name
        )
    if found:
        raise BundleError(
            f"No checkpoint in {folder.name} is intact.", "Start the run again in a new folder."
        )
    return None


def load_best(folder: Path) -> dict | None:
    """What ``save_best`` wrote, or None when the run has not been validated. Raises BundleError if it is damaged."""
    path = folder / BEST
    if not path.exists():
        return None
    state = _opened(path)
    if state is None:
        raise BundleError(
            f"{BEST} of the run {folder.name} is damaged.", "Remove it to export the last weights."
        )
    return state


def remove_leftovers(folder: Path) -> None:
    """Remove half-written checkpoints that a kill has left under temporary names."""
    for path in folder.glob(".tmp-*.pt"):
        with contextlib.suppress(OSError):
            path.unlink()


def _sealed(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    return data + _MARK + hashlib.sha256(data).digest()


def _write(path: Path, data: bytes) -> None:
    """The parts first, then the file that names them, then away with parts that no file names any more."""
    if len(data) > PART_BYTES:
        stem, names = hashlib.sha256(data).hexdigest()[:16], []
        for n, start in enumerate(range(0, len(data), PART_BYTES)):
            names.append(f"{stem}-{n:03d}.part")
            write_bytes(path.parent / names[-1], data[start : start + PART_BYTES])
        data = _PARTS + json.dumps(names).encode()
    write_bytes(path, data)
    named = {n for file in (LAST, PREVIOUS, BEST) for n in _part_names(path.parent / file)}
    for part in path.parent.glob("*.part"):
        if part.name not in named:
            with contextlib.suppress(OSError):
                part.unlink()


def _part_names(path: Path) -> list[str]:
    """Names of the parts of a state; none where it is one file, missing or damaged."""
    try:
        with path.open("rb") as file:
            if file.read(len(_PARTS)) != _PARTS:
                return []
            names = json.loads(file.read())
    except (OSError, ValueError):
        return []
    return [Path(str(name)).name for name in names]


def _read(path: Path) -> bytes:
    names = _part_names(path)
    try:
        return (
            b"".join((path.parent / name).read_bytes() for name in names)
            if names
            else path.read_bytes()
        )
    except FileNotFoundError:
        return b""


def _opened(path: Path) -> dict | None:
    data = _read(path)
    body, mark, digest = data[: -32 - len(_MARK)], data[-32 - len(_MARK) : -32], data[-32:]
    if mark != _MARK or hashlib.sha256(body).digest() != digest:
        return None
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
