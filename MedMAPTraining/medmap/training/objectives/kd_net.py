"""KD-Net: a teacher's softened output and its bottleneck, for a student of few modalities."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import cross_entropy

from medmap.errors import BundleError
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context
from medmap.training.objectives.dedicated import Distilling
from medmap.training.objectives.losses import dice_loss, one_hot_classes, soft_kl


class KDNet(Distilling):
    """L = share L_KD + (1 - share) L_GT + bottleneck L_KL (Hu et al., "Knowledge Distillation from
    Multi-modal to Mono-modal Segmentation Networks", MICCAI 2020).

    L_GT is Dice + cross-entropy against the reference, L_KD the same against the teacher's softened
    output, L_KL KL(softmax(teacher) || softmax(student)) over the channels of the bottleneck. No
    code was released; the weights are as remembered, not checked against the paper's text, and its
    binary cross-entropy is a multi-class one here.

    L_KL is summed over channels and averaged over voxels and samples, so that its weight means the
    same for every patch. The softmax over channels discards the features' scale: do not carry the
    weight over between networks.

    Args:
        share: of the teacher against the reference (lambda).
        temperature: that softens both outputs.
        bottleneck: weight of L_KL (K).
    """

    def __init__(
        self,
        context: Context,
        share: float = 0.75,
        temperature: float = 5.0,
        bottleneck: float = 10.0,
    ):
        super().__init__(context, ("bottleneck",))
        self.share = share
        self.temperature = temperature
        self.bottleneck = bottleneck

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        student, teacher = self.both(batch)
        latent = student.taps["bottleneck"].float()
        goal = teacher.taps["bottleneck"].float()
        if latent.shape != goal.shape:
            shapes = f"{tuple(goal.shape[1:])} and {tuple(latent.shape[1:])}"
            raise BundleError(
                f"The bottlenecks of teacher and student differ: {shapes}.",
                "KD-Net needs a student like its teacher in all but the input.",
            )
        logits = student.logits.float()
        teacher_logits = teacher.logits.float()
        reference = self._against_reference(logits, batch.label)
        distilled = self._against_teacher(logits, teacher_logits)
        losses = {
            "segmentation": (1 - self.share) * reference,
            "distillation": self.share * distilled,
            "bottleneck": self.bottleneck * soft_kl(latent, goal),
        }
        yield "main", losses

    def _against_reference(self, logits: Tensor, label: Tensor) -> Tensor:
        """L_GT: Dice and cross-entropy of the reference segmentation."""
        target = one_hot_classes(label, logits.shape[1])
        dice = dice_loss(logits.softmax(1), target, squared=True)
        return dice + cross_entropy(logits, label)

    def _against_teacher(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """L_KD: the same of the teacher's softened output."""
        softened = (logits / self.temperature).softmax(1)
        soft_target = (teacher_logits / self.temperature).softmax(1)
        dice = dice_loss(softened, soft_target, squared=True)
        divergence = soft_kl(logits, teacher_logits, self.temperature, entropy=True)
        return dice + divergence
