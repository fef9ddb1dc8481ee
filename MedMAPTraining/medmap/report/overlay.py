"""One picture of one case: the modalities used, the prediction, the reference, their agreement.

Pictures follow the radiological convention: the patient's right is on the left of axial and coronal
pictures, anterior is on the left of sagittal ones. All panels have one scale in mm, for every
spacing and orientation of the scans.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medmap.errors import InputDataError, UsageError
from medmap.io.atomic import write_bytes
from medmap.metrics import RegionScore, dice, label_masks, region_masks
from medmap.report.overlay_panels import (
    AGREE,
    ONLY_PREDICTION,
    ONLY_REFERENCE,
    backdrop_modality,
    draw_panel,
    widest_region,
)
from medmap.report.page import AMBER, GRAY, WHITE, Page, png
from medmap.report.planes import CaseView, position_text, prepare
from medmap.task import Task
from medmap.volume import Grid, Volume

_PAGE_COLOR = (22, 24, 28)
_CELL_COLOR = (0, 0, 0)
_LINE_COLOR = (70, 74, 80)
# Sizes in pixels.
_MIN_PAGE_WIDTH = 1000
_MAX_PAGE_WIDTH = 1600
_MAX_ROWS_HEIGHT = 1200
_MAX_CELL_WIDTH = 520
_MIN_CELL_HEIGHT = 72
_LEGEND_ROW = 28
_WARNING_ROW = 24


@dataclass(frozen=True)
class _Layout:
    """Positions in pixels of columns and rows of cells; ``scale`` of all cells in pixels per mm."""

    columns: int
    cell_width: int
    cell_heights: tuple[int, ...]
    scale: float
    left_margin: int = 40
    top: int = 120
    gap: int = 6

    def corner(self, column: int, row: int) -> tuple[int, int]:
        """Top left of a cell."""
        across = column * (self.cell_width + self.gap)
        above = sum(self.cell_heights[:row]) + row * self.gap
        return self.left_margin + across, self.top + above

    @property
    def width(self) -> int:
        """Width of the page."""
        x, _ = self.corner(self.columns, 0)
        return x + 4

    @property
    def bottom(self) -> int:
        """Lower end of the last row of cells."""
        rows = len(self.cell_heights)
        _, top = self.corner(0, rows)
        return top


@dataclass(frozen=True)
class _Notes:
    """What is written around the panels: title, missing modalities, ml and scores by name."""

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
    """Write one PNG of a case: a row for each orientation, a column for each modality and overlay.

    Overlays are the prediction and, with a reference, the reference and the agreement. The axial
    row shows the slice of largest tumor area, the others the slices nearest to the tumor's centroid
    that cut it. The tumor is the reference's where there is one (so that pictures of one case with
    different modality subsets show the same slices), otherwise the prediction's. Of a stack of
    thick slices the rows are the first, the middle and the last that have labels. The same inputs
    give the same bytes.

    Args:
        path: the PNG; its folder must exist. Written to a temporary file beside it, then renamed.
        scans: modality name -> array [I, J, K] or Volume on ``grid``: those that the prediction was
            made from.
        prediction: [I, J, K] integer label values as files hold them.
        grid: any orientation, spacing and obliqueness.
        task: names, titles, colors.
        reference_labels: [I, J, K] as ``prediction``; adds the reference and the agreement column.
        missing: modality names to call missing; all without a scan are called so in any case.
        title: first line, such as the case's name.
        volumes_ml: label or region name -> ml of the prediction; others are counted from voxels.
        scores: region name -> RegionScore; without it only Dice is computed.

    Raises:
        InputDataError: an array has another shape than the grid, or holds an unknown label value.
        UsageError: no scan, an unknown modality, or one that is both given and missing.
        OutputError: the file cannot be written.
    """
    used, absent = _names(scans, missing, task)
    arrays = {}
    for name in used:
        scan = scans[name]
        array = scan.array if isinstance(scan, Volume) else scan
        arrays[name] = _checked(array, grid, name)
    prediction = _checked(prediction, grid, "The prediction")
    reference = None
    if reference_labels is not None:
        reference = _checked(reference_labels, grid, "The reference")
        if scores is None:
            scores = _dice_only(prediction, reference, task, grid.voxel_ml)
    volumes = _volumes(prediction, task, grid.voxel_ml, volumes_ml or {})
    notes = _Notes(title, absent, volumes, scores or {})
    case = prepare(arrays, prediction, reference, grid, task)
    page = _draw(case, task, notes)
    write_bytes(path, png(page))


def _names(scans: Mapping, missing: Sequence[str], task: Task) -> tuple[list[str], list[str]]:
    """Names of used and absent modalities in the task's order."""
    # ``index`` raises UsageError for a modality that the task does not have.
    used = {task.modality_names[task.index(name)] for name in scans}
    called_missing = {task.modality_names[task.index(name)] for name in missing}
    if not used:
        raise UsageError(
            "There is no scan to draw.", "Give at least one of the scans that were used."
        )
    contradictory = used & called_missing
    if contradictory:
        names = ", ".join(sorted(contradictory))
        raise UsageError(
            f"{names} is both given and called missing.",
            "Take it out of one of the two.",
        )
    absent = [name for name in task.modality_names if name not in used]
    return sorted(used, key=task.index), absent


