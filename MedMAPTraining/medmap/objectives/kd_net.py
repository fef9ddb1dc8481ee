"""KD-Net: a teacher's softened output and its bottleneck, for a student of few modalities."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from medmap.dataset import Batch
from medmap.errors import BundleError
from medmap.objectives.base import Context
from medmap.objectives.dedicated import Distilling
from medmap.objectives.dedicated_losses import dice_losses, encode_label, soft_cross_entropy, soft_divergence


class KDNet(Distilling):
    """L = share L_KD + (1 - share) L_GT + bottleneck L_KL (Hu et al., "Knowledge Distillation from Multi-modal to
    Mono-modal Segmentation Networks", MICCAI 2020).

    L_GT is Dice + cross-entropy against the reference, L_KD the same against the teacher's softened output, L_KL
    KL(softmax(teacher) || softmax(student)) over the channels of the bottleneck. No code was released; the weights are
    as remembered, not checked against the paper's text, and its binary cross-entropy is a multi-class one here.

    L_KL is summed over channels and averaged over voxels and samples, so that its weight means the same for every
    patch. The softmax over channels discards the features' scale: do not carry the weight over between networks.

    Args:
        share: of the teacher against the reference (lambda).
        temperature: that softens both outputs.
        bottleneck: weight of L_KL (K).
    """

    def __init__(self, context: Context, share: float = 0.75, temperature: float = 5.0, bottleneck: float = 10.0):
        super().__init__(context, ("bottleneck",))
        self.share, self.temperature, self.bottleneck = share, temperature, bottleneck

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        student, teacher = self.both(batch)
        logits, taught = student.logits.float(), teacher.logits.float()
        target = encode_label(batch.label, logits.shape[1])
        reference = dice_losses(logits.softmax(1), target).mean() - (target * logits.log_softmax(1)).sum(1).mean()
        softened, soft_target = (logits / self.temperature).softmax(1), (taught / self.temperature).softmax(1)
        distilled = dice_losses(softened, soft_target).mean()
        distilled = distilled + soft_cross_entropy(logits, taught, self.temperature).mean()
        latent, goal = student.taps["bottleneck"].float(), teacher.taps["bottleneck"].float()
        if latent.shape != goal.shape:
            shapes = f"{tuple(goal.shape[1:])} and {tuple(latent.shape[1:])}"
            raise BundleError(
                f"The bottlenecks of teacher and student differ: {shapes}.",
                "KD-Net needs a student like its teacher in all but the input.",
            )
        yield (
            "main",
            {
                "segmentation": (1 - self.share) * reference,
                "distillation": self.share * distilled,
                "bottleneck": self.bottleneck * soft_divergence(latent, goal).mean(),
            },
        )
