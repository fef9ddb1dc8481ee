"""One picture of a preparation: outlines of the brain masks, checkerboards of the alignment.

A row for each scan, in the radiological convention; all planes pass through the middle of the
reference's brain, so that a displaced scan shows in every column.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medmap.boxes import bounding_box
from medmap.io.atomic import write_bytes
from medmap.preparation.workflow import Preparation
from medmap.report.page import GRAY, Page, png
from medmap.report.planes import PLANES, Plane, cut
from medmap.resampling import resample_linear
from medmap.task import Task
from medmap.volume import Grid, Volume

PIXEL_MM = 1.0
MARGIN_MM = 25.0
"""Shown around the brain: skull and scalp, by which an outline is judged."""

TILE_MM = 20.0
"""Edge of a checkerboard's tiles."""

OUTLINE = (255, 70, 70)
WHITE_PERCENTILE = 99.5
_BACKGROUND = (22, 24, 28)
_GAP = 6
_LEFT = 40
_TOP = 70


@dataclass(frozen=True)
class _Slice:
    """One plane of one scan: [H, W] gray 0..1, and [H, W] bool brain."""

    gray: np.ndarray
    brain: np.ndarray


def save_preparation(
    path: str | os.PathLike, preparation: Preparation, scans: Mapping[str, Volume], task: Task
) -> None:
    """Write the picture of a preparation as PNG.

    Args:
        path: the file; its folder must exist.
        preparation: what was done.
        scans: before it, by modality.
        task: titles of the modalities.

    Raises:
        OutputError: the file cannot be written.
    """
    reference = preparation.plan.reference
    reference_brain = _brain(preparation, reference)
    grid = _picture_grid(reference_brain, scans[reference].grid)
    other_names = [name for name in scans if name != reference]
    rows = {}
    for name in (reference, *other_names):
        # The array before preparation, on the grid where registration put it.
        moved_grid = preparation.volumes[name].grid
        brain = _brain(preparation, name)
        array = scans[name].array
        rows[name] = [_slice(array, brain, moved_grid, grid, plane) for plane in PLANES]
    page = _page(rows, reference, preparation, task)
    write_bytes(path, png(page))


def _brain(preparation: Preparation, name: str) -> np.ndarray:
    if name in preparation.masks:
        return preparation.masks[name]
    return preparation.volumes[name].foreground


def _picture_grid(brain: np.ndarray, grid: Grid) -> Grid:
    """Cubic voxels along the world's axes around the reference's brain."""
    box = bounding_box(brain)
    if box is None:
        box = tuple(slice(0, size) for size in brain.shape)
    # Corners in the world: the scan may be oblique, the picture is not.
    corners = grid.world(_corner_voxels(box))
    low = corners.min(axis=0) - MARGIN_MM
    extent_mm = corners.max(axis=0) + MARGIN_MM - low
    shape = np.ceil(extent_mm / PIXEL_MM).astype(int)
    i, j, k = shape.tolist()
    affine = np.diag([PIXEL_MM, PIXEL_MM, PIXEL_MM, 1.0])
    affine[:3, 3] = low
    return Grid((i, j, k), affine)


def _corner_voxels(box: Sequence[slice]) -> np.ndarray:
    """[8, 3] voxels at the corners of a box."""
    ends = [(side.start, side.stop - 1) for side in box]
    combinations = np.array(np.meshgrid(*ends, indexing="ij"))
    return combinations.reshape(3, -1).T


