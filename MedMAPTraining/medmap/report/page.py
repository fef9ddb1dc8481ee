"""A page of pixels with texts over them, and its PNG; equal pages give equal bytes."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WHITE = "#f4f4f4"
GRAY = "#a9b0b8"
AMBER = "#ffc04d"
_PIXELS_PER_POINT = 100 / 72
_FONTS = Path("mpl-data") / "fonts" / "ttf"
_HALO_PIXELS = 2
_ANCHORS = {"left": "lm", "center": "mm", "right": "rm"}
"""Pillow's names: texts stand in the middle of their line."""

Align = Literal["left", "center", "right"]


@dataclass(frozen=True)
class _Text:
    """One text, as ``Page.text`` takes it."""

    x: float
    y: float
    text: str
    size: float
    color: str
    align: Align
    bold: bool
    halo: bool
    vertical: bool


@dataclass
class Page:
    """Pixels [H, W, 3] uint8 and the texts over them; positions in pixels from the top left."""

    pixels: np.ndarray
    texts: list[_Text] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        color: str = WHITE,
        *,
        align: Align = "left",
        bold: bool = False,
        halo: bool = False,
        vertical: bool = False,
    ) -> None:
        """Add a text.

        Args:
            x: of its left end, its middle, or its right end, as ``align`` says.
            y: of the middle of its line.
            text: one line.
            size: in points of 1/72 inch, at 100 pixels per inch.
            color: as ``#f4f4f4``.
            align: what ``x`` is.
            bold: heavy letters.
            halo: with a black rim, to be legible on a scan.
            vertical: read from the bottom up; centered about ``x`` and ``y``.
        """
        self.texts.append(_Text(x, y, text, size, color, align, bold, halo, vertical))

    def fill(self, x: int, y: int, width: int, height: int, color: Sequence[int]) -> None:
        """Paint a rectangle."""
        self.pixels[y : y + height, x : x + width] = color

    def swatch(self, x: int, y: int, color: Sequence[int], text: str) -> None:
        """A line of a legend: a square of the color, then a text."""
        self.fill(x, y - 8, 16, 16, color)
        self.text(x + 26, y, text)


def png(page: Page) -> bytes:
    """The page as a PNG without metadata, so that the same page is the same bytes.

    Pillow draws the texts. A Matplotlib figure would take a second with its import, and it refers
    to itself: its megabytes stay until Python looks for such circles, which is hardly ever.
    """
    image = Image.fromarray(page.pixels)
    draw = ImageDraw.Draw(image)
    for text in page.texts:
        font = _font(text.size, text.bold)
        if text.vertical:
            _draw_vertically(image, text, font)
            continue
        draw.text(
            (text.x, text.y),
            text.text,
            text.color,
            font,
            _ANCHORS[text.align],
            stroke_width=_HALO_PIXELS if text.halo else 0,
            stroke_fill="black",
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _draw_vertically(image: Image.Image, text: _Text, font: ImageFont.FreeTypeFont) -> None:
    left, top, right, bottom = font.getbbox(text.text, anchor="mm")
    # As far on all sides of the middle as on the widest, so that it stays the middle when turned.
    half_width = int(max(-left, right)) + 1
    half_height = int(max(-top, bottom)) + 1
    ink = Image.new("L", (2 * half_width, 2 * half_height))
    middle = (half_width, half_height)
    drawing = ImageDraw.Draw(ink)
    drawing.text(middle, text.text, 255, font, "mm")
    turned_ink = ink.transpose(Image.Transpose.ROTATE_90)
    # Turned, the width of the text is its height.
    page_x = round(text.x) - half_height
    page_y = round(text.y) - half_width
    image.paste(text.color, (page_x, page_y), turned_ink)


@functools.cache
def _font(size: float, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings along."""
    name = "DejaVuSans.ttf"
    if bold:
        name = "DejaVuSans-Bold.ttf"
    file = _font_folder() / name
    pixels = size * _PIXELS_PER_POINT
    # Positions by the font alone: libraries that shape texts are not everywhere.
    layout = ImageFont.Layout.BASIC
    return ImageFont.truetype(file, pixels, layout_engine=layout)


@functools.cache
def _font_folder() -> Path:
    """Where the fonts lie, without importing Matplotlib, which takes a third of a second."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None:
        for package in spec.submodule_search_locations or ():
            if (Path(package) / _FONTS).is_dir():
                return Path(package) / _FONTS
    # Distributions of Linux keep them in another place.
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"
