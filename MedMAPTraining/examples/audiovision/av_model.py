"""SMIL's networks for pictures and sounds as a backbone, and MCKD's objective for classes.

Trainer, sampler protocol, distillation, meta step and mean-filling are MedMAP's: this is all that a
task without volumes has to add.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from av_data import IMAGE, SOUND
from torch import Tensor, nn

from medmap.networks import NETWORKS, Backbone, Output
from medmap.networks.base import Features
from medmap.networks.resnet_aspp_encoder import fill_absent, mean_of_present_maps
from medmap.training.objectives import OBJECTIVES
from medmap.training.objectives.mckd import ModalityDistillation
from medmap.training.recipe import SCHEDULES

FEATURES = 160


def image_encoder() -> nn.Sequential:
    """The convolutions of SMIL's picture encoder: [B, 1, 28, 28] -> [B, 160]."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(5, 10, 5),
        nn.Dropout2d(0.5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    )


class AudioVision(Backbone):
    """LeNet for pictures, three small convolutions for sounds, 160 features each.

    The features of an absent modality are those of the present one. Distilling and mean-filling
    need equal sizes: SMIL's sound features are 320, and its sound-only network continues by a
    linear layer to 160, which is used here.
    """

    provides: frozenset[str] = frozenset({"mod_bottleneck", "bottleneck", "decoder"})

    def __init__(self, modalities: int = 2, classes: int = 10):
        super().__init__()
        self.modalities = modalities
        self.classes = classes
        self.image = image_encoder()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 48), (48, 20)):
            layers.append(nn.Conv2d(inputs, outputs, 2))
            layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
        self.sound = nn.Sequential(
            *layers,
            nn.MaxPool2d(2, 4),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(320, FEATURES),
        )
        self.head = nn.Sequential(
            nn.Linear(2 * FEATURES, 64),
            nn.ReLU(),
            nn.Dropout(0.6),
            nn.Linear(64, classes),
        )

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, 28, 28] -> [B, 160]; all zero for pairs without the modality."""
        available = image.flatten(1).any(1)
        features = image.new_zeros(len(image), FEATURES)
        # Batch statistics must not see absent modalities.
        if available.any():
            inputs = image[available]
            if modality == 0:
                features[available] = self.image(inputs)
            else:
                features[available] = self.sound(inputs[..., :SOUND, :SOUND])
        return [features]

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Logits [B, classes]; what an absent feature is filled with is ``fill``'s business.

        Taps: ``mod_bottleneck``; ``bottleneck`` [B, 320], all features; ``decoder`` [B, 64].
        """
        maps = [None if f is None else f[-1] for f in features]
        filled = self.fill(maps, present)
        fused = torch.cat(filled, 1)
        hidden = self.head[:2](fused)
        logits = self.head[2:](hidden)
        taps = {
            "mod_bottleneck": [m for m in maps if m is not None],
            "bottleneck": fused,
            "decoder": hidden,
        }
        return Output(logits, {name: taps[name] for name in want})

    def fill(self, maps: Sequence[Tensor | None], present: Tensor) -> list[Tensor]:
        """[B, 160] of both modalities: an absent feature is the mean of those present."""
        return fill_absent(maps, mean_of_present_maps(maps, present), present)


class ClassDistillation(ModalityDistillation):
    """MCKD's objective with the cross-entropy of classes as its task loss."""

    def task_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy; logits [B, classes], label [B]."""
        return nn.functional.cross_entropy(logits.float(), label)


def by_tenths(step: int, steps: int) -> float:
    """Factor of the learning rate: 0.9 after each third of the training (20 of 60 epochs)."""
    return 0.9 ** (3 * step // steps)


NETWORKS["AudioVision"] = AudioVision
OBJECTIVES["mckd-classes"] = ClassDistillation
SCHEDULES["tenths"] = by_tenths

__all__ = ["IMAGE", "AudioVision", "ClassDistillation"]
