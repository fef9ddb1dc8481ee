"""MCKD: modalities teach each other, the more important ones more; how important they are is
meta-learned.

Wang, Hassan, Liu, Ma, Chen, Xie, Salem, Tian, Avery, Hull, Reid, Yaqub, Carneiro: "Meta-Learned
Modality-Weighted Knowledge Distillation for Robust Multi-Modal Learning with Missing Data", arXiv
2405.07155.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from medmap.errors import UsageError
from medmap.networks import Backbone
from medmap.networks.base import Features
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Group, Objective
from medmap.training.objectives.losses import cross_entropy_and_dice
from medmap.training.objectives.self_distillation import encode_batch


class ModalityDistillation(Objective):
    """L = L_task + alpha * sum over ordered pairs of present modalities of r_ij * mean |f_i - f_j|
    (Eq. 4, 5).

    f is the tap ``mod_bottleneck``; i teaches j: no gradient reaches f_i. r_ij = softmax(w)_i /
    softmax(w)_j = exp(w_i - w_j) (Eq. 6), so r_ij * r_ji = 1; it is kept within 1 / ``limit`` ..
    ``limit``, which the paper does not do (the ratio is unbounded). The average is over samples,
    each with its own modalities; the released code gives a whole batch one set.

    Every ``meta_every`` steps, w learns on ``meta_batches`` batches of held-out cases: the
    modalities' bottlenecks are multiplied by M * softmax(w) (mean 1; the published softmax alone
    makes features a quarter of their size, which only the meta pass sees: ``rescale=False``), and
    one optimizer step on w follows on the task loss of each. The network does not change, nor is
    the gradient led through its training: the published "bi-level" loop alternates. Held-out cases
    show every modality that they have. One that they lack is filled with the mean of the weighted
    features, where Eq. 4 weights the mean.

    Absent features are filled with the mean of the present ones where the network does so
    (``MCKD``; ``GatedUNet`` with ``fill="mean"``); fusions without a fill leave them out.

    Per epoch are logged ``importance_<modality>``, the normalized w, and of the epoch's held-out
    batches ``generated_l1_<modality>`` and ``generated_cosine_<modality>``: distance and similarity
    of what Eq. 2 would put in that modality's place to its own bottleneck (Fig. 5). After a resumed
    run's break the first epoch counts only what came behind it.

    Args:
        context: with held-out batches, unless alpha is 0.
        alpha: weight of the distillation; 0 is the comparison without it (no meta step either).
        limit: largest ratio of importance.
        meta_every: steps between meta passes; the paper has 100.
        meta_batches: optimizer steps on w of a meta pass; 20 as released.
        meta_rate, meta_decay: of w; Adam 1e-2 and 5e-5 (the released code: 5e-4).
        released_schedule: the first ``all_share`` of the training, every 100 steps, then every 500,
            as the released code does it in two stages (80 000 of 115 000 steps on all modalities:
            give the recipe the missingness ``staged``); instead of ``meta_every``.
        all_share: share of the training that is the first stage.
        rescale: see above; for the softmax only.
        normalization: of w: ``softmax``, or ``relu`` or ``sigmoid`` of Table 3.
        norm: p of Eq. 5: 1, or 2 for the mean square ("MSE") of Fig. 3a.
        class_weighted: see ``medmap.training.objectives.losses.cross_entropy_and_dice``.

    Raises:
        UsageError: no held-out cases, or the network has no ``mod_bottleneck`` of every modality.
    """

    l1_sum: Tensor
    cosine_sum: Tensor
    compared: Tensor

    def __init__(
        self,
        context: Context,
        alpha: float = 0.1,
        limit: float = 10.0,
        meta_every: int = 100,
        meta_batches: int = 20,
        meta_rate: float = 1e-2,
        meta_decay: float = 5e-5,
        released_schedule: bool = False,
        all_share: float = 80 / 115,
        rescale: bool = True,
        normalization: str = "softmax",
        norm: int = 1,
        class_weighted: bool = True,
    ):
        super().__init__()
        if normalization not in NORMALIZATIONS or norm not in (1, 2):
            raise UsageError(
                f"MCKD knows no normalization '{normalization}' with p = {norm}.",
                f"Use {', '.join(NORMALIZATIONS)}, and p = 1 or 2.",
            )
        self.backbone = context.backbone
        self.held_out = context.held_out
        self.total = context.steps
        self.alpha = alpha
        self.limit = limit
        self.rescale = rescale
        self.normalization = normalization
        self.norm = norm
        self.class_weighted = class_weighted
        self.meta_every = meta_every
        self.meta_batches = meta_batches
        self.meta_rate = meta_rate
        self.meta_decay = meta_decay
        self.second = meta_every
        self.all_share = 1.0
        if released_schedule:
            self.second = 500
            self.all_share = all_share
        self.names = context.task.modality_names
        if "mod_bottleneck" not in self.backbone.provides:
            raise UsageError(
                f"{type(self.backbone).__name__} has no bottleneck of every modality "
                "to distil between.",
                "Use MCKD, GatedUNet or another network with the tap 'mod_bottleneck'.",
            )
        if alpha and self.held_out is None and context.cases:
            raise UsageError(
                "MCKD learns its weights on cases kept out of training, and there are none.",
                "Give the recipe 'held_out_cases': names, or how many (the paper has 5).",
            )
        self.importance = nn.Parameter(torch.rand(len(self.names)))
        for name in ("l1_sum", "cosine_sum", "compared"):
            self.register_buffer(name, torch.zeros(len(self.names)), persistent=False)
        self.backbone.skip = frozenset({"separate"})

    def groups(self) -> dict[str, Group]:
        """``main``: the network; ``meta``: w."""
        meta = Group(
            [self.importance],
            optimizer="adam",
            optimizer_options={},
            learning_rate=self.meta_rate,
            weight_decay=self.meta_decay,
            schedule="constant",
        )
        return {"main": Group(list(self.backbone.parameters())), "meta": meta}

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of ``main``; now and then, several of ``meta``."""
        features = encode_batch(self.backbone, batch)
        output = self.backbone.decode(features, batch.present)
        segmentation = self.task_loss(output.logits, batch.label)
        losses = {"segmentation": segmentation}
        if self.alpha:
            maps: list[Tensor | None] = []
            for levels in features:
                if levels is None:
                    maps.append(None)
                else:
                    maps.append(self.backbone.latent(levels, "mod_bottleneck"))
            ratio = importance_ratio(self.importance.detach(), self.limit, self.normalization)
            distillation = pairwise_distillation(maps, batch.present, ratio, self.norm)
            losses["distillation"] = self.alpha * distillation
        yield "main", losses
        if not self.alpha or self.held_out is None:
            return
        step = round(progress * self.total)
        every = self.second
        if progress < self.all_share:
            every = self.meta_every
        if (step + 1) % every != 0:
            return
        for n in range(self.meta_batches):
            held_out = self.held_out(step * self.meta_batches + n)
            meta_loss = self.meta_loss(held_out.to(batch.image.device))
            yield "meta", {"meta": meta_loss}

    def task_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """What the network is for: cross-entropy and Dice; another kind of task overrides it."""
        return cross_entropy_and_dice(logits, label, class_weighted=self.class_weighted)

    def meta_loss(self, batch: Batch) -> Tensor:
        """Task loss of a held-out batch with weighted bottlenecks; a function of w, for a network
        that stays.
        """
        with torch.no_grad():
            features = encode_batch(self.backbone, batch)
            self._compare_generated(features, batch.present)
        weight = NORMALIZATIONS[self.normalization](self.importance)
        if self.rescale and self.normalization == "softmax":
            weight = weight * len(self.names)
        weighted: list[Features | None] = []
        for modality, levels in enumerate(features):
            if levels is None:
                weighted.append(None)
            else:
                weighted.append(self._weighted(levels, weight[modality]))
        output = self.backbone.decode(weighted, batch.present)
        return self.task_loss(output.logits, batch.label)

    def _weighted(self, features: Features, weight: Tensor) -> Features:
        bottleneck = self.backbone.latent(features, "mod_bottleneck")
        weighted = []
        for level in features:
            if level is bottleneck:
                level = level * weight.to(level.dtype)
            weighted.append(level)
        return weighted

    def _compare_generated(self, features: list[Features | None], present: Tensor) -> None:
        """Add up how near the mean of the others comes to each modality's own bottleneck."""
        for modality, levels in enumerate(features):
            if levels is None:
                continue
            actual = self.backbone.latent(levels, "mod_bottleneck").float().flatten(1)
            generated, number = self._mean_of_others(features, present, modality, actual)
            # Only samples that have the modality and at least one other can be compared.
            is_comparable = present[:, modality] & (number > 0)
            counted = is_comparable.float()
            distance = (generated - actual).abs().mean(1)
            similarity = torch.cosine_similarity(generated, actual)
            self.l1_sum[modality] += (counted * distance).sum()
            self.cosine_sum[modality] += (counted * similarity).sum()
            self.compared[modality] += counted.sum()

    def _mean_of_others(
        self, features: list[Features | None], present: Tensor, modality: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[B, F] mean bottleneck of the other modalities, and [B] how many a sample has of them."""
        total = torch.zeros_like(like)
        number = torch.zeros(len(like), device=like.device)
        for other, levels in enumerate(features):
            if other == modality or levels is None:
                continue
            latent = self.backbone.latent(levels, "mod_bottleneck").float().flatten(1)
            is_present = present[:, other, None]
            total += torch.where(is_present, latent, torch.zeros_like(latent))
            number += present[:, other]
        return total / number.clamp(min=1)[:, None], number

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """Importance and generated features of every modality by name."""
        normalize = NORMALIZATIONS[self.normalization]
        shares = normalize(self.importance.detach()).tolist()
        figures = {}
        for name, share in zip(self.names, shares, strict=True):
            figures[f"importance_{name}"] = share
        for modality, name in enumerate(self.names):
            number = float(self.compared[modality])
            if number:
                l1_sum = float(self.l1_sum[modality])
                cosine_sum = float(self.cosine_sum[modality])
                figures[f"generated_l1_{name}"] = l1_sum / number
                figures[f"generated_cosine_{name}"] = cosine_sum / number
        for buffer in (self.l1_sum, self.cosine_sum, self.compared):
            buffer.zero_()
        return figures

    def deploy(self) -> Backbone:
        """The backbone: w serves training only."""
        return self.backbone


NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda w: w.softmax(0),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}
"""Of the importance weights: Eq. 6, and the two that Table 3 compares with it."""


def importance_ratio(w: Tensor, limit: float = 10.0, normalization: str = "softmax") -> Tensor:
    """r_ij = n(w)_i / n(w)_j, within 1 / limit .. limit; [M] -> [M, M]."""
    if normalization == "softmax":
        # softmax(w)_i / softmax(w)_j = exp(w_i - w_j), without the two small quotients.
        ratio = (w[:, None] - w[None]).exp()
    else:
        # ReLU can make a weight zero, and with it the quotient infinite or 0 / 0.
        normalized = NORMALIZATIONS[normalization](w).clamp(min=1e-6)
        ratio = normalized[:, None] / normalized[None]
    return ratio.clamp(1 / limit, limit)


def pairwise_distillation(
    maps: Sequence[Tensor | None], present: Tensor, ratio: Tensor, norm: int = 1
) -> Tensor:
    """Mean over samples of sum_{i != j present} r_ij * mean |sg(f_i) - f_j|^p.

    Args:
        maps: one [B, F, *s] a modality, None where no sample has it.
        present: [B, M] bool.
        ratio: [M, M], of teacher i and student j.
        norm: p, 1 or 2.
    """
    total = ratio.new_zeros(())
    for i, teacher in enumerate(maps):
        for j, student in enumerate(maps):
            if i == j or teacher is None or student is None:
                continue
            # Detached: a strong modality must not move toward a weak one.
            difference = teacher.detach().float() - student.float()
            powers = difference.abs().pow(norm)
            distance = powers.flatten(1).mean(1)
            has_both = present[:, i] & present[:, j]
            counted = torch.where(has_both, distance, torch.zeros_like(distance))
            total = total + ratio[i, j] * counted.mean()
    return total
