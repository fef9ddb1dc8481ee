"""Rows of PASSION's and MCKD's tables: each states its source, trains, resumes and exports."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from Testing.medmap.small_networks import SMALL
from Testing.medmap.training.recipe_networks import network_for

from medmap.bundle.loading import load_bundle
from medmap.commands.phantoms import write_hearts, write_phantoms
from medmap.commands.training import train_bundle
from medmap.commands.training_options import TrainOptions
from medmap.task import find_task
from medmap.training.checkpoint import load_checkpoint
from medmap.training.missingness import build_missingness
from medmap.training.objectives import Context, build_objective
from medmap.training.options import RuntimeOptions
from medmap.training.published import find_split, published_rows
from medmap.training.recipe import Recipe
from medmap.training.splits import read_split

ROWS = {
    name: row for name, row in published_rows().items() if name.startswith(("passion-", "mckd-"))
}
METHODS = ("baseline", "moddrop", "pmr", "passion")
HELD_OUT = {"AQQ", "2013_10", "2013_15", "TCIA09_141", "TCIA13_645"}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_is_what_it_says(name):
    row = ROWS[name]
    recipe = row.recipe
    assert row.petaflop > 0
    assert Recipe.from_dict(json.loads(json.dumps(asdict(recipe)))).digest() == recipe.digest()
    split = read_split(find_split(recipe.split))["train"] if recipe.split else ()
    task = find_task(recipe.task)
    protocol = build_missingness(recipe.missingness, task, recipe.missingness_options, split)
    parts = name.split("-")
    objective = {"passion": "passion", "pmr": "pmr", "mckd": "mckd", "unet": "mckd"}
    if parts[0] == "passion":
        if parts[1] in ("components", "preference"):
            assert recipe.objective == "passion"
        else:
            assert recipe.objective == objective.get(parts[-1], "sls")
        assert (recipe.missingness == "dropped") is (parts[-1] == "moddrop")
        shown = torch.tensor([protocol.available(case).tolist() for case in split]).float()
        missing = dict(zip(task.modality_names, (1 - shown.mean(0)).tolist(), strict=True))
        for modality, rate in wanted_rates(parts).items():
            assert abs(missing[modality] - rate) <= 0.5 / len(split) + 1e-6
    else:
        of_mckd = {"weights": "mckd", "alpha": "mckd", "mse": "mckd"}
        assert recipe.objective == (objective | of_mckd).get(parts[1], "sls")
        held = recipe.held_out_cases
        assert (
            not held
            or {case.removeprefix("Brats18_").removeprefix("CBICA_")[:-2] for case in held}
            == HELD_OUT
        )


def wanted_rates(parts) -> dict[str, float]:
    """What the name of a row of PASSION's tables says: rates by modality."""
    if parts[-1] == "pdt":
        modalities = find_task(ROWS["-".join(parts)].recipe.task).modality_names
        return dict.fromkeys(modalities, 0.0)
    if parts[1] == "components" and parts[2] == "myops2020":
        return {"bssfp": 0.3, "lge": 0.5, "t2": 0.7}
    if parts[1] == "brats2020":
        return {
            n: int(d) / 10 for n, d in zip(("t1", "t1ce", "flair", "t2"), parts[2], strict=True)
        }
    if parts[1] == "myops2020":
        return {
            n: {"s": 0.3, "m": 0.5, "l": 0.7}[d]
            for n, d in zip(("bssfp", "lge", "t2"), parts[2], strict=True)
        }
    return {"t1": 0.2, "t1ce": 0.4, "flair": 0.6, "t2": 0.8}


def test_the_components_of_table_2_are_switched_as_its_dots_say():
    switches = {
        "pixel": (0.5, 0.0, False, False),
        "prototype": (0.0, 0.1, False, False),
        "distillation": (0.5, 0.1, False, False),
        "task-wise": (0.5, 0.1, True, False),
    }
    for name, (pixel, prototype, task_wise, gradient_wise) in switches.items():
        for data in ("brats2020", "myops2020"):
            recipe = ROWS[f"passion-components-{data}-{name}"].recipe
            small = recipe.network_options | SMALL[recipe.network]
            task = find_task(recipe.task)
            network = network_for(replace(recipe, network_options=small), task)
            objective = build_objective("passion", Context(task, network), recipe.objective_options)
            assert (objective.pixel, objective.prototype) == (pixel, prototype)
            assert (objective.task_wise, objective.gradient_wise) == (task_wise, gradient_wise)


