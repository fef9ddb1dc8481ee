"""Names that modality comparisons and their uncertainty maps are stored and shown under. No torch."""

from __future__ import annotations

CURRENT = "current"
LEAVE_ONE_OUT = "leave-one-out"
ADD_BACK = "add-back"
OTHER = "other"
"""How a subset relates to the current one: the same, with one modality less, with one more, other."""

ENTROPY = "entropy"
DISAGREEMENT = "disagreement"
REGION_DISAGREEMENT = "region disagreement"
"""Uncertainty maps: entropy of the class probabilities; fraction of the other subsets that give a
voxel another label, or differ about the task's first region."""
