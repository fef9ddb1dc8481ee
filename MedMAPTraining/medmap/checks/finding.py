"""What a check reports, and how lists and sizes read in messages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One remark about an input or a result.

    Attributes:
        level: ``info``, ``warning``, or ``error`` for what a run will refuse.
        check: short id of the check (``skull-strip``).
        message: the observation, one sentence that begins with the modality.
        remedy: what the user can do; empty if nothing needs doing.
        modalities: which modalities it is about; empty where the reporter does not know.
    """

    level: Literal["info", "warning", "error"]
    check: str
    message: str
    remedy: str = ""
    modalities: tuple[str, ...] = ()


def listed(words: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *leading, last = words
    if not leading:
        return last
    return f"{', '.join(leading)} and {last}"


def times_text(shape: Iterable[int]) -> str:
    """``240 x 240 x 155``."""
    return " x ".join(str(int(size)) for size in shape)


def sizes_text(spacing: Iterable[float]) -> str:
    """``0.94 x 0.94 x 3``, three digits each."""
    return " x ".join(f"{size:.3g}" for size in spacing)
