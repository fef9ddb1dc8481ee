"""Hearts: recipes, splits, batches, and a bundle that segments any subset."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest
from Testing.medmap.hearts.heart_cases import SPEC, quiet
from Testing.medmap.small_networks import SMALL

from medmap.bundle.loading import load_bundle
from medmap.commands.segment import Options, segment_files
from medmap.commands.training import train_bundle
from medmap.commands.training_options import TrainOptions
from medmap.errors import UsageError
from medmap.inference import segment
from medmap.io.cohorts import find_cases
from medmap.postprocess.spec import PostprocessSpec
from medmap.task import MYOPS, MYOPS_ANATOMY, find_task
from medmap.training.cache import cache_case
from medmap.training.dataset import Augmentation, PatchSampler, rotated
from medmap.training.missingness import build_missingness
from medmap.training.options import RuntimeOptions
from medmap.training.published import find_split, recipes_folder
from medmap.training.recipe import Recipe
from medmap.training.splits import read_split


def test_rotating_moves_image_and_label_alike():
    label = np.zeros((40, 40), np.uint8)
    label[8:16, 18:30] = 3
    image = label.astype(np.float32)[None]
    turned_label, turned_image = rotated(label, 30.0), rotated(image, 30.0)[0]
    assert set(np.unique(turned_label)) == {0, 3}
    assert ((turned_image > 1.5) == (turned_label == 3)).mean() > 0.98
    assert not np.array_equal(turned_label, label)
    assert np.array_equal(rotated(label, 0.0), label)


def test_batches_are_slices_and_never_show_what_is_absent(challenge, tmp_path):
    folders = [cache_case(case, MYOPS, SPEC, tmp_path) for case in find_cases(challenge, MYOPS)]
    sampler = PatchSampler(
        folders,
        build_missingness("random-subset", MYOPS, {}),
        0,
        Augmentation(rotate=20.0, flip=0.0),
    )
    seen = set()
    for step in range(8):
        batch = sampler.batch(step, 2, (48, 48))
        assert batch.image.shape == (2, 3, 48, 48)
        assert batch.label.shape == batch.brain.shape == (2, 48, 48)
        assert (batch.image[~batch.present] == 0).all()
        seen |= set(batch.label.unique().tolist())
    assert {0, 1, 2, 3} <= seen


def test_a_recipe_trains_a_bundle_that_segments_any_subset_from_files(challenge, tmp_path):
    recipe = Recipe(
        task="MyoPS",
        network_options={"widths": (4, 8)},
        steps=3,
        batch=2,
        patch=(48, 48),
        large_share=0.0,
        preprocess=SPEC,
        postprocess=PostprocessSpec(),
    )
    (tmp_path / "r.json").write_text(json.dumps(asdict(recipe)))
    options = TrainOptions(
        recipe=tmp_path / "r.json", runtime=RuntimeOptions(precision="fp32", device="cpu")
    )
    assert train_bundle(tmp_path / "run", challenge, tmp_path / "bundle", options, quiet) == (3, 3)
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.task == MYOPS
    assert loaded.preprocess.slices
    case = find_cases(challenge, MYOPS)[1]
    result = segment_files(
        [("C0", case.scans["bssfp"]), ("lge", case.scans["lge"])],
        tmp_path / "out",
        tmp_path / "bundle",
        Options(device="cpu", truth=case.label),
        progress=quiet,
        cancel=lambda: False,
    )
    label, scan = nib.load(tmp_path / "out/segmentation.nii.gz"), nib.load(case.scans["lge"])
    assert label.get_data_dtype() == np.int16
    assert np.array_equal(label.affine, scan.affine)
    assert set(np.unique(label.dataobj)) <= set(MYOPS.label_values())
    assert set(result.scores) == {"LVB", "RVB", "MYO", "SCAR", "PATH"}
    assert result.segmentation.provenance.missing == ("t2",)
    with pytest.raises(UsageError, match="MyoPS") as caught:
        segment_files(
            {"flair": case.scans["lge"]},
            tmp_path / "no",
            tmp_path / "bundle",
            Options(device="cpu"),
            progress=quiet,
            cancel=lambda: False,
        )
    assert "bssfp, lge, t2" in caught.value.remedy
    assert not (tmp_path / "no").exists()


def test_the_split_is_that_of_myops_net():
    split = read_split(find_split("myops2020"))
    assert split["test"] == tuple(f"myops_training_{n}" for n in (101, 106, 111, 116, 121))
    assert len(split["train"]) == 20
    assert not set(split["train"]) & set(split["test"])


@pytest.mark.parametrize("name", ["subset_unet", "anatomy_mmformer"])
def test_the_recipes_name_task_split_and_slices(name):
    recipe = Recipe.read(recipes_folder() / "myops" / f"{name}.json")
    assert find_task(recipe.task) in (MYOPS, MYOPS_ANATOMY)
    assert find_split(recipe.split).name == "myops2020.json"
    assert recipe.preprocess.slices
    assert len(recipe.patch) == 2


@pytest.mark.parametrize("name", ["subset_unet", "anatomy_mmformer"])
def test_the_recipes_train_stop_go_on_and_export(name, challenge, tmp_path):
    recipe = Recipe.read(recipes_folder() / "myops" / f"{name}.json")
    recipe = replace(
        recipe,
        network_options={**recipe.network_options, **SMALL[recipe.network]},
        steps=2,
        patch=(16, 16),
        large_patch=(16, 16),
        split="",
        preprocess=replace(recipe.preprocess, spacing=4.0, field=64.0),
    )
    (tmp_path / "r.json").write_text(json.dumps(asdict(recipe)))
    for minutes, steps in ((0.0, 1), (None, 2)):
        options = TrainOptions(
            recipe=tmp_path / "r.json",
            runtime=RuntimeOptions(precision="fp32", device="cpu", minutes=minutes),
        )
        assert train_bundle(tmp_path / "run", challenge, tmp_path / "bundle", options, quiet) == (
            steps,
            2,
        )
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.task == find_task(recipe.task)
    found = segment({"lge": find_cases(challenge, MYOPS)[0].read()["lge"]}, loaded)
    assert set(np.unique(found.labels)) <= set(loaded.task.label_values())
