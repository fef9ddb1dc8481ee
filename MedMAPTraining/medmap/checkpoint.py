"""Training state on disk: written atomically with its hash, two generations kept, verified before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
from pathlib import Path

import torch

from medmap.errors import BundleError
from medmap.files import write_bytes

LAST, PREVIOUS, BEST = "checkpoint.pt", "checkpoint-previous.pt", "best.pt"
_MARK = b"MEDMAP-SHA256:"
_log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, state: dict) -> Path:
    """Write ``checkpoint.pt`` and keep the one before; a kill at any moment leaves at least one that loads.

    Args:
        folder: the run's folder.
        state: tensors, numbers, strings, lists and dicts only (what ``weights_only`` loading admits).
    """
    data = _sealed(state)
    last = folder / LAST
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    write_bytes(last, data)
    return last


def save_best(folder: Path, state: dict) -> Path:
    """Write ``best.pt``, the network that validation likes best; the one before stays until this one is whole."""
    path = folder / BEST
    write_bytes(path, _sealed(state))
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
        _log.warning("%s of the run %s is damaged; the one before it is taken.", path.name, folder.name)
    if found:
        raise BundleError(f"No checkpoint in {folder.name} is intact.", "Start the run again in a new folder.")
    return None


def load_best(folder: Path) -> dict | None:
    """What ``save_best`` wrote, or None when the run has not been validated. Raises BundleError if it is damaged."""
    path = folder / BEST
    if not path.exists():
        return None
    state = _opened(path)
    if state is None:
        raise BundleError(f"{BEST} of the run {folder.name} is damaged.", "Remove it to export the last weights.")
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
    data = path.read_bytes()
    body, mark, digest = data[: -32 - len(_MARK)], data[-32 - len(_MARK) : -32], data[-32:]
    if mark != _MARK or hashlib.sha256(body).digest() != digest:
        return None
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
