"""One synthetic study for all tests of DICOM."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "generated_study", Path(__file__).with_name("generated_study.py")
)
generated_study = importlib.util.module_from_spec(_SPEC)
sys.modules["generated_study"] = generated_study
_SPEC.loader.exec_module(generated_study)

SPACING = 3.0


@pytest.fixture(scope="session")
def case():
    from medmap.phantom import generate

    return generate(20287, shape=(54, 64, 54), spacing=SPACING)


@pytest.fixture(scope="session")
def scans(case):
    return generated_study.study_scans(case, SPACING)


@pytest.fixture(scope="session")
def study_folder(scans, tmp_path_factory):
    return generated_study.write_study(tmp_path_factory.mktemp("disc"), scans)
