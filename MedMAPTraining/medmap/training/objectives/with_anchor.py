"""MedMAP's alignment as a decorator: any objective, and its latents drawn to an anchor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from medmap.networks import Backbone
from medmap.networks.base import Features
from medmap.task import Task
from medmap.training.alignment import build_anchor
from medmap.training.batch import Batch
from medmap.training.objectives.base import Group, Objective


class WithAnchor(Objective):
    """Adds ``align`` to every ``main`` step of an objective: L + alpha * L_A (MedMAP, Eq. 11; alpha = 1/8).

    It listens to the encoder of ``Objective.aligned()`` (the one network, the full path, the teacher in training),
    so the objective runs as it would alone. Only modalities that ``Batch.present`` names are aligned; an objective
    that hides modalities itself, from complete batches, has all of them aligned, as the papers do.

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
        **options,
    ):
        super().__init__()
        self.objective, self.names, self.tap, self.alpha = (
            objective,
            task.modality_names,
            tap,
            alpha,
        )
        network = objective.aligned()
        if tap not in network.provides:
            network.latent([], tap)
        self.anchor = build_anchor(anchor, self.names, getattr(network, "mixture", None), **options)

    def groups(self) -> dict[str, Group]:
        """Those of the objective; weights of mixtures learn in ``main``, without decay, which would pull them down."""
        groups = self.objective.groups()
        free = [*self.anchor.parameters()]
        ids = {id(p) for p in free}
        main = groups["main"]
        kept = [p for p in main.parameters if id(p) not in ids]
        return {
            **groups,
            "main": replace(main, parameters=kept, undecayed=[*main.undecayed, *free]),
        }

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The objective's steps; see ``Objective.steps``."""
        inner = self.objective.steps(batch, progress)
        while True:
            with listening(self.objective.aligned()) as heard:
                group, losses = next(inner, (None, {}))
            if group is None:
                return
            if group == "main" and heard:
                losses = {**losses, "align": self.alpha * self._loss(heard, batch)}
            yield group, losses

    def _loss(self, heard: dict[int, Features], batch: Batch) -> Tensor:
        network = self.objective.aligned()
        latents = {
            self.names[m]: network.latent(features, self.tap) for m, features in heard.items()
        }
        present = {name: batch.present[:, m] for m, name in enumerate(self.names)}
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


@contextmanager
def listening(network: Backbone) -> Iterator[dict[int, Features]]:
    """Yield a dict that fills, while the block lasts, with what ``encode`` first gives for every modality."""
    heard: dict[int, Features] = {}
    encode, before = network.encode, network.__dict__.get("encode")

    def listen(image: Tensor, modality: int) -> Features:
        features = encode(image, modality)
        if features[0].requires_grad:
            heard.setdefault(modality, features)
        return features

    network.encode = listen
    try:
        yield heard
    finally:
        if before is None:
            del network.encode
        else:  # a compiled encoder, say
            network.encode = before
