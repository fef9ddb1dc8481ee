"""Definition of segmentation tasks: modalities, labels and regions, all by name.

Positions exist only inside tensors; ``Task.index`` is the one place that gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from medmap.errors import BundleError, UsageError

UINT8_VALUES = 256


@dataclass(frozen=True)
class Code:
    """A coded concept as DICOM writes it: scheme designator, value, meaning."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Modality:
    """One MRI modality of a task.

    Attributes:
        name: the canonical name, as in options, files and tables (``t1ce``).
        title: the name for display (``T1ce``).
        aliases: lower-case words that also mean it in file and series names (``t1c``, ``t1gd``).
        warning_if_absent: what a reader of a result without this modality must know; may be empty.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    warning_if_absent: str = ""


@dataclass(frozen=True)
class Label:
    """One class of the label map.

    Attributes:
        name: short name (``ED``).
        title: the name for display (``Edema``).
        value: the integer in label files; the class index in tensors is the label's position in
            ``Task.labels`` plus one.
        alternative_values: other integers for it in files of the same task (BraTS 2023 stores ET
            as 3).
        conditional_values: pairs (value, companion): the value means this label in files that also
            hold the companion (BraTS 2012-2015 store the non-enhancing core as 3 beside ET as 4).
        color: RGB, 0..255.
        code: coded concept of the segment's type, or None.
    """

    name: str
    title: str
    value: int
    alternative_values: tuple[int, ...] = ()
    conditional_values: tuple[tuple[int, int], ...] = ()
    color: tuple[int, int, int] = (255, 255, 255)
    code: Code | None = None


@dataclass(frozen=True)
class Region:
    """A named union of labels that results are reported for (``WT`` = NCR + ED + ET).

    Attributes:
        name: short name (``WT``).
        title: the name for display.
        labels: names of the united labels.
        min_volume_mm3: minimum-volume threshold of the benchmark: a smaller prediction counts as
            empty where an evaluation applies the rule (BraTS: ET below 500 mm³). 0: no rule.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    min_volume_mm3: float = 0.0


@dataclass(frozen=True)
class Task:
    """Modalities, labels (background excluded) and regions of one segmentation task.

    Attributes:
        organ: the organ on the images, for messages ("no contrast within the brain").
        target: the structure to segment, for messages ("No tumor was found").
        skull_stripped: whether the images show the organ alone, on a constant background. If not,
            every voxel counts: a value of exactly zero may be nulled myocardium as well as air.
    """

    name: str
    modalities: tuple[Modality, ...]
    labels: tuple[Label, ...]
    regions: tuple[Region, ...]
    organ: str = "brain"
    target: str = "tumor"
    skull_stripped: bool = True

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Canonical modality names, in tensor order."""
        return tuple(modality.name for modality in self.modalities)

    @property
    def num_classes(self) -> int:
        """Number of classes that a network predicts: the background and every label."""
        return len(self.labels) + 1

    def index(self, modality: str) -> int:
        """Position of a modality inside a tensor. Raises UsageError for an unknown name."""
        try:
            return self.modality_names.index(modality)
        except ValueError:
            raise UsageError(
                f"'{modality}' is not a modality of the task {self.name}.",
                f"Use one of {', '.join(self.modality_names)}.",
            ) from None

    def find(self, word: str) -> str:
        """Canonical name of the modality with this name, title or alias, in any case.

        Raises UsageError if there is none.
        """
        word = word.strip().lower()
        for modality in self.modalities:
            if word in (modality.name, modality.title.lower(), *modality.aliases):
                return modality.name
        return self.modality_names[self.index(word)]

    def modality(self, name: str) -> Modality:
        """The modality with this canonical name. Raises UsageError for an unknown name."""
        return self.modalities[self.index(name)]

    def label_values(self) -> tuple[int, ...]:
        """File value of every class index, background first: ``(0, 1, 2, 4)`` for BraTS."""
        return (0, *(label.value for label in self.labels))

    @property
    def label_dtype(self) -> np.dtype:
        """Type of stored label maps: uint8 where the values fit (BraTS), else int16 (MyoPS)."""
        if max(self.label_values()) < UINT8_VALUES:
            return np.dtype(np.uint8)
        return np.dtype(np.int16)

    def region_classes(self, region: str) -> tuple[int, ...]:
        """Class indices (tensor side) that make up a region."""
        label_names = [label.name for label in self.labels]
        members = next(entry.labels for entry in self.regions if entry.name == region)
        return tuple(label_names.index(name) + 1 for name in members)

    def subsets(self) -> tuple[tuple[str, ...], ...]:
        """All non-empty modality subsets, small ones first; each in tensor order. BraTS: 15."""
        subsets: list[tuple[str, ...]] = []
        for size in range(1, len(self.modalities) + 1):
            subsets.extend(combinations(self.modality_names, size))
        return tuple(subsets)

    def table_order(self) -> tuple[tuple[str, ...], ...]:
        """All subsets in the order of published tables (``PUBLISHED_ORDER``), else of ``subsets``.

        Each subset is in tensor order.
        """
        published = []
        for subset in PUBLISHED_ORDER.get(self.name, ()):
            published.append(tuple(name for name in self.modality_names if name in subset))
        if set(published) == set(self.subsets()):
            return tuple(published)
        return self.subsets()

    def subset_title(self, names: str | Iterable[str]) -> str:
        """A subset for display: ``"T1ce + FLAIR"``; takes names or a ``subset_key``."""
        if isinstance(names, str):
            names = names.split("+")
        subset = set(names)
        return " + ".join(entry.title for entry in self.modalities if entry.name in subset)

    def subset_key(self, names: Iterable[str]) -> str:
        """Identifier of a modality subset, independent of the order given: ``"t1ce+flair"``."""
        positions = {self.index(name) for name in names}
        return "+".join(self.modality_names[position] for position in sorted(positions))

    def titles(self, names: Iterable[str]) -> str:
        """Modalities for display: ``"T1ce, FLAIR"``."""
        return ", ".join(self.modality(name).title for name in names)

    def presence(self, names: Iterable[str]) -> tuple[bool, ...]:
        """Presence mask in tensor order; True = present."""
        positions = {self.index(name) for name in names}
        return tuple(position in positions for position in range(len(self.modalities)))

    def to_dict(self) -> dict:
        """Plain JSON-ready form; ``Task.from_dict`` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping) -> Task:
        """Rebuild a task from ``to_dict``, also in its earlier forms (``EARLIER_FIELDS``).

        Raises BundleError when a key is missing or of the wrong kind.
        """
        try:
            data = _current_texts(data)
            name = str(data["name"])
            optional = {}
            for key in ("organ", "target", "skull_stripped"):
                if key in data:
                    optional[key] = data[key]
            return Task(
                name=name,
                modalities=tuple(_modality(entry) for entry in data["modalities"]),
                labels=tuple(_label(entry) for entry in data["labels"]),
                regions=tuple(_region(name, entry) for entry in data["regions"]),
                **optional,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"The task description is invalid ({error}).",
                "Export the bundle again with this MedMAP version.",
            ) from error


