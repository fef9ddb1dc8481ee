"""Read the contrast of an MR series from its name or description. Text only.

Words are matched whole: the ``t1`` in ``t1ce`` or ``pt12`` is not a T1. Words written together
(``AxT2FLAIR``, ``t1post``) count when the whole of them consists of known words. Upper and lower
case, accents and the locale make no difference. The vocabulary comes from the naming of the BraTS
releases 2012-2024, BIDS, the Medical Segmentation Decathlon and the usual protocol names of
Siemens, GE and Philips, in English and the larger European languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T1, T1CE, T2, FLAIR = "t1", "t1ce", "t2", "flair"
CONTRASTS = (T1, T1CE, T2, FLAIR)
"""The contrasts that names can distinguish; a task's modality is one if its name reads so."""
CONTRAST_TITLES = {T1: "T1", T1CE: "T1ce", T2: "T2", FLAIR: "FLAIR"}

LONGEST_COMPOUND = 40
"""Longer chunks are not split into known words: hostile names must not cost time."""

Value = TypeVar("Value")


def _by_word(entries: Mapping[str, Value]) -> dict[str, Value]:
    """One entry per word, from entries whose keys hold several words."""
    table = {}
    for key, value in entries.items():
        for word in key.split():
            table[word] = value
    return table


_T1_POST = ("t1", "post")
_POST = ("post",)
_MEANINGS: dict[str, tuple[str, ...]] = _by_word(
    {
        # BraTS 2023 writes t1n; "gew" and "pond" are German and French for weighted.
        "t1 t1w t1wi t1n t1weighted t1gew t1pond": ("t1",),
        # BraTS 2012-2020 write t1c and t1ce, TCGA t1gd, German protocols t1km.
        "t1ce t1c t1gd t1gad t1km t1ca ct1 ct1w cet1 t1cw t1wc": _T1_POST,
        "t2 t2w t2wi t2weighted t2gew t2pond": ("t2",),
        # In a "dark fluid" sequence (Siemens) the CSF is suppressed, as in FLAIR.
        "flair t2f fla flr darkfluid": ("flair",),
        # Siemens' TIRM is a FLAIR or a STIR, depending on the inversion time.
        "tirm": ("tirm",),
        # 3-D gradient echoes with magnetization preparation are T1-weighted.
        "mprage bravo fspgr spgr irspgr irfspgr": ("t1-sequence",),
        "post postcontrast postgad postgd postkm": _POST,
        # Gadolinium, its abbreviations and trade names.
        "gad gd gado gadolinium gadovist gadavist gadobutrol gddtpa": _POST,
        "dotarem clariscan multihance prohance magnevist omniscan": _POST,
        # German Kontrastmittel, Italian mezzo di contrasto, Spanish contraste intravenoso.
        "enhanced plusc ce km mdc civ": _POST,
        "contrast contraste contrasto kontrast kontrastmittel kontrastem": _POST,
        "контраст контрастом 增强 造影": _POST,
        "pre precontrast pregad pregd prekm unenhanced noncontrast nonenhanced minusc": ("pre",),
        "native nativ natif nativo nativa 平扫": ("pre",),
    }
)
_NEUTRAL = frozenset(
    [
        "ax",
        "axial",
        "sag",
        "sagittal",
        "cor",
        "coronal",
        "tra",
        "transversal",
        "3d",
        "2d",
        "tse",
        "fse",
        "space",
        "spc",
        "cube",
        "brain",
        "head",
        "iso",
        "fs",
        "tfe",
        "vibe",
        "blade",
        "propeller",
        "dark",
        "fluid",
        "registered",
        "reg",
        "n4",
        "bias",
        "medmap",
    ]
)
"""Words that say nothing about the contrast but are written together with those that do."""
_NEGATIONS = _by_word(
    {"no non not": 1, "without wo ohne sans sin senza bez zonder uden utan sem без pre": 2}
)
"""Words that negate a word for contrast agent, and how many words after them they reach."""
_NOT_CONTRAST = frozenset(
    [
        "op",
        "operative",
        "operation",
        "surgery",
        "surgical",
        "resection",
        "biopsy",
        "rt",
        "rtx",
        "radiation",
        "radiotherapy",
        "chemo",
        "chemotherapy",
        "treatment",
        "therapy",
        "tx",
        "processing",
        "processed",
        "proc",
    ]
)
"""Before one of these, ``post`` and ``pre`` mean an operation or therapy, no contrast agent."""

