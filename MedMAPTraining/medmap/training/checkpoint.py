"""Training state on disk: two generations, written atomically with a hash, verified on reading."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from medmap.errors import BundleError
from medmap.io.atomic import write_bytes

LAST = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
BEST = "best.pt"

_MARK = b"MEDMAP-SHA256:"
_PARTS = b"MEDMAP-PARTS:"
_log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: dict) -> Path:
    """Write ``checkpoint.pt`` and keep the one before; a kill at any moment leaves one that loads.

    The file is one that ``torch.load`` reads, with a SHA-256 behind it.

    Args:
        folder: the run's folder.
        state: tensors, numbers, strings, lists and dicts only (what
            ``weights_only`` loading admits).
    """
    data = _sealed(state)
    last = folder / LAST
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    write_bytes(last, data)
    _remove_unnamed_parts(folder)
    return last


def save_best(folder: Path, state: dict) -> Path:
    """Write ``best.pt``, the network of the best validation.

    The one before stays until this one is whole.
    """
    path = folder / BEST
    write_bytes(path, _sealed(state))
    _remove_unnamed_parts(folder)
    return path


def require_checkpoint(folder: Path) -> dict:
    """``load_checkpoint`` of a run that must have a state. Raises BundleError where it has none."""
    state = load_checkpoint(folder)
    if state is None:
        raise BundleError(
            f"The run {folder.name} has no checkpoint.", "Train until its first checkpoint."
        )
    return state


def load_checkpoint(folder: Path) -> dict | None:
    """The newest usable state of a run, or None when the run has none yet.

    A state is usable if it is whole and all its numbers are finite.

    Raises:
        BundleError: checkpoints exist but none is usable.
    """
    paths = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in paths:
        state = _opened(path)
        if state is None:
            fault = "is damaged"
        elif not _is_finite(state):
            fault = "holds numbers that are not finite"
        else:
            return state
        _log.warning(
            "%s of the run %s %s; the one before it is taken.", path.name, folder.name, fault
        )
    if paths:
        raise BundleError(
            f"No checkpoint in {folder.name} is usable.", "Start the run again in a new folder."
        )
    return None


def load_best(folder: Path) -> dict | None:
    """What ``save_best`` wrote, or None when the run has not been validated.

    Raises:
        BundleError: it is damaged.
    """
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


def _opened(path: Path) -> dict | None:
    data = _read(path)
    # The seal at the end: a mark, and the digest of all before it.
    seal_size = len(_MARK) + hashlib.sha256().digest_size
    body = data[:-seal_size]
    seal = data[-seal_size:]
    mark = seal[: len(_MARK)]
    digest = seal[len(_MARK) :]
    is_whole = hashlib.sha256(body).digest() == digest
    if mark != _MARK or not is_whole:
        return None
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


def _is_finite(state: object) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _floats(state))


def _floats(state: object) -> Iterator[Tensor]:
    """Every floating-point tensor of a nested state."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _floats(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _floats(value)


# Runs of before version 0.2 spread a large state over parts, which the file
# names. They are still read.


def _read(path: Path) -> bytes:
    names = _part_names(path)
    try:
        if not names:
            return path.read_bytes()
        return b"".join((path.parent / name).read_bytes() for name in names)
    except FileNotFoundError:
        return b""


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


def _remove_unnamed_parts(folder: Path) -> None:
    named: set[str] = set()
    for name in (LAST, PREVIOUS, BEST):
        named.update(_part_names(folder / name))
    for part in folder.glob("*.part"):
        if part.name not in named:
            with contextlib.suppress(OSError):
                part.unlink()
