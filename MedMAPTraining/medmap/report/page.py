"""A dark page of pixels with texts on it, and the PNG that becomes of it: the same page gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

WHITE, GRAY, AMBER = "#f4f4f4", "#a9b0b8", "#ffc04d"
_DPI = 100


@dataclass
class Page:
    """Pixels [H, W, 3] uint8 and the texts to put over them; positions in pixels from the top left."""

    pixels: np.ndarray
    texts: list[dict] = field(default_factory=list)

    def text(
        self, x: float, y: float, words: str, size: float = 12, color: str = WHITE, **more
    ) -> None:
        """Remember a text; ``more`` goes to matplotlib."""
        self.texts.append({"x": x, "y": y, "s": words, "fontsize": size, "color": color, **more})

    def fill(self, x: int, y: int, width: int, height: int, color: Sequence[int]) -> None:
        """Paint a rectangle."""
        self.pixels[y : y + height, x : x + width] = color

    def swatch(self, x: int, y: int, color: Sequence[int], words: str) -> None:
        """A line of a legend: a square of the color, then words."""
        self.fill(x, y - 8, 16, 16, color)
        self.text(x + 26, y, words)


def png(page: Page) -> bytes:
    """The page as a PNG without metadata, so that the same page is the same bytes."""
    height, width = page.pixels.shape[:2]
    figure = Figure(
        figsize=((width + 0.5) / _DPI, (height + 0.5) / _DPI), dpi=_DPI, facecolor="none"
    )
    canvas = FigureCanvasAgg(figure)
    for text in page.texts:
        style = {
            "va": "center" if "rotation" in text else "center_baseline",
            "family": "DejaVu Sans",
            **text,
        }
        # parse_math off: a case may be called "a$b$c". transform None: positions are pixels, counted from the bottom.
        figure.text(**{**style, "y": height - text["y"]}, parse_math=False, transform=None)
    canvas.draw()
    ink = np.asarray(canvas.buffer_rgba())
    inked = ink[..., 3] > 0
    opacity = ink[inked][:, 3:] / np.float32(255)
    pixels = page.pixels.copy()
    pixels[inked] = np.uint8(ink[inked][:, :3] * opacity + pixels[inked] * (1 - opacity) + 0.5)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
