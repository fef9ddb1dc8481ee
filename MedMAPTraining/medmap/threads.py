"""The scans of a case side by side: reading, checking, and normalizing one needs no other.

NumPy, zlib, and PyTorch leave Python free for other threads while they work on large arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count() -> int:
    """As many threads as PyTorch computes with; one as long as it is not loaded.

    Whoever limits PyTorch (a worker of a cohort, the panel that keeps Slicer responsive) limits
    both.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return 1
    return torch.get_num_threads()


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``work`` on each item, in threads of their own where there are several of both.

    Args:
        work: touches nothing that its work on another item touches.
        items: such as the scans of a case.

    Returns:
        The results in the order of the items.

    Raises:
        What ``work`` raises; of several errors that of the first item, as in a loop.
    """
    work_items = list(items)
    threads = min(thread_count(), len(work_items))
    if threads < 2:
        return [work(item) for item in work_items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, work_items))
