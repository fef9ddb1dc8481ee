"""From a teacher to one bundle with a network a set of scans, by the commands' own functions."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from Testing.medmap.small_networks import SMALL

from medmap.bundle.loading import load_bundle
from medmap.commands.analysis import AnalyzeOptions, analyze_bundles
from medmap.commands.bundle_export import export_run
from medmap.commands.dedicated import expand_subsets, load_teacher
from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.commands.phantoms import write_phantoms
from medmap.commands.training import train_bundle
from medmap.commands.training_options import BundleOptions, TrainOptions
from medmap.errors import BundleError, InputDataError, MissingInputError, UsageError
from medmap.networks import build_network
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.checkpoint import load_checkpoint, save_best
from medmap.training.export import export
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective

TEACHER = Recipe(
    network="VNet",
    network_options={**SMALL["VNet"], "norm": "instance", "inputs": [0, 1, 2, 3]},
    missingness="full",
    steps=2,
    patch=(16, 16, 16),
    large_share=0.0,
    preprocess=PreprocessSpec(spacing=4.0),
)
STUDENT = replace(
    TEACHER,
    network_options={**SMALL["VNet"], "norm": "instance"},
    objective="protokd",
    subsets=("t1ce", "t1ce+flair"),
    batch=2,
)
QUIET = lambda fraction, text: None  # noqa: E731


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "data"
    write_phantoms(folder, 2, 60, 4.0, False, "cpu", False, QUIET)
    return folder


def options(folder, recipe, **changes):
    path = folder / f"{recipe.objective}.json"
    path.write_text(json.dumps(asdict(recipe)))
    return TrainOptions(
        recipe=path, runtime=RuntimeOptions(device="cpu", precision="fp32"), **changes
    )


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train_bundle(folder / "run", data, folder / "bundle", options(folder, TEACHER), QUIET)
    return folder


def test_a_recipe_for_any_set_is_one_part():
    assert expand_subsets(Recipe(), BRATS) == [("", Recipe())]
    assert expand_subsets(TEACHER, BRATS) == [("", TEACHER)]


def test_a_dedicated_method_is_one_part_a_set():
    parts = dict(expand_subsets(replace(STUDENT, subsets=()), BRATS))
    assert list(parts) == [BRATS.subset_key(s) for s in BRATS.subsets()]
    assert parts["t1+flair"].network_options["inputs"] == [0, 3]
    assert len({part.digest() for part in parts.values()}) == 15
    assert [key for key, _ in expand_subsets(STUDENT, BRATS)] == ["t1ce", "t1ce+flair"]
    assert [key for key, _ in expand_subsets(STUDENT, BRATS, ["flair+t2", "t1"])] == [
        "t2+flair",
        "t1",
    ]


@pytest.mark.parametrize("chosen", [["t1", "t1"], ["t1+flair", "flair+t1"], ["pet"], [""]])
def test_sets_that_cannot_be_are_refused(chosen):
    with pytest.raises(UsageError):
        expand_subsets(STUDENT, BRATS, chosen)


def test_a_network_for_any_set_has_no_sets():
    with pytest.raises(UsageError, match="any modality subset") as caught:
        expand_subsets(Recipe(), BRATS, ["t1ce"])
    assert caught.value.option == "subset"


def test_students_are_trained_in_pieces_and_become_one_bundle(data, teacher, tmp_path):
    recipe = options(tmp_path, STUDENT, teacher=teacher / "run")
    told = []
    done = train_bundle(
        tmp_path / "run",
        data,
        tmp_path / "b",
        replace(recipe, runtime=replace(recipe.runtime, minutes=0.0)),
        lambda f, t: told.append((f, t)),
    )
    assert done == (1, 4)
    assert not (tmp_path / "b").exists()
    assert train_bundle(
        tmp_path / "run", data, tmp_path / "b", recipe, lambda f, t: told.append((f, t))
    ) == (4, 4)
    assert any(text.startswith("t1ce+flair (2 of 2)") for _, text in told)
    assert max(fraction for fraction, _ in told) == 1.0
    bundle = load_bundle(tmp_path / "b")
    assert [entry.name for entry in bundle.entries] == ["t1ce", "t1ce+flair"]
    assert "T1ce; T1ce, FLAIR" in bundle.card["description"]
    for entry in bundle.entries:
        own = load_checkpoint(tmp_path / "run" / entry.name)["average"]
        assert own["head.weight"].shape == entry.network.head.weight.shape
    table = evaluate_bundle(
        data, tmp_path / "b", EvaluateOptions(update_card=True, device="cpu"), QUIET
    ).summary.to_dict()
    assert set(table["subsets"]) == {
        k for k in map(BRATS.subset_key, BRATS.subsets()) if "t1ce" in k
    }
    assert table["subsets"]["t1+t1ce"] == table["subsets"]["t1ce"], (
        "the same network, the same scan"
    )
    assert table["borrowed"] == {
        "t1+t1ce": "t1ce",
        "t1ce+t2": "t1ce",
        "t1+t1ce+t2": "t1ce",
        "t1+t1ce+flair": "t1ce+flair",
        "t1ce+t2+flair": "t1ce+flair",
        "t1+t1ce+t2+flair": "t1ce+flair",
    }
    loaded = load_bundle(tmp_path / "b")
    assert loaded.card["dice"] == table
    assert re.fullmatch(r"run-[0-9a-f]{8}-1\.0\.0", loaded.id)
    assert "t1+t1ce (network of t1ce)" in (tmp_path / "b" / "README.md").read_text()


def test_of_equal_subsets_the_best_validated_network_stands_first(tmp_path):
    recipe = replace(STUDENT, objective="plain")
    folders = []
    for subset, dice in (("t1", 0.4), ("t2", 0.7), ("flair", 0.5)):
        options = {"modalities": 4, "classes": 4, **recipe.network_options}
        network = build_network(recipe.network, {**options, "inputs": [BRATS.index(subset)]})
        folder = tmp_path / subset
        folder.mkdir()
        state = {
            "step": 2,
            "network": list(network.built_from),
            "average": network.state_dict(),
            "selection": {"step": 2, "validation_dice": dice},
        }
        save_best(folder, state)
        folders.append(folder)
    export(folders, recipe, BRATS, tmp_path / "bundle", name="x", version="1", card={})
    bundle = load_bundle(tmp_path / "bundle")
    assert [entry.name for entry in bundle.entries] == ["t2", "flair", "t1"]
    assert bundle.entry_for(BRATS.modality_names).name == "t2"


def test_a_plain_network_can_be_dedicated_too(data, tmp_path):
    recipe = options(tmp_path, replace(STUDENT, objective="plain"), subsets=("flair",))
    assert train_bundle(tmp_path / "run", data, tmp_path / "b", recipe, QUIET) == (2, 2)
    assert [entry.name for entry in load_bundle(tmp_path / "b").entries] == ["flair"]


def test_a_teacher_comes_from_a_run_or_a_bundle(teacher):
    ours, theirs = (load_teacher(teacher / place, STUDENT, BRATS) for place in ("run", "bundle"))
    assert not ours.training
    assert ours.built_from == theirs.built_from
    assert (ours.head.weight - theirs.head.weight).abs().max() < 1e-3


STEMS = [{}, {"mixture": {"initial": {"t1ce": 2.0}}}, {"combine": "mean"}, None]


@pytest.mark.parametrize("stem", STEMS, ids=str)
def test_a_stack_that_only_met_complete_cases_is_made_for_these(stem):
    options = {key: value for key, value in TEACHER.network_options.items() if key != "inputs"}
    if stem is not None:
        options["stem"] = {"at": "input", **stem}
    recipe = replace(TEACHER, network_options=options)
    assert make_objective(recipe, BRATS).deploy().needs == {0, 1, 2, 3}
    assert (
        make_objective(replace(recipe, missingness="random-subset"), BRATS).deploy().needs is None
    )


def test_teachers_that_will_not_do_are_refused(data, teacher, tmp_path):
    with pytest.raises(MissingInputError, match="neither"):
        load_teacher(tmp_path, STUDENT, BRATS)
    with pytest.raises(BundleError, match="preprocessing"):
        load_teacher(
            teacher / "run", replace(STUDENT, preprocess=PreprocessSpec(spacing=3.0)), BRATS
        )
    single = options(tmp_path, replace(STUDENT, objective="plain"), subsets=("flair",))
    train_bundle(tmp_path / "run", data, tmp_path / "b", single, QUIET)
    for place in ("run/flair", "b"):
        with pytest.raises(BundleError, match=r"every modality|is missing"):
            load_teacher(tmp_path / place, STUDENT, BRATS)


def test_a_run_keeps_its_teacher(data, teacher, tmp_path):
    recipe = options(tmp_path, STUDENT, teacher=teacher / "run")
    train_bundle(
        tmp_path / "run",
        data,
        tmp_path / "b",
        replace(recipe, runtime=replace(recipe.runtime, minutes=0.0)),
        QUIET,
    )
    with pytest.raises(BundleError, match="another teacher"):
        train_bundle(
            tmp_path / "run",
            data,
            tmp_path / "b",
            replace(recipe, teacher=teacher / "bundle"),
            QUIET,
        )


def test_without_a_teacher_or_with_incomplete_cases_nothing_is_trained(data, teacher, tmp_path):
    with pytest.raises(UsageError, match="--teacher"):
        train_bundle(tmp_path / "run", data, tmp_path / "b", options(tmp_path, STUDENT), QUIET)
    rates = {"t1": 0.5, "t1ce": 0.0, "t2": 0.0, "flair": 0.0}
    some = replace(STUDENT, missingness="fixed", missingness_options={"rates": rates})
    with pytest.raises(InputDataError, match="1 lack t1"):
        train_bundle(
            tmp_path / "other",
            data,
            tmp_path / "b",
            options(tmp_path, some, teacher=teacher / "run"),
            QUIET,
        )


def test_the_full_path_of_co_training_is_exported_and_analyzed(data, tmp_path):
    """The journal's Fig. 2 plots ACN's aligned network, which sees every modality."""
    recipe = replace(
        TEACHER,
        network="SegResNet",
        network_options=SMALL["SegResNet"],
        objective="acn",
        objective_options={
            "full": {"stem": {"at": "input", "channels": 2}},
            "discriminator_width": 2,
        },
        alignment={"anchor": "mixture", "tap": "stem"},
        subsets=("t1ce",),
        steps=1,
        batch=2,
    )
    run = tmp_path / "run"
    train_bundle(run, data, tmp_path / "student", options(tmp_path, recipe), QUIET)
    full = tmp_path / "full"
    export_run(run / "t1ce", full, BundleOptions(), full_path=True)
    bundle = load_bundle(full)
    network = bundle.entry_for(BRATS.modality_names).network
    state = load_checkpoint(run / "t1ce")["objective"]
    stored = {name.split("full.", 1)[1]: v for name, v in state.items() if "full." in name}
    assert stored.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, stored[name], rtol=1e-3, atol=1e-5)  # stored in half
    measures = analyze_bundles([full], data, tmp_path / "gap", AnalyzeOptions(cases=1), QUIET)
    assert measures["full"]["tap"] == "stem"
    assert (tmp_path / "gap/tsne.png").stat().st_size > 1000


def test_a_full_path_that_is_not_there_or_not_one_is_refused(data, teacher, tmp_path):
    with pytest.raises(BundleError, match="no full path"):
        export_run(teacher / "run", tmp_path / "b", BundleOptions(), full_path=True)
    for subset in ("t1", "t1ce"):
        shutil.copytree(teacher / "run", tmp_path / "runs" / subset)
    with pytest.raises(BundleError, match="several"):
        export_run(tmp_path / "runs", tmp_path / "b", BundleOptions(), full_path=True)
    assert not (tmp_path / "b").exists()
