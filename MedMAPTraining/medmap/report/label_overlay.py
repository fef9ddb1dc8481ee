"""Labels over a gray picture: filled translucently, outlined, smooth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from medmap.boxes import bounding_box

_FILL_OPACITY = 0.5
_BACKDROP_BRIGHTNESS = 0.8
_SUBPIXELS = 3
"""Drawing grid: subpixels to a side of a pixel."""


def tint(
    backdrop: np.ndarray, classes: Sequence[tuple[np.ndarray, Sequence[int]]], line: float
) -> np.ndarray:
    """Fill every class translucently and draw its outline, ``line`` pixels wide, in the full color.

    Drawn on a grid finer than the page and averaged, which makes the lines smooth.

    Args:
        backdrop: [H, W, 3] uint8.
        classes: mask [h, w] (of any size: it is enlarged smoothly) and RGB of each class; masks do
            not overlap.
        line: width of outlines in pixels.

    Returns:
        [H, W, 3] uint8.
    """
    height, width = backdrop.shape[:2]
    masks = [mask for mask, _ in classes]
    background = ~np.logical_or.reduce(masks)
    # Darker than the scan: colors stand out.
    picture = _BACKDROP_BRIGHTNESS * backdrop.astype(np.float32)
    window = _painted(~background, width, height)
    if window is None:
        return (picture + 0.5).astype(np.uint8)
    # Each layer is enlarged smoothly by itself, and the strongest wins: interpolated labels would
    # invent classes on the borders between two others.
    enlarged = [_enlarge(layer, width, height, window) for layer in (background, *masks)]
    winner = np.argmax(enlarged, axis=0)  # 0 is the background
    opacity = _opacity(winner, len(classes), line)
    class_colors = [color for _, color in classes]
    palette = np.array([(0, 0, 0), *class_colors], np.float32)
    colors = []
    for channel in range(3):
        painted = palette[winner, channel] * opacity
        colors.append(_averaged(painted))
    x_start, y_start, x_stop, y_stop = window
    part = picture[y_start:y_stop, x_start:x_stop]
    # Averages of color times opacity: averaged separately, a pixel on a border between two classes
    # would mix their colors with the wrong shares.
    covered = _averaged(opacity)[..., None]
    part *= 1 - covered
    part += np.stack(colors, axis=-1)
    return (picture + 0.5).astype(np.uint8)


def _opacity(winner: np.ndarray, classes: int, line: float) -> np.ndarray:
    """Opacity of every subpixel: 1 on outlines, ``_FILL_OPACITY`` within them, else 0.

    Args:
        winner: number of the class at every subpixel, 0 is the background.
        classes: how many there are.
        line: width of outlines in pixels.
    """
    fill = np.float32(_FILL_OPACITY)
    is_class = winner > 0
    opacity = np.where(is_class, fill, np.float32(0))
    width = round(line * _SUBPIXELS)
    for number in range(1, classes + 1):
        inside = winner == number
        interior = _eroded(inside, width)
        outline = inside & ~interior
        opacity[outline] = 1
    return opacity


def _painted(mask: np.ndarray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of what a mask [h, w] covers, in pixels; None if it is empty.

    ``width`` and ``height`` are those of the picture that the mask is drawn on.
    """
    box = bounding_box(mask)
    if box is None:
        return None
    rows, columns = box
    row_count, column_count = mask.shape
    x_start, x_stop = _pixels(columns, column_count, width)
    y_start, y_stop = _pixels(rows, row_count, height)
    return x_start, y_start, x_stop, y_stop


def _pixels(voxels: slice, length: int, pixels: int) -> tuple[int, int]:
    """First and end pixel of a range of voxels, where ``length`` voxels fill ``pixels`` pixels."""
    # One voxel more on each side: smoothing reaches half of one, and outlines end at the window's
    # edge.
    first = max(0, voxels.start - 1)
    end = min(length, voxels.stop + 1)
    first_pixel = math.floor(first * pixels / length)
    end_pixel = math.ceil(end * pixels / length)
    return first_pixel, end_pixel


def _enlarge(
    layer: np.ndarray, width: int, height: int, window: tuple[int, int, int, int]
) -> np.ndarray:
    """The window (in pixels of the picture) of a mask, smoothly enlarged to the drawing grid."""
    x_start, y_start, x_stop, y_stop = window
    # Voxels per pixel: the box that is enlarged is given in voxels, fractions included.
    across = layer.shape[1] / width
    down = layer.shape[0] / height
    box = (
        x_start * across,
        y_start * down,
        x_stop * across,
        y_stop * down,
    )
    fine_width = (x_stop - x_start) * _SUBPIXELS
    fine_height = (y_stop - y_start) * _SUBPIXELS
    image = Image.fromarray(np.ascontiguousarray(layer, np.float32))
    enlarged = image.resize(
        size=(fine_width, fine_height),
        resample=Image.Resampling.BILINEAR,
        box=box,
    )
    return np.asarray(enlarged)


def _averaged(fine: np.ndarray) -> np.ndarray:
    """Mean over the subpixels of every pixel."""
    total = np.zeros_like(fine[::_SUBPIXELS, ::_SUBPIXELS])
    for row in range(_SUBPIXELS):
        for column in range(_SUBPIXELS):
            subpixels = fine[row::_SUBPIXELS, column::_SUBPIXELS]
            total = total + subpixels
    count = np.float32(_SUBPIXELS**2)
    return np.asarray(total / count)


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """A mask without its rim; each time one subpixel is taken off all sides."""
    for _ in range(times):
        # Edges are continued: a tumor cut off by the picture's edge gets no line there.
        wide = np.pad(mask, 1, mode="edge")
        above = wide[:-2, 1:-1]
        below = wide[2:, 1:-1]
        before = wide[1:-1, :-2]
        behind = wide[1:-1, 2:]
        mask = mask & (above & below) & (before & behind)
    return mask
