"""What tests of networks share: options of tiny versions, and a batch of two different subsets."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SMALL: dict[str, dict] = json.loads(Path(__file__).with_suffix(".json").read_text())
"""Network -> options with which it is small enough for a test."""

PRESENT = torch.tensor([[True, False, True, False], [False, True, False, False]])
"""[2, 4] modalities of two samples; the last modality is absent from both."""