def test_the_split_of_myops_has_a_test_part_that_chooses_nothing():
    split = read_split(find_split("myops2020"))
    assert {part: len(names) for part, names in split.items()} == {"train": 20, "test": 5}


def different_rows() -> list[str]:
    """Rows that differ in more than their rates."""
    kinds = {}
    for name, row in ROWS.items():
        r = row.recipe
        key = (
            r.task,
            r.network,
            r.network_options,
            r.objective,
            r.objective_options,
            r.missingness,
            r.optimizer,
        )
        kinds.setdefault(json.dumps(key), name)
    return sorted(kinds.values())


def shrunk(recipe: Recipe, steps: int) -> Recipe:
    """The same recipe in everything but its sizes and its cases."""
    edge = 32 if recipe.network in ("MCKD", "ShaSpec") else 16
    field = {"field": 64.0} if recipe.preprocess.slices else {}
    options = dict(recipe.objective_options)
    if recipe.objective == "mckd" and options.get("alpha", 1):
        options |= {"meta_every": 1, "meta_batches": 1}
    return replace(
        recipe,
        network_options={**recipe.network_options, **SMALL[recipe.network]},
        objective_options=options,
        preprocess=replace(recipe.preprocess, spacing=4.0, **field),
        patch=(edge,) * (2 if recipe.preprocess.slices else 3),
        large_patch=(edge,) * (2 if recipe.preprocess.slices else 3),
        held_out_cases=1 if recipe.held_out_cases else 0,
        batch=min(recipe.batch, 2),
        steps=steps,
        epoch_steps=1 if steps < 10 else 5,
        split="",
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    tell = lambda fraction, text: None  # noqa: E731
    write_phantoms(root / "brains", 4, 40, 4.0, False, "cpu", False, tell, layout="brats2020")
    write_hearts(root / "hearts", 4, 40, 4.0, "cpu", False, tell)
    return {"BraTS": root / "brains", "MyoPS-anatomy": root / "hearts"}


def train_shrunk(
    recipe: Recipe, data: dict, folder: Path, run: str, minutes=None, **options
) -> tuple[int, int]:
    path = folder / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)))
    settings = TrainOptions(
        recipe=path,
        runtime=RuntimeOptions(device="cpu", precision="fp32", minutes=minutes),
        **options,
    )
    return train_bundle(
        folder / run, data[recipe.task], folder / f"{run}-bundle", settings, lambda *_: None
    )


FAST = {
    "mckd-mckd-released-schedule",
    "passion-backbones-mmformer-pdt",
    "passion-backbones-rfnet-passion",
    "passion-brats2020-2258-moddrop",
    "passion-brats2020-2258-pmr",
    "passion-myops2020-sml-passion",
}
"""One of each kind; the others take as long again as all tests of the objectives."""


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in different_rows()
    ],
)
def test_every_recipe_trains_stops_goes_on_to_the_same_weights_and_exports(name, data, tmp_path):
    recipe = shrunk(ROWS[name].recipe, 2)
    assert train_shrunk(recipe, data, tmp_path, "whole") == (2, 2)
    assert train_shrunk(recipe, data, tmp_path, "broken", minutes=0.0) == (1, 2)
    assert train_shrunk(recipe, data, tmp_path, "broken") == (2, 2)
    whole, broken = (load_checkpoint(tmp_path / run)["objective"] for run in ("whole", "broken"))
    assert all(torch.equal(whole[key], broken[key]) for key in whole)
    bundle = load_bundle(tmp_path / "broken-bundle")
    assert bundle.task.name == recipe.task


@pytest.mark.slow
@pytest.mark.parametrize("name", different_rows())
def test_every_recipe_trains_fifty_steps_from_a_folder_to_a_bundle(name, data, tmp_path):
    recipe = shrunk(ROWS[name].recipe, 50)
    assert train_shrunk(recipe, data, tmp_path, "run", minutes=0.0) == (
        1,
        50,
    )  # stopped, then to the end
    assert train_shrunk(recipe, data, tmp_path, "run") == (50, 50)
    assert load_bundle(tmp_path / "run-bundle").card["steps"] == 50
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(lines) == 50
    assert all(math.isfinite(value) for line in lines for value in line.values())
