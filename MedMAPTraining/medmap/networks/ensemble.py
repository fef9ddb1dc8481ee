"""Several networks of one kind as one: the mean of their class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medmap.errors import BundleError
from medmap.networks.base import Backbone, Features, Output
from medmap.networks.blocks import at_least_float32

NAME = "Ensemble"
SMALLEST_PROBABILITY = 1e-30
"""Its logarithm is finite in float32."""


class Ensemble(Backbone):
    """Mean of the class probabilities of the members, as logits.

    The members are trained on other folds of a cohort; the mean of probabilities is how nnU-Net
    combines folds (Isensee et al., Nature Methods 2021). Computation and memory grow in proportion
    to the number of members.

    Args:
        members: built networks of one kind.
    """

    def __init__(self, members: Sequence[Backbone]):
        super().__init__()
        if not members:
            raise BundleError("An ensemble has no member.", "Export the bundle again.")
        if any(type(member) is not type(members[0]) for member in members):
            raise BundleError(
                "The networks of an ensemble are of different kinds.", "Combine networks of one."
            )
        self.members = nn.ModuleList(members)
        first = members[0]
        self.modalities = first.modalities
        self.classes = first.classes
        self.spatial_dims = first.spatial_dims
        self.needs = first.needs
        self.stride = first.stride

    def encode(self, image: Tensor, modality: int) -> Features:
        """The members' features, one member's after the other's."""
        features: Features = []
        for member in self._backbones():
            features += member.encode(image, modality)
        return features

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Logarithm of the mean of the members' probabilities; an ensemble has no taps."""
        probabilities = []
        for number, member in enumerate(self._backbones()):
            own_features = [self._features_of(number, levels) for levels in features]
            output = member.decode(own_features, present)
            # Half precision has no logarithm of the smallest probabilities.
            logits = at_least_float32(output.logits)
            probabilities.append(logits.softmax(1))
        mean = torch.stack(probabilities).mean(0)
        positive = mean.clamp(min=SMALLEST_PROBABILITY)
        return Output(positive.log())

    def _backbones(self) -> list[Backbone]:
        return [cast(Backbone, member) for member in self.members]

    def _features_of(self, number: int, levels: Features | None) -> Features | None:
        """One member's share of the features of a modality."""
        if levels is None:
            return None
        count = len(levels) // len(self.members)
        start = number * count
        return levels[start : start + count]
