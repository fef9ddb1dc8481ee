"""PASSION: the fused prediction teaches each modality alone, and slow modalities are taught more.

Shi, Shang, Sun, Yu, Yang, Yan: "PASSION: Toward Effective Incomplete Multi-Modal Medical Image
Segmentation with Imbalanced Missing Rates", ACM MM 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from medmap.errors import UsageError
from medmap.networks import Output
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context
from medmap.training.objectives.losses import class_means, resize_label, similarity_maps, soft_kl
from medmap.training.objectives.self_distillation import Students, decode_together, encode_batch
from medmap.training.objectives.sls import SharedLatentSpace


@dataclass(frozen=True)
class Deviations:
    """Where the released code does otherwise than the paper writes; each can be chosen alone.

    Attributes:
        forward_kl: KL(teacher || student) instead of KL(student || teacher).
        squared_temperature: the divergence times T^2.
        halved_levels: each deep level is distilled with half the weight of the finer one (1/2,
            1/4...) instead of the same.
        class_mean: divergence, prototype loss and distance are means over the classes instead of
            sums, which changes no relative preference.
        rate_as_weight: beta starts at 1 and 1 / (1 - missing rate) is a constant factor of every
            modality's losses, instead of where beta starts.
        separate: each modality's own segmentation is learned as well, of the modalities with
            delta = 1, weighted by beta.
        separate_decoder: that segmentation comes from RFNet's separate decoder, which all
            modalities share, instead of the fused decoder D_f with this modality alone (z^{m,0} in
            Eq. 1). The baseline has it, too.
        epoch_preference: relative preference of an epoch from mean distances instead of the mean
            over samples.
        several_only: that mean is over the samples that have a distance, those with two modalities
            or more, instead of all that have the modality (the denominator of Eq. 12).
        scheduled: the step of beta is 0.01 * 1.5^n in the n-th hundred epochs (from n = 1), beta is
            kept within 0.1..4 and its norm constant; instead of a constant step and beta >= 0.
        batch_delta: delta per batch instead of per sample (the same for a batch of one).
        t2_with_t1_tokens: the T2 student of mmFormer has T1's deepest tokens; a slip, for
            comparison only.
    """

    forward_kl: bool = False
    squared_temperature: bool = False
    halved_levels: bool = False
    class_mean: bool = False
    rate_as_weight: bool = False
    separate: bool = False
    separate_decoder: bool = False
    epoch_preference: bool = False
    several_only: bool = False
    scheduled: bool = False
    batch_delta: bool = False
    t2_with_t1_tokens: bool = False


PAPER = Deviations()
RELEASED = Deviations(
    **{field.name: field.name != "t2_with_t1_tokens" for field in fields(Deviations)}
)
"""All of them but the slip, which only mmFormer has."""


class Passion(SharedLatentSpace):
    """L = L_seg + pixel * sum_m beta_m L_pixel^m + prototype * sum_m delta_m L_proto^m (Eq. 14),
    mean over samples; L_seg is the fused part of Eq. 1.

    The teacher of a sample is the fused decoder on all modalities it has, its students the same
    decoder on one of them; encoders run once, the decoder once on teachers and students together.

    * L_pixel (Eq. 3): divergence of outputs softened with T, summed over all levels l = 0..L.
    * L_proto (Eq. 4-6, 8): squared difference of the maps of cosine similarity to each sample's own
      class means.
    * Relative preference (Eq. 7, 9, 10): RP_m = 1 - D_m / mean D, D_m the sum over voxels and
      classes of the absolute difference of those maps; positive: ahead.
    * delta_m = 1 where RP_m < 0 (task-wise, Eq. 11); beta_m starts at 1 / (1 - missing rate) and
      goes down by 0.01 times the mean RP_m of each epoch (gradient-wise, Eq. 12 and 13).

    Sums over voxels, as printed, would grow with the patch: means over voxels are taken, as in the
    released code. A sample with one modality has nothing to distil and no preference. Logarithms
    are of softmax, not of probabilities clipped at 0.005, and every class of a sample counts, also
    one that another sample of the batch lacks.

    The component ablation (Table 2) switches: ``pixel`` 0, ``prototype`` 0, ``task_wise`` (delta)
    and ``gradient_wise`` (beta) off. ``baseline`` trains with Eq. 2 alone and logs the preference,
    for Fig. 6.

    Per epoch are logged ``preference_<modality>`` and ``beta_<modality>``.

    Args:
        context: with how many cases show each modality.
        variant: ``paper`` or ``released`` (all ``Deviations`` but the slip).
        pixel, prototype: weights of the two losses.
        temperature: T.
        rate: step of beta.
        deep, deep_decay, clip, class_weighted: of the fused loss, see ``SharedLatentSpace``; deep
            None: 1, 1, ... of Eq. 1, or 1/2, 1/4, ... as released.
        task_wise: False: delta is 1 for every student.
        gradient_wise: False: beta is 1, and so is the factor of ``rate_as_weight``.
        baseline: Eq. 2 alone: no distillation, each modality's own segmentation is learned from
            all samples that have it.
        deviations: single ``Deviations`` by name, over the variant.

    Raises:
        UsageError: the variant is unknown, or the network has no ``decoder`` tap.
        TypeError: a deviation is unknown.
    """

    weight: Tensor
    beta: Tensor
    preference_sum: Tensor
    distance_sum: Tensor
    seen: Tensor

    def __init__(
        self,
        context: Context,
        variant: str = "paper",
        pixel: float = 0.5,
        prototype: float = 0.1,
        temperature: float = 4.0,
        rate: float = 0.01,
        deep: float | None = None,
        deep_decay: float | None = None,
        clip: float = 0.0,
        class_weighted: bool = True,
        task_wise: bool = True,
        gradient_wise: bool = True,
        baseline: bool = False,
        **deviations: bool,
    ):
        if variant not in ("paper", "released") or "decoder" not in context.backbone.provides:
            raise UsageError(
                f"PASSION cannot train {type(context.backbone).__name__} as '{variant}'.",
                "Use variant paper or released, and a network with the tap 'decoder'.",
            )
        base = RELEASED if variant == "released" else PAPER
        options = Deviations(**{**base.__dict__, **deviations})
        factor = 0.5 if variant == "released" else 1.0
        super().__init__(
            context,
            separate=0.0,
            deep=factor if deep is None else deep,
            deep_decay=factor if deep_decay is None else deep_decay,
            clip=clip,
            class_weighted=class_weighted,
        )
        self.options = options
        self.task_wise = task_wise
        self.gradient_wise = gradient_wise
        self.baseline = baseline
        self.pixel = pixel
        self.prototype = prototype
        self.temperature = temperature
        self.rate = rate
        self.names = context.task.modality_names
        self.classes = context.task.num_classes
        self.backbone.skip = frozenset({"separate"})
        scarcity = torch.tensor(_scarcity(context))
        ones = torch.ones_like(scarcity)
        if not gradient_wise:
            scarcity = ones
        if options.rate_as_weight:
            self.register_buffer("weight", scarcity)
            self.register_buffer("beta", ones.clone())
        else:
            self.register_buffer("weight", ones)
            self.register_buffer("beta", scarcity.clone())
        for name in ("preference_sum", "distance_sum", "seen"):
            self.register_buffer(name, torch.zeros(len(self.names)))
        self.deepest = None
        if options.t2_with_t1_tokens:
            self.deepest = {context.task.index("t2"): context.task.index("t1")}

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        features = encode_batch(self.backbone, batch)
        students = Students.of(batch.present)
        teacher_output, student_output = decode_together(
            self.backbone, features, batch.present, students, ("decoder",), self.deepest
        )
        losses = self.fused(teacher_output, batch)
        table = torch.zeros(batch.present.shape, device=batch.image.device)
        preference = table
        if len(students):
            prototype, distance = self._prototype(
                student_output, teacher_output, batch.label, students
            )
            distance_table = students.table(distance, table)
            preference = relative_preference(distance_table)
            self._remember(distance_table, preference)
        self._count(batch.present)
        learned_alone: Tensor | None = None
        if self.baseline:
            learned_alone = torch.ones_like(table)
        elif len(students):
            delta = torch.ones_like(table)
            if self.task_wise:
                delta = task_mask(preference, whole_batch=self.options.batch_delta)
            pixel = self._pixel(student_output, teacher_output, students)
            pixel_table = students.table(pixel, table)
            prototype_table = students.table(prototype, table)
            losses["pixel"] = self.pixel * self._weighted(self.beta * pixel_table)
            losses["prototype"] = self.prototype * self._weighted(delta * prototype_table)
            if self.options.separate:
                learned_alone = delta
        if learned_alone is not None:
            if self.options.separate_decoder:
                predictions = self.backbone.separately(features)
            else:
                predictions = fused_alone(teacher_output.logits, student_output.logits, students)
            losses |= self._separately(predictions, batch, learned_alone)
        yield "main", losses

    def _weighted(self, table: Tensor) -> Tensor:
        """[B, M] -> sum over modalities, mean over samples."""
        return (self.weight * table).sum(1).mean()

    def _pixel(self, student: Output, teacher: Output, students: Students) -> Tensor:
        """L_pixel of every student, [R]."""
        total = self._divergence(student.logits, teacher.logits, students)
        factor = 0.5 if self.options.halved_levels else 1.0
        student_levels = cast(list[Tensor], student.aux.get("deep", []))
        teacher_levels = cast(list[Tensor], teacher.aux.get("deep", []))
        levels = zip(student_levels, teacher_levels, strict=True)
        for level, (student_logits, teacher_logits) in enumerate(levels, 1):
            divergence = self._divergence(student_logits, teacher_logits, students)
            total = total + factor**level * divergence
        return total

    def _divergence(self, student: Tensor, teacher: Tensor, students: Students) -> Tensor:
        """Divergence of every student's softened output from its teacher's, [R]."""
        return soft_kl(
            student,
            teacher[students.sample],
            self.temperature,
            reverse=not self.options.forward_kl,
            squared_temperature=self.options.squared_temperature,
            over_classes="mean" if self.options.class_mean else "sum",
            per_sample=True,
        )

    def _prototype(
        self, student: Output, teacher: Output, label: Tensor, students: Students
    ) -> tuple[Tensor, Tensor]:
        """L_proto and D of every student, [R] each; D without a gradient."""
        feature = student.taps["decoder"]
        label = resize_label(label, feature.shape[2:])
        with torch.no_grad():
            teacher_maps, has_class = prototype_maps(teacher.taps["decoder"], label, self.classes)
        student_maps, _ = prototype_maps(feature, label[students.sample], self.classes)
        counted = has_class[students.sample].float()
        difference = (student_maps - teacher_maps[students.sample]).flatten(2)
        squares = difference.square()
        loss = (counted * squares.mean(2)).sum(1)
        # The norms of Eq. 7 are of single numbers: absolute values.
        distance = (counted * difference.detach().abs().mean(2)).sum(1)
        if self.options.class_mean:
            classes = counted.sum(1)
            return loss / classes, distance / classes
        return loss, distance

    def _separately(
        self, alone: Sequence[Tensor | None], batch: Batch, delta: Tensor
    ) -> dict[str, Tensor]:
        """Each modality's own segmentation, of the samples where delta is 1, weighted by beta.

        The baseline's weights are 1 (Eq. 2).
        """
        total = batch.image.new_zeros(())
        for modality, logits in enumerate(alone):
            behind = batch.present[:, modality] & (delta[:, modality] > 0)
            if logits is None or not behind.any():
                continue
            label = resize_label(batch.label, logits.shape[2:])
            # Times the share of the samples: the mean over those behind is one over the batch.
            share = behind.float().mean()
            loss = self._loss(logits[behind], label[behind]) * share
            factor = 1.0 if self.baseline else self.weight[modality] * self.beta[modality]
            total = total + factor * loss
        return {"separate": total}

    def _remember(self, distance: Tensor, preference: Tensor) -> None:
        self.preference_sum += preference.sum(0)
        self.distance_sum += distance.sum(0)

    def _count(self, present: Tensor) -> None:
        """Count the samples that an epoch's mean is over, of each modality."""
        if self.options.several_only:
            present = present & (present.sum(1, keepdim=True) > 1)
        self.seen += present.sum(0)

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Update beta from the epoch's relative preference (Eq. 12, 13); returns both by name."""
        number = self.seen.clamp(min=1)
        preference = self.preference_sum / number
        if self.options.epoch_preference:
            mean_distance = self.distance_sum / number
            preference = relative_preference(mean_distance[None])[0]
        if self.gradient_wise and not self.baseline:
            self.beta = self._next_beta(preference, epoch)
        for buffer in (self.preference_sum, self.distance_sum, self.seen):
            buffer.zero_()
        figures = {}
        for modality, name in enumerate(self.names):
            figures[f"preference_{name}"] = float(preference[modality])
        for modality, name in enumerate(self.names):
            figures[f"beta_{name}"] = float(self.beta[modality])
        return figures

    def _next_beta(self, preference: Tensor, epoch: int) -> Tensor:
        if self.options.scheduled:
            return scheduled_beta(self.beta, preference, epoch, self.rate)
        return (self.beta - self.rate * preference).clamp(min=0)


