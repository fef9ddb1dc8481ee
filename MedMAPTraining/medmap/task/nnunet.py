"""nnU-Net's ``dataset.json`` as a task: channels are modalities; labels and regions stay."""

from __future__ import annotations

import re
from collections.abc import Mapping

from medmap.task.definition import Label, Modality, Region, Task

DATASET = "dataset.json"

_CLASSES = {
    "NCR": r"necro|non[ -_]?enhanc|ncr|netc?\b",
    "ET": r"enhanc|\bet\b",
    "ED": r"o?edema|\bed\b|snfh",
    "RC": r"resection|cavity|\brc\b",
}
"""Classes of brain tumors by words of their names; the first that matches counts."""

COLORS = (
    (241, 214, 145),
    (111, 184, 210),
    (216, 101, 79),
    (120, 190, 120),
    (150, 110, 200),
    (230, 150, 90),
)


def channel_titles(content: Mapping) -> dict[int, str]:
    """Title of each channel by number (``channel_names``, in version 1 ``modality``)."""
    channels = content["channel_names"] if "channel_names" in content else content["modality"]
    return {int(number): str(title) for number, title in channels.items()}


def label_values(content: Mapping) -> dict[str, tuple[int, ...]]:
    """Values by name of the label or region, without background and ``ignore``.

    Version 1 writes the value first (``{"1": "edema"}``).
    """
    values = {}
    for key, value in content["labels"].items():
        name = str(key)
        numbers = value
        if name.isdigit():
            name = str(value)
            numbers = key
        if not isinstance(numbers, list):
            numbers = [numbers]
        members = tuple(int(number) for number in numbers)
        if members != (0,) and name.lower() not in ("background", "ignore"):
            values[name] = members
    return values


def label_classes(content: Mapping, task: Task) -> tuple[tuple[int, str], ...]:
    """Pairs of value and class of a task; empty where a name is not understood.

    In region-based data sets (``"whole tumor": [1, 2, 3]``) a value is the class that lies in the
    same regions.
    """
    values = label_values(content)
    classes: list[tuple[int, str | None]] = []
    is_region_based = any(len(members) > 1 for members in values.values())
    if is_region_based:
        classes = _classes_of_regions(values, task)
    else:
        for name, members in values.items():
            classes.append((members[0], _class_of(name, task)))
    understood = [(value, name) for value, name in classes if name is not None]
    # All or nothing: labels that are only in part understood would be scored wrongly.
    if len(understood) < len(classes):
        return ()
    return tuple(sorted(understood))


def _class_of(title: str, task: Task) -> str | None:
    """Class of a label by its name or title, or by the words of brain tumors."""
    for label in task.labels:
        if title.lower() in (label.name.lower(), label.title.lower()):
            return label.name
    names = {label.name for label in task.labels}
    for name, pattern in _CLASSES.items():
        if not re.search(pattern, title.lower()):
            continue
        # The first pattern that fits decides; RC (resection cavity) is understood everywhere.
        if name in names or name == "RC":
            return name
        return None
    return None


def _classes_of_regions(
    values: Mapping[str, tuple[int, ...]], task: Task
) -> list[tuple[int, str | None]]:
    """Class of each value: the label that lies in the same regions; None where there is none."""
    names = {}
    for region in task.regions:
        names[region.name.lower()] = region.name
        names[region.title.lower()] = region.name
    membership: dict[int, set[str]] = {}
    for title, members in values.items():
        plain_title = title.lower().replace("_", " ")
        region_name = names.get(plain_title, "?")
        for value in members:
            membership.setdefault(value, set()).add(region_name)
    classes: list[tuple[int, str | None]] = []
    for value, value_regions in membership.items():
        classes.append((value, _label_in(value_regions, task)))
    return classes


def _label_in(regions: set[str], task: Task) -> str | None:
    """The label that lies in exactly these regions."""
    matching = None
    for label in task.labels:
        label_regions = {entry.name for entry in task.regions if label.name in entry.labels}
        if label_regions == regions:
            matching = label.name
    return matching


def task_of_dataset(content: Mapping, name: str) -> Task:
    """A task from ``dataset.json``.

    Raises KeyError, TypeError or ValueError for what is no such description.
    """
    modalities = []
    for title in channel_titles(content).values():
        modalities.append(Modality(_identifier(title), title))
    values = label_values(content)
    single = {title: members[0] for title, members in values.items() if len(members) == 1}
    covered = set(single.values())
    # In region-based data sets some values have no name of their own.
    for members in values.values():
        for value in members:
            if value not in covered:
                covered.add(value)
                single[f"Label {value}"] = value
    labels = []
    for number, (title, value) in enumerate(sorted(single.items(), key=lambda item: item[1])):
        color = COLORS[number % len(COLORS)]
        labels.append(Label(_identifier(title), title, value, color=color))
    names = {label.value: label.name for label in labels}
    regions = []
    for title, members in values.items():
        regions.append(Region(_identifier(title), title, tuple(names[value] for value in members)))
    return Task(
        name=name,
        modalities=tuple(modalities),
        labels=tuple(labels),
        regions=tuple(regions),
        skull_stripped=False,
    )


def _identifier(title: str) -> str:
    """A short name without spaces: ``whole_tumor``."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
