"""Tasks by name or from a file: shipped ones, TOML or JSON, nnU-Net's ``dataset.json``."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medmap.errors import BundleError, MissingInputError, UsageError
from medmap.task.builtin import TASKS
from medmap.task.definition import Code, Label, Modality, Region, Task
from medmap.task.nnunet import COLORS, task_of_dataset

LIBRARY = Path(__file__).resolve().parent / "library"
"""Task files that come with the package."""

LARGEST_VALUE = 2**15 - 1
"""Label maps are stored as 8 or 16 bit integers."""

_REQUIRED = object()
_FIELDS: dict[str, dict[str, tuple[type | tuple[type, ...], Any]]] = {
    # name of the field: type, default
    "the task": {
        "name": (str, _REQUIRED),
        "modalities": (list, _REQUIRED),
        "labels": (list, _REQUIRED),
        "regions": (list, ()),
        "organ": (str, "brain"),
        "target": (str, "tumor"),
        "skull_stripped": (bool, True),
        "layouts": (list, None),
        "label_endings": (list, None),
        "spatial_dims": (int, 3),
    },
    "a modality": {
        "name": (str, _REQUIRED),
        "title": (str, ""),
        "aliases": (list, ()),
        "warning_if_absent": (str, ""),
    },
    "a label": {
        "name": (str, _REQUIRED),
        "title": (str, ""),
        "value": (int, _REQUIRED),
        "alternative_values": (list, ()),
        "color": (list, None),
        "code": (dict, None),
    },
    "a region": {
        "name": (str, _REQUIRED),
        "title": (str, ""),
        "labels": (list, _REQUIRED),
        "min_volume_mm3": ((int, float), 0.0),
    },
}


def shipped_tasks() -> dict[str, Path]:
    """Task files of the package by lower-case name."""
    return {path.stem: path for path in sorted(LIBRARY.glob("*.toml"))}


def find_task(name: str | Path) -> Task:
    """The task of that name, in any case of letters, or of that file (.toml, .json).

    Raises:
        UsageError: there is no such task.
        MissingInputError: there is no such file.
        BundleError: the file describes no task.
    """
    text = str(name)
    for task in TASKS.values():
        if task.name.lower() == text.lower():
            return task
    shipped = shipped_tasks()
    if text.lower() in shipped:
        return read_task(shipped[text.lower()])
    if text.lower().endswith((".toml", ".json")):
        return read_task(Path(text))
    for path in shipped.values():
        task = read_task(path)
        if task.name.lower() == text.lower():
            return task
    raise UsageError(
        f"There is no task '{text}'.",
        f"Use one of {', '.join([*TASKS, *shipped])}, or a file (.toml, .json).",
    )


def read_task(path: Path) -> Task:
    """The task of a file. Errors as ``find_task``."""
    content = _content(path)
    if isinstance(content.get("labels"), dict):
        return _task_of_dataset(content, path)
    return parse_task(content, path.name)


def _content(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MissingInputError(
            f"The task {path} cannot be read: {error.strerror}.", "Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{path.name} is not UTF-8.", "Save it as UTF-8.") from error
    try:
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except ValueError as error:
        raise BundleError(
            f"{path.name} is no valid {path.suffix[1:].upper()} ({error}).", "Correct this place."
        ) from error
    if not isinstance(content, dict):
        raise _invalid(path.name, "it is no table of fields")
    return content


def _task_of_dataset(content: Mapping, path: Path) -> Task:
    """A task from nnU-Net's description; it is called as the data set is."""
    name = str(content.get("name") or path.absolute().parent.name)
    try:
        task = task_of_dataset(content, name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{path.name} is no description of nnU-Net ({error}).",
            "It needs channel_names and labels.",
        ) from error
    _check(task, path.name)
    return task


def parse_task(content: Mapping, file_name: str) -> Task:
    """The task of a file's content, with every default filled in.

    Args:
        content: fields of ``Task`` as plain data. Titles default to names, regions to one for each
            label, colors to a list.
        file_name: to begin messages with.

    Raises:
        BundleError: a field is unknown, absent, of another type, or contradicts others.
    """
    fields = _fields(content, "the task", file_name)
    modalities = [_modality(entry, file_name) for entry in fields["modalities"]]
    labels = []
    for number, entry in enumerate(fields["labels"]):
        color = COLORS[number % len(COLORS)]
        labels.append(_label(entry, color, file_name))
    regions = [_region(entry, file_name) for entry in fields["regions"]]
    if not regions:
        regions = [Region(label.name, label.title, (label.name,)) for label in labels]
    optional = {}
    for key in ("layouts", "label_endings"):
        values = fields[key]
        if values == []:
            raise _invalid(file_name, f"{key} is empty")
        if values is not None:
            optional[key] = tuple(str(value).lower() for value in values)
    task = Task(
        name=fields["name"],
        modalities=tuple(modalities),
        labels=tuple(labels),
        regions=tuple(regions),
        organ=fields["organ"],
        target=fields["target"],
        skull_stripped=fields["skull_stripped"],
        spatial_dims=fields["spatial_dims"],
        **optional,
    )
    _check(task, file_name)
    return task


