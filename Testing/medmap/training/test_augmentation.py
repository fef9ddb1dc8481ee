"""Standard augmentation: no state, exact zeros, labels that follow the image, off unless named."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch

from medmap.bundle.loading import load_bundle
from medmap.commands.training_options import TrainOptions
from medmap.commands.training_recipe import load_recipe
from medmap.errors import BundleError
from medmap.task import BRATS
from medmap.training.augmentation import StandardAugmentation, acquired, deformed, positions
from medmap.training.cache import write_case_record
from medmap.training.dataset import Augmentation, PatchSampler
from medmap.training.missingness import random_subset
from medmap.training.published import find_recipe, published_rows
from medmap.training.recipe import Recipe

STRONG = StandardAugmentation(
    geometry=1, elastic=1, blur=1, thick=1, gamma=1, bias=1, cut=0.5, renewed=0.5
)
CHANCES = ("geometry", "elastic", "blur", "thick", "gamma", "bias", "cut", "renewed")
OFF = replace(STRONG, **dict.fromkeys(CHANCES, 0))
DIGEST = "f5e606dcece7b5b58c62e4ec787c68b85f9dfae5a3529ae6b3531e5d49f4e21d"
CORNER = (4, 2, 6)
PATCH = (16, 24, 16)


@pytest.fixture
def case() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Scans, label and brain of an egg: the label is where the second scan is high."""
    rng = np.random.default_rng(3)
    shape = (24, 30, 26)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    brain = sum((axis / 0.8) ** 2 for axis in axes) < 1
    label = (sum(((axis - 0.1) / 0.4) ** 2 for axis in axes) < 1).astype(np.uint8) * 2
    scans = []
    for _ in BRATS.modality_names:
        scan = np.where(brain, rng.standard_normal(shape) + 0.1, 0)
        scans.append(scan.astype(np.float16))
    scans[1] = np.where(brain, np.where(label > 0, 3, -1), 0).astype(np.float16)
    return scans, label, brain


def cached(folder, case) -> list:
    """One cached case per ``case`` in a folder, as ``cache_case`` stores it."""
    scans, label, brain = case
    folders = []
    for n in range(2):
        target = folder / f"Case_{n}"
        target.mkdir()
        for name, scan in zip(BRATS.modality_names, scans, strict=True):
            np.save(target / f"{name}.npy", scan)
        np.save(target / "label.npy", label)
        np.save(target / "brain.npy", brain.astype(np.uint8))
        write_case_record(target, BRATS.modality_names, BRATS.modality_names)
        folders.append(target)
    return folders


def test_a_sample_is_a_function_of_seed_step_and_number(tmp_path, case):
    folders = cached(tmp_path, case)

    def sampler():
        return PatchSampler(folders, random_subset(BRATS), 4, Augmentation(standard=STRONG))

    torch.manual_seed(0)
    used = sampler()
    used.batch(1, 1, PATCH)
    batch = used.batch(7, 2, PATCH)
    torch.manual_seed(1)
    np.random.seed(5)
    parts = [sampler().batch(7, 1, PATCH, number) for number in range(2)]
    for name in ("image", "label", "brain", "present"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts]))
    assert not torch.equal(batch.image, used.batch(8, 2, PATCH).image)


def test_absent_modalities_and_background_stay_exactly_zero(tmp_path, case):
    augmentation = Augmentation(standard=STRONG)
    sampler = PatchSampler(cached(tmp_path, case), random_subset(BRATS), 0, augmentation)
    for step in range(20):
        batch = sampler.batch(step, 1, PATCH)
        assert (batch.image[~batch.present] == 0).all()
        assert (batch.image[0, :, ~batch.brain[0]] == 0).all()
        assert torch.isfinite(batch.image).all()
        assert batch.image.any()


def test_labels_follow_the_image(case):
    scans, label, brain = case
    for seed in range(10):
        spec = replace(OFF, geometry=1, elastic=1)
        rng = np.random.default_rng(seed)
        image, classes, inside = deformed(scans, label, brain, CORNER, PATCH, spec, rng)
        agreement = (((image[1] > 1) == (classes > 0)) | ~inside).float().mean()
        assert agreement > 0.98
        assert not torch.equal(classes, torch.from_numpy(label[4:20, 2:26, 6:22]).long())
        assert set(classes.unique().tolist()) <= {0, 2}


def test_no_deformation_without_strength(case):
    scans, label, brain = case
    assert deformed(scans, label, brain, CORNER, PATCH, OFF, np.random.default_rng(0)) is None
    still = replace(OFF, geometry=1, rotation=0, scaling=0)
    image, classes, _ = deformed(
        scans, label, brain, CORNER, PATCH, still, np.random.default_rng(0)
    )
    box = tuple(slice(start, start + size) for start, size in zip(CORNER, PATCH, strict=True))
    assert torch.allclose(image[2], torch.from_numpy(scans[2][box].astype(np.float32)), atol=1e-4)
    assert torch.equal(classes, torch.from_numpy(label[box]).long())


