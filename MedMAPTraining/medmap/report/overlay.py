"""One picture of one case: the scans used, the prediction, the reference and where the two agree.

Pictures follow the radiological convention: the patient's right is on the left of axial and coronal pictures, anterior
is on the left of sagittal ones. All panels have one scale in mm, whatever the spacing and orientation of the scans.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.patheffects import withStroke
from PIL import Image

from medmap.errors import InputDataError, UsageError
from medmap.io.atomic import write_bytes
from medmap.metrics import RegionScore, dice, label_masks, region_masks
from medmap.report.label_overlay import tint
from medmap.report.page import AMBER, GRAY, WHITE, Page, png
from medmap.report.planes import Case, Plane, cut, prepare
from medmap.task import Region, Task
from medmap.volume import Grid, Volume

AGREE, ONLY_PREDICTION, ONLY_REFERENCE = (64, 190, 110), (255, 64, 170), (60, 125, 255)
"""RGB of the agreement map; distinct under red-green color blindness and from the BraTS label colors."""

_PAGE, _CELL = (22, 24, 28), (0, 0, 0)
# In pixels: width of the page, height of all rows, width of a cell, height of a cell.
_MIN_WIDTH, _MAX_WIDTH, _MAX_ROWS, _MAX_CELL, _MIN_CELL = 1000, 1600, 1200, 520, 72
_HALO = [withStroke(linewidth=2.5, foreground="black")]


@dataclass(frozen=True)
class _Layout:
    """Positions in pixels: columns and rows of cells, and the scale in pixels per mm that all cells share."""

    columns: int
    cell_width: int
    cell_heights: tuple[int, ...]
    scale: float
    left: int = 40
    top: int = 120
    gap: int = 6

    def corner(self, column: int, row: int) -> tuple[int, int]:
        """Top left of a cell."""
        above = sum(self.cell_heights[:row]) + row * self.gap
        return self.left + column * (self.cell_width + self.gap), self.top + above

    @property
    def width(self) -> int:
        """Of the page."""
        return self.corner(self.columns, 0)[0] + 4

    @property
    def bottom(self) -> int:
        """Below the last row of cells."""
        return self.corner(0, len(self.cell_heights))[1]


@dataclass(frozen=True)
class _Notes:
    """What is written around the panels."""

    title: str
    absent: list[str]
    volumes: dict[str, float]
    scores: Mapping[str, RegionScore]


def save_overlay(
    path: str | os.PathLike,
    scans: Mapping[str, Volume | np.ndarray],
    prediction: np.ndarray,
    grid: Grid,
    task: Task,
    *,
    reference_labels: np.ndarray | None = None,
    missing: Sequence[str] = (),
    title: str = "",
    volumes_ml: Mapping[str, float] | None = None,
    scores: Mapping[str, RegionScore] | None = None,
) -> None:
    """Write one PNG of a case: a row per orientation, a column per scan, then prediction, reference and agreement.

    The axial row shows the slice of largest tumor area, the others the slices nearest to the tumor's centroid that
    cut it; the tumor is the reference's where there is one (so that pictures of one case with different subsets of
    modalities show the same slices), otherwise the prediction's. Of a stack of thick slices the rows are the first,
    the middle and the last that have labels. The same inputs give the same bytes.

    Args:
        path: the PNG; its folder must exist. Written to a temporary file beside it, then renamed.
        scans: modality name -> array [I, J, K] or Volume on ``grid``: the scans that the prediction was made from.
        prediction: [I, J, K] integer label values as files hold them.
        grid: where the voxels lie; any orientation, spacing and obliqueness.
        task: names, titles, colors.
        reference_labels: [I, J, K] as ``prediction``; adds the reference and the agreement column.
        missing: modality names to call missing; all that have no scan are called so in any case.
        title: first line, such as the case's name.
        volumes_ml: label or region name -> ml of the prediction; what is not given is counted from its voxels.
        scores: region name -> RegionScore; without it Dice is computed here and nothing else.

    Raises:
        InputDataError: an array has another shape than the grid, or holds an unknown label value.
        UsageError: no scan, an unknown modality, or one that is both given and missing.
        OutputError: the file cannot be written.
    """
    used, absent = _names(scans, missing, task)
    arrays = {
        name: _on_grid(getattr(scans[name], "array", scans[name]), grid, name) for name in used
    }
    prediction = _on_grid(prediction, grid, "The prediction")
    reference = (
        None if reference_labels is None else _on_grid(reference_labels, grid, "The reference")
    )
    case = prepare(arrays, prediction, reference, grid, task)
    if reference is not None and scores is None:
        scores = _dice_only(prediction, reference, task, grid.voxel_ml)
    notes = _Notes(
        title, absent, _volumes(prediction, task, grid.voxel_ml, volumes_ml or {}), scores or {}
    )
    write_bytes(path, png(_draw(case, task, notes)))


def _names(scans: Mapping, missing: Sequence[str], task: Task) -> tuple[list[str], list[str]]:
    """Names of used and absent modalities in the task's order."""
    given, lost = (
        {task.modality_names[task.index(n)] for n in scans},
        {n for n in missing if task.index(n) >= 0},
    )
    if not given:
        raise UsageError(
            "There is no scan to draw.", "Give at least one of the scans that were used."
        )
    if given & lost:
        both = ", ".join(sorted(given & lost))
        raise UsageError(
            f"{both} is both given and called missing.", "Take it out of one of the two."
        )
    return sorted(given, key=task.index), [n for n in task.modality_names if n not in given]


