"""The methods that MCKD's Table 2a compares with: auto-encoder, GAN, Full2miss, SMIL and ShaSpec.

Each is small, on the encoders and the head of ``AudioVision``, and trained as MCKD trains all of
them (Section 4.2). None of the papers prints its settings for this task except SMIL, whose released
code is for it; every docstring names what was chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from av_model import FEATURES, AudioVision
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
    softplus,
)

from medmap.errors import UsageError
from medmap.networks import NETWORKS, Backbone, Output
from medmap.networks.base import Features
from medmap.networks.resnet_aspp_encoder import fill_absent, mean_of_present_maps
from medmap.training.batch import Batch
from medmap.training.objectives import OBJECTIVES
from medmap.training.objectives.base import Context, Group, Objective
from medmap.training.objectives.self_distillation import encode_batch

NOISE = 16
"""Random numbers that the GAN's generator is given beside a feature."""
PRIORS = 10
"""Cluster centers of a modality's features, as in SMIL's code."""


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
        self.rare = min(reversed(range(len(names))), key=lambda modality: counts[modality])

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


# ------------------------------------------------------------------------- auto-encoder and GAN


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
            noise = torch.randn(size) if self.training else torch.zeros(size)
            feature = torch.cat([feature, noise.to(feature)], 1)
        return self.generators[modality](feature)

    def fill(self, maps: Sequence[Tensor | None], present: Tensor) -> list[Tensor]:
        """Generated features in the places of absent ones."""
        filled = []
        for modality, value in enumerate(maps):
            other = maps[1 - modality]
            feature = present.new_zeros(len(present), FEATURES, dtype=torch.float32)
            if other is not None:
                feature = self.generate(other.detach(), modality).detach()
            if value is not None:
                feature = torch.where(present[:, modality, None], value, feature)
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
        complete = batch.present.all(1)
        losses = {"classification": cross_entropy(output.logits.float(), batch.label)}
        for modality, target in enumerate(features):
            generated = self.backbone.generate(features[1 - modality].detach(), modality)
            distance = (generated - target.detach()).square().mean(1)
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
        yield "main", {"classification": cross_entropy(output.logits.float(), batch.label)}
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
            telling[f"disc_{modality}"] = masked_mean(0.5 * (real + fake), complete)
        yield "generator", deceiving
        yield "disc", telling

    def _score(self, condition: Tensor, feature: Tensor, modality: int, is_real: bool) -> Tensor:
        """[B] cross-entropy of what the discriminator takes a feature for."""
        logits = self.discriminators[modality](torch.cat([condition, feature], 1))[:, 0]
        target = torch.full_like(logits, float(is_real))
        return binary_cross_entropy_with_logits(logits, target, reduction="none")


# ------------------------------------------------------------------------------------ Full2miss


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
        yield (
            "main",
            {
                "classification": cross_entropy(full.logits.float(), batch.label),
                "missing": cross_entropy(missing.logits.float(), batch.label),
                "similarity": self.similarity * deceiving,
            },
        )
        real = self._score(full_hidden, is_full=True)
        fake = self._score(hidden.detach(), is_full=False)
        yield "disc", {"disc": masked_mean(0.5 * (real + fake), complete)}

    def _score(self, hidden: Tensor, is_full: bool) -> Tensor:
        logits = self.discriminator(hidden)[:, 0]
        target = torch.full_like(logits, float(is_full))
        return binary_cross_entropy_with_logits(logits, target, reduction="none")


# ----------------------------------------------------------------------------------------- SMIL


