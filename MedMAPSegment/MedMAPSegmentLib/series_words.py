"""What the name or description of an MR series says about its contrast. Text only: no MRML in here.

Words are matched whole: the ``t1`` in ``t1ce`` or ``pt12`` is not a T1. Words written together (``AxT2FLAIR``,
``t1post``) count when the whole of them consists of known words. Upper and lower case, accents and the locale make no
difference. The vocabulary comes from the naming of the BraTS releases 2012-2024, BIDS, the Medical Segmentation
Decathlon and the usual protocol names of Siemens, GE and Philips, in English and the larger European languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

T1, T1CE, T2, FLAIR = "t1", "t1ce", "t2", "flair"
KINDS = (T1, T1CE, T2, FLAIR)
"""The contrasts that can be told from words; a task's modality is one of them if its name reads as one."""
TITLES = {T1: "T1", T1CE: "T1ce", T2: "T2", FLAIR: "FLAIR"}


def _table(entries: dict) -> dict:
    """One entry a word, from entries whose keys hold several words."""
    return {word: value for words, value in entries.items() for word in words.split()}


_T1_POST = ("t1", "post")
_MEANINGS: dict[str, tuple[str, ...]] = _table(
    {
        "t1 t1w t1wi t1n t1weighted t1gew t1pond": ("t1",),
        "t1ce t1c t1gd t1gad t1km t1ca ct1 ct1w cet1 t1cw t1wc": _T1_POST,
        "t2 t2w t2wi t2weighted t2gew t2pond": ("t2",),
        "flair t2f fla flr darkfluid": ("flair",),
        "tirm": ("tirm",),
        "mprage bravo fspgr spgr irspgr irfspgr": ("t1-sequence",),
        "post postcontrast postgad postgd postkm gad gd gado gadolinium gadovist gadavist gadobutrol gddtpa": (
            "post",
        ),
        "dotarem clariscan multihance prohance magnevist omniscan enhanced plusc ce km mdc civ": (
            "post",
        ),
        "contrast contraste contrasto kontrast kontrastmittel kontrastem контраст контрастом 增强 造影": (
            "post",
        ),
        "pre precontrast pregad pregd prekm unenhanced noncontrast nonenhanced minusc": ("pre",),
        "native nativ natif nativo nativa 平扫": ("pre",),
    }
)
_NEUTRAL = frozenset(
    _table(
        {
            "ax axial sag sagittal cor coronal tra transversal 3d 2d tse fse space spc cube brain head iso fs tfe": "",
            "vibe blade propeller dark fluid registered reg n4 bias medmap": "",
        }
    )
)
"""Words that say nothing about the contrast but are written together with those that do."""
_NEGATIONS = _table(
    {"no non not": 1, "without wo ohne sans sin senza bez zonder uden utan sem без pre": 2}
)
"""Words that turn a word for contrast agent into its opposite, and over how many words they reach."""
_NOT_CONTRAST = frozenset(
    _table(
        {
            "op operative operation surgery surgical resection biopsy rt rtx radiation radiotherapy": "",
            "chemo chemotherapy treatment therapy tx processing processed proc": "",
        }
    )
)
"""Before one of these, ``post`` and ``pre`` speak of an operation or therapy, not of contrast agent."""

_EXCLUDED: dict[str, str] = _table(
    {
        "dwi dti adc eadc trace tracew diff diffusion ep2d epi colfa tensor dki noddi b0": "diffusion imaging",
        "swi swan qsm mip minip pha phase mag hemo haemo t2star venobold": "susceptibility imaging",
        "perf perfusion pwi dsc dce rcbv rcbf relcbv relcbf cbv cbf mtt ttp tmax ktrans": "perfusion imaging",
        "asl pasl pcasl": "perfusion imaging",
        "tof mra mrv cta angio angiography venography venogram": "a vessel scan",
        "csi svs mrs spectroscopy": "spectroscopy",
        "fmri bold rest resting rsfmri": "functional imaging",
        "localizer localizer localizers loc scout survey aahscout aahead aascout plane": "a planning scan",
        "calibration fieldmap": "a planning scan",
        "map maps mapping relaxometry molli rho t1rho inv1 inv2": "a parameter map",
        "stir ciss fiesta pd pdw protondensity dir psir ute": "another contrast",
        "ct cbct pet fdg spect ultrasound": "not MR",
        "seg segm segmentation segmentations segmented label labels labelmap mask masks brainmask": "a derived image",
        "roi truth groundtruth gt pred prediction prob probability entropy uncertainty error": "a derived image",
        "difference subtraction subtracted subtr sub atlas parcellation aseg aparc tumormask": "a derived image",
        "screenshot screensave report dose": "a document",
    }
)
_BODY = frozenset(
    _table(
        {
            "spine cspine tspine lspine cervical lumbar thoracic neck orbit orbits iac iacs pituitary sella": "",
            "abdomen pelvis prostate liver knee shoulder hip cardiac heart breast": "",
        }
    )
)
_T2_STAR_WITH = frozenset(("gre", "ffe", "medic", "star"))
"""Beside ``t2`` these mean a T2*-weighted gradient echo."""

