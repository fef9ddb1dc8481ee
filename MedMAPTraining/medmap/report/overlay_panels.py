"""The panels of a case's picture: scans in gray, label maps and their agreement in color."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from medmap.report.label_overlay import tint
from medmap.report.planes import CaseView, Plane, cut
from medmap.task import Region, Task

# RGB of the agreement map; distinct under red-green color blindness and from the BraTS labels.
AGREE = (64, 190, 110)
ONLY_PREDICTION = (255, 64, 170)
ONLY_REFERENCE = (60, 125, 255)


def draw_panel(column: str, plane: Plane, case: CaseView, task: Task, scale: float) -> np.ndarray:
    """[H, W, 3] uint8: one modality, or one kind of overlay on the backdrop."""
    width_mm = float(case.extent_mm[plane.across])
    height_mm = float(case.extent_mm[plane.down])
    width = max(1, round(width_mm * scale))
    height = max(1, round(height_mm * scale))
    size = (width, height)
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
    backdrop = _gray(backdrop_modality(case), plane, case, size)
    # On small panels a line of two pixels would cover small lesions.
    line = 2 if scale >= 2 else 1.4
    return tint(backdrop, classes, line)


def _agreement_classes(
    plane: Plane, case: CaseView, task: Task
) -> list[tuple[np.ndarray, Sequence[int]]]:
    """Masks and colors of where both, one or the other have the widest region."""
    if case.reference is None:
        return []
    names = widest_region(task).labels
    prediction = _union(case.prediction, names, plane, case)
    reference = _union(case.reference, names, plane, case)
    return [
        (prediction & reference, AGREE),
        (prediction & ~reference, ONLY_PREDICTION),
        (reference & ~prediction, ONLY_REFERENCE),
    ]


def backdrop_modality(case: CaseView) -> str:
    """The modality under the overlays: the last one used in the task's order.

    For BraTS that is FLAIR where it is given, which shows the whole tumor.
    """
    return list(case.scans)[-1]


def widest_region(task: Task) -> Region:
    """The region of most labels; in BraTS the whole tumor."""
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
    scaled = (intensities - low) / (high - low)
    gray = np.clip(scaled, 0, 1)
    image = Image.fromarray(gray)
    resized_image = image.resize(size, Image.Resampling.BICUBIC)
    resized = np.asarray(resized_image)
    # Bicubic interpolation overshoots at edges.
    brightness = np.clip(resized, 0, 1)
    bytes_of_gray = (brightness * 255 + 0.5).astype(np.uint8)
    channel = bytes_of_gray[..., None]
    return np.repeat(channel, 3, axis=2)
