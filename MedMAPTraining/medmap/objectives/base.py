"""The contract of every objective: it holds its networks and yields one optimiser step at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from medmap.dataset import Batch
from medmap.networks import Backbone


class Objective(nn.Module):
    """What is minimised, and with which networks."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by optimiser group; most objectives have only ``main``."""
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (group, named losses, already weighted) once per optimiser step of this batch.

        The trainer sums the losses, goes backward and steps that group's optimiser before it asks for the next.

        Args:
            batch: on the device of the networks.
            progress: share of the training that is done, 0..1, for schedules.
        """
        raise NotImplementedError

    def deploy(self) -> Backbone:
        """The network that inference runs."""
        raise NotImplementedError
