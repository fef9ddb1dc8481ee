"""The file behind a volume node, looked at once more: Slicer's reader takes damaged and
contradictory NIfTI silently.

ITK loads a file that was cut in half, with junk for the rest; it believes the qform where other
programs believe the sform, invents an orientation where there is none, scales by units, and with
``A.nii`` beside ``A.nii.gz`` opens the former for the latter. Only header and sizes are read here,
so that it takes no time; no Slicer, no Qt.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from medmap.errors import InputDataError, MedMAPError
from medmap.io.nifti_bytes import read_header, read_verified
from medmap.io.nifti_geometry import choose_affine
from medmap.io.nifti_header import Header
from medmap.volume import Grid

SAME_MM = 0.01
"""The file's statement and Slicer's placement agree when no corner lies farther apart."""


def checkFile(path: Path, name: str, voxels: np.ndarray, grid: Grid) -> None:
    """Refuse a volume that Slicer shows otherwise than its NIfTI file says. Other formats and lost
    files pass.

    Args:
        path: the file that it was read from.
        name: how messages call the volume.
        voxels: [I, J, K] as shown.
        grid: as shown, without parent transforms.

    Raises:
        InputDataError: the file is truncated, contradicts itself, or is not the one whose voxels
            are shown.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")) or not path.is_file():
        return
    try:
        header = read_header(path, name)
        affine, _ = choose_affine(header, name)
        if not _complete(path, header) or _twin(path) is not None:
            header, data = read_verified(path, name)
            _sameVoxels(name, path, voxels, header, data)
    except InputDataError as error:
        # What the command line offers as options is not to be had here.
        remedy = error.remedy
        if error.option:
            remedy = "Export the image again, and load the new file."
        raise InputDataError(error.cause, remedy) from error
    except MedMAPError:
        return  # it cannot be read now; what Slicer has read stands
    apart = _cornersApart(Grid(header.shape, affine), grid)
    if apart > SAME_MM:
        raise InputDataError(
            f"{name}: Slicer shows it up to {apart:.2f} mm from where its file {path.name} places "
            "it.",
            "Export the image again, and load the new file.",
        )


def _complete(path: Path, header: Header) -> bool:
    """By the file's size, or the size that gzip's last four bytes state (RFC 1952), without
    unpacking it.
    """
    if not path.name.lower().endswith(".gz"):
        return os.path.getsize(path) >= header.end
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little") == header.end % 2**32


def _twin(path: Path) -> Path | None:
    """The file that Slicer may have opened instead (Slicer issue 5378)."""
    name = path.name
    other = path.with_name(name[:-3] if name.lower().endswith(".gz") else name + ".gz")
    return other if other.is_file() else None


def _sameVoxels(name: str, path: Path, voxels: np.ndarray, header: Header, data: bytearray) -> None:
    """Compare the voxels shown with those of the file."""
    inFile = np.frombuffer(data, header.dtype, int(np.prod(header.shape)), header.offset).astype(
        float
    )
    if np.isfinite(header.slope) and header.slope != 0:
        inFile = inFile * header.slope + header.inter
    # Slicer may store a left-handed scan in another order, hence sorted; what was NaN has been
    # replaced.
    sortedVoxels = np.sort(voxels, axis=None)
    if (
        sortedVoxels.size != inFile.size
        or np.isclose(sortedVoxels, np.sort(np.nan_to_num(inFile)), 1e-4, 1e-4).mean() < 0.99
    ):
        raise InputDataError(
            f"{name}: the voxels shown are not those of its file {path.name}.",
            "Rename or move the file of the same name beside it, and load it again.",
        )


def _cornersApart(ours: Grid, shown: Grid) -> float:
    """Largest distance from a corner of one grid to the nearest corner of the other, in mm."""
    between = np.linalg.norm(ours.corners()[:, None] - shown.corners()[None], axis=2)
    return float(max(between.min(0).max(), between.min(1).max()))
