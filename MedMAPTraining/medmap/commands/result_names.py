"""Names of files that one command writes and another reads."""

from __future__ import annotations


def probability_name(region: str) -> str:
    """Name of the file in which ``medmap segment`` writes the probability of a region."""
    return f"probability_{region}.nii.gz"
