"""Cases are prepared once for all runs, by several processes, within a budget."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from Testing.medmap.commands.tiny_training import write_cohort

from medmap.commands.preparation import estimate_preparation, prepare_cases
from medmap.errors import InputDataError, OutputError, UsageError
from medmap.io.cohorts import find_cases
from medmap.preprocess import PreprocessSpec
from medmap.progress import ignore_progress
from medmap.task import BRATS
from medmap.training.cache import is_complete
from medmap.training.cache_folder import CacheFolder, default_budget_gb, default_cache_folder

SPEC = PreprocessSpec(spacing=4.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 4)


@pytest.fixture
def cases(data):
    return find_cases(data, BRATS)


def arrays(folder):
    return {path.name: np.load(path) for path in sorted(folder.glob("*.npy"))}


def test_processes_prepare_what_one_prepares(cases, tmp_path):
    one = prepare_cases(
        cases, BRATS, SPEC, CacheFolder(tmp_path / "one", 1.0), ignore_progress, processes=1
    )
    two = prepare_cases(
        cases, BRATS, SPEC, CacheFolder(tmp_path / "two", 1.0), ignore_progress, processes=2
    )
    assert [folder.name for folder in two] == [case.case_id for case in cases]
    for first, second in zip(one, two, strict=True):
        assert first.parent.name == second.parent.name
        expected = arrays(first)
        found = arrays(second)
        assert expected.keys() == found.keys()
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_the_cache_is_shared_and_repaired(cases, tmp_path, monkeypatch):
    cache = CacheFolder(tmp_path / "cache", 1.0)
    folders = prepare_cases(cases[:2], BRATS, SPEC, cache, ignore_progress)
    (folders[1] / "t1.npy").write_bytes(b"cut off")
    assert not is_complete(folders[1])
    assert prepare_cases(cases[:2], BRATS, SPEC, cache, ignore_progress) == folders
    assert is_complete(folders[1])
    monkeypatch.setattr("medmap.training.cache.prepare_volumes", None)
    texts = []
    again = prepare_cases(cases[:2], BRATS, SPEC, cache, lambda _, text: texts.append(text))
    assert again == folders
    assert not any("prepared" in text for text in texts)


def test_faults_of_all_cases_come_before_anything_is_prepared(data, tmp_path):
    cohort = tmp_path / "data"
    cohort.mkdir()
    for case in sorted(data.iterdir())[:3]:
        (cohort / case.name).mkdir()
        for path in case.iterdir():
            (cohort / case.name / path.name).write_bytes(path.read_bytes())
    for case in sorted(cohort.iterdir())[:2]:
        (case / f"{case.name}_seg.nii.gz").unlink()
    cache = CacheFolder(tmp_path / "cache", 1.0)
    with pytest.raises(InputDataError, match="2 of 3 cases cannot be used"):
        prepare_cases(find_cases(cohort, BRATS), BRATS, SPEC, cache, ignore_progress)
    assert cache.case_folders() == []


def test_an_estimate_changes_nothing(cases, tmp_path):
    cache = CacheFolder(tmp_path / "cache", 1.0)
    estimate = estimate_preparation(cases, BRATS, SPEC, cache, ignore_progress, processes=2)
    assert not cache.path.exists()
    assert estimate.cases == 4
    assert estimate.total_seconds(2) == pytest.approx(2 * estimate.seconds)
    folders = prepare_cases(cases, BRATS, SPEC, cache, ignore_progress)
    actual = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    assert estimate.total_bytes == pytest.approx(actual, rel=0.4)
    assert estimate_preparation(cases, BRATS, SPEC, cache, ignore_progress).cases == 0


def test_the_budget_is_kept(cases, tmp_path):
    cache = CacheFolder(tmp_path / "cache", 1.0)
    folders = prepare_cases(cases[:2], BRATS, SPEC, cache, ignore_progress)
    size_gb = cache.used_bytes() / 1e9
    tight = CacheFolder(cache.path, 1.2 * size_gb)
    other = PreprocessSpec(spacing=4.0, margin=3)
    with pytest.raises(OutputError, match=r"holds .* of the .* GB that it may") as error:
        prepare_cases(cases[2:], BRATS, other, tight, ignore_progress)
    assert error.value.option == "cache-gb"
    assert all(is_complete(folder) for folder in folders), "what was used lately may be in use"
    a_month_ago = time.time() - 30 * 86400
    for folder in folders:
        os.utime(folder / "case.json", (a_month_ago, a_month_ago))
    prepared = prepare_cases(cases[2:], BRATS, other, tight, ignore_progress)
    assert all(is_complete(folder) for folder in prepared)
    assert not is_complete(folders[0])
    assert cache.used_bytes() <= 1.2 * size_gb * 1e9


def test_location_and_budget_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDMAP_CACHE", str(tmp_path / "scratch"))
    monkeypatch.setenv("MEDMAP_CACHE_GB", "12.5")
    assert default_cache_folder() == tmp_path / "scratch"
    assert default_budget_gb() == 12.5
    monkeypatch.setenv("MEDMAP_CACHE_GB", "plenty")
    with pytest.raises(UsageError, match="plenty"):
        default_budget_gb()
    monkeypatch.delenv("MEDMAP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_cache_folder() == tmp_path / "xdg/medmap"


def test_the_command_estimates_and_prepares_what_training_needs(data, tmp_path, capsys):
    from medmap.cli.main import app

    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"preprocess": {"spacing": 4.0}}')
    command = ["prepare", str(recipe), "--data", str(data), "--cache", str(tmp_path / "cache")]
    app([*command, "--dry-run"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "4 cases to prepare" in printed
    assert "0.00 of 200 GB used" in printed
    assert not (tmp_path / "cache").exists()
    app(command, standalone_mode=False)
    assert "4 cases are prepared" in capsys.readouterr().out
    app([*command, "--dry-run"], standalone_mode=False)
    assert "All cases are prepared already" in capsys.readouterr().out
