"""The words that names of MR series consist of, and what they mean.

The vocabulary comes from the naming of the BraTS releases 2012-2024, BIDS, the Medical Segmentation
Decathlon and the usual protocol names of Siemens, GE, Philips and Esaote, in English and the larger
European languages. ``Testing/data/series_descriptions.csv`` lists real names with their sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T1 = "t1"
T1CE = "t1ce"
T2 = "t2"
FLAIR = "flair"
CONTRASTS = (T1, T1CE, T2, FLAIR)
"""The contrasts that names can distinguish; a task's modality is one if its name reads so."""
CONTRAST_TITLES = {T1: "T1", T1CE: "T1ce", T2: "T2", FLAIR: "FLAIR"}

Value = TypeVar("Value")


def _by_word(entries: Mapping[str, Value]) -> dict[str, Value]:
    """One entry per word, from entries whose keys hold several words."""
    table = {}
    for key, value in entries.items():
        for word in key.split():
            table[word] = value
    return table


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_T1_POST = ("t1", "post")
_POST = ("post",)
_PRE = ("pre",)
MEANINGS: dict[str, tuple[str, ...]] = _by_word(
    {
        # BraTS 2023 writes t1n; "gew" and "pond" are German and French for weighted. Esaote's
        # spin echo is SST1.
        "t1 t1w t1wi t1n t1weighted t1gew t1pond sst1": ("t1",),
        # BraTS 2012-2020 write t1c and t1ce, TCGA t1gd, German protocols t1km.
        "t1ce t1c t1gd t1gad t1km t1ca ct1 ct1w cet1 t1cw t1wc": _T1_POST,
        "t2 t2w t2wi t2weighted t2gew t2pond": ("t2",),
        # In a "dark fluid" sequence (Siemens) the CSF is suppressed, as in FLAIR.
        "flair t2f fla flr darkfluid": ("flair",),
        # Siemens' TIRM is a FLAIR or a STIR, depending on the inversion time.
        "tirm": ("tirm",),
        # 3-D gradient echoes with magnetization preparation or spoiling are T1-weighted.
        "mprage mp2rage rage bravo fspgr spgr irspgr irfspgr vibe thrive": ("t1-sequence",),
        "post postcontrast postgad postgd postkm": _POST,
        # Gadolinium, its abbreviations and trade names.
        "gad gd gado gadolinium gadolinio gadovist gadavist gadobutrol gddtpa": _POST,
        "dotarem clariscan multihance prohance magnevist omniscan vueway elucirem": _POST,
        # German Kontrastmittel (with, after), Slovenian kontrastno sredstvo, Italian mezzo di
        # contrasto, Spanish contraste intravenoso, Russian контрастное усиление.
        "km mkm nkm ks mdc civ enhanced plusc ce ку": _POST,
        "contrast contraste contrasto kontrast kontrastmittel kontrastem kontrasti": _POST,
        "kontrastli контраст контрастом контрастированием": _POST,
        "pre precontrast pregad pregd prekm okm unenhanced noncontrast nonenhanced minusc": _PRE,
        "native nativ natif nativo nativa kontrastsiz": _PRE,
    }
)
"""Flags of a word; ``series_names`` turns the flags of a whole name into a contrast."""

NEUTRAL = _words(
    "ax axial sag sagittal cor coronal tra transversal 3d 2d tse fse space spc cube brain head iso "
    "fs tfe blade propeller dark fluid registered reg n4 bias medmap filter clear sense"
)
"""Words that say nothing about the contrast but are written together with those that do."""

NEGATIONS: dict[str, int] = _by_word(
    {
        "no non not": 1,
        "without wo ohne sans sin senza bez zonder uden utan sem без до": 2,
        "pre before vor avant antes prima przed voor": 2,
    }
)
"""Words that negate a word for contrast agent, and how many words after them they reach."""
COMPOUND_NEGATIONS = _words("no non without wo ohne")
"""Negations that are written together with the word that they negate (``nogad``)."""

_DIFFUSION = "diffusion imaging"
_SUSCEPTIBILITY = "susceptibility imaging"
_PERFUSION = "perfusion imaging"
_PLANNING = "a planning scan"
_PARAMETER_MAP = "a parameter map"
_DERIVED = "a derived image"
EXCLUDED: dict[str, str] = _by_word(
    {
        "dwi dti adc eadc trace tracew diff diffusion": _DIFFUSION,
        "ep2d epi colfa tensor dki noddi b0 ivim": _DIFFUSION,
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
"""Words that exclude all contrasts, and what they mean."""

BODY = _words(
    "spine cspine tspine lspine cervical lumbar thoracic neck orbit orbits iac iacs pituitary "
    "sella abdomen pelvis prostate liver knee shoulder hip cardiac heart breast"
)
"""Words for other body parts."""

T2_STAR_WITH = _words("gre fgre mpgr ffe medic merge flash star")
"""Beside ``t2`` these mean a T2*-weighted gradient echo."""


def is_vocabulary(word: str) -> bool:
    """Whether a word is in one of the tables that compounds are split by."""
    return word in MEANINGS or word in EXCLUDED or word in NEUTRAL
