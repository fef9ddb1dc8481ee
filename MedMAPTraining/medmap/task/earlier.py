"""Tasks as earlier versions serialized them, in today's form: bundles stay readable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EARLIER_FIELDS = {
    "least_mm3": "min_volume_mm3",
    "also": "alternative_values",
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

EARLIER_MINIMUM_MM3 = {("BraTS", "ET"): 500.0}
"""Minimum volumes by task and region that the first bundles did not state."""

HEARTS = ("MyoPS", "MyoPS-anatomy")
EARLIER_LAYOUTS = ("bids", "nnunet", "myops", "folders", "flat")
EARLIER_LABEL_ENDINGS = ("gd", "seg", "segm")
"""How the cases of hearts lie on disk, which bundles did not state."""


def current_form(data: Mapping) -> dict:
    """A serialized task with today's names, texts and fields.

    Raises KeyError or TypeError where it is no task.
    """
    task = _current_texts(data)
    name = str(task["name"])
    labels = []
    for entry in task["labels"]:
        label = _current_names(entry)
        # Values of other releases were a part of the task; medmap.task.conventions has them now.
        label.pop("beside", None)
        label.pop("conditional_values", None)
        if name == "BraTS":
            label.pop("alternative_values", None)
        labels.append(label)
    regions = []
    for entry in task["regions"]:
        region = _current_names(entry)
        region.setdefault("min_volume_mm3", EARLIER_MINIMUM_MM3.get((name, region["name"]), 0.0))
        regions.append(region)
    task["labels"] = labels
    task["regions"] = regions
    if name in HEARTS:
        task.setdefault("layouts", EARLIER_LAYOUTS)
        task.setdefault("label_endings", EARLIER_LABEL_ENDINGS)
    return task


def _current_names(entry: Mapping) -> dict:
    return {EARLIER_FIELDS.get(key, key): value for key, value in entry.items()}


def _current_texts(value: Any) -> Any:
    """Replace earlier display texts in nested plain data; everything else stays."""
    if isinstance(value, str):
        return EARLIER_TEXTS.get(value, value)
    if isinstance(value, Mapping):
        return {key: _current_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_current_texts(item) for item in value]
    return value
