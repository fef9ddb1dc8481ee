"""Parts from a user's own module: in training, in other processes, and where it is absent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medmap.bundle.format import read_bundle_texts
from medmap.cli.main import _plugin_files
from medmap.commands.phantoms import write_phantoms
from medmap.commands.plugins import TABLES
from medmap.errors import MissingInputError, UsageError
from medmap.io.cohorts import find_cases
from medmap.plugins import Provider, load_file, load_installed, provider_of
from medmap.progress import ignore_progress
from medmap.task import BRATS

TEMPLATE = Path(__file__).resolve().parents[3] / "MedMAPTraining/examples/plugin"


def medmap(*arguments):
    command = [sys.executable, "-m", "medmap.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def tables():
    """Registers of their own, so that tests leave MedMAP's alone."""
    return {kind: dict(table) for kind, table in TABLES.items()}


@pytest.fixture(autouse=True)
def own_providers(monkeypatch):
    monkeypatch.setattr("medmap.plugins._providers", {})


def write(path, text):
    path.write_text(text)
    return path


def test_a_file_adds_every_kind_of_part(tmp_path, tables):
    parts = "\n".join(
        [
            "def register(plugin):",
            "    plugin.network('Tiny', object)",
            "    plugin.objective('mine', object)",
            "    plugin.missingness('by-site', object)",
            "    plugin.layout('by-date', lambda folder, task: None)",
            "    from dataclasses import replace",
            "    from medmap.task import BRATS",
            "    plugin.task(replace(BRATS, name='Mine'))",
        ]
    )
    provider = load_file(write(tmp_path / "parts.py", parts), tables)
    assert provider.name == "parts"
    assert len(provider.sha256) == 64
    assert "Tiny" in tables["network"]
    assert "mine" in tables["objective"]
    assert "by-site" in tables["missingness"]
    assert "by-date" in tables["layout"]
    assert tables["task"]["Mine"].modality_names == BRATS.modality_names
    assert provider_of("network", "Tiny") == provider
    assert provider_of("network", "UNet") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function register"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def register(plugin): plugin.network('UNet', object)", "which MedMAP has already"),
        ("def register(plugin): plugin.netwerk('A', object)", "AttributeError"),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why(tmp_path, tables, text, message):
    with pytest.raises(UsageError, match=message):
        load_file(write(tmp_path / "faulty.py", text), tables)
    with pytest.raises(MissingInputError, match="no plug-in"):
        load_file(tmp_path / "absent.py", tables)


def test_installed_packages_are_plugins_by_entry_point(tmp_path, tables, monkeypatch):
    package = tmp_path / "site"
    information = package / "mine-1.2.dist-info"
    information.mkdir(parents=True)
    write(package / "mine_module.py", "def register(plugin): plugin.network('Mine', object)")
    write(information / "METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1.2\n")
    write(information / "entry_points.txt", "[medmap.plugins]\nmine = mine_module\n")
    monkeypatch.syspath_prepend(str(package))
    from medmap.plugins import installed_plugins

    [entry] = [entry for entry in installed_plugins() if entry.name == "mine"]
    assert load_installed(entry, tables) == Provider("mine", version="1.2")
    assert "Mine" in tables["network"]


def test_the_option_may_stand_anywhere():
    files, others = _plugin_files(
        ["--plugin", "a.py", "info", "--plugin=b.py", "x", "--", "--plugin"]
    )
    assert files == ["a.py", "b.py"]
    assert others == ["info", "x", "--", "--plugin"]


def test_a_layout_of_a_plugin_is_tried_first(tmp_path, monkeypatch):
    from medmap.io.cases import Case, Cohort
    from medmap.io.cohorts import LAYOUTS

    def by_date(folder, task):
        return Cohort([Case("found", {"t1": folder / "x.nii.gz"}, None)], [])

    monkeypatch.setitem(LAYOUTS, "by-date", by_date)
    monkeypatch.setattr("medmap.plugins._providers", {("layout", "by-date"): Provider("mine")})
    assert [case.case_id for case in find_cases(tmp_path, BRATS)] == ["found"]


def test_the_template_works_when_copied(tmp_path):
    """Tests of the plug-in, a training, an evaluation elsewhere, and the bundle without it."""
    folder = tmp_path / "mine"
    shutil.copytree(TEMPLATE, folder)
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_plugin.py"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert tests.returncode == 0, tests.stdout
    data = tmp_path / "data"
    data.mkdir()
    write_phantoms(data, 2, 11, 4.0, False, "cpu", False, ignore_progress)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe |= {"steps": 2, "patch": [16, 16, 16], "preprocess": {"spacing": 4.0}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    bundle = tmp_path / "bundle"
    plugin = folder / "my_plugin.py"
    train = ["train", folder / "recipe.json", "--data", data, "--run", tmp_path / "run"]
    trained = medmap("--plugin", plugin, *train, "--bundle", bundle, "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    [entry] = read_bundle_texts(bundle).metadata.raw["medmap"]["plugins"]
    assert (entry["part"], entry["name"]) == ("MeanFusion", "my_plugin")
    cohort = ["segment-cohort", data, "-o", tmp_path / "out", "--bundle", bundle, "--workers", 2]
    segmented = medmap(*cohort, "--device", "cpu", "--plugin", plugin)
    assert segmented.returncode == 0, segmented.stderr
    without = medmap("info", bundle)
    assert without.returncode == 78
    assert "needs the plug-in my_plugin, which has its network MeanFusion" in without.stderr
    assert "--plugin my_plugin.py" in without.stderr
