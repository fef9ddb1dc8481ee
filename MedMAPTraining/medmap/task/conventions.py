"""How label files write the classes of a task: one table for BraTS of every year, MSD and others.

Two releases share a set of values and mean different things (3 is a part of the core in 2013, and
enhancing tumor since 2023), so that a convention is decided for a cohort, by the names of its
cases or by the user, never for a file by the values that happen to occur in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medmap.errors import InputDataError, UsageError
from medmap.task.definition import Task

OWN = "task"
"""Name of the convention of a task itself: the values of ``Label.value``."""

BROADER = {"NET": "NCR", "CC": "NCR"}
"""Classes that are a part of another one in tasks that do not distinguish them: non-enhancing tumor
and cystic component belong to the tumor core."""

LATER = {"brats2023": "brats2024"}
"""Conventions whose case names a later release uses with one more value."""

BACKGROUND = ("RC", "OTHER")
"""Classes that are background in tasks without them.

A resection cavity is no tumor, other pathology no white matter hyperintensity.
"""

MANY_VALUES = 64
"""From so many different values on, an array is searched by sorting it."""

ROUNDING = 1e-3
"""Values this close to an integer are that integer: resampling writes 0.9999999."""


@dataclass(frozen=True)
class LabelConvention:
    """Values of label files, and what they mean.

    Attributes:
        name: as it is chosen (``brats2023``).
        title: for messages.
        classes: pairs of value and class; background (0) is left out.
        case_names: regular expression of the case names of its releases; empty if they have none.
        source: file of the data set that describes it; empty for conventions of the table.
    """

    name: str
    title: str
    classes: tuple[tuple[int, str], ...]
    case_names: str = ""
    source: str = ""

    @property
    def values(self) -> frozenset[int]:
        """Values that occur, without background."""
        return frozenset(value for value, _ in self.classes)

    @property
    def description(self) -> str:
        """``BraTS 2023 (1 NCR, 2 ED, 3 ET)``."""
        meanings = ", ".join(f"{value} {name}" for value, name in self.classes)
        return f"{self.title} ({meanings})"

    def matches(self, case_name: str) -> bool:
        """Whether a case is named as in a release with this convention."""
        return bool(self.case_names) and re.search(self.case_names, case_name) is not None

    def serves(self, task: Task) -> bool:
        """Whether every class is one of the task's, or background in it."""
        return all(_label_of(name, task) is not None for _, name in self.classes)

    def task_values(self, task: Task) -> dict[int, int]:
        """Value of the task (``Label.value``, 0 for background) by value of the file.

        Raises UsageError where the convention does not serve the task.
        """
        numbers = {label.name: label.value for label in task.labels}
        numbers[""] = 0
        values = {0: 0}
        for value, name in self.classes:
            label = _label_of(name, task)
            if label is None:
                raise UsageError(
                    f"The label convention {self.title} has the class {name}, the task "
                    f"{task.name} has not.",
                    f"Use one of {', '.join(names_of_conventions(task))}.",
                    option="labels",
                )
            values[value] = numbers[label]
        return values

    def to_task(self, labels: np.ndarray, task: Task, file_name: str) -> np.ndarray:
        """Values of a file as values of the task.

        Args:
            labels: array of any shape and type, as read.
            task: whose values are wanted.
            file_name: to begin messages with.

        Returns:
            Array of the same shape, of ``Task.label_dtype``.

        Raises:
            InputDataError: fractions, or values that the convention does not have.
        """
        numbers = whole_numbers(labels, file_name)
        table = self.task_values(task)
        present = distinct_values(numbers)
        unknown = [int(value) for value in present if int(value) not in table]
        if unknown:
            raise unknown_values(file_name, unknown, self)
        # A new array: values may be exchanged, and the input is not changed.
        result = np.zeros(numbers.shape, task.label_dtype)
        for value in present:
            has_value = numbers == value
            result[has_value] = table[int(value)]
        return result


