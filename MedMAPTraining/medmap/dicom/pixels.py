"""Decode the pixels of a series. No codec under the GPL is needed.

pydicom decodes what is not compressed and RLE; pyjpegls (MIT), which highdicom brings, JPEG-LS;
GDCM (BSD) the JPEG family, lossless JPEG among them, which archives use most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from scipy import ndimage

from medmap.checks import Finding
from medmap.dicom.geometry import Stack
from medmap.dicom.series import Series
from medmap.errors import InputDataError, UnavailableError
from medmap.volume import Volume


def read_volume(series: Series, modality: str = "") -> Volume:
    """Read the voxels of a series.

    Args:
        series: one with a stack.
        modality: its title, to begin messages with.

    Returns:
        Volume: array [columns, rows, slices] float32, rescaled as the files say; affine -> RAS in
        mm; name ``series 5``; notes on how it was made.

    Raises:
        InputDataError: a file is damaged, truncated, or says nothing usable of its scaling.
        UnavailableError: no decoder for the files' compression is installed.
    """
    stack = series.stack
    if stack is None:
        raise InputDataError(
            f"Series {series.key} is no volume: {series.unusable}.", "Choose another."
        )
    label = f"series {series.key}"
    images = _untilted(_decoded(series), stack)
    array = np.ascontiguousarray(images.transpose(2, 1, 0))
    notes = []
    for note in series.notes:
        message = f"{modality or 'A modality'} ({label}): {note}."
        notes.append(Finding("info", "dicom", message))
    return Volume(array, stack.affine, label, tuple(notes))


def file_hash(series: Series) -> str:
    """SHA-256 of the bytes of a series' files, in the order of its slices."""
    digest = hashlib.sha256()
    for path in _paths(series):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def image_hash(series: Series) -> str:
    """SHA-256 of the voxels and of where they lie: copies of a series have the same one."""
    assert series.stack is not None
    # Rounded: exports write the same affine with different last digits.
    affine = np.round(series.stack.affine, 3)
    voxels = _decoded(series)
    digest = hashlib.sha256()
    digest.update(affine.tobytes())
    digest.update(voxels.tobytes())
    return digest.hexdigest()


def _paths(series: Series) -> list[Path]:
    """Files of a series without repetition, in the order of its slices."""
    return list(dict.fromkeys(item.path for item in series.slices))


def _decoded(series: Series) -> np.ndarray:
    """[slices, rows, columns] float32 in the order of the stack."""
    frames_by_file = {path: _frames(path, series.key) for path in _paths(series)}
    first = series.slices[0]
    shape = (len(series.slices), first.rows, first.columns)
    images = np.empty(shape, np.float32)
    for number, item in enumerate(series.slices):
        frames = frames_by_file[item.path]
        # The header counts frames; a file that was cut off holds fewer.
        if item.frame >= len(frames):
            raise _damaged(series.key)
        images[number] = frames[item.frame]
    return images


def _untilted(images: np.ndarray, stack: Stack) -> np.ndarray:
    """[slices, rows, columns] with every slice of a tilted stack where it belongs.

    Slices are parallel and evenly spaced, so that they only have to be moved along themselves, by
    linear interpolation. What no slice shows gets the smallest value.
    """
    if not stack.is_tilted:
        return images
    columns, rows, count = stack.shape
    lowest = float(images.min())
    moved = np.full((count, rows, columns), lowest, np.float32)
    moved[:, : images.shape[1], : images.shape[2]] = images
    for number, (column_shift, row_shift) in enumerate(stack.shifts):
        # Linear: cubic splines would overshoot at the skull and at the padding's edge.
        moved[number] = ndimage.shift(
            moved[number],
            (row_shift, column_shift),
            order=1,
            mode="constant",
            cval=lowest,
        )
    return moved


def _frames(path: Path, key: str) -> np.ndarray:
    """[frames, rows, columns] float32 of a file, rescaled."""
    dataset = Dataset()
    try:
        dataset = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = _uncompressed_syntax(dataset)
        stored = dataset.pixel_array
    except (NotImplementedError, RuntimeError) as error:
        raise _undecodable(dataset, key, error) from error
    # Truncated and altered pixel data raise whatever the decoder meets.
    except Exception as error:
        raise _damaged(key) from error
    frames = _without_padding(stored.reshape(-1, *stored.shape[-2:]), dataset).astype(np.float32)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        # By the range that may be stored: that of one slice would differ from slice to slice.
        frames = _stored_sum(dataset) - frames
    for number in range(len(frames)):
        slope, intercept = _rescaling(dataset, number, key)
        if (slope, intercept) != (1.0, 0.0):
            frames[number] = frames[number] * slope + intercept
    return frames


def _damaged(key: str) -> InputDataError:
    return InputDataError(
        f"Series {key}: the pixels of a file are damaged or cut off.",
        "Export the series again, or choose another one.",
    )


def _without_padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored values in which what fills the corners of a reformat has the smallest real value."""
    if "PixelPaddingValue" not in dataset:
        return stored
    first = int(dataset.PixelPaddingValue)
    last = int(dataset.get("PixelPaddingRangeLimit", first))
    low = min(first, last)
    high = max(first, last)
    is_padding = (stored >= low) & (stored <= high)
    if not is_padding.any() or is_padding.all():
        return stored
    smallest = stored[~is_padding].min()
    return np.where(is_padding, smallest, stored)


def _stored_sum(dataset: Dataset) -> float:
    """Sum of the smallest and the largest value that the pixels may have."""
    bits = int(dataset.get("BitsStored", 16))
    if dataset.get("PixelRepresentation", 0) == 1:
        return -1.0
    return float(2**bits - 1)


def _uncompressed_syntax(dataset: Dataset) -> UID:
    """Transfer syntax of a file without a preamble, which does not name it."""
    is_implicit, is_little_endian = dataset.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    if is_little_endian:
        return ExplicitVRLittleEndian
    return ExplicitVRBigEndian


def _undecodable(dataset: Dataset, key: str, error: Exception) -> UnavailableError | InputDataError:
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax.is_compressed:
        return _damaged(key)
    return UnavailableError(
        f"Series {key} is compressed ({syntax.name}) and cannot be decoded here: {_first(error)}",
        "Have it exported without compression, or install medmap[clinic] with all that it needs.",
    )


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no decoder"]
    return lines[0].rstrip(".") + "."


def _rescaling(dataset: Dataset, frame: int, key: str) -> tuple[float, float]:
    """Slope and intercept of a frame; (1, 0) where the file has none."""
    groups: Sequence[Any] = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared: Sequence[Any] = dataset.get("SharedFunctionalGroupsSequence") or []
    sources: list[Dataset] = [dataset]
    for group in (*shared[:1], *groups[frame : frame + 1]):
        sources.extend(group.get("PixelValueTransformationSequence") or [])
    source = sources[-1]
    try:
        slope = float(source.get("RescaleSlope") or 1.0)
        intercept = float(source.get("RescaleIntercept") or 0.0)
    # pydicom raises whatever its parser meets in an invalid number.
    except Exception as error:
        raise InputDataError(
            f"Series {key}: the scaling of a file cannot be read.",
            "Export the series again, or choose another one.",
        ) from error
    return slope, intercept
