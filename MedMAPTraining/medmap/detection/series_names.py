"""Read the contrast of an MR series from its name or description. Text only.

``series_words`` splits the texts into words, ``vocabulary`` holds what words mean; here the words
of a series become a confidence per contrast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from medmap.detection.series_words import folded, split_words
from medmap.detection.vocabulary import (
    BODY,
    EXCLUDED,
    FLAIR,
    MEANINGS,
    NEGATIONS,
    T1,
    T1CE,
    T2,
    T2_STAR_WITH,
)


@dataclass(frozen=True)
class Reading:
    """Contrast of one series as its texts describe it.

    Attributes:
        scores: contrast (one of ``CONTRASTS``) -> confidence 0..1; empty if the texts say nothing,
            several if they leave it open.
        known_words: words with a known meaning, behind the scores, in the order of the texts.
        exclusion: why it is none of ``CONTRASTS`` (``'adc' means diffusion imaging``); empty if
            nothing speaks against it.
    """

    scores: dict[str, float] = field(default_factory=dict)
    known_words: tuple[str, ...] = ()
    exclusion: str = ""


def read_series_names(
    texts: Iterable[str],
    contrast_agent: str = "",
    task_words: Sequence[str] = (),
    brain_only: bool = True,
) -> Reading:
    """Read the texts of one series together.

    Args:
        texts: name, series description and so on; they add up, so ``T1`` and ``AX T1 POST`` make a
            T1ce.
        contrast_agent: contrast agent as DICOM gives it (0018,0010); empty if unknown.
        task_words: words with a meaning in the task at hand, which therefore exclude nothing
            (``lge``, ``pd``).
        brain_only: whether words of other body parts exclude a series.
    """
    flags: set[str] = set()
    known_words: list[str] = []
    for text in texts:
        tokens = split_words(text)
        exclusion = _exclusion(tokens, set(task_words), brain_only)
        if exclusion:
            return Reading(exclusion=exclusion)
        for flag, word in _meanings(tokens):
            flags.add(flag)
            if word not in known_words:
                known_words.append(word)
    scores = _scores(flags, _is_contrast_agent(contrast_agent))
    return Reading(scores, tuple(known_words))


def _exclusion(words: Sequence[str], task_words: set[str], brain_only: bool) -> str:
    """Why the words exclude the contrasts; empty if they do not."""
    for position, word in enumerate(words):
        # "sub" is a subtraction, but at the beginning it is a subject.
        if word in task_words or (word == "sub" and position == 0):
            continue
        if word in EXCLUDED:
            return f"'{word}' means {EXCLUDED[word]}"
        if re.fullmatch(r"b\d{2,4}", word):
            return f"'{word}' means {EXCLUDED['b0']}"
        if brain_only and word in BODY:
            return f"'{word}' is not the whole brain"
    if "vsd" in words and "ot" in words:
        return "'OT' is the reference segmentation of BraTS 2012-2015"
    star_words = T2_STAR_WITH & set(words)
    if star_words and T2 in {flag for flag, _ in _meanings(words)}:
        return f"'t2' with '{min(star_words)}' means T2*"
    return ""


def _meanings(words: Sequence[str]) -> list[tuple[str, str]]:
    """(flag, word for display) pairs.

    A word for contrast agent after a negation means its opposite.
    """
    meanings: list[tuple[str, str]] = []
    for position, word in enumerate(words):
        if word == "bothways":
            # Both flags: the series may be either, or a subtraction of the two.
            meanings.append(("post", "with and without"))
            meanings.append(("pre", "with and without"))
        elif word == "c" and position and words[position - 1] in ("t1", "t1w"):
            # "T1 c", but not every single letter c.
            meanings.append(("post", "c"))
        else:
            meanings.extend(_meanings_of_word(words, position))
    return meanings


def _meanings_of_word(words: Sequence[str], position: int) -> list[tuple[str, str]]:
    """Flags of one word, each with the text that a reason quotes."""
    word = words[position]
    flags = MEANINGS.get(word, ())
    negation = _negation(words, position)
    # "No contrast" says that there is none, which is as good as "pre".
    if flags == ("post",) and negation:
        return [("pre", f"{negation} {word}")]
    # As the scanner writes it: signs were spelled out to make words of them.
    display = {"plusc": "+C", "minusc": "C-"}.get(word, word)
    return [(flag, display) for flag in flags]


def _negation(words: Sequence[str], position: int) -> str:
    """The word that negates ``words[position]``; empty if none does."""
    # "no post" and "pre +C" are no usual ways to say that there was no agent.
    if words[position] in ("post", "plusc"):
        return ""
    for distance in (1, 2):
        if position >= distance:
            word = words[position - distance]
            if NEGATIONS.get(word, 0) >= distance:
                return word
    return ""


def _scores(flags: set[str], has_contrast_agent: bool) -> dict[str, float]:
    """Confidence per contrast. The numbers order evidence; they are not measured frequencies."""
    t1 = "t1" in flags
    t2 = "t2" in flags
    if "flair" in flags or "tirm" in flags:
        return _flair_scores(flags)
    if t1 and t2:
        return {T1: 0.4, T2: 0.4}
    # T2 after contrast agent is unusual, but a T2 still.
    if t2:
        return {T2: 0.75 if "post" in flags else 0.9}
    if t1 or "t1-sequence" in flags:
        return _t1_scores(flags, has_contrast_agent)
    return {}


def _flair_scores(flags: set[str]) -> dict[str, float]:
    if "t1" in flags and "t2" in flags:
        return {T1: 0.4, T2: 0.4, FLAIR: 0.45}
    if "t1" in flags:
        # GE's "T1 FLAIR" is T1-weighted, and "T1" may also be a time point.
        return {T1: 0.45, FLAIR: 0.45}
    # TIRM with a short inversion time is a STIR.
    score = 0.95 if "flair" in flags else 0.8
    # Where there are two, the FLAIR without contrast agent is the better input.
    if "post" in flags:
        score -= 0.1
    return {FLAIR: score}


def _t1_scores(flags: set[str], has_contrast_agent: bool) -> dict[str, float]:
    # A sequence such as MPRAGE implies T1 weighting less surely than the word T1.
    deduction = 0.0 if "t1" in flags else 0.1
    if "post" in flags and "pre" in flags:
        return {T1: 0.45, T1CE: 0.45}
    if "post" in flags:
        return {T1CE: 0.95 - deduction}
    if "pre" in flags:
        return {T1: 0.95 - deduction}
    if has_contrast_agent:
        # Scanners record the agent for the patient, possibly also for the series before injection.
        return {T1: 0.45, T1CE: 0.65}
    return {T1: 0.85 - deduction}


_NO_AGENT = frozenset(("", "no", "none", "n", "false", "0", "nein", "non", "keines", "without"))


def _is_contrast_agent(text: str) -> bool:
    return folded(text).strip() not in _NO_AGENT
