"""One slice of a case with the prediction of every subset, for a picture of many subsets.

Evaluations keep such slices, so that a report needs neither the scans nor the model again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmap.boxes import bounding_box
from medmap.errors import InputDataError
from medmap.foreground import foreground
from medmap.io.atomic import write_bytes
from medmap.report.planes import PLANES, Plane, cut, find_foreground, position_text, window_of
from medmap.resampling import reorient, resample_linear
from medmap.volume import Grid, Volume

_MARGIN = 4


@dataclass(frozen=True)
class Slice:
    """One plane of one case as a picture in the radiological convention.

    Attributes:
        case: its name.
        scans: modality -> [H, W] uint8, windowed; background 0.
        reference: [H, W] int32 label values.
        predictions: subset key -> [H, W] int32 label values.
        spacing: mm of a row and of a column.
        title: plane and position, such as ``axial, S 12 mm``.
    """

    case: str
    scans: dict[str, np.ndarray]
    reference: np.ndarray
    predictions: dict[str, np.ndarray]
    spacing: tuple[float, float]
    title: str


def take_slice(
    case: str, volumes: Mapping[str, Volume], truth: Volume, predictions: Mapping[str, np.ndarray]
) -> Slice:
    """The slice with the largest area of the reference, or of any prediction where that is empty.

    Axial for voxels that are nearly cubic; otherwise the plane that was acquired, across the
    longest voxel edge.

    Args:
        case: name.
        volumes: scans by modality, on any grid.
        truth: reference labels; their grid is that of the predictions.
        predictions: subset key -> [I, J, K] labels on that grid.
    """
    labels, canonical = reorient(np.asarray(truth.array), truth.grid)
    turned = {}
    for key, array in predictions.items():
        turned[key], _ = reorient(array, truth.grid)
    normal = _normal_axis(canonical.spacing)
    plane = next(plane for plane in PLANES if plane.normal == normal)
    tumor = _tumor_mask(labels, turned)
    position = _largest_area(tumor, normal)
    pictures = {}
    for name, volume in volumes.items():
        resampled = _on_grid(volume, truth.grid)
        pictures[name] = _gray(resampled, truth.grid, plane, position)
    # Cut to what any scan shows, so that the brain fills the cell.
    visible = np.logical_or.reduce([picture > 0 for picture in pictures.values()])
    box = _with_margin(bounding_box(visible), visible.shape)
    cut_predictions = {}
    for key, array in turned.items():
        whole_slice = cut(array, plane, position)
        cut_predictions[key] = whole_slice.astype(np.int32)[box]
    reference_slice = cut(labels, plane, position)
    world = canonical.affine @ [*position, 1]
    position_mm = float(world[normal])
    row_mm = float(canonical.spacing[plane.down])
    column_mm = float(canonical.spacing[plane.across])
    plane_name = plane.title.lower()
    position_name = position_text(normal, position_mm)
    return Slice(
        case=case,
        scans={name: picture[box] for name, picture in pictures.items()},
        reference=reference_slice.astype(np.int32)[box],
        predictions=cut_predictions,
        spacing=(row_mm, column_mm),
        title=f"{plane_name}, {position_name}",
    )


def _normal_axis(spacing: np.ndarray) -> int:
    """The axis across the slices: the longest voxel edge, S where voxels are nearly cubic."""
    is_stack = spacing.max() > 1.5 * spacing.min()
    if is_stack:
        return int(np.argmax(spacing))
    return 2


def _tumor_mask(labels: np.ndarray, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where the reference has labels, or where any prediction has where it is empty."""
    if labels.any() or not predictions:
        return labels != 0
    masks = [array != 0 for array in predictions.values()]
    return np.logical_or.reduce(masks)


def _largest_area(tumor: np.ndarray, normal: int) -> list[int]:
    """The center of the volume, moved along one axis to the slice with most of the tumor."""
    in_plane = tuple(axis for axis in range(3) if axis != normal)
    areas = tumor.sum(axis=in_plane)
    position = [size // 2 for size in tumor.shape]
    if areas.any():
        position[normal] = int(np.argmax(areas))
    return position


def save_slice(path: Path, picture: Slice) -> None:
    """Write a slice as compressed arrays without pickles, atomically."""
    arrays: dict[str, Any] = {}
    # Prefixes, since a modality and a subset of one may have the same name.
    for name, scan in picture.scans.items():
        arrays[f"scan:{name}"] = scan
    for key, prediction in picture.predictions.items():
        arrays[f"prediction:{key}"] = prediction
    about = {
        "case": picture.case,
        "spacing": picture.spacing,
        "title": picture.title,
    }
    about_text = json.dumps(about)
    about_bytes = np.frombuffer(about_text.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, reference=picture.reference, about=about_bytes, **arrays)
    write_bytes(path, buffer.getvalue())


def load_slice(path: Path) -> Slice:
    """Read what ``save_slice`` wrote. Raises InputDataError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        about = json.loads(arrays.pop("about").tobytes())
        reference = arrays.pop("reference")
        by_prefix: dict[str, dict] = {"scan": {}, "prediction": {}}
        for name, array in arrays.items():
            prefix, _, key = name.partition(":")
            by_prefix[prefix][key] = array
        row_mm, column_mm = about["spacing"]
        return Slice(
            case=about["case"],
            scans=by_prefix["scan"],
            reference=reference,
            predictions=by_prefix["prediction"],
            spacing=(float(row_mm), float(column_mm)),
            title=about["title"],
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputDataError(
            f"The picture {path.name} cannot be read ({error}).", "Evaluate again."
        ) from error


def _on_grid(volume: Volume, grid: Grid) -> np.ndarray:
    """A scan on the labels' grid, filled with its background outside."""
    if volume.grid.distance(grid) < 0.5:
        return volume.array
    # Resampling fills with 0 outside: shifted, so that 0 is the scan's background.
    _, background = foreground(volume.array)
    shifted = np.ascontiguousarray(volume.array - background)
    channel = torch.from_numpy(shifted)[None]
    resampled = resample_linear(channel, volume.grid, grid)[0]
    return resampled.numpy() + background


def _gray(array: np.ndarray, grid: Grid, plane: Plane, position: Sequence[int]) -> np.ndarray:
    """A slice in its window, [H, W] uint8; 0 is background."""
    turned, _ = reorient(array, grid)
    mask, background = find_foreground(turned)
    low, high, background = window_of(turned, mask, background)
    slice_values = cut(turned, plane, position).astype(np.float32)
    intensities = np.nan_to_num(slice_values, nan=background)
    scaled = (intensities - low) / (high - low)
    limited = np.clip(scaled, 0, 1)
    # From 1 on: 0 is kept for the background, which the report's box is cut by.
    shades = np.uint8(limited * 254 + 1)
    is_foreground = intensities != background
    gray = np.where(is_foreground, shades, 0)
    return gray.astype(np.uint8)


def _with_margin(box: tuple[slice, ...] | None, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The box and a margin, within the shape; all of it without a box."""
    if box is None:
        return tuple(slice(0, size) for size in shape)
    wider = []
    for side, size in zip(box, shape, strict=True):
        start = max(0, side.start - _MARGIN)
        stop = min(size, side.stop + _MARGIN)
        wider.append(slice(start, stop))
    return tuple(wider)