class SMILNetwork(AudioVision):
    """An absent feature is a mixture of cluster centers; samples that lack one are perturbed.

    Mixture: softplus of a linear function of the present feature, normalized. Perturbation of the
    features in front of both linear layers: + softplus(mu + noise), mu linear, noise N(0, 1) in
    training and 0 in the test.
    """

    priors: Tensor

    def __init__(self, modalities: int = 2, classes: int = 10):
        super().__init__(modalities, classes)
        self.register_buffer("priors", torch.zeros(modalities, PRIORS, FEATURES))
        self.mixture = nn.ModuleList(nn.Linear(FEATURES, PRIORS) for _ in range(modalities))
        self.perturb_fused = nn.Linear(FEATURES, 2 * FEATURES)
        self.perturb_hidden = nn.Linear(2 * FEATURES, 64)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, 28, 28] -> [B, 160]; an encoder whose features were clustered stays as it is."""
        if not self.priors[modality].any():
            return super().encode(image, modality)
        (self.sound if modality else self.image).eval()
        return [feature.detach() for feature in super().encode(image, modality)]

    def fill(self, maps: Sequence[Tensor | None], present: Tensor) -> list[Tensor]:
        """Mixtures of cluster centers in the places of absent features."""
        filled = []
        for modality, value in enumerate(maps):
            other = maps[1 - modality]
            feature = torch.zeros_like(self.priors[modality, :1]).expand(len(present), -1)
            if other is not None:
                weights = softplus(self.mixture[modality](other))
                weights = weights / weights.sum(1, keepdim=True)
                feature = weights @ self.priors[modality]
            if value is not None:
                feature = torch.where(present[:, modality, None], value, feature)
            filled.append(feature)
        return filled

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """See ``AudioVision.decode``; the taps are the perturbed features."""
        maps = [None if f is None else f[-1] for f in features]
        fused = torch.cat(self.fill(maps, present), 1)
        lacks_one = ~present.all(1, keepdim=True)
        mean_map = mean_of_present_maps(maps, present)
        noised = fused + self._perturbation(self.perturb_fused, mean_map)
        fused = torch.where(lacks_one, noised, fused)
        hidden = self.head[:2](fused)
        noised = hidden + self._perturbation(self.perturb_hidden, fused)
        hidden = torch.where(lacks_one, noised, hidden)
        taps = {
            "mod_bottleneck": [m for m in maps if m is not None],
            "bottleneck": fused,
            "decoder": hidden,
        }
        return Output(self.head[2:](hidden), {name: taps[name] for name in want})

    def _perturbation(self, layer: nn.Linear, features: Tensor) -> Tensor:
        mean = layer(features)
        if self.training:
            mean = mean + torch.randn_like(mean)
        return softplus(mean)


class SMIL(ClassObjective):
    """Ma et al., "SMIL: Multimodal Learning with Severely Missing Modality", AAAI 2021, and the
    facts of its released code.

    First encoders and head learn from complete pairs alone. Then the rare modality's encoder is
    frozen and its features are clustered (k-means). From there on each step takes a gradient step
    on pairs without the rare modality, inside the graph, and asks of the stepped network on
    complete pairs (MAML): cross-entropy without the rare modality, and agreement of its features
    with those of the complete pass. The losses of both passes are added.

    Args:
        context: ``held_out`` gives batches of complete training pairs.
        pretraining: share of the training that is the first stage; the paper trains it apart.
        inner_rate: of the step inside the graph.
        agreement: weight of both mean squares, as released.

    Raises:
        UsageError: there are no complete pairs.
    """

    backbone: SMILNetwork

    def __init__(
        self,
        context: Context,
        pretraining: float = 1 / 3,
        inner_rate: float = 1e-3,
        agreement: float = 0.01,
    ):
        super().__init__(context)
        if context.held_out is None:
            raise UsageError(
                "SMIL learns from complete pairs, and there are none.",
                "Give the training a sampler of pairs that have both halves.",
            )
        self.complete_pairs = context.held_out
        self.pretraining = pretraining
        self.inner_rate = inner_rate
        self.agreement = agreement
        self.total = context.steps

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step; which losses it has depends on the stage."""
        step = round(progress * self.total)
        pairs = self.complete_pairs(step).to(batch.image.device)
        if progress < self.pretraining:
            output = self.backbone(pairs.image, pairs.present)
            yield "main", {"classification": cross_entropy(output.logits.float(), pairs.label)}
            return
        if not self.backbone.priors.any():
            self._cluster(batch.image.device)
        reduced = self.without_rare(batch.present)
        output = self.backbone(batch.image, reduced)
        losses = {"classification": cross_entropy(output.logits.float(), batch.label)}
        stepped = self._stepped(losses["classification"])
        yield "main", losses | self._validation(stepped, pairs)

    def _stepped(self, loss: Tensor) -> dict[str, Tensor]:
        """Encoder of the frequent modality and head after one gradient step, by name."""
        moving = (f"{('image', 'sound')[1 - self.rare]}.", "head.")
        named = {n: p for n, p in self.backbone.named_parameters() if n.startswith(moving)}
        gradients = torch.autograd.grad(loss, list(named.values()), create_graph=True)
        stepped = {}
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            stepped[name] = parameter - self.inner_rate * gradient
        return stepped

    def _validation(self, stepped: dict[str, Tensor], pairs: Batch) -> dict[str, Tensor]:
        """Losses of the stepped network on complete pairs, shown with and without one modality."""
        taps = ("bottleneck", "decoder")
        reduced = self.without_rare(pairs.present)
        without = functional_call(self.backbone, stepped, (pairs.image, reduced, taps))
        complete = functional_call(self.backbone, stepped, (pairs.image, pairs.present, taps))
        losses = {"validation": cross_entropy(without.logits.float(), pairs.label)}
        for tap in taps:
            distance = mse_loss(without.taps[tap], complete.taps[tap])
            losses[f"agreement_{tap}"] = self.agreement * distance
        return losses

    @torch.no_grad()
    def _cluster(self, device: torch.device) -> None:
        """Cluster centers of the rare modality's features become its priors."""
        features = []
        self.backbone.eval()
        # About the pairs of an epoch; a pair that comes twice weighs twice.
        for n in range(30):
            pairs = self.complete_pairs(n).to(device)
            rare = pairs.image[:, self.rare : self.rare + 1]
            features += self.backbone.encode(rare, self.rare)
        self.backbone.train()
        clusters = KMeans(PRIORS, random_state=0, n_init=1)
        centers = clusters.fit(torch.cat(features).cpu().numpy()).cluster_centers_
        self.backbone.priors[self.rare] = torch.from_numpy(centers).to(self.backbone.priors)