EARLIER_FIELDS = {
    "least_mm3": "min_volume_mm3",
    "also": "alternative_values",
    "beside": "conditional_values",
}
"""Earlier names of serialized fields; bundles that were written with them stay readable."""

EARLIER_TEXTS = {
    "tumour": "tumor",
    "Without T1ce, enhancing tumour is not visible: ET is a guess and TC is unreliable.": (
        "Without T1ce, enhancing tumor is not visible: ET is a guess and TC is unreliable."
    ),
    "Without FLAIR, oedema is hard to tell from CSF and normal tissue: WT may be too small or too "
    "large.": (
        "Without FLAIR, edema is hard to tell from CSF and normal tissue: WT may be too small or "
        "too large."
    ),
    "Without LGE, scar is hard to tell from oedema and muscle: scar is a guess.": (
        "Without LGE, scar is hard to tell from edema and muscle: scar is a guess."
    ),
    "Without T2, oedema is hard to tell from muscle.": (
        "Without T2, edema is hard to tell from muscle."
    ),
    "Oedema": "Edema",
    "Scar and oedema": "Scar and edema",
    "Enhancing tumour": "Enhancing tumor",
    "Whole tumour": "Whole tumor",
    "Tumour core": "Tumor core",
}
"""Display texts that earlier versions wrote in British spelling -> the same in today's."""


def _current_texts(value: Any) -> Any:
    """Replace earlier display texts in nested plain data; everything else stays."""
    if isinstance(value, str):
        return EARLIER_TEXTS.get(value, value)
    if isinstance(value, Mapping):
        return {key: _current_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_current_texts(item) for item in value]
    return value


def _fields(entry: Mapping) -> dict:
    """Keyword arguments from serialized fields: today's names, lists as tuples."""
    arguments = {}
    for key, value in entry.items():
        if isinstance(value, list):
            value = tuple(value)
        arguments[EARLIER_FIELDS.get(key, key)] = value
    return arguments


def _modality(entry: Mapping) -> Modality:
    return Modality(**_fields(entry))


def _label(entry: Mapping) -> Label:
    arguments = _fields(entry)
    pairs = arguments.get("conditional_values", ())
    arguments["conditional_values"] = tuple(tuple(pair) for pair in pairs)
    if arguments.get("code"):
        arguments["code"] = Code(**arguments["code"])
    return Label(**arguments)


def _region(task_name: str, entry: Mapping) -> Region:
    """A region; the oldest bundles lack the minimum volume and get that of their task."""
    region = Region(**_fields(entry))
    if "min_volume_mm3" in _fields(entry) or task_name not in TASKS:
        return region
    for known_region in TASKS[task_name].regions:
        if known_region.name == region.name:
            return replace(region, min_volume_mm3=known_region.min_volume_mm3)
    return region


