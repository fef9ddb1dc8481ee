"""KD-Net, PMKL, ProtoKD, SMU-Net, ACN: one way through training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from Testing.medmap.small_networks import SMALL
from Testing.medmap.training.objectives.dedicated_methods import (
    NAMES,
    OPTIONS,
    STUDENTS,
    batch_of,
    context_of,
    student_options,
)

from medmap.bundle.loading import load_bundle
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.checkpoint import load_checkpoint
from medmap.training.export import export
from medmap.training.loop import train
from medmap.training.objectives import OBJECTIVES
from medmap.training.recipe import Recipe, learning_rate


class Blobs:
    """A sampler without files."""

    case_ids = ("case0", "case1")

    def available(self, case_id):
        return [True] * 4

    def batch(self, step, size, patch, *first):
        return batch_of(size, seed=step)


def recipe_of(method, **changes):
    recipe = Recipe(
        network=STUDENTS[method],
        network_options={**SMALL[STUDENTS[method]], **student_options(method), "inputs": [1, 3]},
        objective=method,
        objective_options=OPTIONS.get(method, {}),
        missingness="full",
        steps=4,
        batch=2,
        patch=(16, 16, 16),
        large_patch=(16, 16, 16),
        preprocess=PreprocessSpec(spacing=4.0),
        seed=3,
    )
    return replace(recipe, **changes)


def run(method, recipe, folder, **options):
    teacher = context_of(method).teacher
    return train(
        recipe, BRATS, Blobs(), folder, teacher=teacher, device="cpu", precision="fp32", **options
    )


@pytest.mark.parametrize("method", NAMES)
def test_every_method_trains_resumes_to_the_same_bits_and_exports(method, tmp_path):
    recipe = recipe_of(method)
    run(method, recipe, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(step, figures):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(method, recipe, tmp_path / "broken", save_every=2, report=kill)
    assert run(method, recipe, tmp_path / "broken") == 4
    whole, broken = (load_checkpoint(tmp_path / name) for name in ("whole", "broken"))
    for part in ("objective", "average"):
        assert all(torch.equal(whole[part][name], broken[part][name]) for name in whole[part])
    assert set(whole["optimizers"]) == (
        {"main", "disc"} if method in ("acn", "smu-net") else {"main"}
    )
    export(tmp_path / "whole", recipe, BRATS, tmp_path / "bundle", name="s", version="1", card={})
    bundle = load_bundle(tmp_path / "bundle")
    assert [entry.name for entry in bundle.entries] == ["t1ce+flair"]


@pytest.mark.parametrize("method", ["acn", "smu-net"])
def test_the_logged_loss_is_that_of_the_segmenter(method, tmp_path):
    """The discriminators' is logged under its own names."""
    logged = []
    run(
        method,
        replace(recipe_of(method), steps=1),
        tmp_path / "run",
        report=lambda step, figures: logged.append(figures),
    )
    (figures,) = logged
    disc = [name for name in figures if name.endswith("_disc")]
    own = [
        value
        for name, value in figures.items()
        if name not in ("loss", "learning_rate", "waiting", "seconds", *disc)
    ]
    assert disc
    assert figures["loss"] == pytest.approx(sum(own), rel=1e-5)
    assert figures["loss"] != pytest.approx(sum(figures[name] for name in disc), rel=1e-3)


@pytest.mark.parametrize("method", NAMES)
def test_two_cases_can_be_learned_by_heart(method, tmp_path):
    """Segmentation by the student improves; the sum of all losses is no measure where weights ramp
    up.
    """
    figures = []
    recipe = recipe_of(method, steps=30, learning_rate=1e-2, clip=0.0)
    run(method, recipe, tmp_path / "run", report=lambda step, f: figures.append(f))
    name = {"kd-net": "segmentation", "acn": "dice_student", "smu-net": "dice_student"}.get(
        method, "dice"
    )
    told = [f[name] for f in figures]
    assert sum(told[-3:]) < 0.85 * sum(told[:3])


def test_the_discriminators_optimizer_persists_and_its_rate_is_its_own(tmp_path):
    run("acn", recipe_of("acn", schedule="constant"), tmp_path / "run")
    state = load_checkpoint(tmp_path / "run")["optimizers"]["disc"]
    assert state["param_groups"][0]["lr"] == 1e-4
    assert {int(entry["step"]) for entry in state["state"].values()} == {4}


def test_a_decaying_schedule_reaches_the_student(tmp_path):
    rates = []
    recipe = recipe_of("protokd", schedule="poly", learning_rate=1e-3)
    run(
        "protokd",
        recipe,
        tmp_path / "run",
        report=lambda step, figures: rates.append(figures["learning_rate"]),
    )
    assert rates == [learning_rate(1e-3, "poly", step, 4) for step in range(4)]
    assert rates[-1] < rates[0] == 1e-3


def test_all_dedicated_methods_say_so():
    assert {name for name, kind in OBJECTIVES.items() if kind.dedicated} == set(NAMES)
