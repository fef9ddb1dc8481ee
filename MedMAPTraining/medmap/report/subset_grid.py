"""Cases by subsets: what the network makes of each set of scans, with Dice beneath, as the papers show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from medmap.metrics import label_masks
from medmap.report.label_overlay import tint
from medmap.report.page import Page, png
from medmap.report.slices import Slice
from medmap.task import Task

_PAPER, _INK, _QUIET = (255, 255, 255), "#1d2a33", "#66757f"
_CELL, _GAP, _LEFT, _TOP, _UNDER = 150, 6, 40, 112, 40


def subset_grid(
    slices: Sequence[Slice], scores: Mapping[str, Mapping[str, Mapping[str, float]]], task: Task
) -> bytes:
    """A PNG: a row a case, columns the reference and every subset; the picture beneath is a scan of that subset.

    Args:
        slices: one a case, kept by an evaluation.
        scores: case -> subset key -> region -> Dice of the whole volume, 0..1.
        task: order, titles, colors.
    """
    subsets = [
        s
        for s in task.table_order()
        if any(task.subset_key(s) in kept.predictions for kept in slices)
    ]
    heights = [_height(kept) for kept in slices]
    width = _LEFT + (len(subsets) + 1) * (_CELL + _GAP) + 10
    page = Page(
        np.full(
            (_TOP + sum(heights) + len(slices) * (_GAP + _UNDER) + 44, width, 3), _PAPER, np.uint8
        )
    )
    _head(page, subsets, task)
    top = _TOP
    for kept, height in zip(slices, heights, strict=True):
        page.text(_LEFT / 2, top + height / 2, kept.case[-20:], 12, _INK, rotation=90, ha="center")
        _paste(page, 0, top, _overlay(kept, None, kept.reference, task))
        page.text(_LEFT + _CELL / 2, top + height + 17, kept.title, 11, _QUIET, ha="center")
        for column, subset in enumerate(subsets, 1):
            key = task.subset_key(subset)
            if key in kept.predictions:
                _paste(page, column, top, _overlay(kept, subset, kept.predictions[key], task))
                _dice(page, column, top + height + 17, scores.get(kept.case, {}).get(key, {}), task)
        top += height + _GAP + _UNDER
    _legend(page, top + 16, task)
    return png(page)


def case_strip(kept: Slice, key: str, task: Task) -> bytes:
    """A PNG of one case: its scans of one subset, then reference and prediction over the last of them."""
    names = [name for name in task.modality_names if name in key.split("+") and name in kept.scans]
    panels = [(task.modality(name).title, _gray(kept, name)) for name in names]
    panels += [("Reference", _overlay(kept, names, kept.reference, task))]
    panels += [("Prediction", _overlay(kept, names, kept.predictions[key], task))]
    height = _height(kept)
    page = Page(np.full((height + 30, len(panels) * (_CELL + _GAP), 3), _PAPER, np.uint8))
    for n, (words, picture) in enumerate(panels):
        left = n * (_CELL + _GAP)
        page.pixels[26 : 26 + height, left : left + _CELL] = picture
        page.text(left + _CELL / 2, 12, words, 10, _INK, ha="center", weight="bold")
    return png(page)


def _height(kept: Slice) -> int:
    rows, columns = kept.reference.shape
    return max(24, round(_CELL * rows * kept.spacing[0] / (columns * kept.spacing[1])))


def _gray(kept: Slice, name: str) -> np.ndarray:
    picture = Image.fromarray(kept.scans[name]).resize(
        (_CELL, _height(kept)), Image.Resampling.BICUBIC
    )
    return np.repeat(np.asarray(picture)[..., None], 3, axis=2)


def _overlay(
    kept: Slice, subset: Sequence[str] | None, labels: np.ndarray, task: Task
) -> np.ndarray:
    """Labels over the last scan of the subset in the task's order (for BraTS FLAIR, which shows all of the tumor)."""
    names = [
        name
        for name in task.modality_names
        if name in kept.scans and (subset is None or name in subset)
    ]
    masks = label_masks(labels, task)
    classes = [(masks[label.name], label.color) for label in task.labels]
    return tint(_gray(kept, names[-1]), classes, 1.2)


def _paste(page: Page, column: int, top: int, picture: np.ndarray) -> None:
    left = _LEFT + column * (_CELL + _GAP)
    page.pixels[top : top + picture.shape[0], left : left + _CELL] = picture


def _head(page: Page, subsets: Sequence[Sequence[str]], task: Task) -> None:
    """The scans of every column, one beneath the other."""
    page.text(_LEFT + _CELL / 2, _TOP - 14, "Reference", 15, _INK, ha="center", weight="bold")
    for column, subset in enumerate(subsets, 1):
        middle = _LEFT + column * (_CELL + _GAP) + _CELL / 2
        for n, name in enumerate(reversed(subset)):
            page.text(middle, _TOP - 14 - 24 * n, task.modality(name).title, 15, _INK, ha="center")


def _dice(page: Page, column: int, down: float, found: Mapping[str, float], task: Task) -> None:
    words = "  ".join(f"{100 * found[r.name]:.0f}" for r in task.regions if r.name in found)
    page.text(_LEFT + column * (_CELL + _GAP) + _CELL / 2, down, words, 16, _INK, ha="center")


def _legend(page: Page, down: int, task: Task) -> None:
    left = _LEFT
    for label in task.labels:
        page.fill(left, down - 7, 14, 14, label.color)
        page.text(left + 22, down, label.title, 13, _INK)
        left += 52 + 11 * len(label.title)
    names = ", ".join(region.name for region in task.regions)
    page.text(left + 20, down, f"Beneath: Dice of {names} in %, over the whole volume.", 13, _QUIET)
