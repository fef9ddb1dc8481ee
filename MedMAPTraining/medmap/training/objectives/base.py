"""The contract of every objective: it holds its networks and yields optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from medmap.networks import Backbone
from medmap.task import Task
from medmap.training.batch import Batch


@dataclass(frozen=True)
class Context:
    """What an objective may know of the training it serves.

    Attributes:
        task: of the data.
        backbone: the recipe's network, freshly initialized.
        teacher: a trained network that an objective may distil from (``medmap train --teacher``),
            or None.
        steps, epoch_steps: batches in all, and in an epoch.
        cases: how many training cases there are.
        cases_with: how many of them show a modality, by its name; under imbalanced missing rates
            they differ.
        held_out: patches of the n-th batch of cases that are kept out of training, for objectives
            that learn on two levels; None where the recipe keeps none.
    """

    task: Task
    backbone: Backbone
    teacher: Backbone | None = None
    steps: int = 1
    epoch_steps: int = 1
    cases: int = 0
    cases_with: Mapping[str, int] = field(default_factory=dict)
    held_out: Callable[[int], Batch] | None = None


@dataclass
class Group:
    """Parameters that one optimizer steps; what is None is the recipe's.

    Attributes:
        parameters: with the recipe's or this group's weight decay.
        undecayed: stepped with them, without weight decay.
        optimizer, optimizer_options, learning_rate, weight_decay, schedule: as in
            ``medmap.training.recipe.Recipe``.
    """

    parameters: list[nn.Parameter]
    undecayed: list[nn.Parameter] = field(default_factory=list)
    optimizer: str | None = None
    optimizer_options: dict | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None


class Objective(nn.Module):
    """What is minimized, and with which networks.

    A subclass takes a ``Context`` and its own options as keyword arguments. Slow state (weights
    that are updated once an epoch, counters) lives in buffers, so that a resumed run continues it.
    A frozen teacher is kept out of ``state_dict`` (``Frozen``), since it does not change.

    Attributes:
        dedicated: trains a network for one set of modalities; a bundle has one for each.
    """

    dedicated: ClassVar[bool] = False

    def groups(self) -> dict[str, Group]:
        """Parameters by optimizer group; most objectives have only ``main``."""
        return {"main": Group([p for p in self.parameters() if p.requires_grad])}

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (group, named losses, already weighted) once per optimizer step of this batch.

        The trainer sums the losses, goes backward into that group's parameters only and steps its
        optimizer before it asks for the next. Which groups are yielded in which order may depend on
        ``progress``, not on the batch. Where a recipe accumulates, the first item of each pass is
        asked for before the second of any, and the step is taken in between.

        Args:
            batch: on the device of the networks.
            progress: share of the training that is done, 0..1, for schedules.
        """
        raise NotImplementedError

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Called after the last step of an epoch: update slow state; returns figures worth logging,
        by name.
        """
        return {}

    def deploy(self) -> Backbone:
        """The network that inference runs, and of which a moving average is kept."""
        raise NotImplementedError

    def aligned(self) -> Backbone:
        """The network whose latents an anchor may align; where two are trained, the one that sees
        every modality.
        """
        return self.deploy()


class Frozen:
    """Holds a network out of ``state_dict``, ``parameters`` and ``train()``: evaluation mode, no
    gradients.
    """

    def __init__(self, network: Backbone):
        self.network = network.eval().requires_grad_(False)

    def on(self, batch: Batch) -> Backbone:
        """The network, on the device of a batch."""
        return self.network.to(batch.image.device)
