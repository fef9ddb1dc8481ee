"""Training: pure sampling, exact resume, checkpoints that survive, a loss that falls."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from medmap.errors import BundleError, InputDataError, InternalError, MissingInputError, UsageError
from medmap.io.cohorts import find_cases
from medmap.io.nifti import write_labels, write_volume
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import cache_case
from medmap.training.checkpoint import LAST, PREVIOUS, _sealed, load_checkpoint, save_checkpoint
from medmap.training.dataset import Augmentation, PatchSampler
from medmap.training.export import export
from medmap.training.loop import Training, train
from medmap.training.missingness import PROTOCOLS, random_subset
from medmap.training.objectives import Group
from medmap.training.optimizers import make_optimizer, parameters_of
from medmap.training.recipe import Recipe, learning_rate
from medmap.training.setup import make_objective

SPEC = PreprocessSpec(spacing=2.0)
SMALL = Recipe(
    network_options={"widths": (4, 8)},
    steps=6,
    batch=2,
    patch=(16, 16, 16),
    large_patch=(16, 16, 16),
    preprocess=SPEC,
)


@pytest.fixture
def folders(tmp_path, make_case):
    root = tmp_path / "data"
    for n in range(3):
        case = root / f"Case_{n}"
        case.mkdir(parents=True)
        volumes = make_case(seed=n)
        for name, volume in volumes.items():
            write_volume(
                case / f"Case_{n}_{name}.nii.gz", volume.array.astype(np.int16), volume.affine
            )
        label = np.zeros(volumes["t1"].array.shape, np.uint8)
        label[24:30, 18:26, 18:24] = 2
        label[26:28, 20:24, 20:22] = 4
        write_labels(case / f"Case_{n}_seg.nii.gz", label, volumes["t1"].grid)
    (tmp_path / "cache").mkdir()
    return [cache_case(case, BRATS, SPEC, tmp_path / "cache") for case in find_cases(root, BRATS)]


def sampling(folders, recipe) -> PatchSampler:
    return PatchSampler(folders, random_subset(BRATS), recipe.seed, recipe.augmentation)


def weights(run) -> dict:
    return load_checkpoint(run)["average"]


def test_cases_are_found_by_the_names_of_every_brats_year(tmp_path):
    names = {
        "BraTS20_Training_001": ["_t1", "_t1ce", "_t2", "_flair", "_seg"],
        "BraTS-GLI-00000-000": ["-t1n", "-t1c", "-t2w", "-t2f", "-seg"],
    }
    for case, endings in names.items():
        (tmp_path / case).mkdir()
        for ending in endings:
            (tmp_path / case / f"{case}{ending}.nii.gz").touch()
    for case in find_cases(tmp_path, BRATS):
        assert set(case.scans) == set(BRATS.modality_names)
        assert case.label is not None


def test_a_folder_without_cases_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="no case"):
        find_cases(tmp_path, BRATS)
    with pytest.raises(MissingInputError):
        find_cases(tmp_path / "nowhere", BRATS)


def test_caching_twice_does_it_once(folders, tmp_path):
    stamp = (folders[0] / "t1.npy").stat().st_mtime_ns
    cache_case(find_cases(tmp_path / "data", BRATS)[0], BRATS, SPEC, tmp_path / "cache")
    assert (folders[0] / "t1.npy").stat().st_mtime_ns == stamp


def test_a_case_without_labels_cannot_be_trained_on(folders, tmp_path):
    (tmp_path / "data/Case_0/Case_0_seg.nii.gz").unlink()
    with pytest.raises(InputDataError, match="Case_0"):
        cache_case(
            find_cases(tmp_path / "data", BRATS)[0],
            BRATS,
            PreprocessSpec(spacing=3.0),
            tmp_path / "cache",
        )


def test_a_batch_is_a_function_of_seed_and_step(folders):
    def sampler(seed):
        return PatchSampler(folders, PROTOCOLS["random-subset"](BRATS), seed, Augmentation())

    first = sampler(1)
    first.batch(0, 2, (16, 16, 16))
    again, other = sampler(1).batch(5, 2, (16, 16, 16)), sampler(2).batch(5, 2, (16, 16, 16))
    batch = first.batch(5, 2, (16, 16, 16))
    assert torch.equal(batch.image, again.image)
    assert batch.case_id == again.case_id
    assert not torch.equal(batch.image, other.image)


def test_parts_of_a_batch_are_the_samples_of_the_whole(folders):
    sampler = PatchSampler(folders, random_subset(BRATS), 4, Augmentation())
    whole = sampler.batch(7, 4, (16, 16, 16))
    parts = [sampler.batch(7, 2, (16, 16, 16), first) for first in (0, 2)]
    assert torch.equal(whole.image, torch.cat([part.image for part in parts]))
    assert whole.case_id == parts[0].case_id + parts[1].case_id


def test_absent_channels_of_a_batch_are_empty(folders):
    sampler = PatchSampler(folders, random_subset(BRATS), 0, Augmentation())
    for step in range(10):
        batch = sampler.batch(step, 2, (16, 16, 16))
        assert (batch.image[~batch.present] == 0).all()
        assert batch.present.any(1).all()


def test_a_patch_larger_than_the_case_is_padded(folders):
    batch = PatchSampler(folders, PROTOCOLS["full"](BRATS), 0, Augmentation()).batch(
        0, 1, (64, 64, 64)
    )
    assert batch.image.shape == (1, 4, 64, 64, 64)
    assert batch.label.any()


def test_random_subsets_are_uniform_and_never_empty():
    protocol = random_subset(BRATS)
    rng = np.random.default_rng(0)
    drawn = np.array([protocol("case", 0, rng) for _ in range(6000)])
    assert drawn.any(1).all()
    patterns, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(patterns) == 15
    assert abs(counts / 400 - 1).max() < 0.2


def test_a_broken_run_resumes_to_the_same_bits(folders, tmp_path):
    train(
        SMALL, BRATS, sampling(folders, SMALL), tmp_path / "whole", device="cpu", precision="fp32"
    )

    class Killed(Exception):
        pass

    def kill(step, figures):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(
            SMALL,
            BRATS,
            sampling(folders, SMALL),
            tmp_path / "broken",
            device="cpu",
            precision="fp32",
            save_every=3,
            report=kill,
        )
    assert load_checkpoint(tmp_path / "broken")["step"] == 3
    assert (
        train(
            SMALL,
            BRATS,
            sampling(folders, SMALL),
            tmp_path / "broken",
            device="cpu",
            precision="fp32",
        )
        == 6
    )
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_run_of_another_recipe_is_refused(folders, tmp_path):
    from dataclasses import replace

    train(SMALL, BRATS, sampling(folders, SMALL), tmp_path / "run", device="cpu", precision="fp32")
    with pytest.raises(BundleError, match="another recipe"):
        train(
            replace(SMALL, seed=9), BRATS, sampling(folders, SMALL), tmp_path / "run", device="cpu"
        )


def test_the_loss_falls(folders, tmp_path):
    from dataclasses import replace

    losses = []
    recipe = replace(
        SMALL, steps=60, learning_rate=1e-2, patch=(24, 24, 24), large_patch=(24, 24, 24)
    )
    train(
        recipe,
        BRATS,
        sampling(folders, recipe),
        tmp_path / "r",
        device="cpu",
        report=lambda step, f: losses.append(f["loss"]),
    )
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_a_loss_that_is_not_finite_stops_and_names_the_case(folders, tmp_path, monkeypatch):
    sample = PatchSampler._sample

    def broken(self, rng, step, patch):
        whole = sample(self, rng, step, patch)
        return replace(whole, image=np.full_like(whole.image, np.nan))

    monkeypatch.setattr(PatchSampler, "_sample", broken)
    with pytest.raises(InternalError, match="Case_"):
        train(
            SMALL, BRATS, sampling(folders, SMALL), tmp_path / "r", device="cpu", precision="fp32"
        )


def test_training_stops_after_its_minutes_with_a_checkpoint(folders, tmp_path):
    assert (
        train(SMALL, BRATS, sampling(folders, SMALL), tmp_path / "r", device="cpu", minutes=0.0)
        == 1
    )
    assert load_checkpoint(tmp_path / "r")["step"] == 1


def test_the_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate(1e-3, "cosine", step, 1000) for step in range(1000)]
    assert rates[0] < rates[10] < max(rates) <= 1e-3
    assert rates[-1] < 1e-5


def test_a_run_exports_a_bundle_with_its_average_weights(folders, tmp_path):
    from medmap.bundle.loading import load_bundle

    train(SMALL, BRATS, sampling(folders, SMALL), tmp_path / "r", device="cpu", precision="fp32")
    export(
        tmp_path / "r",
        SMALL,
        BRATS,
        tmp_path / "bundle",
        name="small",
        version="0.1",
        card={"data": "heads"},
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.card["steps"] == 6
    assert bundle.preprocess == SPEC
    for name, value in bundle.network.state_dict().items():
        torch.testing.assert_close(value, weights(tmp_path / "r")[name], rtol=1e-3, atol=1e-3)


def test_a_damaged_checkpoint_falls_back_one_generation(tmp_path):
    save_checkpoint(tmp_path, {"step": 1})
    save_checkpoint(tmp_path, {"step": 2})
    data = bytearray((tmp_path / LAST).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / LAST).write_bytes(data)
    assert load_checkpoint(tmp_path) == {"step": 1}
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(BundleError, match="usable"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_is_a_file_that_torch_reads(tmp_path):
    path = save_checkpoint(tmp_path, {"step": 3, "weights": torch.arange(5000.0)})
    assert [file.name for file in tmp_path.iterdir()] == [LAST]
    assert torch.load(path, weights_only=True)["step"] == 3


def test_a_checkpoint_in_parts_of_the_first_version_is_read(tmp_path):
    whole = _sealed({"step": 3, "weights": torch.arange(5000.0)})
    names = []
    for start in range(0, len(whole), 4096):
        names.append(f"{start:06d}.part")
        (tmp_path / names[-1]).write_bytes(whole[start : start + 4096])
    (tmp_path / LAST).write_bytes(b"MEDMAP-PARTS:" + json.dumps(names).encode())
    loaded = load_checkpoint(tmp_path)
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"], torch.arange(5000.0))
    save_checkpoint(tmp_path, {"step": 4})
    save_checkpoint(tmp_path, {"step": 5})
    assert not list(tmp_path.glob("*.part")), "parts that no file names any more are removed"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_falls_back_one_generation(tmp_path, value):
    save_checkpoint(tmp_path, {"step": 1, "average": {"weight": torch.ones(3)}})
    save_checkpoint(tmp_path, {"step": 2, "average": {"weight": torch.tensor([1.0, value, 1.0])}})
    assert load_checkpoint(tmp_path)["step"] == 1


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(folders, tmp_path):
    """The loss alone is fine: the fault is in the backward pass, as of bf16 on some processors."""
    recipe = replace(SMALL, steps=4)

    run = tmp_path / "r"
    train(recipe, BRATS, sampling(folders, recipe), run, device="cpu", minutes=0.0)
    assert load_checkpoint(run)["step"] == 1
    with pytest.MonkeyPatch.context() as patched:
        backward = Training._backward

        def poisoned(self, iterators):
            item = backward(self, iterators)
            if item is not None:
                for parameter in parameters_of(self.optimizers[item[0]]):
                    if parameter.grad is not None:
                        parameter.grad.mul_(float("nan"))
            return item

        patched.setattr(Training, "_backward", poisoned)
        with pytest.raises(InternalError, match="not finite at step 2"):
            train(recipe, BRATS, sampling(folders, recipe), run, device="cpu", save_every=1)
    assert load_checkpoint(run)["step"] == 1
    assert train(recipe, BRATS, sampling(folders, recipe), run, device="cpu") == 4


def test_unknown_objectives_and_recipes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="objective"):
        make_objective(Recipe(objective="magic"), BRATS)
    group = Group([torch.nn.Parameter(torch.zeros(1))])
    for options in ({"momentun": 0.9}, {"momentum": -1.0}):
        with pytest.raises(BundleError, match=next(iter(options))):
            make_optimizer(group, Recipe(optimizer="sgd", optimizer_options=options))
    (tmp_path / "r.json").write_text(json.dumps({"stepps": 3}))
    with pytest.raises(BundleError, match="stepps"):
        Recipe.read(tmp_path / "r.json")
    with pytest.raises(MissingInputError):
        Recipe.read(tmp_path / "none.json")


def test_patches_that_the_network_cannot_halve_are_refused():
    for sizes in ({"patch": (32, 32, 40)}, {"large_patch": (48, 40, 48)}):
        with pytest.raises(UsageError, match=r"40.* do not fit SubsetUNet"):
            make_objective(
                Recipe(**{"patch": (32, 32, 32), "large_patch": (48, 48, 48), **sizes}), BRATS
            )
    make_objective(Recipe(patch=(32, 32, 32), large_patch=(48, 40, 48), large_share=0.0), BRATS)


def test_a_recipe_survives_its_file(tmp_path):
    from dataclasses import asdict

    (tmp_path / "r.json").write_text(json.dumps(asdict(SMALL)))
    assert Recipe.read(tmp_path / "r.json").digest() == SMALL.digest()