def _scarcity(context: Context) -> list[float]:
    """1 / (1 - missing rate) of every modality: training cases for one case that shows it."""
    scarcity = []
    for name in context.task.modality_names:
        share = context.cases_with.get(name, 0) / context.cases if context.cases else 0.0
        scarcity.append(1 / share if share else 1.0)
    return scarcity


def fused_alone(teacher: Tensor, student: Tensor, students: Students) -> list[Tensor | None]:
    """Logits of the fused decoder from each modality alone, z^{m,0} of Eq. 1: M of [B, K, *S].

    Rows of samples that lack the modality are their teacher's, and must not be read. A sample with
    one modality is its own teacher, so its row is right, too.

    Args:
        teacher: [B, K, *S] logits.
        student: [R, K, *S] logits.
        students: whose they are.
    """
    predictions: list[Tensor | None] = []
    for modality in range(students.modalities):
        rows = students.modality == modality
        prediction = teacher.index_put((students.sample[rows],), student[rows])
        predictions.append(prediction)
    return predictions


def prototype_maps(feature: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Cosine of every voxel with the sample's own class means (Eq. 4-6): [B, K, *S]; and [B, K]
    bool, what it has.
    """
    means, has_class = class_means(feature, label, classes)
    return similarity_maps(feature, means), has_class


def relative_preference(distance: Tensor) -> Tensor:
    """RP_m = 1 - D_m / mean D over the modalities that have a distance (Eq. 9, 10).

    Args:
        distance: [B, M], zero where there is none.

    Returns:
        [B, M]: positive ahead, negative behind, 0 where there is no distance.
    """
    measured = distance > 0
    number = measured.sum(1, keepdim=True).clamp(min=1)
    mean = distance.sum(1, keepdim=True) / number
    preference = 1 - distance / mean.clamp(min=1e-12)
    return torch.where(measured, preference, torch.zeros_like(distance))


def task_mask(preference: Tensor, whole_batch: bool = False) -> Tensor:
    """delta = 1 where a modality lags behind (RP < 0, Eq. 11), [B, M] float; for the batch as a
    whole as released.
    """
    lag = preference
    if whole_batch:
        lag = preference.sum(0, keepdim=True).expand_as(preference)
    return (lag < 0).float()


def scheduled_beta(beta: Tensor, preference: Tensor, epoch: int, rate: float = 0.01) -> Tensor:
    """The released update of beta: growing steps, clipped to 0.1..4, norm kept at the root of the
    number (2 for 4).
    """
    step = rate * 1.5 ** (epoch // 100 + 1)
    beta = (beta - step * preference).clamp(0.1, 4.0)
    return beta * len(beta) ** 0.5 / beta.norm()