def _checked(array: np.ndarray, grid: Grid, title: str) -> np.ndarray:
    """The array, if it has the grid's shape."""
    array = np.asarray(array)
    if array.shape != tuple(grid.shape):
        raise InputDataError(
            f"{title} has the shape {array.shape}, but the reference grid has {tuple(grid.shape)}.",
            "Resample it to the reference grid first.",
        )
    return array


def _volumes(
    labels: np.ndarray, task: Task, voxel_ml: float, measured_ml: Mapping[str, float]
) -> dict[str, float]:
    """ml of every label and region; a name that is both (ET) is the same voxels."""
    masks = label_masks(labels, task)
    masks.update(region_masks(labels, task))
    volumes = {}
    for name, mask in masks.items():
        voxels = np.count_nonzero(mask)
        counted_ml = voxels * voxel_ml
        volume_ml = measured_ml.get(name, counted_ml)
        volumes[name] = float(volume_ml)
    return volumes


def _dice_only(
    prediction: np.ndarray, reference: np.ndarray, task: Task, voxel_ml: float
) -> dict[str, RegionScore]:
    """Dice and volumes of every region; nan for all else."""
    reference_masks = region_masks(reference, task)
    scores = {}
    for name, mask in region_masks(prediction, task).items():
        scores[name] = RegionScore(
            dice=dice(mask, reference_masks[name]),
            sensitivity=math.nan,
            precision=math.nan,
            hd95_mm=math.nan,
            prediction_ml=np.count_nonzero(mask) * voxel_ml,
            reference_ml=np.count_nonzero(reference_masks[name]) * voxel_ml,
        )
    return scores


# --- the page -------------------------------------------------------------------------------------


def _layout(case: CaseView, columns: int) -> _Layout:
    """Sizes of the cells, and one scale for all of them, so that the page keeps its limits."""
    across_mm = float(max(case.extent_mm[plane.across] for plane in case.planes))
    down_mm = [float(case.extent_mm[plane.down]) for plane in case.planes]
    # 44 pixels are the page's margins, 6 the gap beside a cell.
    page_limited_width = (_MAX_PAGE_WIDTH - 44) // columns - 6
    widest = min(_MAX_CELL_WIDTH, page_limited_width)
    least_width = (_MIN_PAGE_WIDTH - 44) / columns
    narrowest = math.ceil(least_width) - 6
    # One scale for all planes: a tumor must have the same size in each of them.
    width_scale = widest / across_mm
    height_scale = _MAX_ROWS_HEIGHT / sum(down_mm)
    scale = min(width_scale, height_scale)
    cell_width = max(round(across_mm * scale), narrowest)
    heights = []
    for height_mm in down_mm:
        height = round(height_mm * scale)
        heights.append(max(_MIN_CELL_HEIGHT, height))
    return _Layout(columns, cell_width, tuple(heights), scale)


