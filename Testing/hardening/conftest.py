"""The command line in this process, and files with every fault that a NIfTI header can have."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.array([[-2.0, 0, 0, 39], [0, -2.0, 0, 47], [0, 0, 2.0, -35], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit code, and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The sentence of cause, empty where all went well."""
        return next((line for line in self.err.splitlines() if line.startswith("error: ")), "")


@pytest.fixture
def cli(monkeypatch, capsys):
    """``cli("segment", ...)`` runs the command line in this process, which is twenty times faster
    than another one."""
    from medmap.cli import main

    def run(*arguments) -> Ran:
        monkeypatch.setattr(sys, "argv", ["medmap", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@dataclass
class Files:
    """A folder of four sound scans, which a test damages."""

    folder: Path
    before: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """The scan's file."""
        return next(self.folder.glob(f"{name}.nii*"))

    def image(self, name: str = "t1") -> nib.Nifti1Image:
        """The scan as nibabel sees it."""
        return nib.load(self.path(name))

    def rewrite(self, name: str, change, cls=nib.Nifti1Image) -> Path:
        """Replace a scan by ``change(array, affine)``."""
        image = self.image(name)
        array, affine = change(np.asarray(image.dataobj), image.affine.copy())
        nib.save(cls(array, affine), self.path(name))
        return self.path(name)

    def patch(self, name: str = "t1", suffix: str = ".nii.gz", **fields) -> Path:
        """Overwrite header fields, whatever they then mean."""
        data = gzip.decompress(self.path(name).read_bytes())
        header = np.frombuffer(data[:348], nib.Nifti1Header.template_dtype).copy()
        for key, value in fields.items():
            header[key] = value
        return self.put(name, header.tobytes() + data[348:], suffix)

    def put(self, name: str, data: bytes, suffix: str = ".nii", packed: bool | None = None) -> Path:
        """Store bytes as the scan's file, compressed if the suffix says so."""
        self.path(name).unlink()
        path = self.folder / f"{name}{suffix}"
        path.write_bytes(
            gzip.compress(data, mtime=0)
            if (suffix.endswith(".gz") if packed is None else packed)
            else data
        )
        return path

    def raw(self, name: str = "t1") -> bytes:
        """The scan's bytes, not compressed."""
        return gzip.decompress(self.path(name).read_bytes())

    def hashes(self) -> dict[str, str]:
        """SHA-256 by file name."""
        return {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(self.folder.iterdir())
        }


@pytest.fixture
def scans(tmp_path, volumes) -> Files:
    """Four scans of the egg-shaped head, saved by nibabel, and labels."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, volume in volumes.items():
        nib.save(nib.Nifti1Image(volume.array.astype(np.int16), AFFINE), folder / f"{name}.nii.gz")
    label = np.zeros(volumes["t1"].array.shape, np.uint8)
    label[20:28, 18:26, 14:22] = 2
    nib.save(nib.Nifti1Image(label, AFFINE), folder / "seg.nii.gz")
    return Files(folder)


@pytest.fixture
def make_patients(tmp_path, make_case):
    """``make_patients(steps)``: a folder with two small cases in BraTS layout, and a recipe of so
    many steps."""

    def make(steps: int) -> Path:
        for n in range(2):
            folder = tmp_path / "data" / f"Case_{n}"
            folder.mkdir(parents=True)
            volumes = make_case(shape=(32, 36, 28), seed=n)
            for name, volume in volumes.items():
                image = nib.Nifti1Image(volume.array.astype(np.int16), volume.affine)
                nib.save(image, folder / f"Case_{n}_{name}.nii.gz")
            label = np.zeros(volumes["t1"].array.shape, np.uint8)
            label[14:20, 14:20, 12:18] = 2
            nib.save(nib.Nifti1Image(label, volumes["t1"].affine), folder / f"Case_{n}_seg.nii.gz")
        small = {
            "patch": [16, 16, 16],
            "large_patch": [16, 16, 16],
            "preprocess": {"spacing": 2.0},
            "steps": steps,
        }
        (tmp_path / "recipe.json").write_text(
            json.dumps({"network_options": {"widths": [4, 8]}, **small})
        )
        return tmp_path

    return make