def _modality(entry: Any, file_name: str) -> Modality:
    """One entry of ``modalities``; the title defaults to the name."""
    values = _fields(entry, "a modality", file_name)
    return Modality(
        values["name"],
        values["title"] or values["name"],
        tuple(str(alias).lower() for alias in values["aliases"]),
        values["warning_if_absent"],
    )


def _label(entry: Any, default_color: Sequence[int], file_name: str) -> Label:
    values = _fields(entry, "a label", file_name)
    color = tuple(values["color"] or default_color)
    if len(color) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in color):
        raise _invalid(file_name, f"the color of {values['name']} is not three numbers of 0 to 255")
    code = None
    if values["code"]:
        try:
            code = Code(**values["code"])
        except TypeError as error:
            raise _invalid(
                file_name, f"the code of {values['name']} needs scheme, value and meaning"
            ) from error
    return Label(
        values["name"],
        values["title"] or values["name"],
        values["value"],
        alternative_values=tuple(values["alternative_values"]),
        color=(color[0], color[1], color[2]),
        code=code,
    )


def _region(entry: Any, file_name: str) -> Region:
    """One entry of ``regions``; the title defaults to the name."""
    values = _fields(entry, "a region", file_name)
    return Region(
        values["name"],
        values["title"] or values["name"],
        tuple(str(name) for name in values["labels"]),
        float(values["min_volume_mm3"]),
    )


def _fields(entry: Any, kind: str, file_name: str) -> dict:
    """Fields of one entry, of the right types. Raises BundleError."""
    expected = _FIELDS[kind]
    if not isinstance(entry, Mapping):
        raise _invalid(file_name, f"{kind} is no table of fields, but {entry!r}")
    unknown = [key for key in entry if key not in expected]
    if unknown:
        raise _invalid(file_name, f"{kind} has no field '{unknown[0]}', only {', '.join(expected)}")
    values = {}
    for key, (field_type, default) in expected.items():
        value = entry.get(key, default)
        if value is _REQUIRED:
            raise _invalid(file_name, f"{kind} lacks the field '{key}'")
        # True is an integer in Python.
        is_wrong = isinstance(value, bool) and field_type is not bool
        if key in entry and (is_wrong or not isinstance(value, field_type)):
            raise _invalid(file_name, f"'{key}' of {kind} is {value!r}")
        values[key] = value
    return values


def _check(task: Task, file_name: str) -> None:
    """Raises BundleError where parts of a task contradict each other."""
    for problem in _problems(task):
        raise _invalid(file_name, problem)


def _problems(task: Task) -> list[str]:
    return [
        *_general_problems(task),
        *_modality_problems(task),
        *_label_problems(task),
        *_region_problems(task),
    ]


def _general_problems(task: Task) -> list[str]:
    problems = []
    if not task.name.strip():
        problems.append("the name is empty")
    for kind, parts in (("modality", task.modalities), ("label", task.labels)):
        if not parts:
            problems.append(f"there is no {kind}")
    if task.spatial_dims not in (2, 3):
        problems.append(f"spatial_dims is {task.spatial_dims}, not 2 or 3")
    return problems


def _modality_problems(task: Task) -> list[str]:
    problems = []
    # Modalities become options, columns and parts of subset names (t1ce+flair).
    for modality in task.modalities:
        if not re.fullmatch(r"[a-z0-9_]+", modality.name):
            problems.append(
                f"the modality '{modality.name}' is not written in lower-case letters, digits and _"
            )
    modality_words: list[str] = []
    for modality in task.modalities:
        modality_words += {modality.name, modality.title.lower(), *modality.aliases}
    problems += [f"two modalities are called '{word}'" for word in _repeated(modality_words)]
    return problems


def _label_problems(task: Task) -> list[str]:
    """What is wrong with the labels: repeated names or values, or values that files cannot hold."""
    names = [label.name for label in task.labels]
    problems = [f"two labels are called '{name}'" for name in _repeated(names)]
    values = []
    for label in task.labels:
        values += [label.value, *label.alternative_values]
    problems += [f"two labels have the value {value}" for value in _repeated(values)]
    for value in values:
        is_storable = isinstance(value, int) and 1 <= value <= LARGEST_VALUE
        if not is_storable:
            problems.append(f"a label has the value {value}, not one of 1 to {LARGEST_VALUE}")
    return problems


def _region_problems(task: Task) -> list[str]:
    names = [label.name for label in task.labels]
    region_names = [region.name for region in task.regions]
    problems = [f"two regions are called '{name}'" for name in _repeated(region_names)]
    for region in task.regions:
        unknown = [name for name in region.labels if name not in names]
        if unknown or not region.labels:
            listed = ", ".join(unknown) or "nothing"
            problems.append(f"the region {region.name} unites {listed}, which is no label")
    return problems


def _repeated(words: Sequence[Any]) -> list[Any]:
    return [word for word in dict.fromkeys(words) if words.count(word) > 1]


def _invalid(file_name: str, problem: str) -> BundleError:
    return BundleError(f"{file_name} describes no task: {problem}.", "Correct the file.")
