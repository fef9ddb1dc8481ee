"""What the methods of Table 2a have in common: cross-entropy, and which modality is rare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from av_model import FEATURES
from torch import Tensor, nn

from medmap.networks import Backbone
from medmap.networks.base import Features
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Objective


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of [B] over the samples of a mask [B]; 0 where there is none."""
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)


class ClassObjective(Objective):
    """Cross-entropy of the classes with whatever modalities a pair has.

    Args:
        context: knows which modality is rare: the one that fewer pairs have.
    """

    backbone: Backbone

    def __init__(self, context: Context):
        super().__init__()
        self.backbone = context.backbone
        names = context.task.modality_names
        counts = [context.cases_with.get(name, 0) for name in names]
        # Without any pairs (a recipe is only checked) it is the sound.
        last_first = reversed(range(len(names)))
        self.rare = min(last_first, key=lambda modality: counts[modality])

    def deploy(self) -> Backbone:
        """The network, with what fills absent features."""
        return self.backbone

    def features(self, encoded: Sequence[Features | None], batch: Batch) -> list[Tensor]:
        """[B, 160] of every modality, zero where it is absent."""
        features = []
        for levels in encoded:
            if levels is None:
                features.append(batch.image.new_zeros(len(batch.label), FEATURES))
            else:
                features.append(levels[-1])
        return features

    def without_rare(self, present: Tensor) -> Tensor:
        """[B, 2] bool: the pairs as in the test, which gives the other modality alone."""
        reduced = present.clone()
        reduced[:, self.rare] = False
        return reduced
