"""Segmentation under whatever modalities a sample shows: Dice + cross-entropy with deep
supervision.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import interpolate

from medmap.networks import Backbone
from medmap.training.batch import Batch
from medmap.training.objectives.base import Context, Objective
from medmap.training.objectives.region_loss import RegionDiceCE
from medmap.training.objectives.segmentation_loss import BatchDiceCE


class Plain(Objective):
    """DiceCE on the output, and on each auxiliary output with half the weight of the finer one
    (nnU-Net's scheme).

    Dice is taken over the whole batch and without the background, so that a patch without a class
    is no special case.

    Args:
        context: what objectives are built from.
        smooth: voxels of the finest output, as ``BatchDiceCE`` takes them.
        regions: take Dice over the task's regions instead of its classes (``RegionDiceCE``).
        within: with ``regions``, weight of the cross-entropy within the target.
    """

    def __init__(
        self, context: Context, smooth: float = 1e-5, regions: bool = False, within: float = 0.0
    ):
        super().__init__()
        self.backbone = context.backbone
        self.backbone.skip = frozenset({"separate"})
        self.loss: RegionDiceCE | BatchDiceCE
        if regions:
            task = context.task
            classes = [task.region_classes(region.name) for region in task.regions]
            self.loss = RegionDiceCE(classes, smooth, within)
        else:
            self.loss = BatchDiceCE(smooth)

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One step of the group ``main``."""
        output = self.backbone(batch.image, batch.present, known=batch.modalities)
        label = batch.label[:, None]
        segmentation = self.loss(output.logits.float(), label)
        losses = {"segmentation": segmentation}
        for level, logits in enumerate(output.aux.get("deep", []), 1):
            target = interpolate(label.float(), size=logits.shape[2:], mode="nearest")
            # ``smooth`` counts voxels: on a coarser grid the same volume has fewer.
            share = target[0].numel() / label[0].numel()
            loss = self.loss(logits.float(), target, share)
            # Halved from level to level, as in nnU-Net (Isensee et al., Nature Methods 2021).
            losses[f"deep{level}"] = loss * 0.5**level
        yield "main", losses

    def deploy(self) -> Backbone:
        """The backbone itself."""
        return self.backbone
