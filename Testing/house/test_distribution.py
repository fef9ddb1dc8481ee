"""The wheel holds the bundles, needs no extra to segment, and resolves on every platform."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from medmap.cli.main import EXTRAS
from medmap.errors import UnavailableError

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "MedMAPTraining/pyproject.toml").read_text())["project"]
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux arm64": "aarch64-manylinux_2_28",
    "macOS": "aarch64-apple-darwin",
    "Windows": "x86_64-pc-windows-msvc",
}
# Runs the command line where none of the extras' libraries can be imported.
WITHOUT_EXTRAS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from medmap.cli import main
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources as they lie in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT / "MedMAPTraining", folder / "MedMAPTraining", ignore=ignored)
    shutil.copytree(ROOT / "Resources/bundles", folder / "Resources/bundles")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", folder, folder / "MedMAPTraining"]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("medmap-*.whl"))


def medmap(*arguments, path, code=None):
    """The command line of the package in a folder, in no checkout."""
    start = ["-m", "medmap"] if code is None else ["-c", code]
    command = [sys.executable, *start, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    environment.pop("MEDMAP_BUNDLE", None)
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_wheel_holds_every_bundle_byte_for_byte(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in sorted((ROOT / "Resources/bundles").rglob("*")):
            if path.is_file():
                name = f"medmap/bundles/{path.relative_to(ROOT / 'Resources/bundles').as_posix()}"
                assert archive.read(name) == path.read_bytes()
    assert "medmap/py.typed" in names
    assert any(name.endswith("licenses/LICENSE.txt") for name in names)
    assert any(name.endswith("recipes/default_bundle.json") for name in names)
    assert wheel.stat().st_size < 40e6


def test_an_installed_wheel_segments_without_extras(wheel, tmp_path, make_case):
    from medmap.io.nifti import write_volume

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    volume = make_case((40, 44, 36), spacing=4.0)["flair"]
    write_volume(tmp_path / "flair.nii.gz", volume.array.astype(np.int16), volume.affine)
    arguments = ["segment", "--flair", tmp_path / "flair.nii.gz", "-o", tmp_path / "out"]
    code = WITHOUT_EXTRAS.format(names=set(EXTRAS))
    result = medmap(*arguments, "--device", "cpu", path=tmp_path / "site", code=code)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/segmentation.nii.gz").is_file()


def test_what_an_extra_brings_is_named_when_it_is_absent(tmp_path, tiny_bundle_path):
    code = WITHOUT_EXTRAS.format(names=set(EXTRAS))
    arguments = ["analyze", tiny_bundle_path, "--data", tmp_path, "-o", tmp_path / "out"]
    result = medmap(*arguments, path=ROOT / "MedMAPTraining", code=code)
    assert result.returncode == 69
    assert 'pip install "medmap[report]"' in result.stderr


def test_every_extra_that_a_message_names_exists():
    extras = PROJECT["optional-dependencies"]
    assert {"train", "report", "clinic", "ray", "dev"} <= set(extras)
    assert set(EXTRAS.values()) <= set(extras)
    base = " ".join(PROJECT["dependencies"]).lower()
    for heavy in ("monai", "lightning", "tensorboard", "scikit-learn", "statsmodels", "pytest"):
        assert heavy not in base


def test_the_folds_of_a_training_need_no_other_extra():
    """``medmap split`` prepares a training; its library comes with the extra of training."""
    train = PROJECT["optional-dependencies"]["train"]
    assert any(requirement.startswith("scikit-learn") for requirement in train)


EXTRAS_OF_USERS = {
    "train and report": ("train", "report"),
    "clinic": ("clinic",),
    "ray": ("ray",),
}


@pytest.mark.slow
@pytest.mark.parametrize("extras", EXTRAS_OF_USERS.values(), ids=EXTRAS_OF_USERS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)
def test_all_platforms_have_wheels(platform, python, extras, tmp_path):
    """Resolves the package with the extras of users; needs the package index."""
    from uv import find_uv_bin

    requirements = list(PROJECT["dependencies"])
    for extra in extras:
        requirements += PROJECT["optional-dependencies"][extra]
    (tmp_path / "requirements.in").write_text("\n".join(requirements))
    command = [find_uv_bin(), "pip", "compile", "--quiet", tmp_path / "requirements.in"]
    command += ["--python-platform", platform, "--python-version", python]
    command += ["--only-binary", ":all:"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for name in _names(requirements, python):
        assert re.search(rf"^{name}==", result.stdout, re.MULTILINE), name


def _names(requirements, python):
    """Names of the libraries that a Python gets, as the index spells them."""
    from packaging.requirements import Requirement

    names = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            names.append(requirement.name.lower())
    return names


def test_no_extra_of_users_leaves_a_python_out(monkeypatch):
    """A message names the extra; where installing it changes nothing, the message says so."""
    import medmap.dicom

    conditional = []
    for extras in EXTRAS_OF_USERS.values():
        for extra in extras:
            requirements = PROJECT["optional-dependencies"][extra]
            conditional += [text for text in requirements if ";" in text]
    assert conditional == ["highdicom>=0.25; python_version < '3.14'"]
    assert "Python 3.11 to 3.13" in (ROOT / "docs/how-to/dicom.md").read_text(encoding="utf-8")
    monkeypatch.setattr("medmap.dicom.sys.version_info", (3, 14, 0))
    monkeypatch.setattr("medmap.dicom.LIBRARIES", ("highdicom",))
    monkeypatch.setattr("medmap.dicom.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"Use Python 3\.11 to 3\.13"):
        medmap.dicom.check_libraries()
