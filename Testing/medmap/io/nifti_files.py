"""NIfTI files for the tests: sound ones by nibabel, then with header fields overwritten."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (5, 6, 7)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1.2, 0, 126], [0, 0, 2, -72], [0, 0, 0, 1]])


def voxels(shape=SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1000, shape).astype(np.int16)


def nifti_bytes(
    array=None, affine=AFFINE, cls=nib.Nifti1Image, endian="<", codes=(1, 1), **fields
) -> bytes:
    """A valid file written by nibabel, then with header fields overwritten as given."""
    array = voxels() if array is None else array
    header = cls.header_class(endianness=endian)
    header.set_data_dtype(array.dtype)
    image = cls(array, affine, header)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    data = bytearray(image.to_bytes())
    if codes[1] == 0:
        fields = {"quatern_b": 0, "quatern_c": 0, "quatern_d": 0, **fields}
    return patched(data, cls.header_class.template_dtype.newbyteorder(endian), fields)


def patched(data: bytes, dtype: np.dtype, fields: dict) -> bytes:
    header = np.frombuffer(data[: dtype.itemsize], dtype).copy()
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + bytes(data[dtype.itemsize :])


def saved(tmp_path: Path, data: bytes, name: str = "t1ce.nii") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def dim(*sizes: int) -> np.ndarray:
    return np.array([len(sizes), *sizes] + [1] * (7 - len(sizes)))


def rotated(degrees: float) -> np.ndarray:
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:2, :2] = [[c, -s], [s, c]]
    return turn @ AFFINE


def moved(mm: float) -> dict:
    return {"srow_x": [*AFFINE[0, :3], AFFINE[0, 3] + mm]}


GOOD = nifti_bytes()
GOOD_GZ = gzip.compress(GOOD, mtime=0)
FLOATS = voxels().astype(np.float32)


def with_nan(count: int) -> np.ndarray:
    array = np.full((20, 20, 20), 7, np.float32)
    array[5:15, 5:15, 5:15] = 9
    array.reshape(-1)[np.linspace(3300, 4700, count).astype(int)] = [np.nan, np.inf][count % 2]
    return array