_SUFFIX = re.compile(r"(\.(nii|gz|mha|mhd|nrrd|nhdr|dcm|img|hdr|mgz))+$", re.IGNORECASE)
_BIDS = re.compile(r"(?<![a-z0-9])(sub|ses|run|echo|rec|part)-[a-z0-9]+", re.IGNORECASE)
_STAGE = re.compile(r"(?<![A-Za-z0-9])y?pT[0-4](?![A-Za-z0-9])")
_REWRITES = tuple(
    (re.compile(pattern, re.IGNORECASE), instead)
    for pattern, instead in (
        (r"\+\s*/\s*-|-\s*/\s*\+|±|\bw\s*/\s*wo\b|\bw\s*/?\s*and\s*w\s*/?\s*o\b", " bothways "),
        (r"\bw[\s_]+wo\b|\bwith[\s_]+and[\s_]+without\b|\bmit[\s_]+und[\s_]+ohne\b", " bothways "),
        (r"\bw\s*/\s*o\b", " without "),
        (
            r"(?<![a-z0-9])c\s*\+|\+\s*c(?![a-z0-9])|\+\s*(?=(gd|gad|km|contrast|kontrast|ce)(?![a-z0-9]))",
            " plusc ",
        ),
        (r"(?<=t1)\s*\+|(?<=t1w)\s*\+", " plusc "),
        (r"(?<![a-z0-9])c\s*-(?=$|[\s_)])", " minusc "),
        (r"t2\s*\*|t2[\s_-]+star\b", " t2star "),
        (r"\bmp[\s_-]+rage\b", " mprage "),
        (r"\bdark[\s_-]*fluid\b|(?<![a-z])da[\s_-]fl(?![a-z])", " darkfluid "),
    )
)


