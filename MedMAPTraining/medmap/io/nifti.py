"""NIfTI files in and out. The only module of the package that imports nibabel.

It does so only where a qform has to be computed from an affine: the import takes a quarter of a
second and 34 MiB, and a label map copies the geometry of its scan.
"""

from __future__ import annotations

import gzip
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medmap.checks import Finding, replace_not_finite
from medmap.errors import InputDataError, InternalError, UsageError
from medmap.io import atomic
from medmap.io.nifti_bytes import read_header, read_verified
from medmap.io.nifti_geometry import choose_affine
from medmap.io.nifti_header import VOXELS_AT, Header, header_like
from medmap.threads import in_threads
from medmap.volume import Grid, Volume

INTENSITIES = (1e-12, 1e15)
"""Limits of the brightest voxel.

Squares of larger values leave the range of float32; no scanner writes such values.
"""


def read_nifti(
    path: str | os.PathLike,
    *,
    modality: str = "",
    affine: str | None = None,
    assume_orientation: bool = False,
) -> Volume:
    """Read one scan, every byte of it, or say in one sentence why not.

    Args:
        path: a .nii or .nii.gz file, NIfTI-1 or NIfTI-2; opened for reading only.
        modality: canonical name, to begin messages with.
        affine: None, or ``sform`` or ``qform`` as chosen by the user where the two contradict each
            other; without effect on a file that has only one of them.
        assume_orientation: accept a file that does not say how it lies in space
            (i right, j front, k top).

    Returns:
        Volume: array [I, J, K] float32 in the file's voxel order (C-contiguous), intensity scaling
        applied, all finite; affine [4, 4] float64 in mm; name without folders; notes: which affine
        was used, a squeezed frame, an ignored scaling, replaced voxels.

    Raises:
        MissingInputError: no such file, not a regular file, or it may not be read.
        InputDataError: not NIfTI, damaged, truncated, not one 3-D image, of an impossible or
            contradictory geometry, or with impossible intensities.
        UsageError: ``affine`` is something else.
        IOFailure: reading broke off.
    """
    name = Path(path).name
    label = name
    if modality:
        label = f"{modality} ({name})"
    header, data = read_verified(path, label)
    matrix, placed = choose_affine(header, label, affine, assume_orientation)
    notes = [placed]
    if len(header.dims) > 3:
        shape_text = " x ".join(str(n) for n in header.dims)
        message = f"{label} is stored as {shape_text}: read as one 3-D volume."
        notes.append(Finding("warning", "frames", message))
    array = _intensities(header, data, label, notes)
    return Volume(array, matrix, name, tuple(notes))


def read_scans(
    files: Mapping[str, str | os.PathLike],
    *,
    affine: str | None = None,
    assume_orientation: bool = False,
) -> dict[str, Volume]:
    """Read the scans of one patient side by side.

    Args:
        files: by modality.
        affine, assume_orientation: as for ``read_nifti``.

    Returns:
        The scans by modality.

    Raises:
        As ``read_nifti``; of several files that cannot be read the first one is named.
    """

    def read(name: str) -> Volume:
        return read_nifti(
            files[name], modality=name, affine=affine, assume_orientation=assume_orientation
        )

    return dict(zip(files, in_threads(read, files), strict=True))


def write_labels(
    path: str | os.PathLike, labels: np.ndarray, grid: Grid, like: str | os.PathLike | None = None
) -> None:
    """Write a label map as NIfTI-1 uint8 or int16, atomically; the same labels give the same bytes.

    Args:
        path: ends in .nii or .nii.gz; an existing file is replaced
            (``atomic.check_output`` asks before).
        labels: [I, J, K] uint8, or int16 where values exceed 255 (``Task.label_dtype``).
        grid: where the labels lie; becomes sform and qform (code 1) without ``like``.
        like: the scan that the labels belong to. Its sform, qform, codes, voxel size and units are
            copied bit for bit (as float32 from NIfTI-2), so that every program places both alike.
            Descriptions, names and extensions are not: they may name a patient.

    Raises:
        UsageError: the name does not end in .nii or .nii.gz.
        InternalError: labels, grid and ``like`` do not belong together.
        OutputError, IOFailure: it cannot be written.
    """
    if labels.dtype not in (np.uint8, np.int16) or labels.shape != grid.shape:
        raise InternalError(
            f"Labels of {labels.shape} {labels.dtype} do not fit a grid of {grid.shape}.",
            "Please report this.",
        )
    if like is None:
        header = _header_at(grid.affine, labels)
    else:
        like_header = read_header(like)
        _require_same_place(like_header, grid)
        header = header_like(like_header, labels)
    _write(path, header, labels)


