"""Assign the series of an examination to the modalities of a task, with reasons and confidence.

It never guesses: where two series fit one modality about equally well, or one series fits two
modalities, nothing is assigned and the question is handed back. Voxels are not looked at.

Use ``score_modalities`` for one series and ``detect_modalities`` for all series together::

    evidence = SeriesEvidence("12: AX T1 POST", description="AX T1 POST GAD")
    score_modalities(evidence, BRATS).scores  # (ModalityScore("t1ce", 0.95, "the name and ..."),)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from medmap.detection.sequence_parameters import SequenceParameters
from medmap.detection.series_names import Reading, read_series_names
from medmap.detection.series_words import split_words
from medmap.detection.vocabulary import CONTRAST_TITLES, CONTRASTS, FLAIR, T1, T1CE, T2
from medmap.task import Modality, Task

MIN_CONFIDENCE = 0.6
"""Least confidence for assigning a series."""
MIN_MARGIN = 0.15
"""A candidate must be this much better than the next one."""
MIN_QUESTION_CONFIDENCE = 0.3
"""Candidates below this are not worth a question."""

DECATHLON_CHANNELS = (FLAIR, T1, T1CE, T2)
"""Channels of Task01_BrainTumour, Medical Segmentation Decathlon (its dataset.json), by number."""

PARAMETERS_ALONE = {T1: 0.5, T2: 0.7, FLAIR: 0.7}
"""Confidence from the timing of a sequence whose names say nothing. A T1 may be a T1ce: asked."""
CONTRADICTED = 0.45
"""Confidence of a name and of a timing that contradict each other: both are asked about."""

_ROUNDING = 1e-9
"""Confidences have two decimals; their differences may fall short by this much."""


@dataclass(frozen=True, eq=False)
class SeriesEvidence:
    """Names and DICOM attributes of one series; compared by identity.

    Attributes:
        name: of the volume or file.
        description: DICOM SeriesDescription (0008,103E).
        protocol: DICOM ProtocolName (0018,1030).
        contrast_agent: DICOM ContrastBolusAgent (0018,0010).
        image_type: DICOM ImageType (0008,0008).
        scanner: DICOM Modality (0008,0060): ``MR``, ``CT``.
        parameters: timing of the sequence; None if unknown.
        unusable: why the source is no input whatever its name says (``a label map``); may be empty.
        source: what the caller knows the series by (a node, a path); not looked at.
    """

    name: str
    description: str = ""
    protocol: str = ""
    contrast_agent: str = ""
    image_type: str = ""
    scanner: str = ""
    parameters: SequenceParameters | None = None
    unusable: str = ""
    source: Any = None


@dataclass(frozen=True)
class ModalityScore:
    """Support for one modality.

    Attributes:
        modality: name in the task.
        confidence: 0..1; orders evidence, not a measured frequency.
        reason: what supports it, as part of a sentence (``the name says 't1' and 'post'``).
    """

    modality: str
    confidence: float
    reason: str


@dataclass(frozen=True)
class SeriesScores:
    """Scored modalities of one series.

    Attributes:
        scores: at most one per modality; empty if the series is no input of the task.
        rejection: why it is none; empty with scores.
    """

    scores: tuple[ModalityScore, ...] = ()
    rejection: str = ""


@dataclass(frozen=True)
class Candidate:
    """A series that may be a modality; ``confidence`` and ``reason`` as in ``ModalityScore``."""

    series: SeriesEvidence
    modality: str
    confidence: float
    reason: str


@dataclass(frozen=True)
class Question:
    """A modality that stays open although a series may fit it: the user must choose.

    Attributes:
        modality: name in the task.
        candidates: best first.
        text: the question for display.
    """

    modality: str
    candidates: tuple[Candidate, ...]
    text: str


@dataclass(frozen=True)
class Detection:
    """Outcome of ``detect_modalities``.

    Attributes:
        assigned: modality name -> its one clear candidate; no series occurs twice.
        questions: modalities with candidates of which none is clear, in task order.
        rejected: (series, reason) of those that are no input.
    """

    assigned: dict[str, Candidate]
    questions: tuple[Question, ...]
    rejected: tuple[tuple[SeriesEvidence, str], ...]

    def text(self, task: Task) -> str:
        """Assignments and questions for display, one line per modality."""
        lines = []
        for modality in task.modalities:
            candidate = self.assigned.get(modality.name)
            if candidate is not None:
                lines.append(
                    f"{modality.title}: '{candidate.series.name}' "
                    f"({candidate.confidence:.0%} sure: {candidate.reason})."
                )
            for question in self.questions:
                if question.modality == modality.name:
                    lines.append(question.text)
        return "\n".join(lines) or "No volume of the scene could be recognized by its name."


def detect_modalities(series: Iterable[SeriesEvidence], task: Task) -> Detection:
    """Find the series for a task's modalities.

    Args:
        series: all series of the examination; those that are no input are rejected with a reason.
        task: a modality whose name reads as T1, T1ce, T2 or FLAIR gets all that is known of these;
            any other modality is found by its name and aliases as whole words.
    """
    # Scores of all series first: whether one is clear depends on the others.
    candidates: list[Candidate] = []
    rejected: list[tuple[SeriesEvidence, str]] = []
    for evidence in series:
        result = score_modalities(evidence, task)
        for score in result.scores:
            candidates.append(Candidate(evidence, score.modality, score.confidence, score.reason))
        if not result.scores:
            rejected.append((evidence, result.rejection))
    assigned = _assigned(candidates, task)
    questions = _questions(candidates, assigned, task)
    return Detection(assigned, questions, tuple(rejected))


def score_modalities(evidence: SeriesEvidence, task: Task) -> SeriesScores:
    """Score the modalities of a task for one series."""
    if evidence.unusable:
        return SeriesScores(rejection=evidence.unusable)
    # OT ("other") is what converters and derived images carry.
    scanner = evidence.scanner.strip().upper()
    if scanner not in ("", "MR", "OT"):
        return SeriesScores(rejection=f"DICOM says {scanner}, not MR")
    modality_of_contrast = _modality_of_contrast(task)
    reading, origin = _read(evidence, task, modality_of_contrast)
    if reading.exclusion:
        return SeriesScores(rejection=reading.exclusion)
    contrasts, timing = _with_parameters(reading.scores, evidence.parameters)
    reason = timing
    if reading.scores:
        reason = _reason(reading, origin, evidence)
        if timing:
            reason += f", but {timing}"
    scores = []
    for contrast, confidence in contrasts.items():
        modality = modality_of_contrast.get(contrast)
        if modality is not None:
            scores.append(ModalityScore(modality, round(confidence, 2), reason))
    # A T1ce must not fall back to an alias of T1 for a model without T1ce.
    if contrasts and not scores:
        titles = " or ".join(CONTRAST_TITLES[contrast] for contrast in contrasts)
        return SeriesScores(rejection=f"{titles}, which the model does not use")
    scores = scores or _scores_by_name(evidence, task, modality_of_contrast)
    if not scores:
        return SeriesScores(rejection="the name says nothing about the modality")
    return SeriesScores(tuple(scores))


def _modality_of_contrast(task: Task) -> dict[str, str]:
    """Contrast (of ``CONTRASTS``) -> name of the task's modality that it is."""
    modality_of_contrast: dict[str, str] = {}
    for modality in task.modalities:
        scores = read_series_names([modality.name]).scores
        # A name of several contrasts, such as T1/T2, is none of them.
        if len(scores) == 1:
            (contrast,) = scores
            modality_of_contrast.setdefault(contrast, modality.name)
    return modality_of_contrast


