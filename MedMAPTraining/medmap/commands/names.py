"""Names for what a table or a figure compares: short, and never the same one twice."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_names(candidates: Sequence[Sequence[str]]) -> list[str]:
    """One name for each item, the first of its candidates that no other item has at that position.

    Args:
        candidates: [N][K] names of N items, from the short to the long one.

    Returns:
        [N] names; items that are alike in all candidates are numbered.
    """
    names = []
    for item in candidates:
        chosen = item[-1]
        for level, name in enumerate(item):
            namesakes = [other for other in candidates if other[level] == name]
            if len(namesakes) == 1:
                chosen = name
                break
        names.append(chosen)
    return _numbered(names)


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number behind the second and every further one that is the same."""
    numbered: list[str] = []
    for name in names:
        count = 1
        unique = name
        while unique in numbered:
            count += 1
            unique = f"{name} ({count})"
        numbered.append(unique)
    return numbered