@dataclass(frozen=True)
class Reading:
    """What texts say about one series.

    Attributes:
        chances: contrast (one of ``KINDS``) -> confidence 0..1; empty if the texts say nothing, several if they leave
            it open.
        words: the known words that led to it, in the order found.
        excluded: why it is none of ``KINDS`` (``'adc' means diffusion imaging``); empty if nothing speaks against it.
    """

    chances: dict[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    excluded: str = ""


def readSeries(
    texts: Iterable[str], agent: str = "", own: Sequence[str] = (), brainOnly: bool = True
) -> Reading:
    """Read the texts of one series together.

    Args:
        texts: name, series description and so on; they add up, so ``T1`` and ``AX T1 POST`` make a T1ce.
        agent: contrast agent as DICOM gives it (0018,0010); empty if unknown.
        own: words with a meaning in the task at hand, which therefore exclude nothing (``lge``, ``pd``).
        brainOnly: whether words of other body parts exclude a series.
    """
    flags: set[str] = set()
    found: list[str] = []
    for text in texts:
        words = splitWords(text)
        excluded = _exclusion(words, set(own), brainOnly)
        if excluded:
            return Reading(excluded=excluded)
        for flag, word in _meanings(words):
            flags.add(flag)
            if word not in found:
                found.append(word)
    return Reading(_chances(flags, _isGiven(agent)), tuple(found))


def splitWords(text: str) -> list[str]:
    """Lower-case words of a text, those written together taken apart where all parts are known."""
    text = _SUFFIX.sub("", unicodedata.normalize("NFKC", text).strip())
    text = _STAGE.sub(" ", _BIDS.sub(" ", text))
    for pattern, instead in _REWRITES:
        text = pattern.sub(instead, text)
    words: list[str] = []
    for chunk in re.findall(r"[^\W_]+", text):
        for piece in re.findall(r"[0-9a-z]+|[^0-9a-z]+", _plain(chunk), re.IGNORECASE):
            words.extend(_apart(piece))
    return words


def _plain(text: str) -> str:
    """Text without accents, whatever the locale: a Turkish dotless i is an i."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ı", "i"))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _folded(text: str) -> str:
    return _plain(text.casefold())


def _apart(piece: str) -> list[str]:
    whole = _folded(piece)
    if _isKnown(whole):
        return [whole]
    result = []
    for part in re.sub(r"(?<=[a-z])(?=[A-Z])", " ", piece).split():
        word = _folded(part)
        result.extend([word] if _isKnown(word) else _segmented(word) or [word])
    return result


def _isKnown(word: str) -> bool:
    return word in _MEANINGS or word in _EXCLUDED or word in _NEUTRAL


_JOINED = {
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
_JOINED -= {"fla", "flr", "civ", "mdc"}


def _segmented(word: str) -> list[str]:
    """Fewest known words that make up a word completely; empty if it is not made of known words."""
    if len(word) > 40:
        return []
    best: list[list[str] | None] = [[]]
    for end in range(1, len(word) + 1):
        options = [
            [*before, word[start:end]]
            for start in range(end)
            if (before := best[start]) is not None and word[start:end] in _JOINED
        ]
        best.append(min(options, key=len) if options else None)
    return best[-1] or []


def _exclusion(words: Sequence[str], own: set[str], brainOnly: bool) -> str:
    for n, word in enumerate(words):
        if word in own or (word == "sub" and n == 0):
            continue
        if word in _EXCLUDED:
            return f"'{word}' means {_EXCLUDED[word]}"
        if re.fullmatch(r"b\d{2,4}", word):
            return f"'{word}' means {_EXCLUDED['b0']}"
        if brainOnly and word in _BODY:
            return f"'{word}' is not the whole brain"
    if "vsd" in words and "ot" in words:
        return "'OT' is the reference segmentation of BraTS 2012-2015"
    star = _T2_STAR_WITH & set(words)
    if star and "t2" in {flag for flag, _ in _meanings(words)}:
        return f"'t2' with '{min(star)}' means T2*"
    return ""


def _meanings(words: Sequence[str]) -> list[tuple[str, str]]:
    """(flag, word as shown) pairs. A word for contrast agent after a negation means its opposite."""
    result = []
    for n, word in enumerate(words):
        following = words[n + 1] if n + 1 < len(words) else ""
        if word == "bothways":
            result += [("post", "with and without"), ("pre", "with and without")]
        elif word == "c" and n and words[n - 1] in ("t1", "t1w"):
            result.append(("post", "c"))
        elif word in ("post", "pre") and following in _NOT_CONTRAST:
            continue
        elif _MEANINGS.get(word) == ("post",) and (negation := _negation(words, n)):
            result.append(("pre", f"{negation} {word}"))
        else:
            shown = {"plusc": "+C", "minusc": "C-"}.get(word, word)
            result += [(flag, shown) for flag in _MEANINGS.get(word, ())]
    return result


def _negation(words: Sequence[str], n: int) -> str:
    """The word that negates ``words[n]``; empty if none does."""
    if words[n] in ("post", "plusc"):
        return ""
    return next(
        (words[n - far] for far in (1, 2) if n >= far and _NEGATIONS.get(words[n - far], 0) >= far),
        "",
    )


def _chances(flags: set[str], agent: bool) -> dict[str, float]:
    """Confidence per contrast. The numbers order evidence; they are not measured frequencies."""
    t1, t2 = "t1" in flags, "t2" in flags
    post, pre = "post" in flags, "pre" in flags
    if "flair" in flags or "tirm" in flags:
        if t1 and t2:
            return {T1: 0.4, T2: 0.4, FLAIR: 0.45}
        if t1:  # GE's "T1 FLAIR" is T1-weighted, "T1" may be a time point, too
            return {T1: 0.45, FLAIR: 0.45}
        return {FLAIR: (0.95 if "flair" in flags else 0.8) - (0.1 if post else 0.0)}
    if t1 and t2:
        return {T1: 0.4, T2: 0.4}
    if t2:
        return {T2: 0.75 if post else 0.9}
    if t1 or "t1-sequence" in flags:
        less = 0.0 if t1 else 0.1
        if post and pre:
            return {T1: 0.45, T1CE: 0.45}
        if post:
            return {T1CE: 0.95 - less}
        if pre:
            return {T1: 0.95 - less}
        if agent:  # recorded for the patient, maybe after this very scan
            return {T1: 0.45, T1CE: 0.65}
        return {T1: 0.85 - less}
    return {}


def _isGiven(agent: str) -> bool:
    return _folded(agent).strip() not in (
        "",
        "no",
        "none",
        "n",
        "false",
        "0",
        "nein",
        "non",
        "keines",
        "without",
    )