def _on_grid(array: np.ndarray, grid: Grid, what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.shape != tuple(grid.shape):
        raise InputDataError(
            f"{what} has the shape {array.shape}, but the reference grid has {tuple(grid.shape)}.",
            "Resample it to the reference grid first.",
        )
    return array


def _volumes(
    labels: np.ndarray, task: Task, voxel_ml: float, given: Mapping[str, float]
) -> dict[str, float]:
    """ml of every label and region; a name that is both (ET) is the same voxels."""
    masks = {**label_masks(labels, task), **region_masks(labels, task)}
    return {
        name: float(given.get(name, np.count_nonzero(mask) * voxel_ml))
        for name, mask in masks.items()
    }


def _dice_only(
    prediction: np.ndarray, reference: np.ndarray, task: Task, voxel_ml: float
) -> dict[str, RegionScore]:
    ours, theirs, nan = region_masks(prediction, task), region_masks(reference, task), float("nan")
    sizes = {
        name: [np.count_nonzero(masks[name]) * voxel_ml for masks in (ours, theirs)]
        for name in ours
    }
    return {
        name: RegionScore(dice(ours[name], theirs[name]), nan, nan, nan, *sizes[name])
        for name in ours
    }


# --- panels -------------------------------------------------------------------------------------------------------


def _panel(column: str, plane: Plane, case: Case, task: Task, scale: float) -> np.ndarray:
    """[H, W, 3] uint8: one scan, or one kind of overlay on the backdrop."""
    size = tuple(
        max(1, round(float(case.extent_mm[axis]) * scale)) for axis in (plane.across, plane.down)
    )
    if column in case.scans:
        return _gray(column, plane, case, size)
    backdrop = _gray(_backdrop(case), plane, case, size)
    if column == "agreement":
        names = _widest(task).labels
        ours, theirs = (
            _any(masks, names, plane, case) for masks in (case.prediction, case.reference)
        )
        classes = [
            (ours & theirs, AGREE),
            (ours & ~theirs, ONLY_PREDICTION),
            (theirs & ~ours, ONLY_REFERENCE),
        ]
    else:
        masks = case.prediction if column == "prediction" else case.reference
        classes = [
            (cut(masks[label.name], plane, case.position), label.color) for label in task.labels
        ]
    return tint(backdrop, classes, 2 if scale >= 2 else 1.4)


def _backdrop(case: Case) -> str:
    """The scan under the overlays: the last one used in the task's order (for BraTS, FLAIR shows the whole tumor)."""
    return list(case.scans)[-1]


def _widest(task: Task) -> Region:
    return max(task.regions, key=lambda region: len(region.labels))


def _any(masks: dict, names: Sequence[str], plane: Plane, case: Case) -> np.ndarray:
    return np.logical_or.reduce([cut(masks[name], plane, case.position) for name in names])


def _gray(name: str, plane: Plane, case: Case, size: tuple[int, int]) -> np.ndarray:
    low, high, empty = case.windows[name]
    picture = np.nan_to_num(
        cut(case.scans[name], plane, case.position).astype(np.float32), nan=empty
    )
    picture[picture == empty] = (
        low  # z-scored scans may keep a background of 0, which the window would show as gray
    )
    picture = np.clip((picture - low) / (high - low), 0, 1)
    picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    return np.repeat(np.uint8(np.clip(picture, 0, 1) * 255 + 0.5)[..., None], 3, axis=2)


# --- the page -----------------------------------------------------------------------------------------------------


def _layout(case: Case, columns: int) -> _Layout:
    across = float(max(case.extent_mm[plane.across] for plane in case.planes))
    down = [float(case.extent_mm[plane.down]) for plane in case.planes]
    width = min(_MAX_CELL, (_MAX_WIDTH - 44) // columns - 6)
    scale = min(width / across, _MAX_ROWS / sum(down))
    width = max(round(across * scale), math.ceil((_MIN_WIDTH - 44) / columns) - 6)
    return _Layout(columns, width, tuple(max(_MIN_CELL, round(mm * scale)) for mm in down), scale)


def _draw(case: Case, task: Task, notes: _Notes) -> Page:
    columns = [
        *case.scans,
        "prediction",
        *(("reference", "agreement") if case.reference is not None else ()),
    ]
    layout = _layout(case, len(columns))
    warnings = [
        task.modality(n).warning_if_absent
        for n in notes.absent
        if task.modality(n).warning_if_absent
    ]
    more = 28 * max(0, len(task.labels) - 3, len(task.regions) - 3)
    page = Page(
        np.full((layout.bottom + 184 + more + 24 * len(warnings), layout.width, 3), _PAGE, np.uint8)
    )
    _header(page, layout, list(case.scans), task, notes)
    for number, column in enumerate(columns):
        _column_title(page, layout, number, column, task)
        for row, plane in enumerate(case.planes):
            _place(page, layout, number, row, _panel(column, plane, case, task, layout.scale))
            _letters(page, layout, number, row, plane.letters)
    _row_titles(page, layout, case)
    if not any(mask.any() for mask in case.prediction.values()):
        x, y = layout.corner(len(case.scans), 0)
        middle = x + layout.cell_width / 2
        page.text(
            middle,
            y + layout.cell_heights[0] - 34,
            f"No {task.target} found",
            13,
            AMBER,
            weight="bold",
            ha="center",
            path_effects=_HALO,
        )
    _legend(page, layout, case.reference is not None, task, notes)
    for number, words in enumerate(warnings):
        page.text(layout.left, layout.bottom + 146 + more + 24 * number, words, 11, AMBER)
    _footer(page, layout, task.modality(_backdrop(case)).title)
    return page


def _header(page: Page, layout: _Layout, used: list[str], task: Task, notes: _Notes) -> None:
    room = layout.width // 15
    title = " ".join(notes.title.split()) or f"{task.name} segmentation"
    page.text(
        layout.left, 28, title if len(title) <= room else title[: room - 1] + "…", 18, weight="bold"
    )
    page.text(layout.left, 64, "Scans", 12, GRAY)
    for number, modality in enumerate(task.modalities):
        there = modality.name in used
        words = f"\u25cf {modality.title}" if there else f"\u25cb {modality.title} missing"
        page.text(layout.left + 80 + 160 * number, 64, words, 12, WHITE if there else AMBER)


def _column_title(page: Page, layout: _Layout, number: int, column: str, task: Task) -> None:
    x = layout.corner(number, 0)[0] + layout.cell_width / 2
    if column in task.modality_names:
        words = task.modality(column).title
    elif column == "agreement":
        words = f"Agreement, {_widest(task).name}"
    else:
        words = column.capitalize()
    page.text(x, layout.top - 18, words, 13, weight="bold", ha="center")


def _place(page: Page, layout: _Layout, column: int, row: int, panel: np.ndarray) -> None:
    """Put a panel in the middle of its cell."""
    x, y = layout.corner(column, row)
    page.fill(x, y, layout.cell_width, layout.cell_heights[row], _CELL)
    panel = panel[: layout.cell_heights[row], : layout.cell_width]
    down, across = (
        y + (layout.cell_heights[row] - panel.shape[0]) // 2,
        x + (layout.cell_width - panel.shape[1]) // 2,
    )
    page.pixels[down : down + panel.shape[0], across : across + panel.shape[1]] = panel


def _letters(page: Page, layout: _Layout, column: int, row: int, letters: str) -> None:
    (x, y), width, height = layout.corner(column, row), layout.cell_width, layout.cell_heights[row]
    places = ((11, height / 2), (width - 11, height / 2), (width / 2, 11), (width / 2, height - 11))
    for letter, (across, down) in zip(letters, places, strict=True):
        page.text(x + across, y + down, letter, 10, WHITE, ha="center", path_effects=_HALO)


def _row_titles(page: Page, layout: _Layout, case: Case) -> None:
    for row, plane in enumerate(case.planes):
        mm = case.position_mm[plane.normal]
        letter = ("RL", "AP", "SI")[plane.normal][0 if mm >= 0 else 1]
        height = layout.cell_heights[row]
        volume = plane.at is None
        words = (
            f"{plane.title}   {letter} {abs(mm):.0f} mm"
            if volume and height >= 170
            else plane.title
        )
        x, y = layout.left / 2, layout.corner(0, row)[1] + height / 2
        page.text(x, y, words, 12 if height >= 90 else 10, rotation=90, ha="center")


def _legend(page: Page, layout: _Layout, compared: bool, task: Task, notes: _Notes) -> None:
    left, top = layout.left, layout.bottom + 22
    page.text(left, top, "Labels of the prediction", 12, weight="bold")
    for number, label in enumerate(task.labels):
        y = top + 30 + 28 * number
        page.swatch(left, y, label.color, f"{label.title}")
        page.text(left + 410, y, f"{notes.volumes[label.name]:.1f} ml", ha="right")
    if not compared:
        page.text(left + 480, top, "Regions", 12, weight="bold")
        for number, region in enumerate(task.regions):
            page.text(left + 480, top + 30 + 28 * number, f"{region.title} ({region.name})")
            page.text(
                left + 830,
                top + 30 + 28 * number,
                f"{notes.volumes[region.name]:.1f} ml",
                ha="right",
            )
        return
    _table(page, left + 480, top, task, notes.scores)
    right = layout.width - 250
    page.text(right, top, f"Agreement, {_widest(task).name}", 12, weight="bold")
    kinds = (
        (AGREE, "Both"),
        (ONLY_PREDICTION, "Prediction only"),
        (ONLY_REFERENCE, "Reference only"),
    )
    for number, (color, words) in enumerate(kinds):
        page.swatch(right, top + 30 + 28 * number, color, words)


def _table(page: Page, x: int, y: int, task: Task, scores: Mapping[str, RegionScore]) -> None:
    """Scores of every region; a column that is defined for no region is left out."""
    columns = [
        ("Dice", "dice", 2),
        ("Sens.", "sensitivity", 2),
        ("Prec.", "precision", 2),
        ("HD95 mm", "hd95_mm", 1),
        ("Pred. ml", "prediction_ml", 1),
        ("Ref. ml", "reference_ml", 1),
    ]
    shown = [
        c for c in columns if any(math.isfinite(getattr(score, c[1])) for score in scores.values())
    ]
    page.text(x, y, "Against the reference", 12, weight="bold")
    for column, (words, _, _) in enumerate(shown):
        page.text(x + 280 + 94 * column, y, words, 12, GRAY, ha="right")
    for row, region in enumerate(r for r in task.regions if r.name in scores):
        score, down = scores[region.name], y + 30 + 28 * row
        # A region that neither has scores 1 by convention; gray keeps it from being read as a success.
        color = WHITE if score.prediction_ml or score.reference_ml else GRAY
        page.text(x, down, f"{region.title} ({region.name})", color=color)
        for column, (_, name, digits) in enumerate(shown):
            value, bold = getattr(score, name), "bold" if name == "dice" else "normal"
            words = f"{value:.{digits}f}" if math.isfinite(value) else "n/a"
            page.text(x + 280 + 94 * column, down, words, color=color, ha="right", weight=bold)


def _footer(page: Page, layout: _Layout, backdrop: str) -> None:
    height, width = page.pixels.shape[:2]
    page.fill(layout.left, height - 40, width - layout.left - 10, 1, (70, 74, 80))
    page.text(
        layout.left,
        height - 20,
        "Research use only — not for clinical use",
        11,
        WHITE,
        weight="bold",
    )
    words = f"Patient's right on the left · one scale for all panels · overlays on {backdrop}"
    page.text(width - 10, height - 20, words, 10, GRAY, ha="right")