def _draw(case: CaseView, task: Task, notes: _Notes) -> Page:
    """The page: header, a grid of panels, legend, warnings and footer, from top to bottom."""
    columns = [*case.scans, "prediction"]
    if case.reference is not None:
        columns += ["reference", "agreement"]
    layout = _layout(case, len(columns))
    warnings = _absence_warnings(task, notes.absent)
    # Room for three rows of the legend is always there.
    further_count = max(0, len(task.labels) - 3, len(task.regions) - 3)
    further_rows = _LEGEND_ROW * further_count
    warning_rows = _WARNING_ROW * len(warnings)
    height = layout.bottom + 184 + further_rows + warning_rows
    pixels = np.full((height, layout.width, 3), _PAGE_COLOR, np.uint8)
    page = Page(pixels)
    _header(page, layout, list(case.scans), task, notes)
    for number, column in enumerate(columns):
        _column_title(page, layout, number, column, task)
        for row, plane in enumerate(case.planes):
            panel = draw_panel(column, plane, case, task, layout.scale)
            _center_in_cell(page, layout, number, row, panel)
            _letters(page, layout, number, row, plane.letters)
    _row_titles(page, layout, case)
    is_empty = not any(mask.any() for mask in case.prediction.values())
    if is_empty:
        _note_empty_prediction(page, layout, len(case.scans), task)
    compared = case.reference is not None
    _legend(page, layout, compared, task, notes)
    down = layout.bottom + 146 + further_rows
    for warning in warnings:
        page.text(layout.left_margin, down, warning, 11, AMBER)
        down += _WARNING_ROW
    backdrop = task.modality(backdrop_modality(case))
    _footer(page, layout, backdrop.title)
    return page


def _absence_warnings(task: Task, absent: Sequence[str]) -> list[str]:
    """What the task warns of where these modalities are missing."""
    warnings = []
    for name in absent:
        warning = task.modality(name).warning_if_absent
        if warning:
            warnings.append(warning)
    return warnings


def _note_empty_prediction(page: Page, layout: _Layout, column: int, task: Task) -> None:
    x, y = layout.corner(column, 0)
    page.text(
        x + layout.cell_width / 2,
        y + layout.cell_heights[0] - 34,
        f"No {task.target} found",
        13,
        AMBER,
        bold=True,
        align="center",
        halo=True,
    )


def _header(page: Page, layout: _Layout, used: list[str], task: Task, notes: _Notes) -> None:
    """The title, and a list of the modalities with the missing ones in amber."""
    title = " ".join(notes.title.split())
    if not title:
        title = f"{task.name} segmentation"
    # A character of the title is about 15 pixels wide.
    longest = layout.width // 15
    if len(title) > longest:
        title = title[: longest - 1] + "…"
    page.text(layout.left_margin, 28, title, 18, bold=True)
    page.text(layout.left_margin, 64, "Scans", 12, GRAY)
    for number, modality in enumerate(task.modalities):
        text = f"\u25cb {modality.title} missing"
        color = AMBER
        if modality.name in used:
            text = f"\u25cf {modality.title}"
            color = WHITE
        across = layout.left_margin + 80 + 160 * number
        page.text(across, 64, text, 12, color)


def _column_title(page: Page, layout: _Layout, number: int, column: str, task: Task) -> None:
    x, _ = layout.corner(number, 0)
    middle = x + layout.cell_width / 2
    if column in task.modality_names:
        title = task.modality(column).title
    elif column == "agreement":
        title = f"Agreement, {widest_region(task).name}"
    else:
        title = column.capitalize()
    page.text(middle, layout.top - 18, title, 13, bold=True, align="center")


def _center_in_cell(page: Page, layout: _Layout, column: int, row: int, panel: np.ndarray) -> None:
    """Paste a panel into the middle of its cell; rounding may make it a pixel too large."""
    x, y = layout.corner(column, row)
    width = layout.cell_width
    height = layout.cell_heights[row]
    page.fill(x, y, width, height, _CELL_COLOR)
    panel = panel[:height, :width]
    panel_height, panel_width = panel.shape[:2]
    y_start = y + (height - panel_height) // 2
    x_start = x + (width - panel_width) // 2
    rows = slice(y_start, y_start + panel_height)
    columns = slice(x_start, x_start + panel_width)
    page.pixels[rows, columns] = panel


def _letters(page: Page, layout: _Layout, column: int, row: int, letters: str) -> None:
    """Orientation letters at the left, right, top and bottom edge of a cell."""
    x, y = layout.corner(column, row)
    width = layout.cell_width
    height = layout.cell_heights[row]
    edge = 11
    middle_across = width / 2
    middle_down = height / 2
    positions = (
        (edge, middle_down),
        (width - edge, middle_down),
        (middle_across, edge),
        (middle_across, height - edge),
    )
    for letter, (across, down) in zip(letters, positions, strict=True):
        page.text(x + across, y + down, letter, 10, WHITE, align="center", halo=True)


def _row_titles(page: Page, layout: _Layout, case: CaseView) -> None:
    """Plane and position of every row, along the left edge; small rows have room for less."""
    for row, plane in enumerate(case.planes):
        height = layout.cell_heights[row]
        title = plane.title
        shows_position = plane.at is None and height >= 170
        if shows_position:
            position_mm = case.position_mm[plane.normal]
            position = position_text(plane.normal, position_mm)
            title += f"   {position}"
        size = 10
        if height >= 90:
            size = 12
        _, top = layout.corner(0, row)
        middle = top + height / 2
        page.text(layout.left_margin / 2, middle, title, size, vertical=True)


