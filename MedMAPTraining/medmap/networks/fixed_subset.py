"""Networks made for one set of modalities, under the contract that is made for any.

Dedicated methods (KD-Net, PMKL, ProtoKD, SMU-Net, ACN) train one ordinary network per subset: its
input is the channel stack of exactly these modalities. Nothing can be computed before the stack, so
``encode`` hands the image on and ``decode`` is the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medmap.errors import BundleError
from medmap.networks.base import Backbone, Features, Output, encoded_only


class FixedSubset(Backbone):
    """Base of networks whose input is a stack of modalities; a subclass gives ``segment``.

    Args:
        modalities: number of modalities M of the task.
        classes: number of classes, background included.
        spatial_dims: 2 or 3.
        inputs: positions (``Task.index``) of the modalities that the network is made for. None: all
            M, and the network is meant to meet absent ones as zero channels (modality dropout).
        replicate: how often each channel is repeated.
        modality_channels: channels of one modality; more than one behind a stem.

    Attributes:
        inputs: those positions, in task order.
        channels: channels of the stack.
        needs: positions without which the result means nothing, or None where any subset may be
            given. The network cannot refuse (presence is data), so callers compare: ``needs is None
            or needs <= available``.
    """

    def __init__(
        self,
        modalities: int,
        classes: int,
        spatial_dims: int,
        inputs: Sequence[int] | None = None,
        replicate: int = 1,
        modality_channels: int = 1,
    ):
        super().__init__()
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.needs: frozenset[int] | None = None
        if inputs is None:
            self.inputs = tuple(range(modalities))
        else:
            self.inputs = _positions(inputs, modalities)
            self.needs = frozenset(self.inputs)
        if replicate < 1:
            raise BundleError(
                f"The option replicate is {replicate}, not a positive number.", "Leave it out."
            )
        self.replicate = replicate
        self.channels = replicate * len(self.inputs) * modality_channels

    def segment(self, image: Tensor, want: Sequence[str] = ()) -> Output:
        """The network itself; image [B, channels, *S]."""
        raise NotImplementedError

    def encode(self, image: Tensor, modality: int) -> Features:
        """The image as it is: [B, 1, *S] -> [[B, 1, *S]]."""
        return [image]

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Stack the network's own modalities, zero where absent, and segment the stack."""
        encoded = encoded_only(features)
        if not encoded:
            raise ValueError("at least one modality is needed")
        absent = torch.zeros_like(encoded[0][0])
        channels = []
        for modality in self.inputs:
            levels = features[modality]
            if levels is None:
                channels.append(absent)
            else:
                channels.append(levels[0])
        # Replicated as a whole: PMKL's student reads its one scan four times.
        stack = torch.cat(channels * self.replicate, 1)
        return self.segment(stack, want)


def _positions(inputs: Sequence[int], modalities: int) -> tuple[int, ...]:
    chosen = sorted(set(inputs))
    repeats = len(chosen) != len(inputs)
    if not chosen or repeats or not set(chosen) <= set(range(modalities)):
        raise BundleError(
            f"The option inputs is {list(inputs)}, not a set of positions "
            f"of {modalities} modalities.",
            f"Name each position once, from 0 to {modalities - 1}.",
        )
    return tuple(chosen)