def write_volume(path: str | os.PathLike, array: np.ndarray, affine: np.ndarray) -> None:
    """Write intensities as NIfTI-1, atomically.

    int16 where all are whole numbers that fit, float32 otherwise.

    Args:
        path: ends in .nii or .nii.gz; an existing file is replaced.
        array: [I, J, K] numbers.
        affine: [4, 4] voxel -> world RAS in mm, stored as float32 in sform and qform (code 1).

    Raises:
        UsageError: the name does not end in .nii or .nii.gz.
        OutputError, IOFailure: it cannot be written.
    """
    is_whole = array == np.rint(array)
    fits = np.abs(array) < 2**15
    if np.all(is_whole & fits):
        array = array.astype(np.int16)
    else:
        array = array.astype(np.float32)
    header = _header_at(affine, array)
    _write(path, header, array)


def _intensities(header: Header, data: bytearray, label: str, notes: list[Finding]) -> np.ndarray:
    count = math.prod(header.dims)
    flat = np.frombuffer(data, header.dtype, count, header.offset)
    # The first axis is the fastest, as in Fortran.
    values = flat.reshape(header.shape, order="F")
    slope, inter = _scaling(header, label, notes)
    if (slope, inter) != (1.0, 0.0):
        with np.errstate(all="ignore"):
            values = values.astype(np.float64) * slope + inter
    _check_range(values, label)
    with np.errstate(invalid="ignore"):  # signaling NaN
        array = _in_c_order(values)
    if values.dtype.kind == "f":
        array, replaced = replace_not_finite(array, label)
        notes.extend(replaced)
    return array


def _in_c_order(values: np.ndarray) -> np.ndarray:
    """[I, J, K] float32, C-contiguous, from an array in the order of the file, which is Fortran's.

    Plane by plane: one conversion of the whole volume goes against the cache and takes twice as
    long.
    """
    array = np.empty(values.shape, np.float32)
    for j in range(values.shape[1]):
        array[:, j] = values[:, j]
    return array


def _scaling(header: Header, label: str, notes: list[Finding]) -> tuple[float, float]:
    """Slope and intercept to apply.

    A slope of 0 means "none" by the standard; NaN is how nibabel spells that.
    """
    slope = header.slope
    inter = header.inter
    is_finite = np.isfinite([slope, inter]).all()
    if is_finite and slope != 0:
        return slope, inter
    are_zero = slope == 0 and inter == 0
    are_nan = np.isnan(slope) and np.isnan(inter)
    if not are_zero and not are_nan:
        message = (
            f"{label}: the header's intensity scaling {slope:g} * x + {inter:g} makes no sense "
            "and was ignored."
        )
        notes.append(Finding("warning", "scaling", message))
    return 1.0, 0.0


def _check_range(values: np.ndarray, label: str) -> None:
    with np.errstate(invalid="ignore"):  # signaling NaN
        low = float(values.min())
        high = float(values.max())
    if not np.isfinite(low + high):
        finite = values[np.isfinite(values)]
        low = float(finite.min(initial=0))
        high = float(finite.max(initial=0))
    largest = max(high, -low)
    if largest > INTENSITIES[1] or 0 < largest < INTENSITIES[0]:
        raise InputDataError(
            f"{label}: intensities reach {largest:.1e}, which no scan has.",
            "The scaling in the header is damaged: export the scan again.",
        )


def _header_at(affine: np.ndarray, array: np.ndarray) -> bytes:
    """The header of an image at a [4, 4] affine, which becomes sform and qform."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header["vox_offset"] = VOXELS_AT
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header.binaryblock + bytes(4)


def _require_same_place(like: Header, grid: Grid) -> None:
    """Raises InternalError where a result lies elsewhere than the scan that it belongs to."""
    stored_affines = [affine for affine in (like.sform, like.qform) if affine is not None]
    if not stored_affines:
        stored_affines = [like.unoriented]
    if not any(Grid(like.shape, affine).distance(grid) < 0.01 for affine in stored_affines):
        raise InternalError(
            "The result does not lie on the grid of the scan it belongs to.", "Please report this."
        )


def _write(path: str | os.PathLike, header: bytes, array: np.ndarray) -> None:
    """Write a header and the voxels behind it, compressed where the name says so."""
    name = Path(path).name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise UsageError(
            f"{Path(path).name} does not end in .nii or .nii.gz.", "Give it such a name."
        )
    voxels = array.astype(array.dtype.newbyteorder("<"))
    content = header + voxels.tobytes(order="F")
    if name.endswith(".gz"):
        packed = io.BytesIO()
        # Neither name nor time goes into the gzip header: the same labels give the same bytes.
        with gzip.GzipFile(
            filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=5
        ) as stream:
            stream.write(content)
        content = packed.getvalue()
    atomic.write_bytes(path, content)
