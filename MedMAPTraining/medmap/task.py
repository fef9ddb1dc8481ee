"""What a segmentation task is: modalities, labels and regions, all by name.

Positions exist only inside tensors; ``Task.index`` is the one place that gives them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np

from medmap.errors import BundleError, UsageError


@dataclass(frozen=True)
class Code:
    """A coded concept as DICOM writes it: scheme designator, value, meaning."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Modality:
    """One kind of scan.

    Attributes:
        name: the canonical name, as in options, files and tables (``t1ce``).
        title: how a person writes it (``T1ce``).
        aliases: lower-case words that also mean it in file and series names (``t1c``, ``t1gd``).
        warning_if_absent: what a reader of a result without this modality must know; empty if nothing.
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
        title: how a person writes it (``Edema``).
        value: the integer in label files; the class index in tensors is its position in ``Task.labels`` plus one.
        also: other integers that files of the same task use for it (BraTS 2023 stores ET as 3).
        beside: pairs (value, other): the value means this label in files that also hold the other (BraTS 2012-2015
            store the non-enhancing core as 3 beside ET as 4).
        color: RGB, 0..255.
        code: coded concept of the segment's type, or None.
    """

    name: str
    title: str
    value: int
    also: tuple[int, ...] = ()
    beside: tuple[tuple[int, int], ...] = ()
    color: tuple[int, int, int] = (255, 255, 255)
    code: Code | None = None


@dataclass(frozen=True)
class Region:
    """A named union of labels that results are reported for (``WT`` = NCR + ED + ET).

    Attributes:
        name: short name (``WT``).
        title: how a person writes it.
        labels: names of the labels that it unites.
        least_mm3: the field's small-region rule: a prediction of less than this counts as none where an evaluation
            applies the rule (BraTS: ET below 500 mm³). 0 where there is no rule.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    least_mm3: float = 0.0


@dataclass(frozen=True)
class Task:
    """Modalities, labels (background excluded) and regions of one segmentation task.

    Attributes:
        organ: what the scans show, in messages ("no contrast within the brain").
        target: what is looked for, in messages ("No tumor was found").
        skull_stripped: whether the scans show the organ alone, on a constant background. If not, every voxel of a scan
            counts: a value of exactly zero may be nulled myocardium as well as air.
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
        return tuple(m.name for m in self.modalities)

    @property
    def num_classes(self) -> int:
        """Classes that a network predicts: background and every label."""
        return len(self.labels) + 1

    def index(self, modality: str) -> int:
        """Position of a modality inside a tensor. Raises UsageError for a name that the task does not have."""
        try:
            return self.modality_names.index(modality)
        except ValueError:
            raise UsageError(
                f"'{modality}' is not a modality of the task {self.name}.",
                f"Use one of {', '.join(self.modality_names)}.",
            ) from None

    def find(self, word: str) -> str:
        """Canonical name of a modality given by its name, title or alias, in any case. Raises UsageError."""
        word = word.strip().lower()
        for m in self.modalities:
            if word in (m.name, m.title.lower(), *m.aliases):
                return m.name
        return self.modality_names[self.index(word)]

    def modality(self, name: str) -> Modality:
        """The modality of that canonical name."""
        return self.modalities[self.index(name)]

    def label_values(self) -> tuple[int, ...]:
        """File value of every class index, background first: ``(0, 1, 2, 4)`` for BraTS."""
        return (0, *(label.value for label in self.labels))

    @property
    def label_dtype(self) -> np.dtype:
        """Type that label maps are stored in: uint8 where the values fit (BraTS), int16 otherwise (MyoPS: 2221)."""
        return np.dtype(np.uint8 if max(self.label_values()) < 256 else np.int16)

    def region_classes(self, region: str) -> tuple[int, ...]:
        """Class indices (tensor side) that make up a region."""
        names = [label.name for label in self.labels]
        found = next(r for r in self.regions if r.name == region)
        return tuple(names.index(label) + 1 for label in found.labels)

    def subsets(self) -> tuple[tuple[str, ...], ...]:
        """All non-empty sets of modalities, small ones first; each in tensor order. BraTS: 15."""
        names = self.modality_names
        return tuple(c for n in range(1, len(names) + 1) for c in combinations(names, n))

    def table_order(self) -> tuple[tuple[str, ...], ...]:
        """All subsets in the order of the field's tables (``PUBLISHED_ORDER``), or as ``subsets`` where it has none."""
        published = tuple(
            tuple(n for n in self.modality_names if n in s)
            for s in PUBLISHED_ORDER.get(self.name, ())
        )
        return published if set(published) == set(self.subsets()) else self.subsets()

    def subset_title(self, names) -> str:
        """A subset as people write it: ``"T1ce + FLAIR"``; takes names or a ``subset_key``."""
        wanted = set(names.split("+") if isinstance(names, str) else names)
        return " + ".join(m.title for m in self.modalities if m.name in wanted)

    def subset_key(self, names) -> str:
        """One name for a set of modalities, whatever the order given: ``"t1ce+flair"``."""
        wanted = {self.modality_names[self.index(name)] for name in names}
        return "+".join(name for name in self.modality_names if name in wanted)

    def titles(self, names) -> str:
        """The modalities as a person writes them: ``"T1ce, FLAIR"``."""
        return ", ".join(self.modality(name).title for name in names)

    def presence(self, names) -> tuple[bool, ...]:
        """Presence mask in tensor order; True = present."""
        wanted = {self.modality_names[self.index(name)] for name in names}
        return tuple(name in wanted for name in self.modality_names)

    def to_dict(self) -> dict:
        """Plain JSON-ready form; ``Task.from_dict`` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict) -> Task:
        """Rebuild a task from ``to_dict``. Raises BundleError when a key is missing or of the wrong kind."""
        try:
            name = str(data["name"])
            return Task(
                name=name,
                modalities=tuple(_tupled(Modality, m) for m in data["modalities"]),
                labels=tuple(_label(entry) for entry in data["labels"]),
                regions=tuple(_region(name, entry) for entry in data["regions"]),
                **{key: data[key] for key in ("organ", "target", "skull_stripped") if key in data},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"The task description is not understood ({error}).",
                "Export the bundle again with this MedMAP version.",
            ) from error


def choose_set(sets: Sequence[Sequence[str] | None], given: Collection[str]) -> int | None:
    """Which network of a bundle takes the scans that there are: the one that uses most of them, the first among equals.

    Args:
        sets: of each network the modalities that it is made for, all of which it needs; None for any set.
        given: names of the scans that there are.

    Returns:
        Its position; None if the scans satisfy no network.
    """
    used = {
        n: given if s is None else s
        for n, s in enumerate(sets)
        if (given if s is None else set(s) <= set(given))
    }
    return max(used, key=lambda n: len(used[n]), default=None)


def _tupled(cls, entry: dict):
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()})


def _region(task: str, entry: dict) -> Region:
    """A region; bundles written before there was ``least_mm3`` get their task's."""
    known = {r.name: r.least_mm3 for r in TASKS[task].regions} if task in TASKS else {}
    return _tupled(Region, {"least_mm3": known.get(entry["name"], 0.0), **entry})


