"""Dice + cross-entropy of the plain objective, against MONAI's, and what it says to a head without
a tumor.
"""

import pytest
import torch
from monai.losses import DiceCELoss

from medmap.errors import UsageError
from medmap.training.objectives.segmentation_loss import BatchDiceCE


@pytest.fixture
def pair():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 6, 5, 4, generator=draw), torch.randint(
        0, 4, (2, 1, 6, 5, 4), generator=draw
    )


@pytest.mark.parametrize("smooth", [1e-5, 30.0])
def test_equals_monais(pair, smooth):
    theirs = DiceCELoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=True,
        smooth_nr=smooth,
        smooth_dr=smooth,
    )
    torch.testing.assert_close(BatchDiceCE(smooth)(*pair), theirs(*pair))


def test_a_coarser_grid_takes_its_share_of_the_voxels(pair):
    torch.testing.assert_close(BatchDiceCE(80.0)(*pair, 1 / 8), BatchDiceCE(10.0)(*pair))


def test_a_false_tumor_is_felt_only_with_enough_smooth():
    """50 voxels of a class that is not there, nearly certain: the Dice term's part of the
    gradient.
    """
    label = torch.zeros(1, 1, 100, 10, dtype=torch.long)

    def pull(smooth):
        logits = torch.zeros(1, 2, 100, 10)
        logits[:, 0, 5:] = 20.0
        logits[:, 1, :5] = 2.0
        logits.requires_grad_()
        (gradient,) = torch.autograd.grad(BatchDiceCE(smooth)(logits, label), logits)
        return gradient[:, 1].sum().item()

    entropy = pull(1e12)  # so much that Dice is constant
    assert pull(1e-5) == pytest.approx(entropy, rel=1e-3)
    assert pull(50.0) > 1.5 * entropy


@pytest.mark.parametrize("smooth", [0.0, -1.0, float("nan")])
def test_a_smooth_that_divides_by_nothing_is_refused(smooth):
    with pytest.raises(UsageError, match="smooth is"):
        BatchDiceCE(smooth)
