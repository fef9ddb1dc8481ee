"""What is missing is found without importing it, and installed only after the user agreed."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
import types
from types import SimpleNamespace

import pytest

import medmap
from medmap.errors import BundleError, UnavailableError
from MedMAPSegmentLib import dependencies
from MedMAPSegmentLib.dependencies import Requirement, SlicerInstaller


class Recorder:
    """An installer that notes what it is asked; ``after`` runs when something is installed."""

    def __init__(self, testing=False, agrees=True, extension=False, after=lambda: None):
        self.testing = testing
        self.agrees = agrees
        self.extension = extension
        self.after = after
        self.calls = []

    def isTesting(self):
        return self.testing

    def confirm(self, text):
        self.calls.append(("confirm", text))
        return self.agrees

    def installTorch(self, requirement):
        self.calls.append(("torch", str(requirement)))
        if self.extension:
            self.after()
        return self.extension

    def hasPyTorchExtension(self):
        return self.extension

    def install(self, requirements, index=""):
        self.calls.append(("install", [*map(str, requirements), *([index] if index else [])]))
        self.after()

    def remove(self, names):
        self.calls.append(("remove", list(names)))


@pytest.fixture
def lacking(tmp_path, monkeypatch):
    """A requirements file of which torch is missing until the returned list is emptied."""
    monkeypatch.setattr(dependencies, "hasNvidiaDriver", lambda: False)
    missing = ["torch"]
    monkeypatch.setattr(Requirement, "isMet", lambda self: self.name not in missing)
    monkeypatch.setattr(Requirement, "isLoadedTooOld", lambda self: False)
    path = tmp_path / "requirements.txt"
    path.write_text("# comment\ntorch>=2.10  # why\n\nsafetensors\n")
    return path, missing


def test_reads_names_and_floors(lacking):
    assert dependencies.load(lacking[0]) == [
        Requirement("torch", ">=2.10"),
        Requirement("safetensors"),
    ]


@pytest.mark.parametrize(
    ("name", "versions", "met"),
    [
        ("pytest", "", True),
        ("pytest", ">=1.0", True),
        ("pytest", ">=9999", False),
        ("medmap_no_such_package", "", False),
        ("json", "", False),  # importable, but no installed distribution
    ],
)
def test_a_requirement_is_met_by_files_and_metadata_together(name, versions, met):
    assert Requirement(name, versions).isMet() is met


@pytest.mark.parametrize(
    ("version", "met"),
    [("2.10.0", True), ("2.10", True), ("2.9.1", False), ("2.10.0+cu126", True), ("10.0", True)],
)
def test_versions_compare_as_numbers(monkeypatch, version, met):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert Requirement("pytest", ">=2.10").isMet() is met


def test_probing_imports_nothing(repository, tmp_path):
    import subprocess

    code = (
        f"import sys; sys.path[:0] = [{str(repository / 'MedMAPSegment')!r}, "
        f"{str(repository / 'MedMAPTraining')!r}]\n"
        "from MedMAPSegmentLib import dependencies; dependencies.missing()\n"
        "assert not {'torch', 'safetensors', 'monai', 'nibabel'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_nothing_is_asked_when_nothing_is_missing(lacking):
    path, missing = lacking
    missing.clear()
    installer = Recorder()
    assert dependencies.ensure(installer, path)
    assert installer.calls == []


def test_nothing_is_installed_without_consent(lacking):
    installer = Recorder(agrees=False)
    assert not dependencies.ensure(installer, lacking[0])
    assert [name for name, _ in installer.calls] == ["confirm"]
    assert "torch>=2.10" in installer.calls[0][1]


def test_nothing_is_asked_or_installed_while_slicer_tests_itself(lacking):
    installer = Recorder(testing=True)
    with pytest.raises(UnavailableError, match=r"torch>=2\.10"):
        dependencies.ensure(installer, lacking[0])
    assert installer.calls == []


def test_the_pytorch_extension_installs_torch_where_it_is_there(lacking):
    path, missing = lacking
    installer = Recorder(extension=True, after=missing.clear)
    assert dependencies.ensure(installer, path)
    assert [name for name, _ in installer.calls] == ["confirm", "torch"]


def test_pip_installs_torch_without_the_pytorch_extension(lacking):
    path, missing = lacking
    installer = Recorder(after=missing.clear)
    assert dependencies.ensure(installer, path)
    assert installer.calls[1] == ("torch", "torch>=2.10")
    assert installer.calls[2] == ("install", ["torch>=2.10", dependencies.CPU_INDEX])


@pytest.mark.parametrize(
    ("system", "machine", "card", "build"),
    [
        ("Linux", "x86_64", False, dependencies.PROCESSOR),
        ("Linux", "x86_64", True, dependencies.GRAPHICS_CARD),
        ("Windows", "AMD64", False, dependencies.PROCESSOR),
        ("Windows", "AMD64", True, dependencies.PROCESSOR),
        ("Darwin", "arm64", False, dependencies.MAC),
    ],
)
def test_the_build_of_torch_fits_the_computer(system, machine, card, build):
    assert dependencies.torchBuild(system, machine, card) == build


MACS = (
    ("arm64", (3, 12), "macOS 11 to 13", "2.11.0"),
    ("arm64", (3, 12), "macOS 14 and 15", "2.14.1"),
    ("x86_64", (3, 12), "macOS 10.15 to 14", "2.2.2"),
    ("x86_64", (3, 13), "macOS 10.15 to 14", None),
)
"""Architecture and version of Slicer's Python, system, and what ``pip install --dry-run --platform
macosx_... --only-binary :all: torch`` got from PyPI on 2026-11-30; None for nothing."""


@pytest.mark.parametrize(("machine", "python", "system", "newest"), MACS)
def test_each_mac_gets_a_pytorch_that_is_allowed_or_is_told_so(machine, python, system, newest):
    environment = {
        "sys_platform": "darwin",
        "platform_machine": machine,
        "python_version": ".".join(map(str, python)),
    }
    requirements = dependencies.load(environment=environment)
    (torch,) = [requirement for requirement in requirements if requirement.name == "torch"]
    if newest is None:
        with pytest.raises(UnavailableError, match="no PyTorch for this Slicer"):
            dependencies.torchBuild("Darwin", machine, False, python)
        return
    assert torch.accepts(newest)
    build = dependencies.torchBuild("Darwin", machine, False, python)
    assert (build is dependencies.INTEL_MAC) == newest.startswith("2.2")


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_elsewhere_the_first_pytorch_without_known_faults_is_asked_for(platform):
    environment = {"sys_platform": platform, "platform_machine": "x86_64"}
    requirements = dependencies.load(environment=environment)
    assert Requirement("torch", ">=2.10") in requirements
    assert len(requirements) == 2


@pytest.fixture
def intel_mac(monkeypatch):
    """This computer, as an Intel Mac."""
    monkeypatch.setattr(dependencies.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(dependencies.platform, "machine", lambda: "x86_64")


def test_slicer_on_a_mac_is_told_which_pytorch_it_gets(lacking, intel_mac, monkeypatch):
    monkeypatch.setattr(dependencies.sys, "version_info", SimpleNamespace(major=3, minor=12))
    installer = Recorder(agrees=False)
    assert not dependencies.ensure(installer, lacking[0])
    assert "PyTorch 2.2, the last one" in installer.calls[0][1]


def test_a_mac_without_any_build_is_told_before_anything_is_asked_or_downloaded(
    lacking, intel_mac, monkeypatch
):
    monkeypatch.setattr(dependencies.sys, "version_info", SimpleNamespace(major=3, minor=13))
    installer = Recorder()
    with pytest.raises(UnavailableError, match="Intel"):
        dependencies.ensure(installer, lacking[0])
    assert installer.calls == []


def test_the_question_tells_the_size_of_the_build_and_when_it_is_needed(lacking):
    installer = Recorder(agrees=False)
    dependencies.ensure(installer, lacking[0])
    question = installer.calls[0][1]
    assert "about 0.2 GB" in question
    assert "sample patient" in question
    assert "not sent anywhere" in question


def test_a_failed_installation_is_taken_back_and_what_was_there_before_stays(lacking, monkeypatch):
    versions = {"safetensors": "0.1"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    def half():
        versions["torch"] = "2.10.0"
        raise OSError("No space left on device")

    path, missing = lacking
    missing.append("safetensors")
    monkeypatch.setattr(importlib.metadata, "version", version)
    installer = Recorder(after=half)
    with pytest.raises(UnavailableError, match="removed again"):
        dependencies.ensure(installer, path)
    assert installer.calls[-1] == ("remove", ["torch"])


def test_says_so_when_installing_did_not_help(lacking):
    with pytest.raises(UnavailableError, match="Restart Slicer"):
        dependencies.ensure(Recorder(), lacking[0])


def test_says_so_when_installing_failed(lacking):
    def fail():
        raise RuntimeError("no network")

    with pytest.raises(UnavailableError, match="no network"):
        dependencies.ensure(Recorder(after=fail), lacking[0])


def test_asks_for_a_restart_when_an_old_version_is_loaded(lacking, monkeypatch):
    path, missing = lacking
    missing.clear()
    monkeypatch.undo()
    monkeypatch.setattr(Requirement, "isMet", lambda self: True)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.2.0+cpu"))
    with pytest.raises(UnavailableError, match="Restart Slicer"):
        dependencies.ensure(Recorder(), path)


def _of_2024(
    self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None
):
    return {"askConfirmation": askConfirmation, "torchVersionRequirement": torchVersionRequirement}


def _renamed(self, torchVersionRequirement=None, confirm=True):
    return {"torchVersionRequirement": torchVersionRequirement}


def _bare(self):
    return {}


@pytest.mark.parametrize("signature", [_of_2024, _renamed, _bare])
def test_only_keywords_that_the_pytorch_extension_knows_are_passed(monkeypatch, signature):
    seen = []
    known = functools.wraps(signature)(
        lambda *args, **kwargs: seen.append(signature(*args, **kwargs))
    )
    module = types.ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = type("PyTorchUtilsLogic", (), {"installTorch": known})
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)
    assert SlicerInstaller().installTorch(Requirement("torch", ">=2.10"))
    assert seen == [{name: {"askConfirmation": False}.get(name, ">=2.10") for name in seen[0]}]


@pytest.mark.parametrize("index", ["", dependencies.CPU_INDEX])
def test_slicers_progress_dialog_shows_every_installation(monkeypatch, index):
    """``slicer.util.pip_install`` of slicer-core hands on to this function of Slicer 5.12."""
    calls = []

    def pip_install(
        requirements,
        constraints=None,
        no_deps_requirements=None,
        skip_packages=None,
        blocking=True,
        show_progress=True,
        requester=None,
    ):
        calls.append((requirements, blocking and show_progress, requester))

    packaging = types.ModuleType("slicer.packaging")
    packaging.pip_install = pip_install
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    SlicerInstaller().install([Requirement("torch", ">=2.10")], index)
    arguments = ["torch>=2.10", *(["--index-url", index] if index else [])]
    assert calls == [(arguments, True, "MedMAP")]


def test_a_slicer_without_that_dialog_installs_with_its_pip_install(monkeypatch):
    import slicer.util

    calls = []

    def pip_install(requirements):
        calls.append(requirements)

    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    SlicerInstaller().install([Requirement("safetensors")])
    assert calls == [["safetensors"]]


def test_without_the_pytorch_extension_torch_is_left_to_pip():
    assert SlicerInstaller().installTorch(Requirement("torch", ">=2.10")) is False


def test_the_same_packages_as_the_standalone_package_needs(repository):
    tomllib = pytest.importorskip("tomllib")

    project = tomllib.loads((repository / "MedMAPTraining/pyproject.toml").read_text())["project"]
    for line in dependencies.REQUIREMENTS.read_text().splitlines():
        if not line.startswith("#"):
            assert line in project["dependencies"]


def test_67_another_medmap_than_the_modules_own_is_refused_with_both_places(tmp_path, lacking):
    installed = tmp_path / "qt-scripted-modules"
    (installed / "MedMAPSegmentLib").mkdir(parents=True)
    (installed / "medmap").mkdir()
    module = installed / "MedMAPSegmentLib/dependencies.py"
    dependencies.checkPackage(installed / "medmap/__init__.py", module)
    with pytest.raises(BundleError) as refused:
        dependencies.checkPackage(tmp_path / "site-packages/medmap/__init__.py", module)
    assert "site-packages" in refused.value.cause
    assert "qt-scripted-modules" in refused.value.cause
    assert refused.value.exit_code == 78
    dependencies.checkPackage(medmap.__file__)  # here it is the checkout's


def test_67_apply_asks_first(lacking, monkeypatch):
    monkeypatch.setattr(medmap, "__file__", "/elsewhere/medmap/__init__.py")
    installer = Recorder()
    with pytest.raises(BundleError, match="elsewhere"):
        dependencies.ensure(installer, lacking[0])
    assert installer.calls == []


def test_68_versions_below_the_floor_are_asked_for_by_their_exact_requirement(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.1.0")
    path = tmp_path / "requirements.txt"
    path.write_text("torch>=2.10\n")
    installer = Recorder(agrees=False)
    assert not dependencies.ensure(installer, path)
    assert "torch>=2.10" in installer.calls[0][1]