_DIFFUSION = "diffusion imaging"
_SUSCEPTIBILITY = "susceptibility imaging"
_PERFUSION = "perfusion imaging"
_PLANNING = "a planning scan"
_PARAMETER_MAP = "a parameter map"
_DERIVED = "a derived image"
_EXCLUDED: dict[str, str] = _by_word(
    {
        "dwi dti adc eadc trace tracew diff diffusion": _DIFFUSION,
        "ep2d epi colfa tensor dki noddi b0": _DIFFUSION,
        "swi swan qsm mip minip pha phase mag hemo haemo t2star venobold": _SUSCEPTIBILITY,
        "perf perfusion pwi dsc dce rcbv rcbf relcbv relcbf": _PERFUSION,
        "cbv cbf mtt ttp tmax ktrans": _PERFUSION,
        "asl pasl pcasl": _PERFUSION,
        "tof mra mrv cta angio angiography venography venogram": "a vessel scan",
        "csi svs mrs spectroscopy": "spectroscopy",
        "fmri bold rest resting rsfmri": "functional imaging",
        "localizer localizers loc scout survey aahscout aahead aascout plane": _PLANNING,
        "localiser": _PLANNING,  # codespell:ignore localiser
        "calibration fieldmap": _PLANNING,
        "map maps mapping relaxometry molli rho t1rho inv1 inv2": _PARAMETER_MAP,
        "stir ciss fiesta pd pdw protondensity dir psir ute": "another contrast",
        "ct cbct pet fdg spect ultrasound": "not MR",
        "seg segm segmentation segmentations segmented label labels labelmap": _DERIVED,
        "mask masks brainmask tumormask roi truth groundtruth gt": _DERIVED,
        "pred prediction prob probability entropy uncertainty error": _DERIVED,
        "difference subtraction subtracted subtr sub atlas parcellation aseg aparc": _DERIVED,
        "screenshot screensave report dose": "a document",
    }
)
_BODY = frozenset(
    [
        "spine",
        "cspine",
        "tspine",
        "lspine",
        "cervical",
        "lumbar",
        "thoracic",
        "neck",
        "orbit",
        "orbits",
        "iac",
        "iacs",
        "pituitary",
        "sella",
        "abdomen",
        "pelvis",
        "prostate",
        "liver",
        "knee",
        "shoulder",
        "hip",
        "cardiac",
        "heart",
        "breast",
    ]
)
_T2_STAR_WITH = frozenset(("gre", "ffe", "medic", "star"))
"""Beside ``t2`` these mean a T2*-weighted gradient echo."""

_SUFFIX = re.compile(r"(\.(nii|gz|mha|mhd|nrrd|nhdr|dcm|img|hdr|mgz))+$", re.IGNORECASE)
# BIDS entities whose value is free text: "ses-post" is a session, not contrast agent.
_BIDS = re.compile(r"(?<![a-z0-9])(sub|ses|run|echo|rec|part)-[a-z0-9]+", re.IGNORECASE)
# Pathological tumor stages are written with a capital T.
_STAGE = re.compile(r"(?<![A-Za-z0-9])y?pT[0-4](?![A-Za-z0-9])")
_PATTERNS = (
    # "+/-", "±", "w/wo", "w and w/o": with and without contrast agent.
    (r"\+\s*/\s*-|-\s*/\s*\+|±|\bw\s*/\s*wo\b|\bw\s*/?\s*and\s*w\s*/?\s*o\b", " bothways "),
    (r"\bw[\s_]+wo\b|\bwith[\s_]+and[\s_]+without\b|\bmit[\s_]+und[\s_]+ohne\b", " bothways "),
    # "w/o" alone.
    (r"\bw\s*/\s*o\b", " without "),
    # "C+", "+C", "+Gd": with contrast agent.
    (
        r"(?<![a-z0-9])c\s*\+|\+\s*c(?![a-z0-9])"
        r"|\+\s*(?=(gd|gad|km|contrast|kontrast|ce)(?![a-z0-9]))",
        " plusc ",
    ),
    (r"(?<=t1)\s*\+|(?<=t1w)\s*\+", " plusc "),
    # "C-" at the end of a word: native.
    (r"(?<![a-z0-9])c\s*-(?=$|[\s_)])", " minusc "),
    # "T2*" would lose its star when the text is split into words.
    (r"t2\s*\*|t2[\s_-]+star\b", " t2star "),
    (r"\bmp[\s_-]+rage\b", " mprage "),
    # Siemens abbreviates dark-fluid as "da-fl".
    (r"\bdark[\s_-]*fluid\b|(?<![a-z])da[\s_-]fl(?![a-z])", " darkfluid "),
)
_REWRITES = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in _PATTERNS
)


