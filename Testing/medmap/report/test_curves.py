"""``medmap curves``: figures of modalities in one picture, losses where there are none."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from medmap.cli.main import app
from medmap.commands.curves import draw_curves
from medmap.commands.report import read_sources
from medmap.errors import MissingInputError, OutputError, UsageError
from medmap.task import BRATS
from medmap.training.recipe import Recipe
from medmap.training.run_task import write_task


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(asdict(Recipe(objective="passion"))))
    lines = [{"step": n, "loss": 1 / n, "learning_rate": 1e-3} for n in range(1, 7)]
    for n in (3, 6):
        lines[n - 1] |= {
            f"{what}_{name}": n * 0.1 for what in ("preference", "beta") for name in ("t1", "flair")
        }
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def test_modalities_and_losses_are_two_pictures(run, tmp_path):
    modalities, losses = (
        draw_curves(run, tmp_path / f"{n}.png", losses=bool(n)).read_bytes() for n in (0, 1)
    )
    assert modalities.startswith(b"\x89PNG")
    assert losses.startswith(b"\x89PNG")
    assert modalities != losses
    with pytest.raises(OutputError):
        draw_curves(run, tmp_path / "0.png")


def test_the_command_draws_what_there_is(run, tmp_path):
    log = run / "log.jsonl"
    log.write_text(
        "\n".join(line for line in log.read_text().splitlines() if "beta" not in line) + "\n"
    )
    shown = CliRunner().invoke(app, ["curves", str(run), "-o", str(tmp_path / "c.png")])
    assert shown.exit_code == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_training_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="no training"):
        draw_curves(tmp_path, tmp_path / "c.png")


def test_a_run_of_several_networks_names_them(run, tmp_path):
    folds = tmp_path / "folds"
    (folds / "fold_0").mkdir(parents=True)
    for name in ("recipe.json", "log.jsonl"):
        (folds / "fold_0" / name).write_bytes((run / name).read_bytes())
    write_task(folds, BRATS)
    with pytest.raises(UsageError, match="several trainings: fold_0") as error:
        draw_curves(folds, tmp_path / "c.png")
    assert "fold_0" in error.value.remedy
    assert draw_curves(folds / "fold_0", tmp_path / "c.png").is_file()
    [log] = read_sources([folds]).logs
    assert log.name == "folds/fold_0"
