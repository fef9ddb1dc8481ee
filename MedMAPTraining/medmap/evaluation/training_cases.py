"""Which cases a bundle has seen in training: an evaluation on them is no test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medmap.io.cases import Case
from medmap.io.content import sha256_of

TRAINING_SCANS = "training_scans"
"""Key of a bundle's card: hashes of all scans that it was trained on."""

HASH_DIGITS = 12
"""Of each hash; by chance two of 10,000 scans share 48 bits once in five million cohorts."""


def scan_hashes(cases: Sequence[Case]) -> list[str]:
    """Hashes of the scans of cases, without repetition and in an order that says nothing."""
    hashes = set()
    for case in cases:
        hashes.update(_hashes(case))
    return sorted(hashes)


def cases_seen_in_training(card: Mapping, cases: Sequence[Case]) -> list[str]:
    """Names of the cases of which a scan was among those of the training.

    Labels do not count: a corrected label map makes no new patient.

    Args:
        card: of a bundle; bundles of earlier versions know nothing of their cases.
        cases: to be evaluated.
    """
    seen = set(card.get(TRAINING_SCANS, ()))
    if not seen:
        return []
    return [case.case_id for case in cases if seen & _hashes(case)]


def _hashes(case: Case) -> set[str]:
    """Of the scans that can be read."""
    existing = [path for path in case.scans.values() if path.is_file()]
    return {sha256_of(path)[:HASH_DIGITS] for path in existing}
