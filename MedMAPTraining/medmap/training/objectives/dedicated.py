"""What dedicated methods share: one network per modality subset, taught with complete cases."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medmap.errors import BundleError, InputDataError, UsageError
from medmap.networks import Backbone, Output
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Frozen, Objective


class Dedicated(Objective):
    """Base of objectives that train the network of one set of modalities (``student``) and show
    others what is missing.

    Batches are complete, and so is what the method's other network sees. The student, a
    ``FixedSubset`` network with ``inputs``, takes its own modalities out of them and cannot see
    more.

    Raises:
        BundleError: the network is made for any set of modalities.
        InputDataError: a case lacks a modality.
    """

    dedicated = True

    def __init__(self, context: Context):
        super().__init__()
        if context.backbone.needs is None:
            raise BundleError(
                f"{type(self).__name__} trains a network for one modality subset, "
                "and this one is made for any.",
                "Use UNet, VNet or SegResNet, and name its modality subset.",
                option="subset",
            )
        lacking = {name: context.cases - number for name, number in context.cases_with.items()}
        if any(lacking.values()):
            counts = [f"{number} lack {name}" for name, number in lacking.items() if number]
            raise InputDataError(
                f"{type(self).__name__} learns from complete cases, "
                f"and of {context.cases} cases {', '.join(counts)}.",
                "Leave incomplete cases out, or use a method for incomplete data.",
            )
        self.student = context.backbone
        self.epochs = context.steps / context.epoch_steps

    def require_complete(self, batch: Batch) -> None:
        """Raises InputDataError when a sample lacks a modality."""
        if not bool(batch.present.all()):
            raise InputDataError(
                f"{type(self).__name__} learns from complete cases, "
                f"and a sample of {', '.join(batch.case_id)} is not.",
                "Set the recipe's missingness to full.",
            )

    def deploy(self) -> Backbone:
        """The student."""
        return self.student


class Distilling(Dedicated):
    """Base of dedicated methods with a frozen teacher that sees every modality.

    Args:
        taps: names of the taps that are compared.

    Raises:
        UsageError: there is no teacher.
        BundleError: it segments something else, or lacks a tap.
    """

    def __init__(self, context: Context, taps: Sequence[str]):
        super().__init__(context)
        if context.teacher is None:
            raise UsageError(
                f"{type(self).__name__} distils from a teacher, and none was given.",
                "Train one on complete cases first and give its bundle or run (--teacher).",
            )
        same_classes = context.teacher.classes == self.student.classes
        same_modalities = context.teacher.modalities == self.student.modalities
        if not (same_classes and same_modalities):
            raise BundleError(
                "Teacher and student are made for different tasks.",
                "Train a teacher for this task.",
            )
        self.taps = tuple(taps)
        self.teacher = Frozen(context.teacher)
        for network in (context.teacher, self.student):
            lacking = set(self.taps) - network.provides
            if lacking:
                raise BundleError(
                    f"{type(network).__name__} does not provide {', '.join(sorted(lacking))}.",
                    "Use another network.",
                )

    def both(self, batch: Batch) -> tuple[Output, Output]:
        """Outputs of the student on its own modalities, and of the frozen teacher on all."""
        self.require_complete(batch)
        teacher = self.teacher.on(batch)
        with torch.no_grad():
            teacher_output = teacher(batch.image, batch.present, self.taps)
        student_output = self.student(batch.image, batch.present, self.taps)
        return student_output, teacher_output

    def aligned(self) -> Backbone:
        """Nothing: alignment belongs to the teacher's own training. Raises UsageError."""
        raise UsageError(
            "A student is not aligned.", "Align the teacher, and train the student from it."
        )


def tap_channels(network: Backbone, tap: str) -> int:
    """Channels of a network's tap, found by one pass over an empty window."""
    training = network.training
    # The smallest window that every level of a network halves evenly, twice as wide.
    size = (2 * network.stride,) * network.spatial_dims
    image = torch.zeros(1, network.modalities, *size)
    present = torch.ones(1, network.modalities, dtype=torch.bool)
    network.eval()
    with torch.no_grad():
        output = network(image, present, (tap,))
    network.train(training)
    return output.taps[tap].shape[1]