BRATS = Task(
    name="BraTS",
    modalities=(
        Modality("t1", "T1", ("t1n", "t1w", "t1pre")),
        Modality(
            "t1ce",
            "T1ce",
            ("t1c", "t1gd", "t1post", "t1km", "ce"),
            "Without T1ce, enhancing tumor is not visible: ET is a guess and TC is unreliable.",
        ),
        Modality("t2", "T2", ("t2w",)),
        Modality(
            "flair",
            "FLAIR",
            ("t2f", "fla", "tirm"),
            "Without FLAIR, edema is hard to tell from CSF and normal tissue: WT may be too small "
            "or too large.",
        ),
    ),
    labels=(
        Label(
            "NCR",
            "Necrosis / non-enhancing core",
            1,
            conditional_values=((3, 4),),
            color=(216, 101, 79),
            code=Code("NCIt", "C81175", "Non-Enhancing Lesion"),
        ),
        Label(
            "ED",
            "Edema",
            2,
            color=(111, 184, 210),
            code=Code("SCT", "79654002", "Edema"),
        ),
        Label(
            "ET",
            "Enhancing tumor",
            4,
            alternative_values=(3,),
            color=(241, 214, 145),
            code=Code("NCIt", "C113842", "Enhancing Lesion"),
        ),
    ),
    regions=(
        Region("WT", "Whole tumor", ("NCR", "ED", "ET")),
        Region("TC", "Tumor core", ("NCR", "ET")),
        Region("ET", "Enhancing tumor", ("ET",), min_volume_mm3=500.0),
    ),
)
"""BraTS glioma: labels 1 NCR/NET, 2 ED, 4 ET (3 in releases since 2023); regions WT, TC, ET."""

_MYOPS_MODALITIES = (
    Modality("bssfp", "bSSFP", ("c0", "cine", "ssfp")),
    Modality(
        "lge",
        "LGE",
        ("de", "psir"),
        "Without LGE, scar is hard to tell from edema and muscle: scar is a guess.",
    ),
    Modality(
        "t2",
        "T2",
        ("t2w", "stir"),
        "Without T2, edema is hard to tell from muscle.",
    ),
)
_BLOOD_POOLS = (
    Label("LVB", "Left ventricle blood pool", 500, color=(216, 84, 79)),
    Label("RVB", "Right ventricle blood pool", 600, color=(90, 130, 220)),
)

MYOPS = Task(
    name="MyoPS",
    modalities=_MYOPS_MODALITIES,
    labels=(
        Label("NMYO", "Normal myocardium", 200, color=(120, 190, 120)),
        *_BLOOD_POOLS,
        Label("ED", "Edema", 1220, color=(111, 184, 210)),
        Label("SCAR", "Scar", 2221, color=(241, 214, 145)),
    ),
    regions=(
        Region("LVB", "LV blood pool", ("LVB",)),
        Region("RVB", "RV blood pool", ("RVB",)),
        Region("MYO", "LV myocardium", ("NMYO", "ED", "SCAR")),
        Region("SCAR", "Scar", ("SCAR",)),
        Region("PATH", "Scar and edema", ("ED", "SCAR")),
    ),
    organ="heart",
    target="heart",
    skull_stripped=False,
)
"""MyoPS 2020 (Zhuang and Li, MICCAI 2020 challenge): three aligned stacks of thick slices.

Label values: 200 normal myocardium, 500 and 600 blood pools, 1220 edema, 2221 scar. Scored are the
parts of the heart, scar, and scar with edema. The labels carry no codes, because the panel writes
codes with the brain as the anatomic region."""

MYOPS_ANATOMY = Task(
    name="MyoPS-anatomy",
    modalities=tuple(replace(m, warning_if_absent="") for m in _MYOPS_MODALITIES),
    labels=(
        Label(
            "MYO",
            "Left ventricle myocardium",
            200,
            alternative_values=(1220, 2221),
            color=(120, 190, 120),
        ),
        *_BLOOD_POOLS,
    ),
    regions=tuple(r if r.name != "MYO" else replace(r, labels=("MYO",)) for r in MYOPS.regions[:3]),
    organ="heart",
    target="heart",
    skull_stripped=False,
)
"""MyoPS 2020 with the three targets of PASSION (Shi et al., ACM MM 2024): all myocardium is one
label, scarred or not."""

TASKS = {task.name: task for task in (BRATS, MYOPS, MYOPS_ANATOMY)}


def find_task(name: str) -> Task:
    """The task of that name, in any case of letters. Raises UsageError."""
    for task in TASKS.values():
        if task.name.lower() == name.lower():
            return task
    raise UsageError(f"There is no task '{name}'.", f"Use one of {', '.join(TASKS)}.")


PUBLISHED_ORDER = {
    BRATS.name: (
        ("t2",),
        ("t1ce",),
        ("t1",),
        ("flair",),
        ("t1ce", "t2"),
        ("t1ce", "t1"),
        ("flair", "t1"),
        ("t1", "t2"),
        ("flair", "t2"),
        ("flair", "t1ce"),
        ("flair", "t1ce", "t1"),
        ("flair", "t1", "t2"),
        ("flair", "t1ce", "t2"),
        ("t1ce", "t1", "t2"),
        ("flair", "t1ce", "t1", "t2"),
    )
}
"""By task, the order of the subsets in RFNet's tables (Ding et al., ICCV 2021) and later ones."""
