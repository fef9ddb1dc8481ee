"""SMIL: what is absent is a mixture of cluster centers, and perturbed features are meta-learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from av_model import FEATURES, AudioVision
from av_objective import ClassObjective
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss, softplus

from medmap.errors import UsageError
from medmap.networks import Output
from medmap.networks.base import Features
from medmap.networks.resnet_aspp_encoder import mean_of_present_maps
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context

PRIORS = 10
"""Cluster centers of a modality's features, as in SMIL's code."""


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
        encoder = self.image
        if modality:
            encoder = self.sound
        encoder.eval()
        features = super().encode(image, modality)
        return [feature.detach() for feature in features]

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
                is_present = present[:, modality, None]
                feature = torch.where(is_present, value, feature)
            filled.append(feature)
        return filled

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """See ``AudioVision.decode``; the taps are the perturbed features."""
        maps = [None if f is None else f[-1] for f in features]
        filled = self.fill(maps, present)
        fused = torch.cat(filled, 1)
        # Only reconstructed features are perturbed: SMIL's regularization network.
        lacks_one = ~present.all(1, keepdim=True)
        mean_map = mean_of_present_maps(maps, present)
        noised = fused + self._perturbation(self.perturb_fused, mean_map)
        fused = torch.where(lacks_one, noised, fused)
        hidden = self.head[:2](fused)
        noised = hidden + self._perturbation(self.perturb_hidden, fused)
        hidden = torch.where(lacks_one, noised, hidden)
        logits = self.head[2:](hidden)
        taps = {
            "mod_bottleneck": [m for m in maps if m is not None],
            "bottleneck": fused,
            "decoder": hidden,
        }
        return Output(logits, {name: taps[name] for name in want})

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
            classification = cross_entropy(output.logits.float(), pairs.label)
            yield "main", {"classification": classification}
            return
        if not self.backbone.priors.any():
            self._cluster(batch.image.device)
        reduced = self.without_rare(batch.present)
        output = self.backbone(batch.image, reduced)
        classification = cross_entropy(output.logits.float(), batch.label)
        stepped = self._stepped(classification)
        losses = {"classification": classification}
        losses.update(self._validation(stepped, pairs))
        yield "main", losses

    def _stepped(self, loss: Tensor) -> dict[str, Tensor]:
        """Encoder of the frequent modality and head after one gradient step, by name."""
        frequent = ("image", "sound")[1 - self.rare]
        prefixes = (f"{frequent}.", "head.")
        named = {n: p for n, p in self.backbone.named_parameters() if n.startswith(prefixes)}
        # With a graph: the validation loss is differentiated through this step (MAML).
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
        validation = cross_entropy(without.logits.float(), pairs.label)
        losses = {"validation": validation}
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
        values = torch.cat(features).cpu().numpy()
        clusters = KMeans(PRIORS, random_state=0, n_init=1)
        clusters.fit(values)
        centers = torch.from_numpy(clusters.cluster_centers_)
        self.backbone.priors[self.rare] = centers.to(self.backbone.priors)
