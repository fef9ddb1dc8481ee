"""Titles in the place of identifiers: the core says ``t1ce`` and ``brats2023``, as the command line
takes them; a user of the panel chooses "T1ce" and "BraTS 2023".
"""

from __future__ import annotations

import re
from functools import lru_cache

from medmap.task import TASKS, read_task
from medmap.task.conventions import CONVENTIONS
from medmap.task.files import shipped_tasks

SEPARATOR = "; "
"""Between the parts of an enumeration whose parts have commas."""


def titled(text: str) -> str:
    """A part of a sentence of the core with titles for the identifiers that it begins with.

    Only there: what follows may be a name of the user's, such as a file called ``t1.nii``.
    """
    pattern = _identifiers()
    named_parts = []
    for part in text.split(SEPARATOR):
        match = pattern.match(part)
        if match is None:
            named_parts.append(part)
        else:
            named_parts.append(_enumeration(match[0]) + part[match.end() :])
    return SEPARATOR.join(named_parts)


def _enumeration(text: str) -> str:
    """``t1ce, t2 and flair`` with titles."""
    parts = re.split("(, | and )", text)
    names = [_titles().get(part, part) for part in parts[::2]]
    if any("," in name for name in names):
        return SEPARATOR.join(names)
    parts[::2] = names
    return "".join(parts)


@lru_cache(maxsize=1)
def _titles() -> dict[str, str]:
    """Identifier of a modality or of a label convention -> title, where they differ."""
    titles = {convention.name: convention.title for convention in CONVENTIONS}
    tasks = [*TASKS.values(), *(read_task(path) for path in shipped_tasks().values())]
    for task in tasks:
        for modality in task.modalities:
            titles.setdefault(modality.name, modality.title)
    return {name: title for name, title in titles.items() if name != title}


@lru_cache(maxsize=1)
def _identifiers() -> re.Pattern[str]:
    """Regular expression of one identifier or several, as a whole word each."""
    longestFirst = sorted(_titles(), key=len, reverse=True)
    one = f"(?:{'|'.join(map(re.escape, longestFirst))})(?![\\w.-])"
    return re.compile(f"{one}(?:(?:, | and ){one})*")
