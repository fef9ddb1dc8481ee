"""Labels over a gray picture: filled translucently, outlined, smooth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from medmap.foreground import bounding_box

_FILL, _DIM, _FINE = (
    0.5,
    0.8,
    3,
)  # share of color in a fill; brightness under overlays; drawing grid per pixel


def tint(
    backdrop: np.ndarray, classes: Sequence[tuple[np.ndarray, Sequence[int]]], line: float
) -> np.ndarray:
    """Fill every class translucently and draw its outline, ``line`` pixels wide, in the full color.

    Drawn on a grid finer than the page and averaged, which makes the lines smooth.

    Args:
        backdrop: [H, W, 3] uint8.
        classes: mask [h, w] (of any size: it is enlarged smoothly) and RGB of each class; masks do not overlap.
        line: width of outlines in pixels.
    """
    height, width = backdrop.shape[:2]
    masks = [mask for mask, _ in classes]
    layers = [~np.logical_or.reduce(masks), *masks]
    picture = _DIM * backdrop.astype(np.float32)
    window = _painted(~layers[0], width, height)
    if window is not None:
        kind = np.argmax([_enlarge(layer, width, height, window) for layer in layers], axis=0)
        palette = np.array([(0, 0, 0), *(rgb for _, rgb in classes)], np.float32)
        opacity = np.where(kind > 0, np.float32(_FILL), np.float32(0))
        for number in range(1, len(layers)):
            inside = kind == number
            opacity[inside & ~_eroded(inside, round(line * _FINE))] = 1
        left, top, right, bottom = window
        part = picture[top:bottom, left:right]
        part *= 1 - _averaged(opacity)[..., None]
        part += np.stack([_averaged(palette[kind, c] * opacity) for c in range(3)], axis=-1)
    return np.uint8(picture + 0.5)


def _painted(mask: np.ndarray, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom in pixels of a picture of that size around all of a mask [h, w], or None if empty."""
    box = bounding_box(mask)
    if box is None:
        return None
    ends = []
    for side, length, pixels in ((box[1], mask.shape[1], width), (box[0], mask.shape[0], height)):
        # One voxel more on each side: half of one is what smoothing reaches, and outlines end at the window's edge.
        first, last = max(0, side.start - 1), min(length, side.stop + 1)
        ends.append((math.floor(first * pixels / length), math.ceil(last * pixels / length)))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _enlarge(
    layer: np.ndarray, width: int, height: int, window: tuple[int, int, int, int]
) -> np.ndarray:
    """The window (in pixels of the whole picture) of a mask, smoothly enlarged to the finer grid."""
    left, top, right, bottom = window
    across, down = layer.shape[1] / width, layer.shape[0] / height
    box = (left * across, top * down, right * across, bottom * down)
    image = Image.fromarray(np.ascontiguousarray(layer, np.float32))
    return np.asarray(
        image.resize(
            ((right - left) * _FINE, (bottom - top) * _FINE), Image.Resampling.BILINEAR, box
        )
    )


def _averaged(fine: np.ndarray) -> np.ndarray:
    return sum(fine[i::_FINE, j::_FINE] for i in range(_FINE) for j in range(_FINE)) / np.float32(
        _FINE**2
    )


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        wide = np.pad(
            mask, 1, mode="edge"
        )  # a tumor cut off by the picture's edge gets no line there
        mask = mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return mask
