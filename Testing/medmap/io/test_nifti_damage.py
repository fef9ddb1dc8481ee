"""A damaged NIfTI file is read or refused, and never crashes the program."""

from __future__ import annotations

import ast
import gzip
import warnings
from pathlib import Path

import isal.igzip
import nibabel as nib
import numpy as np
import pytest
from Testing.medmap.io.nifti_files import (
    FLOATS,
    GOOD,
    GOOD_GZ,
    nifti_bytes,
    patched,
)

import medmap
from medmap.checks import affine_problem
from medmap.errors import (
    MedMAPError,
)
from medmap.io.nifti import read_nifti
from medmap.volume import Volume


def mutants(data: bytes, count: int, seed: int, span: int):
    """Byte changes (one to four, within ``span``) and truncations of a file."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        changed = bytearray(data)
        if number % 5 == 0:
            del changed[int(rng.integers(len(changed))) :]
        for at in (
            rng.integers(min(span, len(changed)) or 1, size=int(rng.integers(1, 5)))
            if changed
            else ()
        ):
            changed[at] = int(rng.integers(256))
        yield bytes(changed)


def assert_read_or_refused(path: Path) -> bool:
    try:
        volume = read_nifti(path)
    except MedMAPError:
        return False
    assert isinstance(volume, Volume)
    assert np.isfinite(volume.array).all()
    assert affine_problem(volume.affine) is None
    return True


def test_isa_l_decompresses_where_it_is_installed():
    assert medmap.io.nifti_bytes._fast_reader() is isal.igzip.GzipFile


@pytest.mark.parametrize(
    "content",
    [
        GOOD_GZ,
        GOOD_GZ[: len(GOOD_GZ) // 2],
        GOOD_GZ[:-8] + bytes(4) + GOOD_GZ[-4:],
        GOOD_GZ[:-4] + b"\0\0\0\1",
        GOOD_GZ + b"surplus",
        GOOD_GZ + bytes(512),
        gzip.compress(GOOD[:500]) + gzip.compress(GOOD[500:]),
        GOOD_GZ[:40] + bytes(20) + GOOD_GZ[60:],
    ],
    ids=[
        "sound",
        "half",
        "checksum",
        "length",
        "surplus",
        "padded with zeros",
        "two members",
        "damaged in the middle",
    ],
)
def test_both_decompressors_read_and_refuse_alike(tmp_path, monkeypatch, content):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    by_isa_l = outcome(path)
    # As where ISA-L is not installed.
    monkeypatch.setattr(medmap.io.nifti_bytes, "_fast_reader", lambda: None)
    assert outcome(path) == by_isa_l


def outcome(path: Path) -> str | bytes:
    """Voxels of a file, or the sentence that refuses it."""
    try:
        return read_nifti(path).array.tobytes()
    except MedMAPError as error:
        return error.cause


@pytest.mark.parametrize(
    ("name", "data", "span"),
    [
        ("a.nii", GOOD, 352),
        ("a.nii", nifti_bytes(FLOATS, codes=(2, 0)), 600),
        ("a.nii", nifti_bytes(cls=nib.Nifti2Image, codes=(0, 1)), 544),
        ("a.nii.gz", GOOD_GZ, len(GOOD_GZ)),
    ],
    ids=["header", "floats", "NIfTI-2", "gz"],
)
def test_any_damage_is_read_or_refused_but_never_crashes(tmp_path, name, data, span):
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accepted = 0
        for mutant in mutants(data, 500, seed=len(data), span=span):
            path.write_bytes(mutant)
            accepted += assert_read_or_refused(path)
    assert accepted < 450
    path.write_bytes(data)
    assert assert_read_or_refused(path)


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_field_with_an_extreme_value_is_read_or_refused(tmp_path, cls):
    """Every header field: what random bytes rarely hit."""
    path = tmp_path / "a.nii"
    fields = cls.header_class.template_dtype
    good = nifti_bytes(cls=cls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in fields.names:
            if fields[name].base.kind == "S":
                continue
            kind = fields[name].base
            limits = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
            special = [-1, np.nan, np.inf, -np.inf, 1e-38, 1e30] if kind.kind == "f" else []
            for value in (0, 1, 2, limits.min, limits.max, *special):
                path.write_bytes(patched(good, fields, {name: value}))
                assert_read_or_refused(path)


@pytest.mark.parametrize(
    "module",
    [
        "foreground",
        "checks/__init__",
        "checks/affine",
        "checks/brain",
        "checks/finding",
        "checks/grids",
        "checks/values",
        "io/atomic",
        "io/nifti_geometry",
        "io/nifti_header",
        "volume",
    ],
)
def test_what_also_lives_in_slicer_needs_numpy_only(module):
    tree = ast.parse((Path(medmap.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    imported = {
        a.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for a in node.names
    }
    imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & {"nibabel", "torch", "monai", "scipy", "slicer"}