def _legend(page: Page, layout: _Layout, compared: bool, task: Task, notes: _Notes) -> None:
    """Labels with their volumes, and beside them the scores or, without a reference, regions."""
    x = layout.left_margin
    top = layout.bottom + 22
    page.text(x, top, "Labels of the prediction", 12, bold=True)
    down = top + 30
    for label in task.labels:
        page.swatch(x, down, label.color, f"{label.title}")
        volume_ml = notes.volumes[label.name]
        volume = f"{volume_ml:.1f} ml"
        page.text(x + 410, down, volume, align="right")
        down += _LEGEND_ROW
    second_column = x + 480
    if compared:
        _score_table(page, second_column, top, task, notes.scores)
        _agreement_legend(page, layout.width - 250, top, task)
    else:
        _region_volumes(page, second_column, top, task, notes)


def _region_volumes(page: Page, left: int, top: int, task: Task, notes: _Notes) -> None:
    """Volumes of the regions, where there is no reference to score them against."""
    page.text(left, top, "Regions", 12, bold=True)
    down = top + 30
    for region in task.regions:
        title = f"{region.title} ({region.name})"
        page.text(left, down, title)
        volume_ml = notes.volumes[region.name]
        volume = f"{volume_ml:.1f} ml"
        page.text(left + 350, down, volume, align="right")
        down += _LEGEND_ROW


def _agreement_legend(page: Page, left: int, top: int, task: Task) -> None:
    page.text(left, top, f"Agreement, {widest_region(task).name}", 12, bold=True)
    classes = (
        (AGREE, "Both"),
        (ONLY_PREDICTION, "Prediction only"),
        (ONLY_REFERENCE, "Reference only"),
    )
    for number, (color, title) in enumerate(classes):
        down = top + 30 + _LEGEND_ROW * number
        page.swatch(left, down, color, title)


_SCORE_COLUMNS = (
    ("Dice", "dice", 2),
    ("Sens.", "sensitivity", 2),
    ("Prec.", "precision", 2),
    ("HD95 mm", "hd95_mm", 1),
    ("Pred. ml", "prediction_ml", 1),
    ("Ref. ml", "reference_ml", 1),
)
"""Heading, field of ``RegionScore``, digits after the point."""


def _score_table(
    page: Page, left: int, top: int, task: Task, scores: Mapping[str, RegionScore]
) -> None:
    """Scores of every region; a column that is defined for no region is left out."""
    columns = []
    for heading, name, digits in _SCORE_COLUMNS:
        values = [getattr(score, name) for score in scores.values()]
        if any(math.isfinite(value) for value in values):
            columns.append((heading, name, digits))
    page.text(left, top, "Against the reference", 12, bold=True)
    across = [left + 280 + 94 * number for number in range(len(columns))]
    for x, (heading, _, _) in zip(across, columns, strict=True):
        page.text(x, top, heading, 12, GRAY, align="right")
    down = top + 30
    for region in task.regions:
        score = scores.get(region.name)
        if score is None:
            continue
        color = WHITE
        if not (score.prediction_ml or score.reference_ml):
            # A region that neither has scores 1 by convention; gray keeps it from being read as a
            # success.
            color = GRAY
        page.text(left, down, f"{region.title} ({region.name})", color=color)
        for x, (_, name, digits) in zip(across, columns, strict=True):
            text = _score_text(getattr(score, name), digits)
            is_dice = name == "dice"
            page.text(x, down, text, color=color, align="right", bold=is_dice)
        down += _LEGEND_ROW


def _score_text(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.{digits}f}"


def _footer(page: Page, layout: _Layout, backdrop: str) -> None:
    """A line, the warning that clinicians must not miss, and how to read the panels."""
    height, width = page.pixels.shape[:2]
    x = layout.left_margin
    x_end = width - 10
    line_length = x_end - x
    page.fill(x, height - 40, line_length, 1, _LINE_COLOR)
    down = height - 20
    warning = "Research use only — not for clinical use"
    page.text(x, down, warning, 11, WHITE, bold=True)
    reading = f"Patient's right on the left · one scale for all panels · overlays on {backdrop}"
    page.text(x_end, down, reading, 10, GRAY, align="right")
