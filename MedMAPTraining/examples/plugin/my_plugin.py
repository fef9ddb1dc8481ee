"""A template: a network, an objective and a missingness protocol of your own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from medmap.networks import Backbone, Output
from medmap.networks.base import Features
from medmap.plugins import Plugin
from medmap.task import Task
from medmap.training.batch import Batch
from medmap.training.missingness import Missingness
from medmap.training.objectives import Context, Objective


class MeanFusion(Backbone):
    """The smallest backbone: one encoder per modality, and the mean of the features that are there.

    Args:
        modalities: number of modalities.
        classes: number of classes, background included.
        spatial_dims: 2 or 3.
        width: channels of the features.
    """

    provides: frozenset[str] = frozenset()

    def __init__(self, modalities: int, classes: int, spatial_dims: int = 3, width: int = 16):
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.stride = 2
        self.encoders = nn.ModuleList()
        for _ in range(modalities):
            encoder = nn.Sequential(
                convolution(1, width, 3, stride=2, padding=1),
                nn.LeakyReLU(0.01),
            )
            self.encoders.append(encoder)
        self.head = convolution(width, classes, 3, padding=1)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> one level [B, width, *S / 2]."""
        return [self.encoders[modality](image)]

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Mean over the modalities that a sample has; features of the others are zero or None."""
        encoded = [levels[0] for levels in features if levels is not None]
        counts = present.sum(1).clamp(min=1)
        other_axes = (1,) * (encoded[0].ndim - 1)
        mean = sum(encoded) / counts.reshape(-1, *other_axes)
        logits = self.head(mean)
        mode = {2: "bilinear", 3: "trilinear"}[self.spatial_dims]
        full_size = interpolate(logits, scale_factor=2, mode=mode, align_corners=False)
        return Output(full_size)


class Focal(Objective):
    """Cross-entropy that counts well-segmented voxels less: mean of (1 - p)^gamma * -log p.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, Eq. 4.

    Args:
        context: what objectives are built from.
        gamma: 0 is cross-entropy.
    """

    def __init__(self, context: Context, gamma: float = 2.0):
        super().__init__()
        self.backbone = context.backbone
        self.gamma = gamma

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        output = self.backbone(batch.image, batch.present, known=batch.modalities)
        surprise = cross_entropy(output.logits.float(), batch.label, reduction="none")
        probability = (-surprise).exp()
        # Voxels that are right already count little (Lin et al., ICCV 2017, Eq. 4).
        weight = (1 - probability) ** self.gamma
        focal = (weight * surprise).mean()
        yield "main", {"focal": focal}

    def deploy(self) -> Backbone:
        """The backbone itself."""
        return self.backbone


def at_most(task: Task, cases: Sequence[str] = (), number: int = 2) -> Missingness:
    """Each sample shows a random subset of at most ``number`` modalities."""
    count = len(task.modalities)

    def draw(case_id: str, epoch: int, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(count)
        chosen = order[: rng.integers(1, number + 1)]
        return np.isin(np.arange(count), chosen)

    return Missingness(draw, lambda case_id: np.ones(count, bool))


def register(plugin: Plugin) -> None:
    """What MedMAP calls."""
    plugin.network("MeanFusion", MeanFusion)
    plugin.objective("focal", Focal)
    plugin.missingness("at-most", at_most)