def _label(entry: dict) -> Label:
    entry = dict(entry)
    code = entry.pop("code", None)
    entry["beside"] = tuple(tuple(pair) for pair in entry.get("beside", ()))
    label = _tupled(Label, entry)
    return Label(**{**label.__dict__, "code": Code(**code) if code else None})


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
            "Without FLAIR, edema is hard to tell from CSF and normal tissue: WT may be too small or too large.",
        ),
    ),
    labels=(
        Label(
            "NCR",
            "Necrosis / non-enhancing core",
            1,
            (),
            ((3, 4),),
            (216, 101, 79),
            Code("NCIt", "C81175", "Non-Enhancing Lesion"),
        ),
        Label("ED", "Edema", 2, (), (), (111, 184, 210), Code("SCT", "79654002", "Edema")),
        Label(
            "ET",
            "Enhancing tumor",
            4,
            (3,),
            (),
            (241, 214, 145),
            Code("NCIt", "C113842", "Enhancing Lesion"),
        ),
    ),
    regions=(
        Region("WT", "Whole tumor", ("NCR", "ED", "ET")),
        Region("TC", "Tumor core", ("NCR", "ET")),
        Region("ET", "Enhancing tumor", ("ET",), least_mm3=500.0),
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
"""MyoPS2020 (Zhuang and Li, MICCAI 2020 challenge): three aligned short-axis stacks of thick slices, label values 200
normal myocardium, 500 and 600 blood pools, 1220 edema, 2221 scar; scored are the parts of the heart, scar, and scar
with edema. Its labels carry no codes: those that the panel writes say that a segment lies in the brain."""

MYOPS_ANATOMY = Task(
    name="MyoPS-anatomy",
    modalities=tuple(replace(m, warning_if_absent="") for m in _MYOPS_MODALITIES),
    labels=(
        Label(
            "MYO",
            "Left ventricle myocardium",
            200,
            also=(1220, 2221),
            color=(120, 190, 120),
        ),
        *_BLOOD_POOLS,
    ),
    regions=tuple(r if r.name != "MYO" else replace(r, labels=("MYO",)) for r in MYOPS.regions[:3]),
    organ="heart",
    target="heart",
    skull_stripped=False,
)
"""MyoPS2020 with the three targets of PASSION (Shi et al., ACM MM 2024): all myocardium is one, scarred or not."""

TASKS = {task.name: task for task in (BRATS, MYOPS, MYOPS_ANATOMY)}


def find_task(name: str) -> Task:
    """The task of that name, in any case of letters. Raises UsageError."""
    for known, task in TASKS.items():
        if known.lower() == name.lower():
            return task
    raise UsageError(f"The task '{name}' is unknown.", f"Use one of {', '.join(TASKS)}.")


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
"""Order of the subsets in the tables of RFNet (Ding et al., ICCV 2021) and those who followed, by task."""
