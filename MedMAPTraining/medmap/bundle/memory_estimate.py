"""How much memory a run will need: estimated beforehand, since an operating system that runs out of
memory ends the whole program, in Slicer with the user's scene. Standard library and torch only.
"""

from __future__ import annotations

import copy
import math
import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medmap.networks import Backbone

USABLE = 0.8
"""Share of the available memory that a run may plan for."""
SLACK = 1.5
"""Allocators round up, and convolutions work in buffers of their own. Measured on CPU for eight backbones: the peak is
0.8 to 1.5 times what is estimated with this, the more the smaller the window."""


def bytes_per_voxel(network: Backbone) -> int:
    """Peak memory of encoding all modalities and decoding once, for every voxel of the window; stored in bundles.

    Every tensor of a pass over a small window is counted on the meta device, which knows shapes and no numbers. The
    first count in a program takes seconds, hence the number is taken when a bundle is made, not when it is used.

    Returns:
        Bytes in float32, with ``SLACK``, the window's input and the answer included.
    """
    dims = getattr(network, "spatial_dims", 3)
    side = 4 * network.stride
    counted = copy.deepcopy(network).to("meta").eval()
    image = torch.empty((1, 1, *(side,) * dims), device="meta")
    present = torch.ones((1, network.modalities), dtype=torch.bool, device="meta")
    with torch.no_grad(), _Peak() as peak:
        features = [counted.encode(image, m) for m in range(network.modalities)]
        counted.decode(features, present)
    return math.ceil(SLACK * peak.most / side**dims) + 4 * (
        network.modalities + 3 * network.classes
    )


class _Peak(TorchDispatchMode):
    """Adds up the tensors that are alive while it is on; ``most`` is the largest sum, in bytes."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self._users = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        return result

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        users = self._users.setdefault(key, [0, size])
        if users[0] == 0:
            self.alive += size
            self.most = max(self.most, self.alive)
        users[0] += 1
        weakref.finalize(tensor, self._leave, key)

    def _leave(self, key: int) -> None:
        users = self._users.get(key)
        if users is None:
            return
        users[0] -= 1
        if users[0] == 0:
            self.alive -= users[1]
            del self._users[key]
