"""Names of modality comparisons and their uncertainty maps. No torch."""

from __future__ import annotations

CURRENT = "current"
LEAVE_ONE_OUT = "leave-one-out"
ADD_BACK = "add-back"
OTHER = "other"
"""Relation of a subset to the current one: itself, one modality less, one more, other."""

ENTROPY = "entropy"
DISAGREEMENT = "disagreement"
REGION_DISAGREEMENT = "region disagreement"
"""Uncertainty maps: entropy of the class probabilities; fraction of the other subsets that give a
voxel another label, or differ about the task's first region."""
