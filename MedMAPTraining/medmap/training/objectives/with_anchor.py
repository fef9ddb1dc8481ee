"""MedMAP's alignment as a decorator: any objective, and its latents drawn to an anchor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medmap.networks import Backbone
from medmap.networks.base import Features
from medmap.task import Task
from medmap.training.alignment import build_anchor
from medmap.training.batch import Batch
from medmap.training.objectives.base import Group, Objective


class WithAnchor(Objective):
    """Adds ``align`` to every ``main`` step of an objective: L + alpha * L_A (MedMAP, Eq. 14, 16,
    17; alpha = 1/8).

    It records what is encoded by ``Objective.aligned()`` (the one network, the full path, the
    teacher in training), so the objective runs as it would alone. Only modalities that
    ``Batch.present`` names are aligned; an objective that hides modalities itself, from complete
    batches, has all of them aligned, as the papers do.

    Args:
        objective: what is decorated.
        task: names of the modalities.
        anchor: one of ``medmap.training.alignment.ANCHORS``; further options are its own.
        tap: ``mod_bottleneck``, or ``stem`` for the latents of T* at the input.
        alpha: weight of the loss.

    Raises:
        UsageError: the anchor or an option is unknown, or the network has no such tap.
    """

    def __init__(
        self,
        objective: Objective,
        task: Task,
        anchor: str = "mixture",
        tap: str = "mod_bottleneck",
        alpha: float = 0.125,
        **options: Any,
    ):
        super().__init__()
        self.objective = objective
        self.names = task.modality_names
        self.tap = tap
        self.alpha = alpha
        network = objective.aligned()
        if tap not in network.provides:
            network.latent([], tap)
        if options.get("moments") == "learned":
            options["channels"] = latent_channels(network, tap)
        self.anchor = build_anchor(anchor, self.names, getattr(network, "mixture", None), **options)

    def groups(self) -> dict[str, Group]:
        """Those of the objective; weights of mixtures learn in ``main``, without decay, which would
        pull them down.
        """
        groups = self.objective.groups()
        weights = list(self.anchor.parameters())
        # A network that uses the mixture owns its weights as well: they must not be stepped twice.
        ids = {id(parameter) for parameter in weights}
        main = groups["main"]
        decayed = [p for p in main.parameters if id(p) not in ids]
        undecayed = [*main.undecayed, *weights]
        return {**groups, "main": replace(main, parameters=decayed, undecayed=undecayed)}

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The objective's steps; see ``Objective.steps``."""
        steps = self.objective.steps(batch, progress)
        while True:
            network = self.objective.aligned()
            with network.recorded_features() as features:
                group, losses = next(steps, (None, {}))
            if group is None:
                return
            if group == "main" and features:
                alignment = self._loss(features, batch)
                losses = {**losses, "align": self.alpha * alignment}
            yield group, losses

    def _loss(self, features: dict[int, Features], batch: Batch) -> Tensor:
        network = self.objective.aligned()
        latents = {}
        for modality, levels in features.items():
            name = self.names[modality]
            latents[name] = network.latent(levels, self.tap)
        present = {}
        for modality, name in enumerate(self.names):
            present[name] = batch.present[:, modality]
        return self.anchor(latents, present, batch.brain)

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """The objective's figures, and the mixture's weights as ``w_<modality>``."""
        weights = {f"w_{name}": value for name, value in self.anchor.weights().items()}
        return {**self.objective.epoch_end(epoch), **weights}

    def aligned(self) -> Backbone:
        """The network whose latents are aligned."""
        return self.objective.aligned()

    def deploy(self) -> Backbone:
        """What the objective deploys: anchors serve training only."""
        return self.objective.deploy()


@torch.no_grad()
def latent_channels(network: Backbone, tap: str) -> int:
    """Channels of one modality's latents at a tap, by one pass over an empty window."""
    was_training = network.training
    side = max(16, 2 * network.stride)
    size = (side,) * network.spatial_dims
    empty = torch.zeros(1, 1, *size)
    network.eval()
    features = network.encode(empty, 0)
    latent = network.latent(features, tap)
    network.train(was_training)
    return int(latent.shape[1])