@dataclass(frozen=True)
class Reading:
    """Contrast of one series as its texts describe it.

    Attributes:
        scores: contrast (one of ``CONTRASTS``) -> confidence 0..1; empty if the texts say nothing,
            several if they leave it open.
        words: the known words behind the scores, in the order of the texts.
        exclusion: why it is none of ``CONTRASTS`` (``'adc' means diffusion imaging``); empty if
            nothing speaks against it.
    """

    scores: dict[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()
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


def split_words(text: str) -> list[str]:
    """Lower-case words of a text; compounds are split where all parts are known words."""
    # NFKC turns full-width letters of Japanese consoles into ASCII.
    text = _SUFFIX.sub("", unicodedata.normalize("NFKC", text).strip())
    # "sub-01", "ses-post" and tumor stages (pT2) are no statement about the contrast.
    text = _BIDS.sub(" ", text)
    text = _STAGE.sub(" ", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    tokens: list[str] = []
    for chunk in re.findall(r"[^\W_]+", text):
        # Latin and other scripts stand together without a space in Chinese names: "T1增强".
        for part in re.findall(r"[0-9a-z]+|[^0-9a-z]+", _without_accents(chunk), re.IGNORECASE):
            tokens.extend(_split_compound(part))
    return tokens


def _without_accents(text: str) -> str:
    """Text without accents, independent of the locale: a Turkish dotless i is an i."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ı", "i"))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _folded(text: str) -> str:
    return _without_accents(text.casefold())


def _split_compound(chunk: str) -> list[str]:
    """Words of a chunk without separators: as it is if known, else at capitals, else by words."""
    folded_chunk = _folded(chunk)
    if _is_known(folded_chunk):
        return [folded_chunk]
    tokens = []
    for part in re.sub(r"(?<=[a-z])(?=[A-Z])", " ", chunk).split():
        word = _folded(part)
        if _is_known(word):
            tokens.append(word)
        else:
            tokens.extend(_segmented(word) or [word])
    return tokens


def _is_known(word: str) -> bool:
    return word in _MEANINGS or word in _EXCLUDED or word in _NEUTRAL


_COMPOUND_PARTS = {
    *_MEANINGS,
    *_NEUTRAL,
    "map",
    "maps",
    "mapping",
    "star",
    "rho",
    "seg",
    "segmentation",
    "mask",
    "label",
}
# Too short or too common inside other words.
_COMPOUND_PARTS -= {"fla", "flr", "civ", "mdc"}


def _segmented(word: str) -> list[str]:
    """Fewest known words that make up a word completely; empty if there is no such division.

    Dynamic programming over prefixes: ``best[end]`` is the shortest division of ``word[:end]``.
    """
    if len(word) > LONGEST_COMPOUND:
        return []
    best: list[list[str] | None] = [[]]
    for end in range(1, len(word) + 1):
        shortest = None
        for start in range(end):
            prefix = best[start]
            if prefix is None or word[start:end] not in _COMPOUND_PARTS:
                continue
            if shortest is None or len(prefix) + 1 < len(shortest):
                shortest = [*prefix, word[start:end]]
        best.append(shortest)
    return best[-1] or []


def _exclusion(words: Sequence[str], task_words: set[str], brain_only: bool) -> str:
    """Why the words exclude the contrasts; empty if they do not."""
    for position, word in enumerate(words):
        # "sub" is a subtraction, but at the beginning it is a subject.
        if word in task_words or (word == "sub" and position == 0):
            continue
        if word in _EXCLUDED:
            return f"'{word}' means {_EXCLUDED[word]}"
        if re.fullmatch(r"b\d{2,4}", word):
            return f"'{word}' means {_EXCLUDED['b0']}"
        if brain_only and word in _BODY:
            return f"'{word}' is not the whole brain"
    if "vsd" in words and "ot" in words:
        return "'OT' is the reference segmentation of BraTS 2012-2015"
    star_words = _T2_STAR_WITH & set(words)
    if star_words and T2 in {flag for flag, _ in _meanings(words)}:
        return f"'t2' with '{min(star_words)}' means T2*"
    return ""


def _meanings(words: Sequence[str]) -> list[tuple[str, str]]:
    """(flag, word for display) pairs.

    A word for contrast agent after a negation means its opposite.
    """
    meanings: list[tuple[str, str]] = []
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word == "bothways":
            # Both flags: the series may be either, or a subtraction of the two.
            meanings.append(("post", "with and without"))
            meanings.append(("pre", "with and without"))
        elif word == "c" and position and words[position - 1] in ("t1", "t1w"):
            # "T1 c", but not every single letter c.
            meanings.append(("post", "c"))
        elif word in ("post", "pre") and following in _NOT_CONTRAST:
            continue
        else:
            meanings.extend(_meanings_of_word(words, position))
    return meanings


def _meanings_of_word(words: Sequence[str], position: int) -> list[tuple[str, str]]:
    word = words[position]
    flags = _MEANINGS.get(word, ())
    negation = _negation(words, position)
    if flags == ("post",) and negation:
        return [("pre", f"{negation} {word}")]
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
            if _NEGATIONS.get(word, 0) >= distance:
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
    return _folded(text).strip() not in _NO_AGENT
