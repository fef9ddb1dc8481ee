"""MCKD: modalities teach each other, the more important ones more; how important they are is
meta-learned.

Wang, Hassan, Liu, Ma, Chen, Xie, Salem, Tian, Avery, Hull, Reid, Yaqub, Carneiro: "Meta-Learned
Modality-Weighted Knowledge Distillation for Robust Multi-Modal Learning with Missing Data", arXiv
2405.07155.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    """L = L_task + alpha * sum over ordered pairs of present modalities of r_ij * mean |f_i - f_j|.

    f is the tap ``mod_bottleneck``; i teaches j: no gradient reaches f_i. r_ij = softmax(w)_i /
    softmax(w)_j = exp(w_i - w_j), so r_ij * r_ji = 1; it is kept within 1 / ``limit`` .. ``limit``,
    which the paper does not do (the ratio is unbounded). The average is over samples, each with its
    own modalities; the released code gives a whole batch one set.

    Every ``meta_every`` steps, w learns on ``meta_batches`` batches of held-out cases: the
    modalities' bottlenecks are multiplied by M * softmax(w) (mean 1; the published softmax alone
    makes features a quarter of their size, which only the meta pass sees: ``rescale=False``), and
    one optimizer step on w follows on the task loss of each. The network does not change, nor is
    the gradient led through its training: the published "bi-level" loop alternates.

    Absent features are filled with the mean of the present ones where the network does so
    (``MCKD``; ``GatedUNet`` with ``fill="mean"``); fusions without a fill leave them out.

    Per epoch are logged ``importance_<modality>`` = softmax(w).

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
        rescale: see above.

    Raises:
        UsageError: no held-out cases, or the network has no ``mod_bottleneck`` of every modality.
    """

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
    ):
        super().__init__()
        self.backbone = context.backbone
        self.held_out = context.held_out
        self.total = context.steps
        self.alpha = alpha
        self.limit = limit
        self.rescale = rescale
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
        losses = {"segmentation": self.task_loss(output.logits, batch.label)}
        if self.alpha:
            maps: list[Tensor | None] = []
            for levels in features:
                if levels is None:
                    maps.append(None)
                else:
                    maps.append(self.backbone.latent(levels, "mod_bottleneck"))
            ratio = importance_ratio(self.importance.detach(), self.limit)
            distillation = pairwise_distillation(maps, batch.present, ratio)
            losses["distillation"] = self.alpha * distillation
        yield "main", losses
        if not self.alpha or self.held_out is None:
            return
        step = round(progress * self.total)
        every = self.meta_every if progress < self.all_share else self.second
        if (step + 1) % every == 0:
            for n in range(self.meta_batches):
                held_out = self.held_out(step * self.meta_batches + n)
                yield "meta", {"meta": self.meta_loss(held_out.to(batch.image.device))}

    def task_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """What the network is for: cross-entropy and Dice; another kind of task overrides it."""
        return cross_entropy_and_dice(logits, label)

    def meta_loss(self, batch: Batch) -> Tensor:
        """Task loss of a held-out batch with weighted bottlenecks; a function of w, for a network
        that stays.
        """
        with torch.no_grad():
            features = encode_batch(self.backbone, batch)
        scale = len(self.names) if self.rescale else 1
        weight = self.importance.softmax(0) * scale
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

    def epoch_end(self, epoch: int) -> dict[str, float]:
        """The importance of every modality by name."""
        shares = self.importance.detach().softmax(0).tolist()
        pairs = zip(self.names, shares, strict=True)
        return {f"importance_{name}": share for name, share in pairs}

    def deploy(self) -> Backbone:
        """The backbone: w serves training only."""
        return self.backbone


def importance_ratio(w: Tensor, limit: float = 10.0) -> Tensor:
    """r_ij = softmax(w)_i / softmax(w)_j, within 1 / limit .. limit; [M] -> [M, M]."""
    # softmax(w)_i / softmax(w)_j = exp(w_i - w_j), without the two small quotients.
    ratio = (w[:, None] - w[None]).exp()
    return ratio.clamp(1 / limit, limit)


def pairwise_distillation(maps: Sequence[Tensor | None], present: Tensor, ratio: Tensor) -> Tensor:
    """Mean over samples of sum_{i != j present} r_ij * mean |sg(f_i) - f_j|.

    Args:
        maps: one [B, F, *s] a modality, None where no sample has it.
        present: [B, M] bool.
        ratio: [M, M], of teacher i and student j.
    """
    total = ratio.new_zeros(())
    for i, teacher in enumerate(maps):
        for j, student in enumerate(maps):
            if i == j or teacher is None or student is None:
                continue
            difference = teacher.detach().float() - student.float()
            distance = difference.abs().flatten(1).mean(1)
            has_both = present[:, i] & present[:, j]
            counted = torch.where(has_both, distance, torch.zeros_like(distance))
            total = total + ratio[i, j] * counted.mean()
    return total
