"""ProtoKD: a teacher's softened output, and its voxels' similarity to class prototypes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import cross_entropy

from medmap.training.batch import Batch
from medmap.training.objectives.base import Context
from medmap.training.objectives.dedicated import Distilling
from medmap.training.objectives.losses import (
    class_means,
    class_weights,
    dice_loss,
    one_hot_classes,
    similarity_maps,
    soft_kl,
)


class ProtoKD(Distilling):
    """L = Dice + WCE + output L_kd + prototype L_proto (Wang et al., "Prototype Knowledge
    Distillation for Medical Segmentation with Missing Modality", ICASSP 2023).

    L_kd is KL(teacher || student) of the softened outputs (without the factor T²), averaged over
    classes, voxels and samples. L_proto is the mean square between the maps of cosine similarity to
    the class prototypes, each network's voxels compared with its own prototypes, on the features
    before the head.

    The released trainer computes a decaying learning rate for students and never applies it. That
    is the recipe's ``schedule``: ``poly`` is meant, ``constant`` is what was run.

    Args:
        temperature: that softens both outputs.
        output, prototype: weights.
        in_every_sample: take a class into L_proto only when every sample of the batch has it, as
            released, which drops the rare ones; otherwise a class counts in the samples that have
            it.
    """

    def __init__(
        self,
        context: Context,
        temperature: float = 10.0,
        output: float = 10.0,
        prototype: float = 0.1,
        in_every_sample: bool = False,
    ):
        super().__init__(context, ("decoder",))
        self.temperature = temperature
        self.output = output
        self.prototype = prototype
        self.in_every_sample = in_every_sample

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        student, teacher = self.both(batch)
        logits = student.logits.float()
        teacher_logits = teacher.logits.float()
        classes = logits.shape[1]
        target = one_hot_classes(batch.label, classes)
        dice = dice_loss(logits.softmax(1), target, squared=True, smooth=1e-5, eps=0.0)
        distillation = soft_kl(logits, teacher_logits, self.temperature, over_classes="mean")
        prototype = prototype_loss(
            student.taps["decoder"],
            teacher.taps["decoder"],
            batch.label,
            classes,
            self.in_every_sample,
        )
        losses = {
            "dice": dice,
            "cross_entropy": rare_class_entropy(logits, batch.label),
            "distillation": self.output * distillation,
            "prototype": self.prototype * prototype,
        }
        yield "main", losses


def rare_class_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy weighted with 1 - (share of the voxel's class in the batch), divided by the sum
    of the weights.

    Zero for a batch of one class, which weighs nothing: torch's weighted mean is not a number
    there.
    """
    # One row: the shares of the classes in the batch, not in each sample.
    all_voxels = label.reshape(1, -1)
    weights = class_weights(all_voxels, logits.shape[1])[0]
    total = cross_entropy(logits, label, weight=weights, reduction="sum")
    sum_of_weights = weights[label].sum()
    return total / sum_of_weights.clamp_min(1e-6)


def prototype_loss(
    student: Tensor, teacher: Tensor, label: Tensor, classes: int, in_every_sample: bool = False
) -> Tensor:
    """Mean square between the similarity maps, over voxels and the classes that are there.

    Args:
        student, teacher: [B, F, *S] features; F may differ.
        label: [B, *S].
        classes: K.
        in_every_sample: see ``ProtoKD``.
    """
    student_means, counted = class_means(student, label, classes)
    teacher_means, _ = class_means(teacher, label, classes)
    if in_every_sample:
        counted = counted.all(0, keepdim=True).expand_as(counted)
    # Similarities have one size for both: the features' numbers of channels may differ.
    student_maps = similarity_maps(student, student_means)
    teacher_maps = similarity_maps(teacher, teacher_means)
    difference = student_maps - teacher_maps
    error = difference.square().flatten(2).mean(2)
    # Without the classes that a sample lacks: their prototypes are means over nothing.
    number = counted.sum().clamp_min(1)
    return (error * counted).sum() / number
