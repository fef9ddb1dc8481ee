"""Dice + cross-entropy whose Dice is taken over the whole batch, wherever its samples are."""

from __future__ import annotations

from torch import Tensor, arange, nn
from torch.nn.functional import cross_entropy

from medmap.errors import UsageError
from medmap.training.distributed import sum_over_processes


class BatchDiceCE(nn.Module):
    """Soft Dice over batch and space, mean over the classes without the background, plus
    cross-entropy over all.

    The same numbers as MONAI's ``DiceCELoss(include_background=False, softmax=True, batch=True)``.
    A Dice over the batch is no mean over samples: several processes that each took theirs would
    train on another loss than one process with all samples. So the sums go over all processes
    before the quotient is taken.

    Args:
        smooth: voxels added to both sides of the quotient. MONAI's 1e-5 leaves a class that the
            batch lacks without any gradient but cross-entropy's, which is a mean over all voxels
            and hardly sees a false tumor of 10 ml; with S falsely found voxels the Dice term pulls
            by smooth S / (S + smooth)^2, most where S is ``smooth``.
    """

    def __init__(self, smooth: float = 1e-5):
        super().__init__()
        if not smooth > 0:
            raise UsageError(f"smooth is {smooth}.", "Give a number of voxels above 0.")
        self.smooth = smooth

    def forward(self, logits: Tensor, label: Tensor, share: float = 1.0) -> Tensor:
        """The loss.

        Args:
            logits: [B, C, *S] float32.
            label: [B, 1, *S] class indices, of any type.
            share: of the voxels that ``smooth`` counts, for a coarser grid of the same place.
        """
        classes = logits.shape[1]
        probability = logits.softmax(1)[:, 1:]
        tumor_classes = arange(1, classes, device=label.device)
        tumor_classes = tumor_classes.view(1, -1, *[1] * (logits.ndim - 2))
        target = (label == tumor_classes).to(probability.dtype)
        # Over the whole batch of all processes: a patch without a class has no Dice of its own.
        axes = [0, *range(2, logits.ndim)]
        common = (probability * target).sum(axes)
        voxels = probability.sum(axes) + target.sum(axes)
        overlap = sum_over_processes(common)
        size = sum_over_processes(voxels)
        smooth = self.smooth * share
        dice = 1 - (2 * overlap + smooth) / (size + smooth)
        entropy = cross_entropy(logits, label[:, 0].long())
        return dice.mean() + entropy
