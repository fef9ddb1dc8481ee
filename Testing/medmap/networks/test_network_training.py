"""Every backbone trains on synthetic patients: a few hundred steps, the loss falls, the bundle
segments.
"""

from __future__ import annotations

import numpy as np
import pytest
from Testing.medmap.small_networks import SMALL

from medmap.bundle.loading import load_bundle
from medmap.commands.phantoms import write_phantoms
from medmap.inference import segment
from medmap.io.cohorts import find_cases
from medmap.networks import NETWORKS
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import cache_case
from medmap.training.dataset import PatchSampler
from medmap.training.export import export
from medmap.training.loop import train
from medmap.training.missingness import random_subset
from medmap.training.recipe import Recipe

SPEC = PreprocessSpec(spacing=3.0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    write_phantoms(root / "data", 4, 40, 3.0, False, "cpu", False, lambda fraction, text: None)
    (root / "cache").mkdir()
    cases = find_cases(root / "data", BRATS)
    return cases, [cache_case(case, BRATS, SPEC, root / "cache") for case in cases]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_loss_falls_over_a_few_hundred_steps_and_the_bundle_segments(name, cohort, tmp_path):
    cases, folders = cohort
    recipe = Recipe(
        network=name,
        network_options=SMALL[name],
        steps=300,
        patch=(32, 32, 32),
        large_patch=(32, 32, 32),
        large_share=0.0,
        learning_rate=3e-3,
        preprocess=SPEC,
    )
    losses = []
    report = lambda step, figures: losses.append(figures["segmentation"])  # noqa: E731
    sampler = PatchSampler(folders, random_subset(BRATS), recipe.seed, recipe.augmentation)
    train(
        recipe,
        BRATS,
        sampler,
        tmp_path / "run",
        device="cpu",
        precision="fp32",
        save_every=150,
        report=report,
    )
    print(f"{name}: {np.mean(losses[:30]):.3f} -> {np.mean(losses[-30:]):.3f}")
    assert np.mean(losses[-30:]) < 0.85 * np.mean(losses[:30])
    export(
        tmp_path / "run",
        recipe,
        BRATS,
        tmp_path / "bundle",
        name=name.lower(),
        version="0",
        card={},
    )
    result = segment({"flair": cases[0].read(["flair"])["flair"]}, load_bundle(tmp_path / "bundle"))
    assert result.labels.shape == result.grid.shape
