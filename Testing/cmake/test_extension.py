"""The extension is complete: what CMake lists, what it installs, what the Extensions Index reads.

Slicer itself is replaced by a stub of the few macros that a scripted extension uses; it copies what
it is told to.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = "lib/Slicer-5.13/qt-scripted-modules"

STUB = """
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/Generate.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/CPack.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR %(modules)s)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR %(modules)s)
set(Slicer_FOUND TRUE)
"""

USE_STUB = """
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(
    MY "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "Unknown keywords: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT MY_NAME OR NOT MY_SCRIPTS)
    message(FATAL_ERROR "NAME and SCRIPTS are mandatory")
  endif()
  foreach(file ${MY_SCRIPTS} ${MY_RESOURCES})
    if(IS_ABSOLUTE ${file} OR file MATCHES "^\\\\.\\\\.")
      message(FATAL_ERROR "Path would leave the module folder: ${file}")
    endif()
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${file})
      message(FATAL_ERROR "Listed file does not exist: ${file}")
    endif()
    set(built ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${file})
    add_custom_command(OUTPUT ${built} DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${file}
      COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_CURRENT_SOURCE_DIR}/${file} ${built})
    list(APPEND ${MY_NAME}_built ${built})
  endforeach()
  add_custom_target(${MY_NAME} ALL DEPENDS ${${MY_NAME}_built})
  install(DIRECTORY ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/
    DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR} COMPONENT RuntimeLibraries)
endmacro()
macro(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT" "" ${ARGN})
  file(APPEND ${CMAKE_BINARY_DIR}/unittests.txt "${MY_SCRIPT}\\n")
endmacro()
"""

CPACK_STUB = """
foreach(name HOMEPAGE CATEGORY CONTRIBUTORS DESCRIPTION ICONURL SCREENSHOTURLS DEPENDS)
  file(APPEND ${CMAKE_BINARY_DIR}/metadata.txt "${name}=${EXTENSION_${name}}\\n")
endforeach()
"""


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file, compiled Python left out."""
    files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    files = (
        p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    """Something of the shape of the bundles that ship, one of them with a folder in it."""
    folder = tmp_path_factory.mktemp("bundles")
    files = ("metadata.json", "model.safetensors", "README.md", "SHA256SUMS")
    for bundle in ("default", "brain", "another"):
        (folder / bundle).mkdir()
        for name in files:
            (folder / bundle / name).write_text(f"stands in for {name} of {bundle}")
    (folder / "another/figures").mkdir()
    (folder / "another/figures/dice.csv").write_text("stands in for a table")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, bundles) -> tuple[Path, Path]:
    """Build and installation folder of the extension."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    folder = tmp_path_factory.mktemp("extension")
    stub = folder / "slicer"
    stub.mkdir()
    (stub / "SlicerConfig.cmake").write_text(STUB % {"modules": MODULES})
    (stub / "UseSlicer.cmake").write_text(USE_STUB)
    (stub / "Generate.cmake").write_text("")
    (stub / "CPack.cmake").write_text(CPACK_STUB)
    build, install = folder / "build", folder / "install"
    options = [f"-DSlicer_DIR={stub}", f"-DCMAKE_INSTALL_PREFIX={install}", "-DBUILD_TESTING=ON"]
    run(cmake, "-S", REPOSITORY, "-B", build, *options, f"-DMedMAP_BUNDLES_DIR={bundles}")
    run(cmake, "--build", build)
    run(cmake, "--install", build)
    return build, install


def run(*command) -> None:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_installed_package_is_the_one_in_the_repository(built):
    assert tree(built[1] / MODULES / "medmap") == tree(REPOSITORY / "MedMAPTraining/medmap")


def test_the_installed_module_is_the_one_in_the_repository(built):
    source = tree(REPOSITORY / "MedMAPSegment")
    source.pop("CMakeLists.txt")
    installed = tree(built[1] / MODULES)
    assert {path: installed.get(path) for path in source} == source


def test_nothing_else_is_installed(built):
    allowed = (*tree(REPOSITORY / "MedMAPSegment"), "Resources/MedMAPBundles/")
    for path in tree(built[1] / MODULES):
        assert path.startswith(("medmap/", *allowed)), path
    assert {path.parts[0] for path in map(Path, tree(built[1]))} == {"lib"}


def test_only_real_modules_lie_at_the_top(built):
    """Slicer takes every Python file there for a module."""
    assert [path.name for path in (built[1] / MODULES).glob("*.py")] == ["MedMAPSegment.py"]


def test_every_file_of_every_bundle_is_there(built, bundles):
    for root in built:
        assert tree(root / MODULES / "Resources/MedMAPBundles") == tree(bundles)


def test_the_bundles_of_the_repository_are_those_that_ship(built):
    """Without the option of this test's build, the folder is that of the repository."""
    text = (REPOSITORY / "CMakeLists.txt").read_text()
    assert 'set(MedMAP_BUNDLES_DIR "${CMAKE_CURRENT_SOURCE_DIR}/Resources/bundles"' in text
    assert (REPOSITORY / "Resources/bundles/default/metadata.json").is_file()


def test_the_bundles_lie_where_medmap_looks_for_them(built, bundles):
    pytest.importorskip("torch")
    for root in built:
        code = (
            "from medmap.bundle.format import default_bundle_path\n"
            "from medmap.preparation.availability import brain_bundle_path\n"
            "print(default_bundle_path())\n"
            "print(brain_bundle_path())\n"
        )
        environment = {name: value for name, value in os.environ.items() if "MEDMAP_" not in name}
        environment["PYTHONPATH"] = str(root / MODULES)
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=root,
        )
        default, brain = done.stdout.split()
        assert tree(Path(default)) == tree(bundles / "default")
        assert tree(Path(brain)) == tree(bundles / "brain")


def test_a_build_without_a_bundle_is_refused(tmp_path, built):
    done = subprocess.run(
        [
            *("cmake", "-S", str(REPOSITORY), "-B", str(tmp_path)),
            f"-DSlicer_DIR={built[0].parent / 'slicer'}",
            f"-DMedMAP_BUNDLES_DIR={tmp_path / 'nothing'}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no bundle" in done.stderr


def test_the_self_test_is_registered_with_ctest(built):
    assert (built[0] / "unittests.txt").read_text().split() == ["MedMAPSegment.py"]


def test_every_file_of_the_module_is_listed():
    text = (
        (REPOSITORY / "MedMAPSegment/CMakeLists.txt")
        .read_text()
        .replace("${MODULE_NAME}", "MedMAPSegment")
    )
    listed = set(re.findall(r"^\s+([\w./]+\.\w+)$", text, re.MULTILINE))
    (pattern,) = re.findall(r"GLOB_RECURSE \w+.*?}/([\w/]+)/\*\.py\n", text, re.DOTALL)
    library = (REPOSITORY / "MedMAPSegment" / pattern).rglob("*.py")
    listed |= {path.relative_to(REPOSITORY / "MedMAPSegment").as_posix() for path in library}
    present = set(tree(REPOSITORY / "MedMAPSegment")) - {"CMakeLists.txt"}
    assert present - listed == set()
    assert {path for path in listed if not (REPOSITORY / "MedMAPSegment" / path).is_file()} == set()


def test_the_metadata_survives_cmake(built):
    lines = dict(
        line.split("=", 1) for line in (built[0] / "metadata.txt").read_text().splitlines()
    )
    assert lines["DEPENDS"] == "PyTorch"
    assert ";" not in lines["DESCRIPTION"], "CMake would take it for a list"
    assert all(lines.values())
