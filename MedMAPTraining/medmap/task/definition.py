"""What a task consists of: modalities, labels and regions, all by name.

Positions exist only inside tensors; ``Task.index`` is the one place that gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import combinations

import numpy as np

from medmap.errors import BundleError, UsageError
from medmap.task.earlier import current_form

UINT8_VALUES = 256

ALL_LAYOUTS = ("bids", "nnunet", "folders", "flat")
"""Layouts of folders that cases are looked for in, unless a task names its own."""

PUBLISHED_ORDER = (
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
"""Order of the subsets in RFNet's tables (Ding et al., ICCV 2021) and later ones."""


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
        alternative_values: other integers that mean it, too, where a task unites what its files
            distinguish (PASSION takes scar as myocardium). How releases of BraTS differ is no
            matter of the task: ``medmap.task.conventions`` has the table.
        color: RGB, 0..255.
        code: coded concept of the segment's type, or None.
    """

    name: str
    title: str
    value: int
    alternative_values: tuple[int, ...] = ()
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
        layouts: how cases may lie on disk, as in
            ``medmap.io.cohorts.LAYOUTS``, tried in this order.
        label_endings: what the names of label files end in before ``.nii.gz``.
        spatial_dims: 3, or 2 where slices are segmented one by one.
    """

    name: str
    modalities: tuple[Modality, ...]
    labels: tuple[Label, ...]
    regions: tuple[Region, ...]
    organ: str = "brain"
    target: str = "tumor"
    skull_stripped: bool = True
    layouts: tuple[str, ...] = ALL_LAYOUTS
    # BraTS20_Training_355 has its label map in W39_1998.09.19_Segm.nii.
    label_endings: tuple[str, ...] = ("seg", "segm")
    spatial_dims: int = 3

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

    def match(self, word: str) -> str | None:
        """Canonical name of the modality with this name, title or alias, in any case; else None."""
        word = word.strip().lower()
        for modality in self.modalities:
            if word in (modality.name, modality.title.lower(), *modality.aliases):
                return modality.name
        return None

    def find(self, word: str) -> str:
        """As ``match``. Raises UsageError where there is no such modality."""
        return self.match(word) or self.modality_names[self.index(word.strip().lower())]

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
        # Class 0 is the background.
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
        for subset in PUBLISHED_ORDER:
            ordered = tuple(name for name in self.modality_names if name in subset)
            published.append(ordered)
        # Tasks with other modalities have no published order.
        if set(published) == set(self.subsets()):
            return tuple(published)
        return self.subsets()

    def subset_title(self, names: str | Iterable[str]) -> str:
        """A subset for display: ``"T1ce + FLAIR"``; takes names or a ``subset_key``."""
        if isinstance(names, str):
            names = names.split("+")
        subset = set(names)
        titles = [entry.title for entry in self.modalities if entry.name in subset]
        return " + ".join(titles)

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
        """Rebuild a task from ``to_dict``, also in its earlier forms (``medmap.task.earlier``).

        Raises BundleError when a key is missing or of the wrong kind.
        """
        try:
            data = current_form(data)
            optional = {key: value for key, value in _fields(data).items() if key in OPTIONAL}
            return Task(
                name=str(data["name"]),
                modalities=tuple(Modality(**_fields(entry)) for entry in data["modalities"]),
                labels=tuple(_label(entry) for entry in data["labels"]),
                regions=tuple(Region(**_fields(entry)) for entry in data["regions"]),
                **optional,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"The task description is invalid ({error}).",
                "Export the bundle again with this MedMAP version.",
            ) from error


OPTIONAL = tuple(field.name for field in fields(Task) if field.default is not MISSING)
"""Fields that a serialized task may lack."""


def _fields(entry: Mapping) -> dict:
    """Keyword arguments from serialized fields, lists as tuples."""
    arguments = {}
    for key, value in entry.items():
        if isinstance(value, list):
            value = tuple(value)
        arguments[key] = value
    return arguments


def _label(entry: Mapping) -> Label:
    arguments = _fields(entry)
    if arguments.get("code"):
        arguments["code"] = Code(**arguments["code"])
    return Label(**arguments)
