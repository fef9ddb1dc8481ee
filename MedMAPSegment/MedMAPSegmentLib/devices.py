"""Where a computation can run, in words, with free memory. Imports no torch: what is not loaded yet
cannot be asked.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from medmap.errors import UsageError

from .i18n import translator

_ = translator(__file__)

AUTO = "auto"
CPU = "cpu"
_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One place to compute.

    Attributes:
        name: as ``medmap.inference.segment`` takes it.
        text: as shown.
    """

    name: str
    text: str


def checkDevice(name: str) -> None:
    """Raises UsageError for what is no name of a device."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name) is None:
        raise UsageError(
            f"'{name}' is not a device.", "Use one of auto, cpu, mps, cuda, cuda:0, cuda:1, ..."
        )


def listDevices() -> tuple[Device, ...]:
    """``auto`` and every device; graphics cards are known once torch has been imported by somebody
    else.
    """
    torch = sys.modules.get("torch")
    cards = _cards(torch) if torch is not None else []
    if torch is None:
        automatic = _("Automatic")
    elif cards and cards[0].name != "mps":
        automatic = _("Automatic ({device})").format(device=cards[0].text)
    else:
        automatic = _("Automatic (CPU)")
    return (Device(AUTO, automatic), *cards, Device(CPU, _processor()))


def deviceTitle(name: str) -> str:
    """A device as a person says it, from its name as a result records it."""
    kind, _separator, number = name.partition(":")
    if kind == CPU:
        return _("processor (CPU)")
    if kind == "mps":
        return _("Apple graphics (MPS)")
    return _("graphics card {number}").format(number=number or "0")


def cardsAreKnown() -> bool:
    """True once torch is loaded, so that ``listDevices`` has asked for graphics cards."""
    return "torch" in sys.modules


@contextmanager
def computing() -> Iterator[None]:
    """What surrounds a computation in Slicer: one processor core stays free, and cached GPU memory
    is given back.

    A network that takes every core leaves Slicer's own thread waiting for its turn; volume
    rendering shares the card.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    takesAll = threads > 1 and threads >= (os.cpu_count() or 1)
    try:
        if takesAll:
            torch.set_num_threads(threads - 1)
        yield
    finally:
        if takesAll:
            torch.set_num_threads(threads)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _cards(torch: Any) -> list[Device]:
    devices = []
    if torch.cuda.is_available():
        for n in range(torch.cuda.device_count()):
            text = f"{torch.cuda.get_device_name(n)}, {_memory(torch, n)}"
            devices.append(Device(f"cuda:{n}", text))
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        devices.append(Device("mps", _("Apple graphics (MPS)")))
    return devices


def _memory(torch: Any, n: int) -> str:
    """Free memory of a card; a card that is in use or broken must not stop the panel."""
    try:
        free, total = torch.cuda.mem_get_info(n)
    except RuntimeError:
        return _("does not answer")
    text = _("{free} of {total} GB free")
    return text.format(free=f"{free / _GIB:.1f}", total=f"{total / _GIB:.1f}")


def _processor() -> str:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    except (AttributeError, ValueError, OSError):  # Windows and macOS do not say
        return _("Processor (CPU)")
    return _("Processor (CPU), {free} GB free").format(free=f"{free:.1f}")
