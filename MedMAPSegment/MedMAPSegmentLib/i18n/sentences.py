"""Sentences that come from the core, in the user's language.

The core writes American English and knows no translator. What it says is recognized here by its
template, said as a user of Slicer needs it (``in_slicer``), and translated as a whole sentence;
identifiers in it become titles (``titles``). Unknown sentences stay as they are.
"""

from __future__ import annotations

import re
from functools import lru_cache

from medmap.errors import MedMAPError

from . import core_sentences
from .in_slicer import IN_SLICER
from .titles import titled

DEEPEST = 3
"""A phrase may be part of a phrase of a sentence."""


def errorText(error: Exception) -> str:
    """Cause and remedy of an error, translated."""
    if isinstance(error, MedMAPError):
        return f"{sentence(error.cause)} {sentence(error.remedy)}".strip()
    return str(error)


def findingText(message: str, remedy: str = "") -> str:
    """Message and remedy of a finding, translated."""
    return f"{sentence(message)} {sentence(remedy)}".strip()


def lines(text: str) -> str:
    """Several lines of the core, each translated."""
    return "\n".join(sentence(line) for line in text.splitlines())


@lru_cache(maxsize=2048)
def sentence(text: str, depth: int = 0) -> str:
    """One sentence of the core, translated; parts that are phrases of the core as well.

    Args:
        text: as the core says it.
        depth: how many sentences it is a part of.
    """
    for pattern, translation, quoted in _translations():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        parts = []
        for number, part in enumerate(match.groups()):
            # Names of volumes and files stand in quotation marks and stay as they are.
            isName = number in quoted or depth >= DEEPEST
            parts.append(part if isName else sentence(part, depth + 1))
        return translation.format(*parts)
    # A sentence that is not the core's may begin with a word that is an identifier.
    return titled(text) if depth else text


def forgetTranslations() -> None:
    """Ask the translator anew: another language was chosen."""
    sentence.cache_clear()
    _translations.cache_clear()


@lru_cache(maxsize=1)
def _translations() -> list[tuple[re.Pattern[str], str, frozenset[int]]]:
    """Pattern, translation and quoted placeholders of every template.

    The most specific template comes first, because a placeholder also matches longer texts.
    """
    entries = []
    for template in sorted(core_sentences.SENTENCES, key=_literalLength, reverse=True):
        sentence = IN_SLICER.get(template, template)
        translation = core_sentences.translated(sentence)
        entries.append((_pattern(template), translation, _quoted(template)))
    return entries


def _literalLength(template: str) -> int:
    """Characters of a template that stand for themselves."""
    return len(re.sub(r"\{\d+\}", "", template))


def _quoted(template: str) -> frozenset[int]:
    """Numbers of the placeholders in quotation marks."""
    return frozenset(int(number) for number in re.findall(r"'\{(\d+)\}'", template))


def _pattern(template: str) -> re.Pattern[str]:
    """Regular expression of a template: ``{0}`` stands for any text, or for none."""
    parts = re.split(r"\{\d+\}", template)
    return re.compile("(.*?)".join(re.escape(part) for part in parts), re.DOTALL)
