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
from PIL import Image

from medmap.errors import InputDataError, UsageError
from medmap.io.atomic import write_bytes
from medmap.metrics import RegionScore, dice, label_masks, region_masks
from medmap.report.label_overlay import tint
from medmap.report.page import AMBER, GRAY, WHITE, Page, png
from medmap.report.planes import CaseView, Plane, cut, position_text, prepare
from medmap.task import Region, Task
from medmap.volume import Grid, Volume

AGREE = (64, 190, 110)
ONLY_PREDICTION = (255, 64, 170)
ONLY_REFERENCE = (60, 125, 255)
# RGB of the agreement map; distinct under red-green color blindness and from the BraTS labels.

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
        above = sum(self.cell_heights[:row]) + row * self.gap
        return self.left_margin + column * (self.cell_width + self.gap), self.top + above

    @property
    def width(self) -> int:
        """Width of the page."""
        return self.corner(self.columns, 0)[0] + 4

    @property
    def bottom(self) -> int:
        """Lower end of the last row of cells."""
        return self.corner(0, len(self.cell_heights))[1]


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
    write_bytes(path, png(_draw(case, task, notes)))


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
        raise UsageError(
            f"{', '.join(sorted(contradictory))} is both given and called missing.",
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
    masks = {**label_masks(labels, task), **region_masks(labels, task)}
    volumes = {}
    for name, mask in masks.items():
        counted_ml = np.count_nonzero(mask) * voxel_ml
        volumes[name] = float(measured_ml.get(name, counted_ml))
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


# --- panels ---------------------------------------------------------------------------------------


def _panel(column: str, plane: Plane, case: CaseView, task: Task, scale: float) -> np.ndarray:
    """[H, W, 3] uint8: one modality, or one kind of overlay on the backdrop."""
    width_mm = float(case.extent_mm[plane.across])
    height_mm = float(case.extent_mm[plane.down])
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    if column in case.scans:
        return _gray(column, plane, case, size)
    if column == "agreement":
        classes = _agreement_classes(plane, case, task)
    else:
        masks = case.prediction
        if column == "reference" and case.reference is not None:
            masks = case.reference
        classes = []
        for label in task.labels:
            mask = cut(masks[label.name], plane, case.position)
            classes.append((mask, label.color))
    backdrop = _gray(_backdrop(case), plane, case, size)
    # On small panels a line of two pixels would cover small lesions.
    line = 2 if scale >= 2 else 1.4
    return tint(backdrop, classes, line)


def _agreement_classes(
    plane: Plane, case: CaseView, task: Task
) -> list[tuple[np.ndarray, Sequence[int]]]:
    """Masks and colors of where both, one or the other have the widest region."""
    if case.reference is None:
        return []
    names = _widest(task).labels
    prediction = _union(case.prediction, names, plane, case)
    reference = _union(case.reference, names, plane, case)
    return [
        (prediction & reference, AGREE),
        (prediction & ~reference, ONLY_PREDICTION),
        (reference & ~prediction, ONLY_REFERENCE),
    ]


def _backdrop(case: CaseView) -> str:
    """The modality under the overlays: the last one used in the task's order.

    For BraTS that is FLAIR where it is given, which shows the whole tumor.
    """
    return list(case.scans)[-1]


def _widest(task: Task) -> Region:
    return max(task.regions, key=lambda region: len(region.labels))


def _union(
    masks: Mapping[str, np.ndarray], names: Sequence[str], plane: Plane, case: CaseView
) -> np.ndarray:
    return np.logical_or.reduce([cut(masks[name], plane, case.position) for name in names])


def _gray(name: str, plane: Plane, case: CaseView, size: tuple[int, int]) -> np.ndarray:
    """A modality's slice in its window, [H, W, 3] uint8; ``size`` is (W, H)."""
    low, high, background = case.windows[name]
    intensities = cut(case.scans[name], plane, case.position).astype(np.float32)
    intensities = np.nan_to_num(intensities, nan=background)
    # z-scored scans may keep a background of 0, which the window would show as gray.
    intensities[intensities == background] = low
    gray = np.clip((intensities - low) / (high - low), 0, 1)
    image = Image.fromarray(gray)
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    # Bicubic interpolation overshoots at edges.
    brightness = np.clip(resized, 0, 1)
    bytes_of_gray = (brightness * 255 + 0.5).astype(np.uint8)
    return np.repeat(bytes_of_gray[..., None], 3, axis=2)


# --- the page -------------------------------------------------------------------------------------


def _layout(case: CaseView, columns: int) -> _Layout:
    """Sizes of the cells, and one scale for all of them, so that the page keeps its limits."""
    across_mm = float(max(case.extent_mm[plane.across] for plane in case.planes))
    down_mm = [float(case.extent_mm[plane.down]) for plane in case.planes]
    widest = min(_MAX_CELL_WIDTH, (_MAX_PAGE_WIDTH - 44) // columns - 6)
    narrowest = math.ceil((_MIN_PAGE_WIDTH - 44) / columns) - 6
    # One scale for all planes: a tumor must have the same size in each of them.
    scale = min(widest / across_mm, _MAX_ROWS_HEIGHT / sum(down_mm))
    cell_width = max(round(across_mm * scale), narrowest)
    heights = []
    for height_mm in down_mm:
        heights.append(max(_MIN_CELL_HEIGHT, round(height_mm * scale)))
    return _Layout(columns, cell_width, tuple(heights), scale)


def _draw(case: CaseView, task: Task, notes: _Notes) -> Page:
    """The page: header, a grid of panels, legend, warnings and footer, from top to bottom."""
    columns = [*case.scans, "prediction"]
    if case.reference is not None:
        columns += ["reference", "agreement"]
    layout = _layout(case, len(columns))
    warnings = _absence_warnings(task, notes.absent)
    # Room for three rows of the legend is always there.
    further_rows = _LEGEND_ROW * max(0, len(task.labels) - 3, len(task.regions) - 3)
    height = layout.bottom + 184 + further_rows + _WARNING_ROW * len(warnings)
    page = Page(np.full((height, layout.width, 3), _PAGE_COLOR, np.uint8))
    _header(page, layout, list(case.scans), task, notes)
    for number, column in enumerate(columns):
        _column_title(page, layout, number, column, task)
        for row, plane in enumerate(case.planes):
            panel = _panel(column, plane, case, task, layout.scale)
            _center_in_cell(page, layout, number, row, panel)
            _letters(page, layout, number, row, plane.letters)
    _row_titles(page, layout, case)
    if not any(mask.any() for mask in case.prediction.values()):
        _note_empty_prediction(page, layout, len(case.scans), task)
    _legend(page, layout, case.reference is not None, task, notes)
    down = layout.bottom + 146 + further_rows
    for warning in warnings:
        page.text(layout.left_margin, down, warning, 11, AMBER)
        down += _WARNING_ROW
    _footer(page, layout, task.modality(_backdrop(case)).title)
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
    title = " ".join(notes.title.split()) or f"{task.name} segmentation"
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
    middle = layout.corner(number, 0)[0] + layout.cell_width / 2
    if column in task.modality_names:
        title = task.modality(column).title
    elif column == "agreement":
        title = f"Agreement, {_widest(task).name}"
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
    page.pixels[y_start : y_start + panel_height, x_start : x_start + panel_width] = panel


def _letters(page: Page, layout: _Layout, column: int, row: int, letters: str) -> None:
    """Orientation letters at the left, right, top and bottom edge of a cell."""
    x, y = layout.corner(column, row)
    width = layout.cell_width
    height = layout.cell_heights[row]
    positions = (
        (11, height / 2),
        (width - 11, height / 2),
        (width / 2, 11),
        (width / 2, height - 11),
    )
    for letter, (across, down) in zip(letters, positions, strict=True):
        page.text(x + across, y + down, letter, 10, WHITE, align="center", halo=True)


def _row_titles(page: Page, layout: _Layout, case: CaseView) -> None:
    """Plane and position of every row, along the left edge; small rows have room for less."""
    for row, plane in enumerate(case.planes):
        height = layout.cell_heights[row]
        title = plane.title
        if plane.at is None and height >= 170:
            position_mm = case.position_mm[plane.normal]
            title += f"   {position_text(plane.normal, position_mm)}"
        _, top = layout.corner(0, row)
        size = 12 if height >= 90 else 10
        middle = top + height / 2
        page.text(layout.left_margin / 2, middle, title, size, vertical=True)


def _legend(page: Page, layout: _Layout, compared: bool, task: Task, notes: _Notes) -> None:
    """Labels with their volumes, and beside them the scores or, without a reference, regions."""
    x = layout.left_margin
    top = layout.bottom + 22
    page.text(x, top, "Labels of the prediction", 12, bold=True)
    down = top + 30
    for label in task.labels:
        volume_ml = notes.volumes[label.name]
        page.swatch(x, down, label.color, f"{label.title}")
        page.text(x + 410, down, f"{volume_ml:.1f} ml", align="right")
        down += _LEGEND_ROW
    if compared:
        _score_table(page, x + 480, top, task, notes.scores)
        _agreement_legend(page, layout.width - 250, top, task)
    else:
        _region_volumes(page, x + 480, top, task, notes)


def _region_volumes(page: Page, left: int, top: int, task: Task, notes: _Notes) -> None:
    """Volumes of the regions, where there is no reference to score them against."""
    page.text(left, top, "Regions", 12, bold=True)
    down = top + 30
    for region in task.regions:
        volume_ml = notes.volumes[region.name]
        page.text(left, down, f"{region.title} ({region.name})")
        page.text(left + 350, down, f"{volume_ml:.1f} ml", align="right")
        down += _LEGEND_ROW


def _agreement_legend(page: Page, left: int, top: int, task: Task) -> None:
    page.text(left, top, f"Agreement, {_widest(task).name}", 12, bold=True)
    classes = (
        (AGREE, "Both"),
        (ONLY_PREDICTION, "Prediction only"),
        (ONLY_REFERENCE, "Reference only"),
    )
    for number, (color, title) in enumerate(classes):
        page.swatch(left, top + 30 + _LEGEND_ROW * number, color, title)


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
            value = getattr(score, name)
            text = f"{value:.{digits}f}" if math.isfinite(value) else "n/a"
            is_dice = name == "dice"
            page.text(x, down, text, color=color, align="right", bold=is_dice)
        down += _LEGEND_ROW


def _footer(page: Page, layout: _Layout, backdrop: str) -> None:
    """A line, the warning that clinicians must not miss, and how to read the panels."""
    height, width = page.pixels.shape[:2]
    x = layout.left_margin
    x_end = width - 10
    page.fill(x, height - 40, x_end - x, 1, _LINE_COLOR)
    warning = "Research use only — not for clinical use"
    page.text(x, height - 20, warning, 11, WHITE, bold=True)
    reading = f"Patient's right on the left · one scale for all panels · overlays on {backdrop}"
    page.text(x_end, height - 20, reading, 10, GRAY, align="right")