CONVENTIONS = (
    LabelConvention(
        "brats2012",
        "BraTS 2012 to 2016",
        ((1, "NCR"), (2, "ED"), (3, "NET"), (4, "ET")),
        r"(?i)brats_(2013|tcia)_pat\d+|VSD\.Brain",
    ),
    LabelConvention(
        "brats2017",
        "BraTS 2017 to 2021",
        ((1, "NCR"), (2, "ED"), (4, "ET")),
        r"(?i)brats(17|18|19|20)_|BraTS2021_\d{5}",
    ),
    LabelConvention(
        "brats2023",
        "BraTS 2023",
        ((1, "NCR"), (2, "ED"), (3, "ET")),
        r"(?i)brats-(gli|ssa|met|men)-\d{5}-0\d\d",
    ),
    LabelConvention(
        "brats2024",
        "BraTS 2024 and later, post-treatment",
        ((1, "NCR"), (2, "ED"), (3, "ET"), (4, "RC")),
        r"(?i)brats-gli-\d{5}-1\d\d",
    ),
    LabelConvention(
        "brats-ped",
        "BraTS-PED",
        ((1, "ET"), (2, "NET"), (3, "CC"), (4, "ED")),
        r"(?i)brats-peds?-\d",
    ),
    LabelConvention(
        "msd",
        "Medical Segmentation Decathlon, Task01",
        ((1, "ED"), (2, "NET"), (3, "ET")),
        r"^BRATS_\d{3}$",
    ),
    LabelConvention("wmh2017", "WMH challenge 2017", ((1, "WMH"), (2, "OTHER")), r"(?i)wmh[_-]?\d"),
)
"""Sources: Menze et al. 2015 (2012 to 2016), Bakas et al. 2018 and Baid et al. 2021 (2017 to 2021),
Adewole et al. 2023 and LaBella et al. 2023 (2023), de Verdier et al. 2024 (post-treatment),
Kazerooni et al. 2024 (pediatric), Antonelli et al. 2022 (MSD), Kuijf et al. 2019 (WMH).
"""


def own_convention(task: Task) -> LabelConvention:
    """The convention of the task's own values."""
    classes = []
    for label in task.labels:
        for value in (label.value, *label.alternative_values):
            classes.append((value, label.name))
    for convention in CONVENTIONS:
        same_classes = set(convention.classes) == set(classes)
        if convention.serves(task) and same_classes:
            return convention
    return LabelConvention(OWN, f"the task {task.name}", tuple(sorted(classes)))


def names_of_conventions(task: Task) -> tuple[str, ...]:
    """Names that can be chosen for a task."""
    return (OWN, *(entry.name for entry in CONVENTIONS if entry.serves(task)))


def find_convention(name: str, task: Task) -> LabelConvention:
    """The convention of that name, in any case of letters; ``brats2018`` is that of its year.

    Raises UsageError where there is none, or it does not serve the task.
    """
    if name.lower() == OWN:
        return own_convention(task)
    release = _release(name)
    for convention in CONVENTIONS:
        if convention.name == release:
            convention.task_values(task)
            return convention
    raise UsageError(
        f"'{name}' is no label convention.",
        f"Use one of {', '.join(names_of_conventions(task))}.",
        option="labels",
    )


def _release(name: str) -> str:
    """Name of the convention of a year: a convention holds until the next one begins."""
    match = re.fullmatch(r"brats[-_ ]?(20\d\d)", name.lower())
    if match is None:
        return name.lower().replace("_", "-")
    release_year = int(match[1])
    # In the order of the years: the last one that had begun holds.
    current = name.lower()
    for entry in CONVENTIONS:
        first = re.fullmatch(r"brats(20\d\d)", entry.name)
        if first is not None and int(first[1]) <= release_year:
            current = entry.name
    return current


@dataclass(frozen=True)
class LabelReading:
    """How the label files of a cohort are read.

    Attributes:
        conventions: by case name.
        reasons: by name of the convention, why it was taken.
    """

    conventions: Mapping[str, LabelConvention]
    reasons: Mapping[str, str]

    @property
    def statement(self) -> str:
        """For reports: which conventions, and why. Empty without label files."""
        sentences = []
        for convention in dict.fromkeys(self.conventions.values()):
            reason = self.reasons[convention.name]
            sentences.append(f"Label values as in {convention.description}: {reason}.")
        return " ".join(sentences)


def recognize(values: Mapping[str, Collection[int]], task: Task, chosen: str = "") -> LabelReading:
    """Decide how the label files of a cohort are read.

    Cases that are named as in a release are read as its files are; the others together, by the
    values that occur among them.

    Args:
        values: values that occur in the label file, by case name.
        task: whose classes they are.
        chosen: name of a convention that the user chose; empty: recognize it.

    Raises:
        InputDataError: the values have several meanings, or none in the task.
        UsageError: there is no convention of the chosen name.
    """
    if chosen:
        convention = find_convention(chosen, task)
        return LabelReading(dict.fromkeys(values, convention), {convention.name: "chosen"})
    serving = [entry for entry in CONVENTIONS if entry.serves(task)]
    # What no convention knows is an error of its own case, and says nothing about the others.
    meaningful = set(own_convention(task).values)
    for entry in serving:
        meaningful.update(entry.values)
    conventions = {}
    reasons: dict[str, str] = {}
    for names, cases in _cases_by_release(values, serving).items():
        in_files: set[int] = set()
        for case in cases:
            in_files.update(values[case])
        known_values = frozenset(in_files & meaningful)
        convention, reason = _recognized(known_values, names, task, cases[0])
        conventions.update(dict.fromkeys(cases, convention))
        reasons.setdefault(convention.name, reason)
    return LabelReading(conventions, reasons)