def _read(
    evidence: SeriesEvidence, task: Task, modality_of_contrast: dict[str, str]
) -> tuple[Reading, str]:
    """Reading of a series' texts, and which texts they are.

    The name of the protocol counts only when nothing else says anything: scanners keep it when a
    protocol is copied and changed.
    """
    task_words: list[str] = []
    for modality in task.modalities:
        task_words.extend(_words_of(modality))
    # Words of other body parts exclude a series only in tasks of the brain's four contrasts.
    brain_only = set(modality_of_contrast.values()) == set(task.modality_names)

    def read(*texts: str) -> Reading:
        return read_series_names(texts, evidence.contrast_agent, task_words, brain_only)

    reading = read(evidence.name, evidence.description, evidence.image_type)
    says_nothing = not reading.scores and not reading.exclusion
    if says_nothing and evidence.protocol:
        reading = read(evidence.name, evidence.description, evidence.protocol)
        return reading, "name and protocol"
    if not evidence.description or evidence.description == evidence.name:
        return reading, "name"
    # Series in DICOM are called by their numbers.
    if not any(letter.isalpha() for letter in evidence.name):
        return reading, "series description"
    return reading, "name and series description"


def _with_parameters(
    scores: dict[str, float], parameters: SequenceParameters | None
) -> tuple[dict[str, float], str]:
    """Scores with what the timing adds to them, and the timing's part of the reason.

    The timing decides where names say nothing, and makes a question of a name that it contradicts:
    scanners keep the names of protocols that were copied and changed.
    """
    if parameters is None:
        return scores, ""
    contrast = parameters.contrast()
    if not contrast:
        return scores, ""
    named = {T1 if name == T1CE else name for name in scores}
    timing = f"{parameters.text()} is the timing of {CONTRAST_TITLES[contrast]}"
    if not scores:
        return {contrast: PARAMETERS_ALONE[contrast]}, timing
    # A FLAIR whose inversion time is not recorded has the timing of T2.
    lacks_inversion_time = named == {FLAIR} and contrast == T2
    if contrast in named or lacks_inversion_time:
        return scores, ""
    capped_scores = {name: min(score, CONTRADICTED) for name, score in scores.items()}
    return capped_scores | {contrast: CONTRADICTED}, timing


def _reason(reading: Reading, origin: str, evidence: SeriesEvidence) -> str:
    """Which words speak for the scores, as the beginning of a reason."""
    quoted_words = " and ".join(f"'{word}'" for word in reading.known_words)
    verb = "say" if " and " in origin else "says"
    reason = f"the {origin} {verb} {quoted_words}"
    # T1 and T1ce, and nothing else: the contrast agent is what makes it a question.
    is_open = T1CE in reading.scores and len(reading.scores) == 2
    if is_open and evidence.contrast_agent:
        reason += f", DICOM records the contrast agent {evidence.contrast_agent}"
    return reason


