"""PMR: prototypes of an epoch, who lags behind is drawn to them, who leads is held back at
first.
"""

from __future__ import annotations

import pytest
import torch

from medmap.task import BRATS
from medmap.training.objectives import Context, build_objective
from medmap.training.objectives.pmr import (
    decoder_width,
    imbalance,
    mean_over_classes,
    prototype_log_probability,
)

PUBLISHED = ["mmFormer", "RFNet", "M2FTrans"]


def pmr(backbone, **options):
    return build_objective("pmr", Context(BRATS, backbone), options)


def run(objective, batch, progress=0.0):
    ((_, losses),) = list(objective.steps(batch, progress))
    return losses


def test_the_ratio_is_the_papers_for_two_modalities():
    torch.testing.assert_close(imbalance(torch.tensor([0.6, 0.3])), torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(
        imbalance(torch.tensor([0.6, 0.0, 0.3, 0.3])), torch.tensor([0.5, 1.0, 1.5, 1.5])
    )
    torch.testing.assert_close(imbalance(torch.tensor([0.6, 0.0])), torch.ones(2))


def test_the_classifier_of_prototypes_is_a_softmax_of_negative_distances():
    torch.manual_seed(0)
    feature, prototypes = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 4, 3)
    prototypes[0, 0] = feature[0, :, 1, 1].detach()
    usable = torch.tensor([[True, True, False, True], [True] * 4])
    logp = prototype_log_probability(feature, prototypes, usable)
    distance = torch.stack([(feature[1, :, 2, 3] - prototypes[1, k]).norm() for k in range(4)])
    torch.testing.assert_close(logp[1, :, 2, 3], (-distance).log_softmax(0))
    assert (logp[0, 2] == 0).all()
    torch.testing.assert_close(logp[0, [0, 1, 3]].exp().sum(0), torch.ones(4, 4))
    logp.sum().backward()
    assert torch.isfinite(feature.grad).all()


def test_classes_count_alike_however_large():
    values = torch.tensor([[[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 8.0]]])
    truth = torch.tensor([[[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    assert mean_over_classes(values, truth, torch.tensor([[True, True]])).item() == 5
    assert mean_over_classes(values, truth, torch.tensor([[True, False]])).item() == 2


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", [*PUBLISHED, "SubsetUNet"])
def test_nothing_is_added_before_there_are_prototypes(name, dims, network, make_batch):
    objective = pmr(network(name, dims))
    assert decoder_width(objective.backbone) == objective.prototypes.shape[2]
    batch = make_batch(dims)
    assert not {"prototype", "entropy"} & set(run(objective, batch))
    objective.epoch_end(0)
    assert objective.known[:, 0].tolist() == [1, 1, 0, 1]
    losses = run(objective, batch)
    assert {"prototype", "entropy"} <= set(losses)
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert "entropy" not in run(objective, batch, progress=0.5)
    figures = objective.epoch_end(1)
    assert set(figures) == {f"strength_{name}" for name in BRATS.modality_names}
    assert 0 < figures["strength_t1"] < 1
    assert figures["strength_t2"] == 0


def test_only_those_behind_are_drawn_to_their_prototypes(network, make_batch):
    """A sample of two modalities: exactly one is behind, the loss is (ratio - 1) times its
    cross-entropy.
    """
    objective = pmr(network("SubsetUNet"), own_prototypes=True, entropy=0.0)
    batch = make_batch(present=[[True, False, False, True]])
    loss = run(objective, batch)["prototype"]
    strength = objective.strength_sum[[0, 3]]
    assert objective.seen.tolist() == [1, 0, 0, 1]
    assert strength.min() < strength.max()
    assert loss > 0
    alone = run(objective, make_batch(present=[[True, False, False, False]]))
    assert "prototype" not in alone


def test_prototypes_are_mixed_over_epochs(network):
    objective = pmr(network("SubsetUNet"))
    objective.sums[0, 0] += 4.0
    objective.counts[0, 0] += 2.0
    objective.epoch_end(0)
    torch.testing.assert_close(objective.prototypes[0, 0], torch.full((4,), 2.0))
    objective.sums[0, 0] += 7.0
    objective.counts[0, 0] += 1.0
    objective.epoch_end(1)
    torch.testing.assert_close(objective.prototypes[0, 0], torch.full((4,), 0.2 * 2 + 0.8 * 7))
    objective.epoch_end(2)
    torch.testing.assert_close(objective.prototypes[0, 0], torch.full((4,), 0.2 * 2 + 0.8 * 7))
