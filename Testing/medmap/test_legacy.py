"""Bundles, checkpoints and recipes of the first formats load for good (``Testing/data/legacy``)."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from medmap.bundle.loading import load_bundle
from medmap.inference import segment_subsets
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.checkpoint import load_checkpoint
from medmap.training.loop import train
from medmap.training.recipe import Recipe
from medmap.volume import Volume

LEGACY = Path(__file__).resolve().parents[1] / "data/legacy"
EXPECTED = json.loads((LEGACY / "expected.json").read_text(encoding="utf-8"))
SHAPE = (24, 28, 22)
FORMATS = ("format1", "format2")


@pytest.fixture(scope="module")
def volumes() -> dict[str, Volume]:
    """Four scans of one egg-shaped organ, as the script beside the files makes them."""
    ijk = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    center = (np.array(SHAPE) - 1) / 2
    inside = (((ijk - center) / (0.42 * np.array(SHAPE))) ** 2).sum(-1) < 1
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -2.0 * center
    rng = np.random.default_rng(15)
    result = {}
    for n, name in enumerate(BRATS.modality_names):
        scan = 200 + 20 * n + rng.normal(0, 30, SHAPE)
        scan[10:16, 8:15, 6:14] += 40 * (n - 1)
        result[name] = Volume(np.where(inside, scan, 0).astype(np.float32), affine, name)
    return result


@pytest.mark.parametrize("folder", FORMATS)
def test_a_bundle_loads_with_the_same_digest_and_the_same_weights(folder):
    bundle = load_bundle(LEGACY / folder)
    assert bundle.sha256 == EXPECTED[folder]["sha256"]
    count = 4 * 16**3
    image = ((torch.arange(count, dtype=torch.float64) * 37 % 101) / 50 - 1).reshape(
        1, 4, 16, 16, 16
    )
    for key, expected in EXPECTED[folder]["subsets"].items():
        entry = bundle.entry_for(key.split("+"))
        present = torch.tensor([bundle.task.presence(entry.modalities)])
        with torch.no_grad():
            output = entry.network.double()(image * present.reshape(1, 4, 1, 1, 1), present)
        entry.network.float()
        sampled = output.logits.flatten()[::97][:64]
        torch.testing.assert_close(
            sampled, torch.tensor(expected["logits"], dtype=torch.float64), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("folder", FORMATS)
def test_a_bundle_gives_the_stored_label_maps(folder, volumes):
    expected = EXPECTED[folder]["subsets"]
    bundle = load_bundle(LEGACY / folder)
    labels = segment_subsets(
        volumes, bundle, [key.split("+") for key in expected], precision="fp32"
    )
    for key, stored in expected.items():
        buffer = zlib.decompress(base64.b64decode(stored["labels"]))
        label = np.frombuffer(buffer, np.uint8).reshape(SHAPE)
        # Near-ties between two classes may fall the other way on another processor.
        assert np.mean(labels[key] != label) < 1e-3
        assert label.any()


@pytest.mark.parametrize("folder", FORMATS)
def test_what_is_shown_of_an_old_task_is_today_s_text(folder):
    assert load_bundle(LEGACY / folder).task == BRATS


class Noise:
    """Batches that are a function of the step and the sample's number alone."""

    case_ids = ("a", "b")

    def available(self, case_id):
        return np.ones(4, bool)

    def batch(self, step, size, patch, first=0):
        rng = np.random.default_rng([step, first])
        image = torch.from_numpy(rng.normal(size=(size, 4, *patch)).astype(np.float32))
        present = torch.from_numpy(rng.random((size, 4)) < 0.7)
        present[:, 1] = True
        label = torch.from_numpy(rng.integers(0, 4, (size, *patch)))
        brain = torch.ones(size, *patch, dtype=torch.bool)
        return Batch(image * present[:, :, None, None, None], present, label, brain, ("a",) * size)


def test_a_recipe_reads_and_keeps_its_digest():
    assert Recipe.read(LEGACY / "run/recipe.json").digest() == EXPECTED["run"]["digest"]


def test_an_interrupted_run_goes_on_to_the_end(tmp_path):
    run = shutil.copytree(LEGACY / "run", tmp_path / "run")
    recipe = Recipe.read(run / "recipe.json")
    lines = []
    done = train(
        recipe,
        BRATS,
        Noise(),
        run,
        device="cpu",
        precision="fp32",
        report=lambda step, figures: lines.append((step, figures)),
    )
    expected = EXPECTED["run"]
    assert done == recipe.steps
    assert [step for step, _ in lines] == [4, 5, 6]
    for (_, figures), (_, stored) in zip(lines, expected["log"], strict=True):
        assert figures["learning_rate"] == pytest.approx(stored["learning_rate"], rel=1e-12)
        assert figures["loss"] == pytest.approx(stored["loss"], rel=1e-3)
    average = load_checkpoint(run)["average"]
    assert average.keys() == expected["average"].keys()
    for name, (total, magnitude) in expected["average"].items():
        # The moving average keeps 0.998 of itself a step: it hardly moves in three.
        assert float(average[name].double().sum()) == pytest.approx(
            total, abs=1e-3 * magnitude + 1e-4
        )
