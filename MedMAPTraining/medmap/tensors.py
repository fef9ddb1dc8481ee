"""NumPy arrays as tensors and back, for every PyTorch that the panel may meet.

PyTorch 2.2 is the last one for Slicer's Python on Macs (x86-64, also on Apple processors). It is
built for NumPy 1, Slicer brings NumPy 2, and then ``torch.from_numpy`` and ``Tensor.numpy`` raise.
Code that runs inside Slicer converts here instead; replacing Slicer's NumPy could break others.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor


@cache
def knows_numpy() -> bool:
    """Whether this PyTorch can exchange arrays with the NumPy that is installed."""
    try:
        torch.from_numpy(np.zeros(1, np.float32))
    except RuntimeError:
        return False
    return True


def from_array(array: np.ndarray) -> Tensor:
    """An array as a tensor of the same shape and type, which may share its memory."""
    if knows_numpy():
        return torch.from_numpy(array)
    dtype = getattr(torch, array.dtype.name)
    if array.size == 0:
        return torch.zeros(array.shape, dtype=dtype)
    # Not DLPack, which ends the process at an axis that runs backward.
    flat = np.ascontiguousarray(array).reshape(-1)
    if not flat.flags.writeable:
        flat = flat.copy()
    return torch.frombuffer(flat, dtype=dtype).reshape(array.shape)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor on the processor as an array that may share its memory. Write to copies only."""
    if knows_numpy():
        return tensor.numpy()
    # DLPack of PyTorch 2.2 has no truth values.
    if tensor.dtype == torch.bool:
        return np.from_dlpack(tensor.view(torch.uint8)).view(bool)
    return np.from_dlpack(tensor)
