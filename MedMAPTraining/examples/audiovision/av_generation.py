"""Auto-encoder, GAN, and Full2miss: what is absent is generated, or imitated, from what is there.

The settings are ours; the papers print none for this task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from av_model import FEATURES, AudioVision
from av_objective import ClassObjective, masked_mean, perceptron
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Group
from medmap.training.objectives.self_distillation import encode_batch

NOISE = 16
"""Random numbers that the GAN's generator is given beside a feature."""


class GeneratedFeatures(AudioVision):
    """An absent feature is generated from the present one; classifying does not train that."""

    noise: int = 0

    def __init__(self, modalities: int = 2, classes: int = 10):
        super().__init__(modalities, classes)
        self.generators = nn.ModuleList(
            perceptron(FEATURES + self.noise, 64, FEATURES) for _ in range(modalities)
        )

    def generate(self, feature: Tensor, modality: int) -> Tensor:
        """[B, 160] of a modality from the other one's; noise is zero outside training."""
        if self.noise:
            size = (len(feature), self.noise)
            noise = torch.zeros(size)
            if self.training:
                noise = torch.randn(size)
            feature = torch.cat([feature, noise.to(feature)], 1)
        return self.generators[modality](feature)

    def fill(self, maps: Sequence[Tensor | None], present: Tensor) -> list[Tensor]:
        """Generated features in the places of absent ones."""
        filled = []
        for modality, value in enumerate(maps):
            other = maps[1 - modality]
            feature = present.new_zeros(len(present), FEATURES, dtype=torch.float32)
            if other is not None:
                # The classifier must not train the generators: they have losses of their own.
                feature = self.generate(other.detach(), modality).detach()
            if value is not None:
                is_present = present[:, modality, None]
                feature = torch.where(is_present, value, feature)
            filled.append(feature)
        return filled


class GANFeatures(GeneratedFeatures):
    """The same with noise."""

    noise = NOISE


class Autoencoder(ClassObjective):
    """Baldi, "Autoencoders, Unsupervised Learning, and Deep Architectures", 2012: a code of 64
    numbers, from which the other modality's feature is reconstructed; mean square on complete
    pairs.

    As in SMIL's comparison it maps features of one modality to those of the other. There it is
    trained before the classifier, here beside it.
    """

    backbone: GeneratedFeatures

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step on both losses, which have no parameters in common."""
        encoded = encode_batch(self.backbone, batch)
        output = self.backbone.decode(encoded, batch.present)
        features = self.features(encoded, batch)
        # Only complete pairs show what should have been generated.
        complete = batch.present.all(1)
        classification = cross_entropy(output.logits.float(), batch.label)
        losses = {"classification": classification}
        for modality, target in enumerate(features):
            other = features[1 - modality].detach()
            generated = self.backbone.generate(other, modality)
            error = generated - target.detach()
            distance = error.square().mean(1)
            losses[f"reconstruction_{modality}"] = masked_mean(distance, complete)
        yield "main", losses


class FeatureGAN(ClassObjective):
    """Goodfellow et al., "Generative Adversarial Networks", 2014, with the generator's loss that
    does not saturate.

    Generator and discriminator are given the present modality's feature as a condition: without
    it a generated feature would say nothing of the digit.
    """

    backbone: GeneratedFeatures

    def __init__(self, context: Context):
        super().__init__(context)
        self.discriminators = nn.ModuleList(perceptron(2 * FEATURES, 64, 1) for _ in range(2))

    def groups(self) -> dict[str, Group]:
        """``main``: encoders and head; ``generator`` and ``disc``."""
        named = self.backbone.named_parameters()
        main = [p for name, p in named if not name.startswith("generators.")]
        return {
            "main": Group(main),
            "generator": Group(list(self.backbone.generators.parameters())),
            "disc": Group(list(self.discriminators.parameters())),
        }

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """A step of the classifier, of the generators, and of the discriminators."""
        encoded = encode_batch(self.backbone, batch)
        output = self.backbone.decode(encoded, batch.present)
        classification = cross_entropy(output.logits.float(), batch.label)
        yield "main", {"classification": classification}
        features = [feature.detach() for feature in self.features(encoded, batch)]
        complete = batch.present.all(1)
        deceiving = {}
        telling = {}
        for modality, actual in enumerate(features):
            condition = features[1 - modality]
            generated = self.backbone.generate(condition, modality)
            score = self._score(condition, generated, modality, is_real=True)
            deceiving[f"generator_{modality}"] = masked_mean(score, complete)
            real = self._score(condition, actual, modality, is_real=True)
            fake = self._score(condition, generated.detach(), modality, is_real=False)
            mean_score = 0.5 * (real + fake)
            telling[f"disc_{modality}"] = masked_mean(mean_score, complete)
        yield "generator", deceiving
        yield "disc", telling

    def _score(self, condition: Tensor, feature: Tensor, modality: int, is_real: bool) -> Tensor:
        """[B] cross-entropy of what the discriminator takes a feature for."""
        pair = torch.cat([condition, feature], 1)
        logits = self.discriminators[modality](pair)[:, 0]
        target = torch.full_like(logits, float(is_real))
        return binary_cross_entropy_with_logits(logits, target, reduction="none")


class Full2Miss(ClassObjective):
    """Shen and Gao, "Brain Tumor Segmentation on MRI with Missing Modalities", IPMI 2019: features
    of the missing path are adapted to those of the full path by an adversary.

    Both paths share their weights, absent features are the mean of the present ones, and the
    adversary reads the 64 features before the classifier. Complete pairs go through both paths.

    Args:
        similarity: weight of the adversarial term; not printed for this task.
    """

    def __init__(self, context: Context, similarity: float = 0.1):
        super().__init__(context)
        self.similarity = similarity
        self.discriminator = perceptron(64, 32, 1)

    def groups(self) -> dict[str, Group]:
        """``main`` and ``disc``."""
        return {
            "main": Group(list(self.backbone.parameters())),
            "disc": Group(list(self.discriminator.parameters())),
        }

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """A step of the network, then one of the adversary."""
        encoded = encode_batch(self.backbone, batch)
        full = self.backbone.decode(encoded, batch.present, ("decoder",))
        reduced = self.without_rare(batch.present)
        encoded[self.rare] = None
        missing = self.backbone.decode(encoded, reduced, ("decoder",))
        full_hidden = full.taps["decoder"].detach()
        hidden = missing.taps["decoder"]
        complete = batch.present.all(1)
        deceiving = masked_mean(self._score(hidden, is_full=True), complete)
        losses = {
            "classification": cross_entropy(full.logits.float(), batch.label),
            "missing": cross_entropy(missing.logits.float(), batch.label),
            "similarity": self.similarity * deceiving,
        }
        yield "main", losses
        real = self._score(full_hidden, is_full=True)
        fake = self._score(hidden.detach(), is_full=False)
        mean_score = 0.5 * (real + fake)
        yield "disc", {"disc": masked_mean(mean_score, complete)}

    def _score(self, hidden: Tensor, is_full: bool) -> Tensor:
        logits = self.discriminator(hidden)[:, 0]
        target = torch.full_like(logits, float(is_full))
        return binary_cross_entropy_with_logits(logits, target, reduction="none")
