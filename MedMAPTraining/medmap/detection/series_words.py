"""Split the name of a series into words. Text only.

Words are matched whole: the ``t1`` in ``pt12`` is not a T1. Words written together (``AxT2FLAIR``,
``t1post``) count when the whole of them consists of vocabulary. Upper and lower case, separators,
accents and the locale make no difference.
"""

from __future__ import annotations

import re
import unicodedata

from medmap.detection.vocabulary import (
    COMPOUND_NEGATIONS,
    MEANINGS,
    NEUTRAL,
    is_vocabulary,
)

LONGEST_COMPOUND = 40
"""Longer chunks are not split into words: hostile names must not cost time."""

_SUFFIX = re.compile(r"(\.(nii|gz|mha|mhd|nrrd|nhdr|dcm|img|hdr|mgz))+$", re.IGNORECASE)
# BIDS entities whose value is free text: "ses-post" is a session, not contrast agent.
_BIDS = re.compile(r"(?<![a-z0-9])(sub|ses|run|echo|rec|part)-[a-z0-9]+", re.IGNORECASE)
# Pathological tumor stages are written with a capital T.
_STAGE = re.compile(r"(?<![A-Za-z0-9])y?pT[0-4](?![A-Za-z0-9])")

_WITH = r"(?:w|with|mit|avec|con|com|met|med)"
_WITHOUT = r"(?:w\s*[/-]?\s*o|without|ohne|sans|sin|sem|zonder|uden|utan|senza)"
_AND = r"\s*[/+&-]*\s*(?:and|und|et|y|e|en|og|och|or|oder|ou)?\s*[/+&-]*\s*"
_AGENT = r"(?:c|ce|gd|gad|gado|gadolinium|km|kontrast|contrast|contraste|civ)"
# "Post" and "pre" of an operation or therapy, the posterior fossa, and "post-processed". A colon
# between the words separates phrases: "T1 POST: Processed_CaPTk" (TCIA UPENN-GBM) is a T1ce.
_NOT_CONTRAST = (
    r"(?:op|operative|operation|surg\w*|resect\w*|biops\w*|rt|rtx|radi\w*|chemo\w*|treat\w*"
    r"|therap\w*|tx|process\w*|proc|fossa)"
)
_PATTERNS = (
    (rf"\b(?:post|pre)\.?[\s-]*{_NOT_CONTRAST}\b", " "),
    # With and without contrast agent: "+/-", "w/wo", "w and w/o", "ohne und mit".
    (r"\+\s*/\s*-|-\s*/\s*\+|±", " bothways "),
    (rf"\b{_WITH}{_AND}{_WITHOUT}\b|\b{_WITHOUT}{_AND}{_WITH}\b", " bothways "),
    # A name that ends so leaves the rest to the reader.
    (r"\b(?:with|mit|avec|w\s*/)\s*$", " bothways "),
    (r"\b(?:without|ohne|sans|wo|w\s*/?\s*o)\s*$", " minusc "),
    # Behind a space a minus may be a dash.
    (rf"(?<=\s)-\s*(?={_AGENT}\b)", " bothways "),
    # Spanish and Portuguese "c/c", "s/ contraste"; German "o.KM", "m. KM".
    (r"\bs\s*/\s*c\b|\bs\.\s*c\.", " minusc "),
    (r"\bc\s*/\s*c\b", " plusc "),
    (rf"\bs\s*/\s*(?={_AGENT}\b)|\bo\.?\s*(?=km\b)", " without "),
    (rf"\bc\s*/\s*(?={_AGENT}\b)|\b[mn]\.?\s*(?=km\b)", " "),
    (r"\bw\s*[/-]?\s*o\b", " without "),
    (r"造影前|增强前|増強前|조영\s*전", " minusc "),
    (r"造影|增强|増強|조영", " plusc "),
    (r"平扫|单纯|単純", " minusc "),
    # "C+", "+C", "+Gd": with contrast agent. "C-" at the end of a word: native.
    (rf"(?<![a-z0-9])c\s*\+|\+\s*c(?![a-z0-9])|\+\s*(?={_AGENT}(?![a-z0-9]))", " plusc "),
    (r"(?<=t1)\s*\+|(?<=t1w)\s*\+", " plusc "),
    (r"(?<![a-z0-9])c\s*-(?=$|[\s)])", " minusc "),
    # "T2*" would lose its star when the text is split into words.
    (r"t2\s*\*|t2[\s-]+(?:star|etoile|étoile|stern|estrella|stella)\b", " t2star "),
    (r"\bgradient[\s-]*echo\b", " gre "),
    (r"\bmp[\s-]+rage\b", " mprage "),
    # Siemens writes dark-fluid, darkfluid, dark_fluid, da-fl.
    (r"dark[\W_]*fl(?:uid)?(?![a-z])|da[\s.-]fl(?![a-z])", " darkfluid "),
)
_REWRITES = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement) for pattern, replacement in _PATTERNS
)


