"""Training state on disk: written atomically with its hash, two generations kept, verified before it is used."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import torch

from medmap.errors import BundleError
from medmap.files import write_bytes

LAST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
_MARK = b"MEDMAP-SHA256:"


def save_checkpoint(folder: Path, state: dict) -> Path:
    """Write ``checkpoint.pt`` and keep the one before; a kill at any moment leaves at least one that loads.

    Args:
        folder: the run's folder.
        state: tensors, numbers, strings, lists and dicts only (what ``weights_only`` loading admits).
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    last = folder / LAST
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    write_bytes(last, data + _MARK + hashlib.sha256(data).digest())
    return last


def load_checkpoint(folder: Path) -> dict | None:
    """The newest intact state of a run, or None when the run has none yet.

    Raises:
        BundleError: checkpoints exist but none is intact.
    """
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in found:
        data = path.read_bytes()
        body, mark, digest = data[: -32 - len(_MARK)], data[-32 - len(_MARK) : -32], data[-32:]
        if mark == _MARK and hashlib.sha256(body).digest() == digest:
            return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    if found:
        raise BundleError(f"No checkpoint in {folder.name} is intact.", "Start the run again in a new folder.")
    return None
