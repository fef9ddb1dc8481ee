"""ShaSpec for classes: what is absent has the mean of the shared features of what is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from av_model import FEATURES, AudioVision, image_encoder
from av_objective import ClassObjective, masked_mean
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medmap.networks import Output
from medmap.networks.base import Features
from medmap.networks.resnet_aspp_encoder import fill_absent, mean_of_present_maps
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context
from medmap.training.objectives.self_distillation import encode_batch


class SharedAndSpecific(AudioVision):
    """A shared encoder beside the two specific ones; f = s + projection([s; p]), and what is absent
    has the shared feature of the other one.

    The shared encoder is the pictures' LeNet; sounds come in the frame of a picture.
    """

    def __init__(self, modalities: int = 2, classes: int = 10):
        super().__init__(modalities, classes)
        self.shared = image_encoder()
        self.projection = nn.Linear(2 * FEATURES, FEATURES)
        self.domain = nn.Linear(FEATURES, modalities)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, 28, 28] -> specific, shared and fused feature, [B, 160] each."""
        (specific,) = super().encode(image, modality)
        shared = self.shared(image)
        concatenated = torch.cat([shared, specific], 1)
        # ShaSpec's residual fusion: the shared feature, corrected by the specific one.
        fused = shared + self.projection(concatenated)
        return [specific, shared, fused]

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Logits [B, classes]; see ``AudioVision.decode`` for the taps."""
        shared = [None if f is None else f[1] for f in features]
        fused = [None if f is None else f[2] for f in features]
        mean_shared = mean_of_present_maps(shared, present)
        maps = fill_absent(fused, mean_shared, present)
        filled = torch.cat(maps, 1)
        hidden = self.head[:2](filled)
        logits = self.head[2:](hidden)
        taps = {
            "mod_bottleneck": [f for f in fused if f is not None],
            "bottleneck": filled,
            "decoder": hidden,
        }
        return Output(logits, {name: taps[name] for name in want})


class SharedSpecific(ClassObjective):
    """Wang et al., "Multi-modal Learning with Missing Modality via Shared-Specific Feature
    Modelling", CVPR 2023: cross-entropy, 0.1 times the L1 between the shared features of complete
    pairs, 0.02 times the cross-entropy of telling the modality from a specific feature.

    Args:
        alignment, domain: weights, those of the segmentation task.
    """

    backbone: SharedAndSpecific

    def __init__(self, context: Context, alignment: float = 0.1, domain: float = 0.02):
        super().__init__(context)
        self.alignment = alignment
        self.domain = domain

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step on the three losses."""
        encoded = encode_batch(self.backbone, batch)
        output = self.backbone.decode(encoded, batch.present)
        classification = cross_entropy(output.logits.float(), batch.label)
        losses = {"classification": classification}
        complete = batch.present.all(1)
        first, second = encoded
        if first is not None and second is not None:
            distance = (first[1] - second[1]).abs().mean(1)
            losses["alignment"] = self.alignment * masked_mean(distance, complete)
        entropy = batch.image.new_zeros(())
        for modality, levels in enumerate(encoded):
            if levels is None:
                continue
            logits = self.backbone.domain(levels[0]).float()
            target = torch.full((len(logits),), modality, device=logits.device)
            per_pair = cross_entropy(logits, target, reduction="none")
            entropy = entropy + masked_mean(per_pair, batch.present[:, modality])
        losses["domain"] = self.domain * entropy
        yield "main", losses
