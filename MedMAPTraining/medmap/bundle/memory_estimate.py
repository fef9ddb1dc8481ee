"""Estimate of the memory that a network needs, made when a bundle is exported.

An operating system that runs out of memory ends the whole program, in 3D Slicer with the user's
scene. Hence inference compares this estimate with the available memory before it starts.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medmap.networks import Backbone

USABLE = 0.8
"""Fraction of the available memory that a run may plan for."""
SLACK = 1.5
"""Allocators round up, and convolutions work in buffers of their own. Measured on the CPU for eight
backbones: the peak is 0.8 to 1.5 times the estimate with this factor, the more the smaller the
window."""
BYTES_PER_VALUE = 4  # float32


def bytes_per_voxel(network: Backbone) -> int:
    """Peak memory of encoding all modalities and decoding once, per voxel of the window.

    Every tensor of a pass over a small window is counted on the meta device, which knows shapes and
    no numbers. The first count in a program takes seconds, hence the number is stored in bundles.

    Returns:
        Bytes in float32, with ``SLACK``, the window's input and the logits included.
    """
    dims = network.spatial_dims
    # Four times the stride: at the deepest level a window has more than one voxel along each axis.
    side = 4 * network.stride
    size = (side,) * dims
    meta_network = copy.deepcopy(network).to("meta").eval()
    image = torch.empty((1, 1, *size), device="meta")
    present = torch.ones((1, network.modalities), dtype=torch.bool, device="meta")
    with torch.no_grad(), _PeakCounter() as counter:
        features = [meta_network.encode(image, m) for m in range(network.modalities)]
        meta_network.decode(features, present)
    voxels = side**dims
    bytes_of_window = SLACK * counter.peak_bytes
    activations = math.ceil(bytes_of_window / voxels)
    # Input channels and, with their copies, the logits of one voxel.
    values_per_voxel = network.modalities + 3 * network.classes
    inputs_and_outputs = BYTES_PER_VALUE * values_per_voxel
    return activations + inputs_and_outputs


class _PeakCounter(TorchDispatchMode):
    """Adds up the bytes of the tensors that are alive while the mode is on.

    Tensors that share a storage count once, hence the count of users per storage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive_bytes = 0
        self.peak_bytes = 0
        self._users: dict[int, list[int]] = {}

    def __torch_dispatch__(
        self,
        function: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._enter(value)
        return result

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        entry = self._users.setdefault(key, [0, size])
        if entry[0] == 0:
            self.alive_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        entry[0] += 1
        weakref.finalize(tensor, self._leave, key)

    def _leave(self, key: int) -> None:
        entry = self._users.get(key)
        if entry is None:
            return
        entry[0] -= 1
        if entry[0] == 0:
            self.alive_bytes -= entry[1]
            del self._users[key]
