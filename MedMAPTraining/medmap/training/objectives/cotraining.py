"""What co-training methods share: a path for all modalities, the student's, adversaries."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from medmap.errors import BundleError
from medmap.networks import Backbone, Output, build_network
from medmap.networks.stem import naming_modalities
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Group
from medmap.training.objectives.dedicated import Dedicated
from medmap.training.objectives.losses import consistency_ramp, dice_loss, one_hot_classes

TAPS = ("bottleneck", "style")


class CoTraining(Dedicated):
    """Base of methods that train two networks together: ``full`` sees every modality, ``student``
    its own.

    Two networks of the same kind; nothing is frozen. The published codes have sigmoid outputs; here
    both networks end in a softmax with the background, as everything that is deployed does, and the
    losses leave the background out.

    ``main`` steps everything but the discriminators, ``disc`` these, after it, on the features that
    ``main`` made. The released codes make the discriminators' optimizers anew in every iteration,
    so that they never gather momentum; here they persist.

    Args:
        full: options of the full path's network that differ from the student's (``stem``, say).
        full_dice, student_dice: weights.
        consistency: largest weight of the difference between the two outputs.
        ramp_epochs: over which it grows (``losses.consistency_ramp``).
    """

    def __init__(
        self,
        context: Context,
        full: Mapping | None,
        full_dice: float,
        student_dice: float,
        consistency: float,
        ramp_epochs: float,
    ):
        super().__init__(context)
        name, options = self.student.built_from
        full_options = dict(options)
        # The full path reads every modality once, whatever the student's stack is.
        full_options.pop("inputs", None)
        full_options.pop("replicate", None)
        full_options.update(full or {})
        self.full = build_network(
            name, naming_modalities(full_options, context.task.modality_names)
        )
        self.adversaries = nn.ModuleDict()
        self.full_dice = full_dice
        self.student_dice = student_dice
        self.consistency = consistency
        self.ramp_epochs = ramp_epochs

    def groups(self) -> dict[str, Group]:
        """``main``, and ``disc`` with the published Adam(1e-4, betas 0.9 and 0.99)."""
        main = [p for name, p in self.named_parameters() if not name.startswith("adversaries.")]
        disc = Group(
            list(self.adversaries.parameters()),
            optimizer="adam",
            optimizer_options={"betas": (0.9, 0.99)},
            learning_rate=1e-4,
            weight_decay=0.0,
        )
        return {"main": Group(main), "disc": disc}

    def both(self, batch: Batch) -> tuple[Output, Output]:
        """The full path on all modalities, the student on its own. Adversaries get no gradients
        until ``disc``.
        """
        self.require_complete(batch)
        self.adversaries.requires_grad_(False)
        taps = [name for name in TAPS if name in self.student.provides]
        full = self.full(batch.image, batch.present, taps)
        student = self.student(batch.image, batch.present, taps)
        return full, student

    def segmentation(
        self, full: Tensor, student: Tensor, batch: Batch, progress: float
    ) -> dict[str, Tensor]:
        """Dice of both paths and their consistency, summed over the tumor's classes; logits [B, C,
        *S] float32.
        """
        target = one_hot_classes(batch.label, full.shape[1])
        # Papers sum over the tumor's classes; the losses here are means over them.
        tumor = full.shape[1] - 1
        p = full.softmax(1)
        q = student.softmax(1)
        dice_full = dice_loss(p, target, background=False, squared=True)
        dice_student = dice_loss(q, target, background=False, squared=True)
        ramp = consistency_ramp(progress * self.epochs, self.ramp_epochs)
        tumor_difference = (p - q)[:, 1:]
        difference = tumor_difference.square().mean()
        # The full path learns from the difference, too: it is not detached.
        return {
            "dice_full": self.full_dice * tumor * dice_full,
            "dice_student": self.student_dice * tumor * dice_student,
            "consistency": self.consistency * ramp * tumor * difference,
        }

    def aligned(self) -> Backbone:
        """The full path."""
        return self.full

    def require_taps(self, *names: str) -> None:
        """Raises BundleError when the networks lack a tap."""
        lacking = set(names) - self.student.provides
        if lacking:
            raise BundleError(
                f"{type(self.student).__name__} does not provide {', '.join(sorted(lacking))}.",
                "Use SegResNet, for SMU-Net with its option style.",
            )
