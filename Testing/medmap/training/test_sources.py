"""Mixed sources: shares, samples without state, exact resume, errors that name the source."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from medmap.commands.training import train_bundle
from medmap.commands.training_options import TrainOptions
from medmap.errors import UsageError
from medmap.io.cohorts import find_cases
from medmap.io.nifti import write_labels, write_volume
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.cache import cache_case
from medmap.training.checkpoint import load_checkpoint
from medmap.training.dataset import Augmentation, PatchSampler
from medmap.training.generated import GeneratedSampler, Generation
from medmap.training.loop import train
from medmap.training.missingness import random_subset
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe
from medmap.training.sources import (
    CASES,
    GENERATED,
    PSEUDO_HEALTHY,
    TRANSPLANTED,
    TUMOR_FREE,
    MixedSampler,
    by_tumor,
)

SPEC = PreprocessSpec(spacing=4.0)
PATCH = (16, 16, 16)
SHARES = {CASES: 0.5, TUMOR_FREE: 0.2, GENERATED: 0.3}
WITH_TRANSPLANTED = {CASES: 0.1, TRANSPLANTED: 0.9}
WITH_PSEUDO_HEALTHY = {CASES: 0.1, PSEUDO_HEALTHY: 0.9}
RECIPE = Recipe(
    network_options={"widths": (4, 8)},
    steps=6,
    batch=2,
    patch=PATCH,
    large_patch=PATCH,
    preprocess=SPEC,
    generation=Generation(first_seed=70, pool=2, reuse=4),
    sources=SHARES,
)


@pytest.fixture
def data(tmp_path, make_case):
    """Two cases with a tumor and one without."""
    root = tmp_path / "data"
    for n, name in enumerate(("Tumor_0", "Tumor_1", "Free_0")):
        case = root / name
        case.mkdir(parents=True)
        volumes = make_case(seed=n)
        for modality, volume in volumes.items():
            path = case / f"{name}_{modality}.nii.gz"
            write_volume(path, volume.array.astype(np.int16), volume.affine)
        label = np.zeros(volumes["t1"].array.shape, np.uint8)
        if name.startswith("Tumor"):
            label[20:30, 18:28, 14:24] = 2
        write_labels(case / f"{name}_seg.nii.gz", label, volumes["t1"].grid)
    return root


class NumberedSampler:
    """A sampler whose samples carry its number and that of the sample."""

    def __init__(self, number: int):
        self.number = number
        self.case_ids = (f"case-{number}",)

    def available(self, case_id):
        return np.ones(4, bool) * self.number

    def batch(self, step, size, patch, first=0):
        image = torch.full((size, 4, *patch), float(self.number))
        image[:, 0] += torch.arange(first, first + size).reshape(-1, 1, 1, 1) / 100 + step
        present = torch.ones(size, 4, dtype=torch.bool)
        label = torch.zeros((size, *patch), dtype=torch.int64)
        brain = torch.ones((size, *patch), dtype=torch.bool)
        return Batch(image, present, label, brain, self.case_ids * size)


def mixed(seed=0) -> MixedSampler:
    samplers = {name: NumberedSampler(number) for number, name in enumerate(SHARES)}
    return MixedSampler(samplers, SHARES, seed)


def test_sources_come_in_their_shares():
    sampler = mixed()
    drawn = [sampler.source(step, number) for step in range(2000) for number in range(2)]
    for name, share in SHARES.items():
        assert abs(drawn.count(name) / len(drawn) - share) < 0.03
    assert sampler.case_ids == ("case-0", "case-1", "case-2")
    assert sampler.available("case-2").all()
    assert not sampler.available("case-0").any()


def test_a_sample_is_a_function_of_seed_step_and_number():
    whole = mixed().batch(3, 6, PATCH)
    parts = [mixed().batch(3, 2, PATCH, first) for first in (0, 2, 4)]
    assert torch.equal(whole.image, torch.cat([part.image for part in parts]))
    assert whole.case_id == sum((part.case_id for part in parts), ())
    sources = {seed: [mixed(seed).source(step, 0) for step in range(40)] for seed in (0, 1)}
    assert sources[0] != sources[1]


def test_generated_samples_under_a_mixture_do_not_depend_on_the_past(tmp_path):
    plan = Generation(first_seed=70, pool=2, reuse=4)

    def sampler():
        generated = GeneratedSampler(plan, BRATS, SPEC, random_subset(BRATS), 0)
        return MixedSampler(
            {CASES: NumberedSampler(0), GENERATED: generated}, {CASES: 1, GENERATED: 1}, 0
        )

    used = sampler()
    steps = [step for step in range(14) if used.source(step, 0) == GENERATED]
    batches = [used.batch(step, 1, PATCH) for step in steps]
    assert len(steps) >= 3
    assert torch.equal(batches[-1].image, sampler().batch(steps[-1], 1, PATCH).image)
    assert used.seconds > 0


@pytest.mark.parametrize("augmentation", [Augmentation(), "standard"])
def test_a_mixed_training_resumes_to_the_same_bits(data, tmp_path, augmentation):
    standard = Augmentation.from_dict(standard={})
    recipe = replace(RECIPE, augmentation=standard if augmentation == "standard" else augmentation)
    options = RuntimeOptions(device="cpu", precision="fp32")
    cache = tmp_path / "cache"
    cache.mkdir()
    folders = by_tumor([cache_case(case, BRATS, SPEC, cache) for case in find_cases(data, BRATS)])

    def sampler():
        missingness = random_subset(BRATS)
        samplers = {
            name: PatchSampler(folders[name], missingness, recipe.seed, recipe.augmentation)
            for name in (CASES, TUMOR_FREE)
        }
        samplers[GENERATED] = GeneratedSampler(
            recipe.generation, BRATS, SPEC, missingness, recipe.seed
        )
        return MixedSampler(samplers, recipe.sources, recipe.seed)

    train(recipe, BRATS, sampler(), tmp_path / "unbroken", options=options)

    class Killed(Exception):
        pass

    def kill(step, figures):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(
            recipe,
            BRATS,
            sampler(),
            tmp_path / "broken",
            options=replace(options, save_every=3),
            report=kill,
        )
    train(recipe, BRATS, sampler(), tmp_path / "broken", options=options)
    unbroken = load_checkpoint(tmp_path / "unbroken")["average"]
    broken = load_checkpoint(tmp_path / "broken")["average"]
    assert all(torch.equal(unbroken[name], broken[name]) for name in unbroken)


def options_for(recipe: Recipe, tmp_path) -> TrainOptions:
    """Options that train a recipe from its file."""
    (tmp_path / "recipe.json").write_text(json.dumps(asdict(recipe)))
    return TrainOptions(
        recipe=tmp_path / "recipe.json", runtime=RuntimeOptions(device="cpu", precision="fp32")
    )


@pytest.mark.parametrize("sources", [SHARES, WITH_TRANSPLANTED, WITH_PSEUDO_HEALTHY])
def test_the_command_trains_on_all_sources(data, tmp_path, sources):
    lines = []
    done = train_bundle(
        tmp_path / "run",
        data,
        tmp_path / "bundle",
        options_for(replace(RECIPE, sources=sources), tmp_path),
        lambda share, text: lines.append(text),
    )
    assert done == (6, 6)
    assert "waited" in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("sources", "with_data", "message"),
    [
        ({CASES: 1, "simulated": 1}, True, "not understood"),
        ({CASES: 1, GENERATED: 0}, True, "not understood"),
        ({CASES: 1}, False, "'cases' needs cases"),
        ({TUMOR_FREE: 1, GENERATED: 1}, False, "'tumor_free' needs cases"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(data, tmp_path, sources, with_data, message):
    options = options_for(replace(RECIPE, sources=sources), tmp_path)
    with pytest.raises(UsageError, match=message):
        train_bundle(
            tmp_path / "run",
            data if with_data else None,
            tmp_path / "bundle",
            options,
            lambda share, text: None,
        )


@pytest.mark.parametrize(
    ("sources", "missing", "message"),
    [
        (SHARES, ["Free_0"], "without a tumor"),
        (WITH_TRANSPLANTED, ["Tumor_1", "Free_0"], "two cases"),
        ({TRANSPLANTED: 1}, ["Tumor_0", "Tumor_1"], "with a tumor"),
    ],
)
def test_a_source_without_cases_is_named(data, tmp_path, sources, missing, message):
    for name in missing:
        shutil.rmtree(data / name)
    with pytest.raises(UsageError, match=message):
        train_bundle(
            tmp_path / "run",
            data,
            tmp_path / "bundle",
            options_for(replace(RECIPE, sources=sources), tmp_path),
            lambda share, text: None,
        )
