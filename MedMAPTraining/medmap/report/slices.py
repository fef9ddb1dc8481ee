"""One slice of a case with the prediction of every subset: what a picture of many subsets needs, and no more.

Kept by an evaluation, so that its report needs neither the scans nor the model again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medmap.errors import InputDataError
from medmap.foreground import bounding_box, foreground
from medmap.io.atomic import write_bytes
from medmap.report.planes import PLANES, cut, find_foreground, window_of
from medmap.resampling import reorient, resample_linear
from medmap.volume import Grid, Volume

_MARGIN = 4


@dataclass(frozen=True)
class Slice:
    """One plane of one case, as a picture: rows downwards, columns to the right, in the radiological convention.

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
    """The slice with the largest area of the reference (or, where that is empty, of any prediction).

    Axial for voxels that are nearly cubic; otherwise the plane that was acquired, across the longest voxel edge.

    Args:
        case: name.
        volumes: scans by modality, on any grid.
        truth: reference labels; the grid of everything else here.
        predictions: subset key -> [I, J, K] labels on that grid.
    """
    labels, canonical = reorient(np.asarray(truth.array), truth.grid)
    turned = {key: reorient(array, truth.grid)[0] for key, array in predictions.items()}
    spacing = canonical.spacing
    normal = int(np.argmax(spacing)) if spacing.max() > 1.5 * spacing.min() else 2
    plane = next(plane for plane in PLANES if plane.normal == normal)
    tumor = (
        labels != 0
        if labels.any()
        else np.logical_or.reduce([a != 0 for a in turned.values()] or [labels != 0])
    )
    areas = tumor.sum(axis=tuple(axis for axis in range(3) if axis != normal))
    position = [n // 2 for n in labels.shape]
    if areas.any():
        position[normal] = int(np.argmax(areas))
    scans = {
        name: _gray(_on_grid(volume, truth.grid), truth.grid, plane, position)
        for name, volume in volumes.items()
    }
    seen = np.logical_or.reduce([picture > 0 for picture in scans.values()])
    box = _grown(bounding_box(seen), seen.shape)
    mm = float((canonical.affine @ [*position, 1])[normal])
    return Slice(
        case=case,
        scans={name: picture[box] for name, picture in scans.items()},
        reference=cut(labels, plane, position).astype(np.int32)[box],
        predictions={
            key: cut(array, plane, position).astype(np.int32)[box] for key, array in turned.items()
        },
        spacing=(float(spacing[plane.down]), float(spacing[plane.across])),
        title=f"{plane.title.lower()}, {('RL', 'AP', 'SI')[normal][0 if mm >= 0 else 1]} {abs(mm):.0f} mm",
    )


def save_slice(path: Path, kept: Slice) -> None:
    """Write a slice as compressed arrays without pickles, atomically."""
    arrays = {f"scan:{name}": picture for name, picture in kept.scans.items()}
    arrays |= {f"prediction:{key}": picture for key, picture in kept.predictions.items()}
    about = json.dumps({"case": kept.case, "spacing": kept.spacing, "title": kept.title}).encode()
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, reference=kept.reference, about=np.frombuffer(about, np.uint8), **arrays
    )
    write_bytes(path, buffer.getvalue())


def load_slice(path: Path) -> Slice:
    """Read what ``save_slice`` wrote. Raises InputDataError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        about = json.loads(arrays.pop("about").tobytes())
        reference = arrays.pop("reference")
        kinds: dict[str, dict] = {"scan": {}, "prediction": {}}
        for name, array in arrays.items():
            kind, _, key = name.partition(":")
            kinds[kind][key] = array
        spacing = (float(about["spacing"][0]), float(about["spacing"][1]))
        return Slice(
            about["case"], kinds["scan"], reference, kinds["prediction"], spacing, about["title"]
        )
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputDataError(
            f"The picture {path.name} cannot be read ({error}).", "Evaluate again."
        ) from error


def _on_grid(volume: Volume, grid: Grid) -> np.ndarray:
    """A scan on the labels' grid; its own background outside."""
    if volume.grid.distance(grid) < 0.5:
        return volume.array
    _, background = foreground(volume.array)
    shifted = torch.from_numpy(np.ascontiguousarray(volume.array - background))[None]
    return resample_linear(shifted, volume.grid, grid)[0].numpy() + background


def _gray(array: np.ndarray, grid: Grid, plane, position) -> np.ndarray:
    turned = reorient(array, grid)[0]
    low, high, empty = window_of(turned, *find_foreground(turned))
    picture = np.nan_to_num(cut(turned, plane, position).astype(np.float32), nan=empty)
    inside = picture != empty
    scaled = np.clip((picture - low) / (high - low), 0, 1)
    return np.where(inside, np.uint8(scaled * 254 + 1), 0).astype(np.uint8)


def _grown(box: tuple[slice, ...] | None, shape: tuple[int, ...]) -> tuple[slice, ...]:
    if box is None:
        return tuple(slice(0, n) for n in shape)
    return tuple(
        slice(max(0, s.start - _MARGIN), min(n, s.stop + _MARGIN))
        for s, n in zip(box, shape, strict=True)
    )