def _slice(array: np.ndarray, brain: np.ndarray, source: Grid, grid: Grid, plane: Plane) -> _Slice:
    """The middle slice of a plane; only this one is interpolated."""
    middle = grid.shape[plane.normal] // 2
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, plane.normal] * middle
    shape = list(grid.shape)
    shape[plane.normal] = 1
    i, j, k = shape
    thin = Grid((i, j, k), affine)
    scan_and_brain = np.stack([array, brain.astype(np.float32)])
    layers = torch.from_numpy(scan_and_brain)
    resampled = resample_linear(layers, source, thin).numpy()
    inside = array[brain]
    white = 1.0
    if inside.size:
        white = float(np.percentile(inside, WHITE_PERCENTILE))
    origin = (0, 0, 0)
    brightness = cut(resampled[0], plane, origin) / max(white, 1e-6)
    gray = np.clip(brightness, 0, 1)
    brain_fraction = cut(resampled[1], plane, origin)
    return _Slice(gray, brain_fraction > 0.5)


def _page(
    rows: Mapping[str, list[_Slice]], reference: str, preparation: Preparation, task: Task
) -> Page:
    """A row for each scan: outlines on the left, checkerboards with the reference on the right."""
    sizes = [plane_slice.gray.shape for plane_slice in rows[reference]]
    picture_height = max(height for height, _ in sizes)
    row_height = picture_height + 2 * _LEFT
    slices_width = sum(width + _GAP for _, width in sizes)
    page_height = _TOP + len(rows) * row_height + _LEFT
    page_width = 2 * slices_width + 2 * _LEFT
    pixels = np.full((page_height, page_width, 3), _BACKGROUND, np.uint8)
    page = Page(pixels)
    page.text(_LEFT, 24, "Preparation", 18, bold=True)
    onto = task.modality(reference).title
    page.text(_LEFT, 50, f"Brain outline, and checkerboard with {onto}", 11, GRAY)
    top = _TOP
    for name, slices in rows.items():
        title = _row_title(name, preparation, task)
        page.text(_LEFT, top + 14, title, 11)
        outlines = [_outlined(plane_slice) for plane_slice in slices]
        _paste_row(page, _LEFT, top + _LEFT, outlines)
        if name != reference:
            boards = []
            for plane_slice, fixed in zip(slices, rows[reference], strict=True):
                board = _checkerboard(fixed.gray, plane_slice.gray)
                boards.append(board)
            _paste_row(page, _LEFT + slices_width, top + _LEFT, boards)
        top += row_height
    footer = "Research use only — not for clinical use · patient's right on the left"
    page.text(_LEFT, page_height - 18, footer, 10, GRAY)
    return page


def _paste_row(page: Page, x: int, y: int, pictures: Sequence[np.ndarray]) -> None:
    """Pictures side by side, with a gap behind each."""
    for picture in pictures:
        _paste(page, x, y, picture)
        x += picture.shape[1] + _GAP


def _row_title(name: str, preparation: Preparation, task: Task) -> str:
    summaries = [step.summary for step in preparation.steps if step.modality == name]
    return f"{task.modality(name).title}: {' '.join(summaries) or 'left as it was.'}"


def _outlined(plane_slice: _Slice) -> np.ndarray:
    """[H, W, 3] uint8 scan with the border of its brain."""
    pixels = _rgb(plane_slice.gray)
    padded = np.pad(plane_slice.brain, 1)
    below = padded[2:, 1:-1]
    above = padded[:-2, 1:-1]
    behind = padded[1:-1, 2:]
    before = padded[1:-1, :-2]
    inner = below & above & behind & before
    border = plane_slice.brain & ~inner
    pixels[border] = OUTLINE
    return pixels


def _checkerboard(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 tiles of both scans in turn: edges have to go on across tiles."""
    rows, columns = np.indices(fixed.shape)
    tile = int(TILE_MM / PIXEL_MM)
    tile_row = rows // tile
    tile_column = columns // tile
    is_fixed = (tile_row + tile_column) % 2 == 0
    gray = np.where(is_fixed, fixed, moving)
    return _rgb(gray)


def _rgb(gray: np.ndarray) -> np.ndarray:
    pixels = (255 * gray + 0.5).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2)


def _paste(page: Page, left: int, top: int, picture: np.ndarray) -> None:
    height, width = picture.shape[:2]
    page.pixels[top : top + height, left : left + width] = picture
