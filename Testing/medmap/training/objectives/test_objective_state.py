"""Objectives with slow state (beta, prototypes, importance): a broken run goes on to the same
bits.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.checkpoint import load_checkpoint
from medmap.training.loop import train
from medmap.training.missingness import fixed
from medmap.training.recipe import Recipe

CASES = tuple(f"case{n}" for n in range(6))
RATES = dict(zip(("t1", "t1ce", "flair", "t2"), (0.2, 0.4, 0.6, 0.5), strict=True))
SHOWN = fixed(BRATS, CASES, RATES, seed=2)
OBJECTIVES = {
    "passion": {"variant": "released"},
    "pmr": {},
    "mckd": {"meta_every": 3, "meta_batches": 2},
}


class Noise:
    """Patches of noise, whose labels follow from them; each case shows what its fixed mask
    leaves.
    """

    case_ids = CASES

    def available(self, case_id):
        return SHOWN.available(case_id)

    def batch(self, step, size, patch, first=0):
        generator = torch.Generator().manual_seed(step)
        names = [CASES[(step + n) % len(CASES)] for n in range(first, first + size)]
        image = torch.randn((size, 4, *patch), generator=generator)
        label = (image.sum(1) > 1).long() + (image.sum(1) > 3).long()
        present = torch.from_numpy(np.array([self.available(name) for name in names]))
        image = torch.where(present[..., None, None, None], image, torch.zeros(()))
        return Batch(image, present, label, torch.ones_like(label, dtype=torch.bool), tuple(names))


def figures_of(recipe, run, stop=None):
    log = []

    def report(step, figures):
        log.append(
            {name: value for name, value in figures.items() if name not in ("seconds", "waiting")}
        )
        if step == stop:
            raise KeyboardInterrupt

    held_out = lambda n: Noise().batch(1000 + n, 1, recipe.patch)  # noqa: E731
    arguments = {
        "device": "cpu",
        "precision": "fp32",
        "save_every": 2,
        "report": report,
        "held_out": held_out,
    }
    with contextlib.suppress(KeyboardInterrupt):
        train(recipe, BRATS, Noise(), run, **arguments)
    return log


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_broken_run_goes_on_to_the_same_bits_with_its_slow_state(name, tmp_path):
    recipe = Recipe(
        network="SubsetUNet",
        network_options={"widths": (4, 8)},
        objective=name,
        objective_options=OBJECTIVES[name],
        steps=10,
        epoch_steps=3,
        batch=2,
        patch=(16, 16, 16),
        large_share=0.0,
    )
    whole = figures_of(recipe, tmp_path / "whole")
    assert len(figures_of(recipe, tmp_path / "broken", stop=5)) == 5
    rest = figures_of(recipe, tmp_path / "broken")
    assert rest == whole[4:]
    one, other = (load_checkpoint(tmp_path / run)["objective"] for run in ("whole", "broken"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    slow = [
        key
        for key in whole[2]
        if key.split("_")[0] in ("beta", "preference", "strength", "importance")
    ]
    assert len(slow) in (4, 8)
    assert any(whole[2][key] != whole[8][key] for key in slow)


@pytest.mark.parametrize("name", ["plain", "sls", *OBJECTIVES])
def test_two_batches_can_be_learned_by_heart(name, tmp_path):
    class Two(Noise):
        def batch(self, step, size, patch, first=0):
            return super().batch(step % 2, size, patch, first)

    recipe = Recipe(
        network="SubsetUNet",
        network_options={"widths": (4, 8)},
        objective=name,
        objective_options={} if name == "passion" else OBJECTIVES.get(name, {}),
        steps=30,
        batch=2,
        patch=(8, 8, 8),
        large_share=0.0,
        learning_rate=2e-2,
    )
    told = []
    note = lambda step, figures: told.append(figures["segmentation"])  # noqa: E731
    held_out = lambda n: Two().batch(n, 1, recipe.patch)  # noqa: E731
    train(
        recipe,
        BRATS,
        Two(),
        tmp_path,
        device="cpu",
        precision="fp32",
        report=note,
        held_out=held_out,
    )
    assert sum(told[-4:]) < 0.85 * sum(told[:4])
