"""``medmap train`` and ``medmap export``: faults that show before hours of work, and reruns."""

from __future__ import annotations

import json

import pytest
from Testing.medmap.commands.tiny_training import write_cohort, write_recipe

from medmap.bundle.loading import load_bundle
from medmap.commands.bundle_export import export_run
from medmap.commands.training import train_bundle
from medmap.commands.training_options import BundleOptions, TrainOptions
from medmap.commands.training_recipe import load_recipe
from medmap.errors import BundleError, MissingInputError, UsageError
from medmap.progress import ignore_progress
from medmap.training.distributed import choose_precision
from medmap.training.options import RuntimeOptions


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 2)


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        return write_recipe(tmp_path, **{"steps": 2, **changes})

    return write


def options_for(path, **settings):
    return TrainOptions(recipe=path, runtime=RuntimeOptions(device="cpu"), **settings)


@pytest.mark.parametrize(
    "fault",
    [
        {"network": "nnUNet"},
        {"objective": "magic"},
        {"optimizer": "lion"},
        {"schedule": "stairs"},
        {"patch": [32, 32, 33]},
        {"batch": 0},
        {"steps": -4},
        {"steps": "many"},
        {"learning_rate": "fast"},
    ],
    ids=str,
)
def test_a_mistake_in_the_recipe_shows_before_a_case_is_prepared(data, tmp_path, recipe, fault):
    options = options_for(recipe(**fault))
    with pytest.raises((UsageError, BundleError)):
        train_bundle(tmp_path / "run", data, tmp_path / "bundle", options, ignore_progress)
    assert not (tmp_path / "run").exists()


def test_a_finished_command_repeated_has_nothing_to_do(data, tmp_path, recipe):
    texts = []
    options = options_for(recipe())
    arguments = (tmp_path / "run", data, tmp_path / "bundle", options)
    assert train_bundle(*arguments, ignore_progress) == (2, 2)
    before = (tmp_path / "bundle/model.safetensors").stat().st_mtime_ns
    assert train_bundle(*arguments, lambda fraction, text: texts.append(text)) == (2, 2)
    assert (tmp_path / "bundle/model.safetensors").stat().st_mtime_ns == before
    assert texts == ["nothing to do: the training is finished, and its bundle was exported"]


def test_a_run_is_exported_as_it_stands(data, tmp_path, recipe):
    runtime = RuntimeOptions(device="cpu", minutes=0.0)
    options = TrainOptions(recipe=recipe(steps=5), runtime=runtime)
    steps_done, _ = train_bundle(
        tmp_path / "run", data, tmp_path / "none", options, ignore_progress
    )
    assert steps_done == 1
    texts = BundleOptions(name="early", version="0.1", data_statement="two phantoms")
    step = export_run(tmp_path / "run", tmp_path / "bundle", texts)
    assert step == 1
    assert load_bundle(tmp_path / "bundle").id == "early-0.1"
    with pytest.raises(MissingInputError, match="no folder of a training"):
        export_run(data, tmp_path / "b", texts)


def test_a_recipe_that_contradicts_the_start_is_refused(tmp_path, tiny_bundle, recipe):
    path = recipe(network_options={"widths": [5, 5, 5, 5]}, preprocess={"spacing": 3.5})
    with pytest.raises(UsageError, match="contradicts the bundle") as error:
        load_recipe(options_for(path), tiny_bundle)
    assert "preprocess" in error.value.cause
    assert "widths" in error.value.cause
    path.write_text(json.dumps({"steps": 7}))
    assert load_recipe(options_for(path), tiny_bundle).steps == 7


def test_bf16_is_chosen_only_where_it_is_fast_and_safe(monkeypatch):
    import torch

    cpu = torch.device("cpu")
    capable = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable, raising=False)
    assert choose_precision("auto", cpu, deepest_grid=6) == "bf16"
    assert choose_precision("auto", cpu, deepest_grid=2) == "fp32"
    assert choose_precision("fp16", cpu, deepest_grid=2) == "fp16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose_precision("auto", cpu, deepest_grid=6) == "fp32"
    assert choose_precision("auto", torch.device("cuda"), deepest_grid=2) == "bf16"
