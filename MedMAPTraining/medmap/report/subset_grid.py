"""Cases or methods by modality subsets: predictions with their Dice, as papers show them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medmap.metrics import label_masks
from medmap.report.label_overlay import tint
from medmap.report.page import Page, png
from medmap.report.slices import Slice
from medmap.task import Label, Task

_PAPER = (255, 255, 255)
_INK = "#1d2a33"
_QUIET = "#66757f"
# Sizes in pixels.
_CELL = 150
_GAP = 6
_LEFT = 54
_TOP = 112
_BELOW = 40
_LEGEND_LINE = 26
_EXPLANATION = 600
_TITLE_LINES = 3
_LINE = 17
_TITLE_CHARACTERS = 22
"""Of a line that fits beside a cell."""


@dataclass(frozen=True)
class GridRow:
    """A row of a grid: one case, segmented by one method.

    Attributes:
        title: of the row: the case, or the method.
        picture: the case's slice with the predictions, kept by an evaluation.
        dice: subset key -> region -> Dice of the complete volume, 0..1.
        with_reference: whether the first column shows the reference; rows of the same slice need it
            once.
    """

    title: str
    picture: Slice
    dice: Mapping[str, Mapping[str, float]]
    with_reference: bool = True


def subset_grid(
    rows: Sequence[GridRow], task: Task, subsets: Sequence[Sequence[str]] | None = None
) -> bytes:
    """A PNG with a row for each case or method; columns are the reference and modality subsets.

    The picture beneath a prediction is the last modality of its subset.

    Args:
        rows: from top to bottom.
        task: order, titles, colors.
        subsets: modalities of each column; None takes every subset that has a prediction.
    """
    columns = subsets
    if columns is None:
        columns = predicted_subsets(rows, task)
    heights = [_height(row.picture) for row in rows]
    # The reference has the first column.
    cells_width = (len(columns) + 1) * (_CELL + _GAP)
    # The legend is wider than a grid of few columns.
    page_width = max(_LEFT + cells_width + 10, _legend_width(task))
    rows_height = sum(heights) + len(rows) * (_GAP + _BELOW)
    page_height = _TOP + rows_height + 44 + _LEGEND_LINE
    pixels = np.full((page_height, page_width, 3), _PAPER, np.uint8)
    page = Page(pixels)
    _head(page, columns, task)
    top = _TOP
    for row, height in zip(rows, heights, strict=True):
        _draw_row(page, top, row, columns, task)
        # Below each picture stands its Dice.
        top += height + _GAP + _BELOW
    _legend(page, top + 16, task)
    return png(page)


def predicted_subsets(rows: Sequence[GridRow], task: Task) -> list[tuple[str, ...]]:
    """Subsets of which any row has a prediction, in the order of the field's tables."""
    predicted: set[str] = set()
    for row in rows:
        predicted.update(row.picture.predictions)
    subsets = []
    for subset in task.table_order():
        if task.subset_key(subset) in predicted:
            subsets.append(subset)
    return subsets


def _draw_row(
    page: Page, top: int, row: GridRow, columns: Sequence[Sequence[str]], task: Task
) -> None:
    """One row: its title, the reference, and the prediction and Dice of every subset."""
    picture = row.picture
    height = _height(picture)
    below = top + height + 17
    _row_title(page, top + height / 2, row.title)
    if row.with_reference:
        reference = _overlay(picture, None, picture.reference, task)
        _paste(page, 0, top, reference)
        middle = _LEFT + _CELL / 2
        page.text(middle, below, picture.title, 11, _QUIET, align="center")
    for column, subset in enumerate(columns, 1):
        key = task.subset_key(subset)
        # A case that lacks modalities has no prediction of the subsets that need them.
        if key not in picture.predictions:
            continue
        labels = picture.predictions[key]
        prediction = _overlay(picture, subset, labels, task)
        _paste(page, column, top, prediction)
        scores = row.dice.get(key, {})
        _dice(page, column, below, scores, task)


def _row_title(page: Page, middle: float, title: str) -> None:
    """A title beside a row, from the bottom up; of a long one the end, which tells it apart."""
    all_lines = textwrap.wrap(title, _TITLE_CHARACTERS)
    lines = all_lines[-_TITLE_LINES:]
    # Turned lines advance to the right.
    first = _LEFT / 2 - _LINE * (len(lines) - 1) / 2
    for number, line in enumerate(lines):
        across = first + _LINE * number
        page.text(across, middle, line, 10, _INK, vertical=True)


