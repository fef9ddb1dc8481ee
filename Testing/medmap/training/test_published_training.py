"""Published rows of MedMAP: each trains, stops, goes on, and exports."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from Testing.medmap.small_networks import SMALL

from medmap.bundle.loading import load_bundle
from medmap.commands.dedicated import expand_subsets, load_teacher
from medmap.commands.phantoms import write_phantoms
from medmap.commands.training import train_bundle
from medmap.commands.training_options import CacheOptions, TrainOptions
from medmap.io.cohorts import find_cases
from medmap.networks import build_network
from medmap.task import BRATS
from medmap.training.cache import cache_case
from medmap.training.checkpoint import load_checkpoint
from medmap.training.dataset import PatchSampler
from medmap.training.export import export
from medmap.training.loop import train
from medmap.training.missingness import build_missingness
from medmap.training.options import RuntimeOptions
from medmap.training.published import published_rows
from medmap.training.recipe import Recipe

ROWS = {
    name: row
    for name, row in published_rows().items()
    if name.startswith(("journal-", "conference-"))
}
"""MedMAP's own; the others' have tests beside their objectives."""


def shrunk(recipe: Recipe, steps: int) -> Recipe:
    """The same recipe in everything but its sizes."""
    options = dict(recipe.objective_options)
    if recipe.objective in ("acn", "smu-net"):
        options["discriminator_width"] = 4
    return replace(
        recipe,
        network_options={**recipe.network_options, **SMALL[recipe.network]},
        objective_options=options,
        preprocess=replace(recipe.preprocess, spacing=4.0),
        patch=(16,) * 3,
        large_patch=(16,) * 3,
        batch=min(recipe.batch, 2),
        steps=steps,
        epoch_steps=1,
        split="",
    )


def computation(name: str) -> str:
    """What rows have in common that differ in their data, split and sets of scans only."""
    row = ROWS[name]
    aligned = ROWS[row.teacher].recipe if row.teacher else row.recipe
    parts = [
        (
            r.network,
            r.network_options,
            r.objective,
            r.objective_options,
            r.alignment,
            r.optimizer,
            r.batch,
        )
        for r in (row.recipe, aligned)
    ]
    return json.dumps(parts)


def representative(name: str) -> str:
    """The first of the rows with the same computation."""
    return next(other for other in ROWS if computation(other) == computation(name))


def different_rows() -> list[str]:
    """Rows that differ in more than their data."""
    return sorted({representative(name) for name in ROWS})


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    write_phantoms(
        root / "data",
        2,
        40,
        4.0,
        False,
        "cpu",
        False,
        lambda fraction, text: None,
        layout="brats2018",
    )
    cases, caches = find_cases(root / "data", BRATS), {}

    def sampler(recipe: Recipe) -> PatchSampler:
        key = recipe.preprocess
        if key not in caches:
            (root / str(len(caches))).mkdir()
            caches[key] = [cache_case(case, BRATS, key, root / str(len(caches))) for case in cases]
        missingness = build_missingness(recipe.missingness, BRATS, recipe.missingness_options, [])
        return PatchSampler(caches[key], missingness, recipe.seed, recipe.augmentation)

    return sampler


def fast_or_slow(name: str):
    """Two networks and their adversaries on large patches cost most.

    Of their four anchors, two run every time.
    """
    cotrained = ROWS[name].recipe.objective in ("acn", "smu-net")
    return (
        pytest.param(name, marks=pytest.mark.slow)
        if cotrained and name.split("-")[2] in ("pn", "pk", "tstar")
        else name
    )


@pytest.mark.parametrize("name", [fast_or_slow(name) for name in different_rows()])
def test_every_recipe_trains_stops_goes_on_to_the_same_weights_and_exports(name, cohort, tmp_path):
    row = ROWS[name]
    chosen = row.recipe.subsets[:1] or ("t1ce",)
    (subset, recipe) = expand_subsets(
        shrunk(row.recipe, 2), BRATS, chosen if row.teacher or row.recipe.subsets else ()
    )[0]
    if recipe.objective == "acn" and not subset:
        (subset, recipe) = expand_subsets(shrunk(row.recipe, 2), BRATS, ("flair",))[0]
    teacher = None
    if row.teacher:
        torch.manual_seed(0)
        taught = shrunk(ROWS[row.teacher].recipe, 2)
        run = tmp_path / "teacher"
        train(taught, BRATS, cohort(taught), run, device="cpu", precision="fp32", minutes=0.0)
        teacher = load_teacher(run, taught, BRATS)
    settings = {"device": "cpu", "precision": "fp32", "teacher": teacher}
    figures = []
    note = lambda step, f: figures.append(f)  # noqa: E731
    assert train(recipe, BRATS, cohort(recipe), tmp_path / "whole", report=note, **settings) == 2
    if recipe.alignment:
        assert all(f["align"] > 0 for f in figures)
    assert train(recipe, BRATS, cohort(recipe), tmp_path / "broken", minutes=0.0, **settings) == 1
    assert train(recipe, BRATS, cohort(recipe), tmp_path / "broken", **settings) == 2
    whole, broken = (load_checkpoint(tmp_path / run)["objective"] for run in ("whole", "broken"))
    assert all(torch.equal(whole[key], broken[key]) for key in whole)
    export(tmp_path / "whole", recipe, BRATS, tmp_path / "bundle", name=name, version="0", card={})
    network = load_bundle(tmp_path / "bundle").network
    assert type(network) is type(build_network(*network.built_from))
    if subset:
        assert network.needs == {BRATS.index(scan) for scan in subset.split("+")}


def test_a_release_as_downloaded_trains_on_its_split(tmp_path):
    write_phantoms(
        tmp_path / "data",
        3,
        7,
        4.0,
        False,
        "cpu",
        False,
        lambda fraction, text: None,
        layout="brats2019",
    )
    names = [case.case_id for case in find_cases(tmp_path / "data", BRATS)]
    (tmp_path / "split.json").write_text(
        json.dumps({"train": names[:2], "val": [], "test": names[2:]})
    )
    recipe = shrunk(ROWS["journal-mmformer-pmix-brats2018"].recipe, 2)
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(recipe)))
    options = TrainOptions(
        recipe=tmp_path / "recipe.json",
        split=str(tmp_path / "split.json"),
        runtime=RuntimeOptions(device="cpu", precision="fp32"),
        cache=CacheOptions(tmp_path / "cache"),
    )
    quiet = lambda fraction, text: None  # noqa: E731
    assert train_bundle(
        tmp_path / "run", tmp_path / "data", tmp_path / "bundle", options, quiet
    ) == (2, 2)
    assert {p.name for p in (tmp_path / "cache").glob("*/*") if p.parent.name != "files"} == set(
        names[:2]
    ), "test cases are not even prepared"
    figures = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert all(f"w_{name}" in figures[-1] for name in BRATS.modality_names), (
        "weights by name, each epoch"
    )
    assert load_bundle(tmp_path / "bundle").card["recipe"]["alignment"]["anchor"] == "mixture"


@pytest.fixture(scope="module")
def fifty_steps(tmp_path_factory):
    """Train rows as the command does, each once and at small sizes.

    A student's teacher is the bundle of its own row.
    """
    root, bundles, quiet = tmp_path_factory.mktemp("fifty"), {}, lambda fraction, text: None
    write_phantoms(root / "data", 2, 40, 4.0, False, "cpu", False, quiet, layout="brats2018")

    def bundle_of(name: str) -> Path:
        row = ROWS[name]
        if name in bundles:
            return bundles[name]
        bundles[name] = root / f"{name}-bundle"
        (root / f"{name}.json").write_text(json.dumps(asdict(shrunk(row.recipe, 50))))
        options = {"teacher": bundle_of(representative(row.teacher))} if row.teacher else {}
        if row.teacher or row.recipe.objective in ("acn", "smu-net"):
            options["subsets"] = ("t1ce",)
        for stop, steps in ((0.0, 1), (None, 50)):  # stopped after its first step, then to the end
            chosen = TrainOptions(
                recipe=root / f"{name}.json",
                runtime=RuntimeOptions(device="cpu", precision="fp32", minutes=stop),
                **options,
            )
            assert train_bundle(root / name, root / "data", bundles[name], chosen, quiet) == (
                steps,
                50,
            )
        return bundles[name]

    return bundle_of


@pytest.mark.slow
@pytest.mark.parametrize("name", different_rows())
def test_every_recipe_trains_fifty_steps_from_a_folder_to_a_bundle(name, fifty_steps):
    """By the command's own way: folder of a release, stop, resume, bundle.

    Rows that differ in data only count as one.
    """
    bundle = fifty_steps(name)
    loaded = load_bundle(bundle)
    assert loaded.card["steps"] == 50
    run = bundle.with_name(name)
    logs = [run / "log.jsonl"] if (run / "log.jsonl").is_file() else sorted(run.glob("*/log.jsonl"))
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert len(lines) == 50
    assert all(math.isfinite(value) for line in lines for value in line.values())
