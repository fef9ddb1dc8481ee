"""What tests of networks share: options of tiny versions, and a batch of two different subsets."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path

import torch

from medmap.networks import Backbone, build_network

SMALL: dict[str, dict] = json.loads(Path(__file__).with_suffix(".json").read_text())
"""Network -> options with which it is small enough for a test."""

PRESENT = torch.tensor([[True, False, True, False], [False, True, False, False]])
"""[2, 4] modalities of two samples; the last modality is absent from both."""


def small(name: str, **options) -> Backbone:
    """A seeded, untrained network at the sizes of ``SMALL``, for evaluation."""
    torch.manual_seed(0)
    return build_network(name, {**SMALL[name], **options}).eval()


def mask(subset: Container[int]) -> torch.Tensor:
    """[1, 4] bool presence of a subset of positions."""
    return torch.tensor([[m in subset for m in range(4)]])
