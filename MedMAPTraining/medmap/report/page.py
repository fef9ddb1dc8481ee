"""A page of pixels with texts over them, and its PNG; equal pages give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

WHITE = "#f4f4f4"
GRAY = "#a9b0b8"
AMBER = "#ffc04d"
_DPI = 100


@dataclass
class Page:
    """Pixels [H, W, 3] uint8 and the texts over them; positions in pixels from the top left."""

    pixels: np.ndarray
    texts: list[dict] = field(default_factory=list)

    def text(
        self, x: float, y: float, text: str, size: float = 12, color: str = WHITE, **style: Any
    ) -> None:
        """Add a text; ``style`` goes to Matplotlib."""
        self.texts.append({"x": x, "y": y, "s": text, "fontsize": size, "color": color, **style})

    def fill(self, x: int, y: int, width: int, height: int, color: Sequence[int]) -> None:
        """Paint a rectangle."""
        self.pixels[y : y + height, x : x + width] = color

    def swatch(self, x: int, y: int, color: Sequence[int], text: str) -> None:
        """A line of a legend: a square of the color, then a text."""
        self.fill(x, y - 8, 16, 16, color)
        self.text(x + 26, y, text)


def png(page: Page) -> bytes:
    """The page as a PNG without metadata, so that the same page is the same bytes."""
    height, width = page.pixels.shape[:2]
    figure = Figure(
        figsize=((width + 0.5) / _DPI, (height + 0.5) / _DPI), dpi=_DPI, facecolor="none"
    )
    canvas = FigureCanvasAgg(figure)
    for text in page.texts:
        alignment = "center" if "rotation" in text else "center_baseline"
        style = {"va": alignment, "family": "DejaVu Sans", **text}
        # transform None: positions are pixels, counted from the bottom.
        style["y"] = height - text["y"]
        # parse_math off: a case may be called "a$b$c".
        figure.text(**style, parse_math=False, transform=None)
    canvas.draw()
    ink = np.asarray(canvas.buffer_rgba())
    inked = ink[..., 3] > 0
    opacity = ink[inked][:, 3:] / np.float32(255)
    pixels = page.pixels.copy()
    blended = ink[inked][:, :3] * opacity + pixels[inked] * (1 - opacity)
    pixels[inked] = (blended + 0.5).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