# -------------------------------------------------------------------------------------- ShaSpec


class SharedAndSpecific(AudioVision):
    """A shared encoder beside the two specific ones; f = s + projection([s; p]), and what is absent
    has the shared feature of the other one.

    The shared encoder is the pictures' LeNet; sounds come in the frame of a picture.
    """

    def __init__(self, modalities: int = 2, classes: int = 10):
        super().__init__(modalities, classes)
        self.shared = nn.Sequential(
            *(nn.Conv2d(1, 5, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(5, 10, 5), nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        )
        self.projection = nn.Linear(2 * FEATURES, FEATURES)
        self.domain = nn.Linear(FEATURES, modalities)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, 28, 28] -> specific, shared and fused feature, [B, 160] each."""
        (specific,) = super().encode(image, modality)
        shared = self.shared(image)
        fused = shared + self.projection(torch.cat([shared, specific], 1))
        return [specific, shared, fused]

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Logits [B, classes]; see ``AudioVision.decode`` for the taps."""
        shared = [None if f is None else f[1] for f in features]
        fused = [None if f is None else f[2] for f in features]
        filled = torch.cat(fill_absent(fused, mean_of_present_maps(shared, present), present), 1)
        hidden = self.head[:2](filled)
        taps = {
            "mod_bottleneck": [f for f in fused if f is not None],
            "bottleneck": filled,
            "decoder": hidden,
        }
        return Output(self.head[2:](hidden), {name: taps[name] for name in want})


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
        losses = {"classification": cross_entropy(output.logits.float(), batch.label)}
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


NETWORKS |= {
    "AudioVisionAutoencoder": GeneratedFeatures,
    "AudioVisionGAN": GANFeatures,
    "AudioVisionSMIL": SMILNetwork,
    "AudioVisionShaSpec": SharedAndSpecific,
}
OBJECTIVES |= {
    "autoencoder": Autoencoder,
    "gan": FeatureGAN,
    "full2miss": Full2Miss,
    "smil": SMIL,
    "shaspec-classes": SharedSpecific,
}
COMPETITORS: dict[str, tuple[str, str]] = {
    "autoencoder": ("AudioVisionAutoencoder", "autoencoder"),
    "gan": ("AudioVisionGAN", "gan"),
    "full2miss": ("AudioVision", "full2miss"),
    "smil": ("AudioVisionSMIL", "smil"),
    "shaspec": ("AudioVisionShaSpec", "shaspec-classes"),
}
"""Network and objective of each method of the table, by the name of its column."""