def test_no_change_of_intensities_without_strength(case):
    image = torch.from_numpy(np.stack(case[0]).astype(np.float32))
    before = image.clone()
    assert not acquired(image, np.ones(4, bool), OFF, np.random.default_rng(0)).any()
    assert torch.equal(image, before)


def test_rotation_turns_about_the_middle_of_the_patch():
    spec = replace(OFF, geometry=1, scaling=0)
    position = positions((10, 10, 10), (5, 5, 5), spec, np.random.default_rng(1))
    assert torch.allclose(position[2, 2, 2], torch.tensor([12.0, 12.0, 12.0]))
    distance = (position - 12).norm(dim=-1)
    steps = torch.arange(5.0) - 2
    expected = torch.cartesian_prod(steps, steps, steps).norm(dim=-1).reshape(5, 5, 5)
    assert torch.allclose(distance, expected, atol=1e-4)


def test_a_slice_is_never_left(case):
    spec = replace(OFF, geometry=1, elastic=1)
    position = positions((3, 0, 0), (1, 16, 16), spec, np.random.default_rng(2))
    assert (position[..., 0] == 3).all()
    scans, label, brain = case
    rng = np.random.default_rng(2)
    image, classes, _ = deformed(scans, label, brain, (12, 4, 4), (1, 16, 16), spec, rng)
    assert image.shape == (4, 1, 16, 16)
    assert classes.any()


def test_the_z_score_is_renewed(case):
    image = torch.from_numpy(np.stack(case[0]).astype(np.float32))
    spec = replace(STRONG, renewed=1, cut=0)
    renewed = acquired(image, np.ones(4, bool), spec, np.random.default_rng(0))
    assert renewed.all()
    for scan in image:
        inside = scan[scan != 0]
        assert abs(float(inside.mean())) < 0.02
        assert abs(float(inside.std()) - 1) < 0.02


def test_one_modality_always_keeps_its_field_of_view(case):
    spec = replace(OFF, cut=1, cut_share=1.0)
    for seed in range(10):
        image = torch.from_numpy(np.stack(case[0]).astype(np.float32))
        before = image.clone()
        acquired(image, np.ones(4, bool), spec, np.random.default_rng(seed))
        assert sum(torch.equal(image[m], before[m]) for m in range(4)) >= 1


def test_it_is_off_unless_a_recipe_names_it():
    rows = [find_recipe(name)[0] for name in published_rows()]
    assert all(recipe.augmentation.standard is None for recipe in rows)
    named = Recipe.from_dict({"augmentation": {"gain": 0.35, "standard": {"rotation": 30}}})
    assert named.augmentation.standard == StandardAugmentation(rotation=30)
    assert named.augmentation.foreground == Augmentation().foreground
    assert Recipe.from_dict(json.loads(json.dumps(asdict(named)))).digest() == named.digest()
    with pytest.raises(BundleError, match="rotation_degrees"):
        Recipe.from_dict({"augmentation": {"standard": {"rotation_degrees": 3}}})


def test_recipes_without_it_keep_their_digest():
    """Runs that began before the fields existed can be resumed."""
    content = asdict(Recipe())
    assert content["augmentation"].pop("standard") is None
    assert content.pop("sources") == {}
    assert Recipe().digest() == Recipe.from_dict(content).digest()
    assert Recipe().digest() == DIGEST


def test_fine_tuning_on_own_cases_has_it(tiny_bundle_path, tmp_path):
    start = load_bundle(tiny_bundle_path)
    recipe = load_recipe(TrainOptions(start=tiny_bundle_path), start)
    assert recipe.augmentation.standard == StandardAugmentation()
    (tmp_path / "mild.json").write_text(json.dumps({"augmentation": {"gain": 0.1}}))
    options = TrainOptions(start=tiny_bundle_path, recipe=tmp_path / "mild.json")
    assert load_recipe(options, start).augmentation == Augmentation(gain=0.1)
    assert load_recipe(TrainOptions()).augmentation.standard is None


def test_fine_tuning_on_brains_shows_some_without_a_tumor(tiny_bundle_path):
    start = load_bundle(tiny_bundle_path)
    options = TrainOptions(start=tiny_bundle_path)
    assert load_recipe(options, start).sources == {"cases": 0.8, "pseudo_healthy": 0.2}
    heart = replace(start, task=replace(start.task, organ="heart"))
    assert not load_recipe(options, heart).sources
    assert not load_recipe(TrainOptions()).sources


def test_the_recipes_that_are_used_without_one_can_be_printed():
    default, _ = find_recipe("default")
    assert replace(default, about="") == load_recipe(TrainOptions())
    fine_tuning, _ = find_recipe("fine_tuning")
    assert fine_tuning.steps == 500


def test_every_strength_is_described():
    text = StandardAugmentation.__doc__
    assert all(f"{field.name}:" in text for field in fields(StandardAugmentation))
