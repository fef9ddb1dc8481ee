"""The experiment on stored variants of a patient: what it changes, and what it lets pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medmap.commands.phantoms import write_phantoms
from medmap.io.cohorts import find_cases
from medmap.progress import ignore_progress
from medmap.task import BRATS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedMAPTraining/experiments"))

import file_variants


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_bundle):
    folder = tmp_path_factory.mktemp("cohort")
    write_phantoms(folder, 1, 11, 3.0, False, "cpu", False, ignore_progress)
    (case,) = find_cases(folder, BRATS)
    return file_variants.measure(case.read(["t1ce", "flair"]), tiny_bundle)


def test_no_variant_is_refused(results):
    assert all(volume_ml is not None for volume_ml in results.values())


@pytest.mark.parametrize(
    "variant", [v for v in file_variants.VARIANTS if not v.smoothed], ids=lambda v: v.title
)
def test_what_leaves_the_brain_alone_leaves_the_tumor_alone(results, variant):
    assert file_variants.is_within(variant, results)


def test_a_variant_beyond_is_bold_and_fails(results):
    variant = file_variants.VARIANTS[0]
    moved = {**results, variant.title: 1.04 * results["plain"]}
    refused = {**results, variant.title: None}
    assert not file_variants.is_within(variant, moved)
    assert not file_variants.is_within(variant, refused)
    lines = file_variants.table({"patient": moved, "other": refused})
    assert f"| {variant.title} | **+4.0** | refused |" in lines
