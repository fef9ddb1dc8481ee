"""SMU-Net: a full and a missing path trained together; content and style of the missing one are
matched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.nn.functional import mse_loss

from medmap.training.batch import Batch
from medmap.training.objectives.adversary import Discriminator, deceive, tell_apart
from medmap.training.objectives.base import Context
from medmap.training.objectives.cotraining import CoTraining
from medmap.training.objectives.dedicated import tap_channels
from medmap.training.objectives.losses import matrix_product


class SMUNet(CoTraining):
    """Azad et al., "SMU-Net: Style Matching U-Net for Brain Tumor Segmentation with Missing
    Modalities", MIDL 2022.

    Both paths' Dice and consistency (``CoTraining``); the mean square between the bottlenecks
    (content); the mean square between the Gram matrices of the styles; and the missing path's style
    should pass for the full path's. The networks are ``SegResNet`` with ``style``.

    Args:
        full: options of the full path's network that differ from the student's.
        full_dice, student_dice, consistency, ramp_epochs: see ``CoTraining``.
        content, gram, style: weights of the three further terms.
        coupled: let content and Gram move the full path toward the student too, as released.
        released_gram: one matrix over batch and channels, divided once more by 4 C² (D H)², which
            makes the term vanish for patches of any size, instead of one a sample over its voxels.
        discriminator_width: channels of the first layer of the discriminator.
    """

    def __init__(
        self,
        context: Context,
        full: Mapping | None = None,
        full_dice: float = 0.4,
        student_dice: float = 0.6,
        consistency: float = 10.0,
        ramp_epochs: float = 20.0,
        content: float = 0.2,
        gram: float = 1e-4,
        style: float = 2e-4,
        coupled: bool = False,
        released_gram: bool = False,
        discriminator_width: int = 64,
    ):
        super().__init__(context, full, full_dice, student_dice, consistency, ramp_epochs)
        self.require_taps("bottleneck", "style")
        self.content = content
        self.gram = gram
        self.style = style
        self.coupled = coupled
        self.released_gram = released_gram
        widths = [discriminator_width * 2**n for n in range(3)]
        style_channels = tap_channels(self.student, "style")
        channels = (style_channels, *widths)
        dims = self.student.spatial_dims
        self.adversaries["style"] = Discriminator(dims, channels, 4, (2, 2, 2, 1))

    def steps(self, batch: Batch, progress: float) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """A step of ``main``, then one of ``disc``."""
        full, student = self.both(batch)
        losses = self.segmentation(full.logits.float(), student.logits.float(), batch, progress)
        full_content = full.taps["bottleneck"].float()
        full_style = full.taps["style"].float()
        student_content = student.taps["bottleneck"].float()
        student_style = student.taps["style"].float()
        if not self.coupled:
            full_content = full_content.detach()
            full_style = full_style.detach()
        critic = self.adversaries["style"]
        gram = gram_loss(student_style, full_style, self.released_gram)
        losses["content"] = self.content * mse_loss(student_content, full_content)
        losses["gram"] = self.gram * gram
        losses["style"] = self.style * deceive(critic, student_style)
        yield "main", losses
        self.adversaries.requires_grad_(True)
        yield "disc", {"style_disc": tell_apart(critic, full_style, student_style)}


def gram_loss(one: Tensor, other: Tensor, released: bool = False) -> Tensor:
    """Mean square between Gram matrices, how channels go together (Gatys et al., CVPR 2016);
    features [B, C, *S].
    """
    batch, channels, *space = one.shape
    if released:
        # The released code puts the batch among the channels, so samples are compared, too.
        rows = batch * channels
        first = _gram(one.reshape(rows, -1), one.numel())
        second = _gram(other.reshape(rows, -1), other.numel())
        # It counts the pixels of a slice, although its features are volumes.
        pixels = space[0] * space[1]
        scale = 4 * channels**2 * pixels**2
        return (first - second).square().sum() / scale
    voxels = one[0, 0].numel()
    first = _gram(one.flatten(2), voxels)
    second = _gram(other.flatten(2), voxels)
    return mse_loss(first, second)


def _gram(feature: Tensor, number: int) -> Tensor:
    """Products of the rows of a feature [..., C, N], divided by a number: [..., C, C]."""
    return matrix_product(feature, feature.mT) / number