def case_strip(picture: Slice, key: str, task: Task) -> bytes:
    """A PNG of one case: the modalities of one subset, then reference and prediction."""
    subset = key.split("+")
    names = [name for name in task.modality_names if name in subset and name in picture.scans]
    reference = _overlay(picture, names, picture.reference, task)
    prediction = _overlay(picture, names, picture.predictions[key], task)
    panels = [(task.modality(name).title, _gray(picture, name)) for name in names]
    panels.append(("Reference", reference))
    panels.append(("Prediction", prediction))
    return png(_row_of_panels(panels, _height(picture)))


def _row_of_panels(panels: Sequence[tuple[str, np.ndarray]], height: int) -> Page:
    """Pictures side by side, each under its title."""
    width = len(panels) * (_CELL + _GAP)
    blank = np.full((height + 30, width, 3), _PAPER, np.uint8)
    page = Page(blank)
    # Titles stand above, in the first 26 rows.
    rows = slice(26, 26 + height)
    for number, (title, pixels) in enumerate(panels):
        x = number * (_CELL + _GAP)
        page.pixels[rows, x : x + _CELL] = pixels
        page.text(x + _CELL / 2, 12, title, 10, _INK, align="center", bold=True)
    return page


def _height(picture: Slice) -> int:
    """Height in pixels of a cell with the slice's proportions in mm."""
    rows, columns = picture.reference.shape
    row_mm, column_mm = picture.spacing
    width_mm = columns * column_mm
    height = round(_CELL * rows * row_mm / width_mm)
    # Flat stacks would otherwise leave a line.
    return max(24, height)


def _gray(picture: Slice, name: str) -> np.ndarray:
    """A modality enlarged to a cell, [H, W, 3] uint8."""
    size = (_CELL, _height(picture))
    image = Image.fromarray(picture.scans[name])
    enlarged = image.resize(size, Image.Resampling.BICUBIC)
    channel = np.asarray(enlarged)[..., None]
    return np.repeat(channel, 3, axis=2)


def _overlay(
    picture: Slice, subset: Sequence[str] | None, labels: np.ndarray, task: Task
) -> np.ndarray:
    """Labels over the last modality of the subset in the task's order; None: of all.

    For BraTS that is FLAIR where it is given, which shows all of the tumor.
    """
    names = []
    for name in task.modality_names:
        is_chosen = subset is None or name in subset
        if is_chosen and name in picture.scans:
            names.append(name)
    backdrop = _gray(picture, names[-1])
    masks = label_masks(labels, task)
    classes = [(masks[label.name], label.color) for label in task.labels]
    return tint(backdrop, classes, 1.2)


def _paste(page: Page, column: int, top: int, pixels: np.ndarray) -> None:
    x = _LEFT + column * (_CELL + _GAP)
    page.pixels[top : top + pixels.shape[0], x : x + _CELL] = pixels


def _head(page: Page, subsets: Sequence[Sequence[str]], task: Task) -> None:
    """The modalities of every column, one beneath the other."""
    bottom = _TOP - 14
    first_middle = _LEFT + _CELL / 2
    page.text(first_middle, bottom, "Reference", 15, _INK, align="center", bold=True)
    for column, subset in enumerate(subsets, 1):
        middle = _LEFT + column * (_CELL + _GAP) + _CELL / 2
        # From the bottom up: titles of small subsets stand close to their pictures.
        for number, name in enumerate(reversed(subset)):
            title = task.modality(name).title
            down = bottom - 24 * number
            page.text(middle, down, title, 15, _INK, align="center")


def _dice(page: Page, column: int, down: float, scores: Mapping[str, float], task: Task) -> None:
    percents = []
    for region in task.regions:
        if region.name in scores:
            percent = 100 * scores[region.name]
            percents.append(f"{percent:.0f}")
    text = "  ".join(percents)
    middle = _LEFT + column * (_CELL + _GAP) + _CELL / 2
    page.text(middle, down, text, 16, _INK, align="center")


def _legend(page: Page, down: int, task: Task) -> None:
    x = _LEFT
    for label in task.labels:
        page.fill(x, down - 7, 14, 14, label.color)
        page.text(x + 22, down, label.title, 13, _INK)
        x += _label_width(label)
    names = ", ".join(region.name for region in task.regions)
    text = f"Beneath: Dice of {names} in %, over the whole volume."
    page.text(_LEFT, down + _LEGEND_LINE, text, 13, _QUIET)


def _legend_width(task: Task) -> int:
    """Pixels that ``_legend`` takes, margins included."""
    labels_width = sum(_label_width(label) for label in task.labels)
    return _LEFT + max(labels_width, _EXPLANATION) + 10


def _label_width(label: Label) -> int:
    return 52 + 11 * len(label.title)
