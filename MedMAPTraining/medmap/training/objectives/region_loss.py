"""Dice of a task's regions, cross-entropy over all voxels, and of the classes within the target."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medmap.errors import UsageError
from medmap.training.distributed import sum_over_processes


class RegionDiceCE(nn.Module):
    """Soft Dice of nested regions over batch and space, plus cross-entropy over all voxels, plus
    cross-entropy of the classes within the target.

    Results are reported for regions (BraTS: WT, TC, ET), and a region can be certain where its
    classes are not: a tumor core seen without T1ce is a core, whether it enhances or not. Dice per
    class is smallest there if every core voxel is called edema; Dice per region is not (Isensee et
    al., nnU-Net for Brain Tumor Segmentation, BraTS 2020, arXiv 2011.00848, section 3.1). The mean
    cross-entropy over the target's voxels keeps the probabilities of its classes calibrated: its
    gradient does not vanish where a class has been given up.

    Args:
        regions: class indices of each region, without the background 0.
        smooth: voxels added to both sides of the quotient, as for ``BatchDiceCE``.
        within: weight of the cross-entropy within the target.

    Raises:
        UsageError: ``smooth`` is not positive, or ``within`` is negative.
    """

    def __init__(self, regions: Sequence[Sequence[int]], smooth: float = 1e-5, within: float = 0.0):
        super().__init__()
        if not smooth > 0 or not within >= 0:
            raise UsageError(
                f"smooth is {smooth} and within is {within}.",
                "Give a number of voxels above 0, and a weight from 0 on.",
            )
        self.regions = [tuple(classes) for classes in regions]
        self.smooth = smooth
        self.within = within

    def forward(self, logits: Tensor, label: Tensor, share: float = 1.0) -> Tensor:
        """The loss.

        Args:
            logits: [B, C, *S] float32.
            label: [B, 1, *S] class indices, of any type.
            share: of the voxels that ``smooth`` counts, for a coarser grid of the same extent.
        """
        loss = self._dice(logits, label, self.smooth * share)
        loss = loss + cross_entropy(logits, label[:, 0].long())
        if self.within:
            loss = loss + self.within * cross_entropy_within_target(logits, label)
        return loss

    def _dice(self, logits: Tensor, label: Tensor, smooth: float) -> Tensor:
        """Mean over the regions of 1 - Dice; the sums go over all processes (``BatchDiceCE``)."""
        probability = logits.softmax(1)
        losses = logits.new_zeros(())
        for classes in self.regions:
            predicted = logits.new_zeros(())
            reference = logits.new_zeros(())
            # A region is a union of classes, which exclude each other: sums are enough.
            for index in classes:
                predicted = predicted + probability[:, index]
                reference = reference + (label[:, 0] == index)
            common = (predicted * reference).sum()
            voxels = predicted.sum() + reference.sum()
            overlap = sum_over_processes(common)
            size = sum_over_processes(voxels)
            losses = losses + 1 - (2 * overlap + smooth) / (size + smooth)
        return losses / len(self.regions)


def cross_entropy_within_target(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over the target's voxels of -log p(class | target); 0 where there is no target.

    Args:
        logits: [B, C, *S].
        label: [B, 1, *S] class indices; the target is every voxel above 0.
    """
    in_target = label[:, 0] > 0
    voxels = in_target.flatten().nonzero()[:, 0]
    if not len(voxels):
        # Part of the graph, so that every process has a gradient to average.
        return logits.sum() * 0.0
    # Without the background: the classes compete among themselves.
    target_logits = logits[:, 1:]
    voxel_logits = target_logits.movedim(1, -1).flatten(0, -2)
    class_logits = voxel_logits[voxels]
    classes = label.flatten()[voxels].long() - 1
    return cross_entropy(class_logits, classes)