def split_words(text: str) -> list[str]:
    """Lower-case words of a text; compounds are split where all parts are vocabulary."""
    # NFKC turns full-width letters of Japanese consoles into ASCII.
    text = _SUFFIX.sub("", unicodedata.normalize("NFKC", text).strip())
    # "sub-01", "ses-post" and tumor stages (pT2) are no statement about the contrast.
    text = _BIDS.sub(" ", text)
    text = _STAGE.sub(" ", text)
    # An underscore belongs to a word for regular expressions, but separates words in names.
    text = text.replace("_", " ")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    tokens: list[str] = []
    for chunk in re.findall(r"[^\W_]+", text):
        # Latin and other scripts stand together without a space in Chinese names.
        for part in re.findall(r"[0-9a-z]+|[^0-9a-z]+", _without_accents(chunk), re.IGNORECASE):
            tokens.extend(_split_compound(part))
    return tokens


def folded(text: str) -> str:
    """Text without case and accents."""
    return _without_accents(text.casefold())


def _without_accents(text: str) -> str:
    """Text without accents, independent of the locale: a Turkish dotless i is an i."""
    decomposed = unicodedata.normalize("NFKD", text.replace("ı", "i"))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _split_compound(chunk: str) -> list[str]:
    """Words of a chunk without separators: as it is if known, else at capitals, else by words."""
    folded_chunk = folded(chunk)
    if is_vocabulary(folded_chunk):
        return [folded_chunk]
    tokens = []
    for part in re.sub(r"(?<=[a-z])(?=[A-Z])", " ", chunk).split():
        word = folded(part)
        if is_vocabulary(word):
            tokens.append(word)
        else:
            tokens.extend(_segmented(word) or [word])
    return tokens


_COMPOUND_PARTS = {
    *MEANINGS,
    *NEUTRAL,
    *COMPOUND_NEGATIONS,
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
_COMPOUND_PARTS -= {"fla", "flr", "civ", "mdc", "ks", "ку"}

_PHILIPS_PREFIXES = ("s", "e")
"""Philips puts a letter before the name of a sequence: ``s3DT1``, ``eFLAIR``."""
_SHORTEST_WITH_PREFIX = 3


def _segmented(word: str) -> list[str]:
    """Words of the vocabulary that make up a word completely; empty if there is no such division.

    A Philips prefix is left out.
    """
    if len(word) > LONGEST_COMPOUND:
        return []
    parts = _division(word)
    has_prefix = word[:1] in _PHILIPS_PREFIXES and len(word) > _SHORTEST_WITH_PREFIX
    if not parts and has_prefix:
        parts = _division(word[1:])
    return parts


def _division(word: str) -> list[str]:
    """Fewest parts that make up a word; empty if there is no such division.

    Dynamic programming over prefixes: ``best[end]`` is the shortest division of ``word[:end]``.
    """
    best: list[list[str] | None] = [[]]
    for end in range(1, len(word) + 1):
        shortest = None
        for start in range(end):
            prefix = best[start]
            part = word[start:end]
            if prefix is None or part not in _COMPOUND_PARTS:
                continue
            # Fewest parts: "flair" is a word, and not a sum of syllables.
            if shortest is None or len(prefix) + 1 < len(shortest):
                shortest = [*prefix, part]
        best.append(shortest)
    return best[-1] or []
