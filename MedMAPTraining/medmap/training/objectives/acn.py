"""ACN: a full and a missing path trained together, with entropy and knowledge adversaries and
knowledge transfer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from medmap.networks.blocks import CONV
from medmap.training.batch import Batch
from medmap.training.objectives.adversary import Discriminator, deceive, tell_apart
from medmap.training.objectives.base import Context
from medmap.training.objectives.cotraining import CoTraining
from medmap.training.objectives.dedicated import tap_channels

LEAST_VARIANCE = 1e-5


class ACN(CoTraining):
    """Wang et al., "ACN: Adversarial Co-training Network for Brain Tumor Segmentation with Missing
    Modalities", MICCAI 2021. Both paths' Dice and consistency (``CoTraining``), and

    - EnA: the student's map of entropy should pass for the full path's;
    - KnA: so should its bottleneck;
    - MMI: the mutual information between the bottlenecks, bounded from below with a Gaussian whose
      mean is read off the student's (``InformationHead``).

    The released code compares the student with itself in MMI: its value does not depend on the full
    path at all. Here the target is the full path's bottleneck, as the paper has it.

    Args:
        full: options of the full path's network that differ from the student's.
        full_dice, student_dice, consistency, ramp_epochs: see ``CoTraining``.
        entropy, knowledge, information: weights of EnA, KnA, MMI.
        coupled: let MMI move the full path toward the student too; otherwise it moves the student
            and the head only.
        entropy_of: ``softmax``, or ``sigmoids``, the released softmax over outputs that went
            through a sigmoid before.
        discriminator_width: channels of the first layer of the entropy discriminator.
    """

    def __init__(
        self,
        context: Context,
        full: Mapping | None = None,
        full_dice: float = 0.2,
        student_dice: float = 0.8,
        consistency: float = 10.0,
        ramp_epochs: float = 20.0,
        entropy: float = 1e-3,
        knowledge: float = 2e-4,
        information: float = 0.5,
        coupled: bool = False,
        entropy_of: str = "softmax",
        discriminator_width: int = 64,
    ):
        super().__init__(context, full, full_dice, student_dice, consistency, ramp_epochs)
        self.require_taps("bottleneck")
        self.entropy = entropy
        self.knowledge = knowledge
        self.information = information
        self.coupled = coupled
        self.sigmoids = entropy_of == "sigmoids"
        dims = self.student.spatial_dims
        channels = tap_channels(self.student, "bottleneck")
        widths = [discriminator_width * 2**n for n in range(4)]
        entropy_widths = (self.student.classes, *widths)
        knowledge_widths = (channels, 2 * channels, 4 * channels)
        self.adversaries["entropy"] = Discriminator(dims, entropy_widths, 4, (2,) * 5)
        self.adversaries["knowledge"] = Discriminator(dims, knowledge_widths, 3, (1, 1, 2))
        self.information_head = InformationHead(dims, channels)

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """A step of ``main``, then one of ``disc``."""
        full, student = self.both(batch)
        full_logits = full.logits.float()
        student_logits = student.logits.float()
        losses = self.segmentation(full_logits, student_logits, batch, progress)
        full_code = full.taps["bottleneck"].float()
        student_code = student.taps["bottleneck"].float()
        full_entropy = self._entropy_map(full_logits)
        student_entropy = self._entropy_map(student_logits)
        entropy_critic = self.adversaries["entropy"]
        knowledge_critic = self.adversaries["knowledge"]
        target = full_code
        if not self.coupled:
            target = full_code.detach()
        information = self.information_head(student_code, target)
        losses["information"] = self.information * information
        losses["entropy"] = self.entropy * deceive(entropy_critic, student_entropy)
        losses["knowledge"] = self.knowledge * deceive(knowledge_critic, student_code)
        yield "main", losses
        self.adversaries.requires_grad_(True)
        critics = {
            "entropy_disc": tell_apart(entropy_critic, full_entropy, student_entropy),
            "knowledge_disc": tell_apart(knowledge_critic, full_code, student_code),
        }
        yield "disc", critics

    def _entropy_map(self, logits: Tensor) -> Tensor:
        """[B, C, *S] -p log p / log C of every class: the parts of an entropy between 0 and 1."""
        values = logits
        if self.sigmoids:
            # The released code takes a softmax of what a sigmoid has squeezed into 0..1 already.
            values = logits.sigmoid()
        probability = values.softmax(1)
        largest_entropy = math.log(logits.shape[1])
        return torch.special.entr(probability) / largest_entropy


class InformationHead(nn.Module):
    """Variational information distillation (Ahn et al., CVPR 2019): -log q(full | missing), a
    Gaussian q.

    Its mean is three 1-wide convolutions without bias and with ReLU between them; its variance is
    one a channel, softplus(rho) + 1e-5, 5 at the start.
    """

    def __init__(self, dims: int, channels: int):
        super().__init__()
        layers = [CONV[dims](channels, channels, 1, bias=False) for _ in range(3)]
        self.mean = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        # softplus(rho) = 5 - LEAST_VARIANCE, solved for rho.
        rho = math.log(math.expm1(5.0 - LEAST_VARIANCE))
        self.rho = nn.Parameter(torch.full((channels,), rho))

    def forward(self, missing: Tensor, full: Tensor) -> Tensor:
        """Mean of ((mean - full)² / variance + ln variance) / 2; both [B, C, *S]."""
        per_channel = softplus(self.rho) + LEAST_VARIANCE
        spatial_ones = (1,) * (missing.ndim - 2)
        variance = per_channel.reshape(-1, *spatial_ones)
        error = self.mean(missing) - full
        distance = error.square()
        # A normal distribution's -log p, up to its constant.
        negative_log_likelihood = distance / variance + variance.log()
        return 0.5 * negative_log_likelihood.mean()