def _words_of(modality: Modality) -> tuple[str, ...]:
    return tuple(word.casefold() for word in (modality.name, *modality.aliases))


def _scores_by_name(
    evidence: SeriesEvidence, task: Task, modality_of_contrast: dict[str, str]
) -> list[ModalityScore]:
    """Scores of names outside the vocabulary: aliases first, then channel numbers."""
    by_alias = _scores_by_alias(evidence, task, modality_of_contrast)
    if by_alias:
        return by_alias
    return _scores_by_channel_number(evidence.name, modality_of_contrast)


def _scores_by_alias(
    evidence: SeriesEvidence, task: Task, modality_of_contrast: dict[str, str]
) -> list[ModalityScore]:
    """Modalities whose name or alias is a whole word of the name or description."""
    vocabulary = {*split_words(evidence.name), *split_words(evidence.description)}
    scores = []
    for modality in task.modalities:
        matches = [word for word in _words_of(modality) if word in vocabulary]
        if matches:
            confidence = 0.9
            if modality.name in modality_of_contrast.values():
                # An alias of T1, T1ce, T2 or FLAIR that the vocabulary does not know is weaker.
                confidence = 0.7
            reason = f"the name says '{matches[0]}'"
            scores.append(ModalityScore(modality.name, confidence, reason))
    return scores


def _scores_by_channel_number(
    name: str, modality_of_contrast: dict[str, str]
) -> list[ModalityScore]:
    """The Decathlon's channel numbers.

    Other data sets number otherwise, so the confidence is high only in the Decathlon's file names.
    """
    match = re.search(r"_000([0-3])(\.nii(\.gz)?)?$", name)
    if match is None or set(modality_of_contrast) != set(CONTRASTS):
        return []
    contrast = DECATHLON_CHANNELS[int(match[1])]
    is_decathlon = re.match(r"brats_\d{3}_000\d", name, re.IGNORECASE) is not None
    reason = (
        f"_000{match[1]} is {CONTRAST_TITLES[contrast]} in the order of the Medical Segmentation "
        "Decathlon"
    )
    confidence = 0.8 if is_decathlon else 0.4
    return [ModalityScore(modality_of_contrast[contrast], confidence, reason)]


def _assigned(candidates: Sequence[Candidate], task: Task) -> dict[str, Candidate]:
    """Modalities with one clear candidate whose series fits no other modality as well."""
    assigned: dict[str, Candidate] = {}
    for name in task.modality_names:
        of_modality = [entry for entry in candidates if entry.modality == name]
        best = _clearly_best(of_modality)
        if best is None or best.confidence < MIN_CONFIDENCE:
            continue
        # The series must not fit another modality about as well.
        rivals = [entry for entry in candidates if entry.series is best.series]
        if _clearly_best(rivals) is best:
            assigned[name] = best
    return assigned


def _clearly_best(candidates: Sequence[Candidate]) -> Candidate | None:
    ranked = sorted(candidates, key=lambda candidate: -candidate.confidence)
    if not ranked:
        return None
    if len(ranked) > 1:
        margin = ranked[0].confidence - ranked[1].confidence
        if margin < MIN_MARGIN - _ROUNDING:
            return None
    return ranked[0]


def _questions(
    candidates: Sequence[Candidate], assigned: dict[str, Candidate], task: Task
) -> tuple[Question, ...]:
    """One question per open modality that a series may fit which has not been assigned."""
    assigned_series = [candidate.series for candidate in assigned.values()]
    questions = []
    for name in task.modality_names:
        if name in assigned:
            continue
        possible = []
        for candidate in candidates:
            is_possible = candidate.confidence >= MIN_QUESTION_CONFIDENCE
            is_free = candidate.series not in assigned_series
            if candidate.modality == name and is_possible and is_free:
                possible.append(candidate)
        if possible:
            ranked = tuple(sorted(possible, key=lambda candidate: -candidate.confidence))
            questions.append(Question(name, ranked, _question_text(task, name, ranked, candidates)))
    return tuple(questions)


def _question_text(
    task: Task, name: str, ranked: Sequence[Candidate], candidates: Sequence[Candidate]
) -> str:
    """The question that a user answers by choosing a series, or none."""
    title = task.modality(name).title
    if len(ranked) > 1:
        quoted = [f"'{candidate.series.name}'" for candidate in ranked]
        all_but_last = ", ".join(quoted[:-1])
        return f"{title}: {all_but_last} or {quoted[-1]}? Please choose."
    candidate = ranked[0]
    titles = [title]
    for rival in candidates:
        if rival.series is candidate.series and rival.modality != name:
            titles.append(task.modality(rival.modality).title)
    alternatives = " or ".join(titles)
    return (
        f"{title}: '{candidate.series.name}' may be {alternatives} ({candidate.reason}). "
        "Please choose."
    )
