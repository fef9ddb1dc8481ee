"""Every backbone learns: fifty steps on one batch lower its segmentation loss.

The batch holds two samples with different modalities, so absent ones take part.
"""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss
from Testing.medmap.small_networks import PRESENT, SMALL

from medmap.networks import Output, build_network

STEPS = 50
REDUCTION = 0.7
"""Largest last loss, relative to the first."""

segmentation_loss = DiceCELoss(to_onehot_y=True, softmax=True)


def reconstruction_error(output: Output, image: torch.Tensor) -> torch.Tensor:
    return (torch.cat(output.aux["reconstruction"], 1) - image).abs().mean()


def mean_divergence(output: Output) -> torch.Tensor:
    return torch.stack(output.aux["divergence"]).mean()


def auxiliary_loss(
    name: str, output: Output, image: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    """What a network's paper adds to the segmentation loss, for those that add something."""
    if name == "RFNet":
        return segmentation_loss(output.aux["deep"][0], label)
    if name in ("RobustMSeg", "UHVED"):
        return 0.1 * reconstruction_error(output, image) + 0.1 * mean_divergence(output)
    return torch.zeros(())


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_loss_falls(name):
    torch.manual_seed(0)
    network = build_network(name, {"classes": 2, "spatial_dims": 2, **SMALL[name]}).train()
    image = torch.randn(2, 4, 16, 32)
    label = (image[:, :1] + 0.5 * image[:, 2:3] > 0.8).long()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    losses = []
    for _ in range(STEPS):
        output = network(image, PRESENT)
        loss = segmentation_loss(output.logits, label)
        optimizer.zero_grad()
        (loss + auxiliary_loss(name, output, image, label)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < REDUCTION * losses[0]
