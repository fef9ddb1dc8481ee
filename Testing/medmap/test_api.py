"""The public API: ``import medmap`` with files and arrays, and its executable examples."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest

import medmap
from medmap import api
from medmap.errors import MissingInputError, UsageError
from medmap.io.nifti import write_volume


@pytest.fixture
def files(volumes, tmp_path):
    paths = {}
    for name in ("t1ce", "flair"):
        paths[name] = tmp_path / f"{name}.nii.gz"
        write_volume(paths[name], volumes[name].array, volumes[name].affine)
    return paths


def test_files_and_volumes_give_the_same_labels(files, volumes, tiny_bundle, tiny_bundle_path):
    from_volumes = medmap.segment({name: volumes[name] for name in files}, tiny_bundle)
    from_files = medmap.segment(
        {"T1Gd": str(files["t1ce"]), "FLAIR": files["flair"]}, tiny_bundle_path, device="cpu"
    )
    assert np.array_equal(from_files.labels, from_volumes.labels)
    assert from_files.provenance.missing == ("t1", "t2")


def test_a_modality_under_two_names_is_refused(files, tiny_bundle):
    with pytest.raises(UsageError, match="T1ce is given twice"):
        medmap.segment({"t1ce": files["t1ce"], "t1gd": files["flair"]}, tiny_bundle)


def test_a_missing_file_is_named(tmp_path, tiny_bundle):
    with pytest.raises(MissingInputError, match=r"none\.nii\.gz"):
        medmap.segment({"t1": tmp_path / "none.nii.gz"}, tiny_bundle)


def test_subsets_are_compared(volumes, tiny_bundle):
    scans = {name: volumes[name] for name in ("t1ce", "flair")}
    result = medmap.compare_subsets(scans, tiny_bundle, current=["FLAIR"], device="cpu")
    assert result.current == ("flair",)
    assert {variant.key for variant in result.variants} == {"flair", "t1ce", "t1ce+flair"}


def test_every_public_name_exists_and_others_do_not():
    assert set(medmap.__all__) <= set(dir(medmap))
    for name in medmap.__all__:
        assert getattr(medmap, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        medmap.nonsense  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, medmap; print({'torch', 'numpy', 'nibabel', 'typer'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_the_examples_of_the_docstrings_run():
    results = doctest.testmod(api, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= 10
    assert results.failed == 0