def _cases_by_release(
    cases: Iterable[str], conventions: Sequence[LabelConvention]
) -> dict[tuple[str, ...], list[str]]:
    """Cases by the names of the conventions whose releases name cases so."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for case in cases:
        names = tuple(entry.name for entry in conventions if entry.matches(case))
        groups.setdefault(names, []).append(case)
    return groups


def _recognized(
    occurring: frozenset[int], names: Iterable[str], task: Task, case: str
) -> tuple[LabelConvention, str]:
    """The convention of cases that are named alike, and why."""
    by_names = f"by the names of the cases, such as {case}"
    for name in names:
        convention = find_convention(name, task)
        if occurring <= convention.values:
            return convention, by_names
        # 4 without 3 is no later release, but files that were relabeled to 1, 2, 4.
        if name in LATER and {3, 4} <= occurring:
            return find_convention(LATER[name], task), by_names
    serving = [entry for entry in CONVENTIONS if entry.serves(task)]
    default = own_convention(task)
    candidates = list(dict.fromkeys([default, *serving]))
    fitting = [entry for entry in candidates if occurring <= entry.values]
    listed = ", ".join(str(value) for value in sorted(occurring)) or "none"
    if default in fitting or not fitting:
        return default, f"by the values that occur ({listed})"
    # Since 2023 ET is 3; that 3 and 4 occur together leaves 2012 to 2016,
    # post-treatment, pediatric.
    common = [entry for entry in fitting if entry.name == "brats2023"]
    if len(fitting) == 1:
        common = fitting
    if common:
        return common[0], f"by the values that occur ({listed})"
    titles = [entry.description for entry in fitting]
    raise InputDataError(
        f"The label values {listed} of {case} have several meanings: {'; '.join(titles)}.",
        f"Choose one of {', '.join(entry.name for entry in fitting)}.",
        option=f"labels {fitting[0].name}",
    )


def unknown_values(
    file_name: str, values: Iterable[int], convention: LabelConvention
) -> InputDataError:
    """The error for values that a convention does not have."""
    listed = ", ".join(str(value) for value in list(values)[:8])
    expected = ", ".join(str(value) for value in sorted({0, *convention.values}))
    return InputDataError(
        f"{file_name} holds the label values {listed}, which {convention.description} does not "
        "have.",
        f"Relabel it to use only {expected}, or choose another label convention.",
        option="labels",
    )


def whole_numbers(labels: np.ndarray, file_name: str) -> np.ndarray:
    """Labels as integers. Raises InputDataError for fractions and for what is not finite."""
    if labels.dtype.kind in "iu":
        return labels
    if not np.isfinite(labels).all():
        raise InputDataError(f"{file_name} holds NaN, not labels.", "Give a label map.")
    rounded = np.rint(labels)
    distance = np.abs(labels - rounded)
    if distance.max(initial=0) > ROUNDING:
        value = float(labels.flat[int(distance.argmax())])
        raise InputDataError(
            f"{file_name} holds fractions such as {value:.6g}, not labels.",
            "Give a label map; resample label maps by nearest neighbor.",
        )
    return rounded.astype(np.int64)


def distinct_values(labels: np.ndarray) -> list[int]:
    """Values of an integer array, sorted. Label maps hold few: much faster than sorting voxels."""
    values: set[int] = set()
    remaining = labels.ravel(order="K")
    # One pass for each value: a label map has few, and sorting all voxels would take longer.
    while remaining.size and len(values) < MANY_VALUES:
        value = remaining[0]
        values.add(int(value))
        remaining = remaining[remaining != value]
    # Images taken for label maps hold thousands of values: these are sorted after all.
    values.update(int(value) for value in np.unique(remaining))
    return sorted(values)


def _label_of(name: str, task: Task) -> str | None:
    """Label of the task that a class belongs to; "" for background, None where there is none."""
    labels = {label.name for label in task.labels}
    if name in labels:
        return name
    if BROADER.get(name) in labels:
        return BROADER[name]
    if name in BACKGROUND:
        return ""
    return None
