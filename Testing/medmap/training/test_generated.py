"""Cases generated while training: pure sampling, a moving pool, normalization of inference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medmap.bundle.loading import load_bundle
from medmap.commands.training import train_bundle
from medmap.commands.training_options import TrainOptions
from medmap.errors import UsageError
from medmap.phantom import Style, generate
from medmap.preprocess import PreprocessSpec, prepare
from medmap.task import BRATS
from medmap.training.generated import FIELD_OF_VIEW_MM, GeneratedSampler, Generation, make_case
from medmap.training.loop import train
from medmap.training.missingness import random_subset
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe, check_numbers
from medmap.volume import Volume

SPEC = PreprocessSpec(spacing=4.0)
PLAN = Generation(first_seed=50, pool=2, reuse=3, healthy=0.0)


def sampling(**options) -> GeneratedSampler:
    return GeneratedSampler(PLAN, BRATS, SPEC, random_subset(BRATS), seed=4, **options)


def same(a, b) -> bool:
    return a.case_id == b.case_id and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("image", "present", "label", "brain")
    )


def test_a_sample_is_a_pure_function_of_seed_step_and_number(tmp_path):
    whole = sampling().batch(5, 2, (16, 16, 16))
    again = sampling(folder=tmp_path)
    again.batch(0, 1, (16, 16, 16))
    parts = [again.batch(5, 1, (16, 16, 16), first=n) for n in range(2)]
    assert whole.case_id == tuple(p.case_id[0] for p in parts)
    assert torch.equal(whole.image, torch.cat([p.image for p in parts]))
    assert torch.equal(whole.label, torch.cat([p.label for p in parts]))
    assert not same(whole, sampling().batch(6, 2, (16, 16, 16)))


def test_absent_scans_are_zero_and_the_pool_moves_on():
    sampler, seen = sampling(), {}
    for step in range(9):
        batch = sampler.batch(step, 2, (16, 16, 16))
        assert not batch.image[~batch.present].any()
        seen[step] = set(batch.case_id)
    alive = {step: {f"head-{step // 3 + n}" for n in range(2)} for step in seen}
    assert all(seen[step] <= alive[step] for step in seen)
    assert set(sampler._cases) <= {2, 3}
    assert sampler.seconds > 0


def test_a_head_is_what_inference_would_see():
    head = make_case(1, PLAN, SPEC)
    shape = tuple(round(mm / SPEC.spacing) for mm in FIELD_OF_VIEW_MM)
    made = generate(51, shape=shape, spacing=SPEC.spacing)
    volumes = {name: Volume(image.numpy(), made.affine) for name, image in made.images.items()}
    prepared = prepare(volumes, BRATS, SPEC)
    inner = tuple(slice(1, -1) for _ in range(3))
    ours, theirs = head.image.float(), prepared.image
    assert head.brain.sum() == prepared.brain.sum()
    for m in range(4):
        mine, inferred = (
            t[m][b].sort().values for t, b in ((ours, head.brain), (theirs, prepared.brain))
        )
        assert torch.allclose(mine, inferred, atol=5e-3)
    assert head.label[inner].any()


def test_a_patch_larger_than_the_head_is_padded():
    batch = sampling().batch(0, 1, (64, 64, 64))
    assert batch.image.shape == (1, 4, 64, 64, 64)
    assert not batch.brain[0, 0].any()
    assert batch.label.any()


def test_training_on_generated_heads_resumes_to_the_same_weights(tmp_path):
    recipe = Recipe(
        network_options={"widths": (4, 8)},
        steps=4,
        patch=(16, 16, 16),
        large_share=0.0,
        preprocess=SPEC,
        generation=PLAN,
    )
    train(recipe, BRATS, sampling(), tmp_path / "once", device="cpu", precision="fp32")
    train(
        recipe, BRATS, sampling(), tmp_path / "twice", device="cpu", precision="fp32", minutes=0.0
    )
    train(recipe, BRATS, sampling(), tmp_path / "twice", device="cpu", precision="fp32")
    from medmap.training.checkpoint import load_checkpoint

    once, twice = (load_checkpoint(tmp_path / name)["average"] for name in ("once", "twice"))
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_fine_tuning_begins_with_the_bundle_and_keeps_its_network(tmp_path, tiny_bundle_path):
    small = {
        "patch": [16, 16, 16],
        "large_patch": [16, 16, 16],
        "learning_rate": 0.0,
        "weight_decay": 0.0,
    }
    small |= {"generation": {"pool": 1}, "steps": 1}
    (tmp_path / "r.json").write_text(json.dumps(small))
    options = TrainOptions(
        recipe=tmp_path / "r.json",
        start=tiny_bundle_path,
        runtime=RuntimeOptions(precision="fp32", device="cpu"),
    )
    done, wanted = train_bundle(
        tmp_path / "run", None, tmp_path / "tuned", options, lambda share, text: None
    )
    assert done == wanted == 1
    before, after = load_bundle(tiny_bundle_path), load_bundle(tmp_path / "tuned")
    assert after.network_spec == before.network_spec
    assert after.preprocess == before.preprocess
    assert "cases generated" in after.card["training"]
    weights = after.network.state_dict()
    assert all(
        torch.allclose(value, weights[key], atol=1e-3)
        for key, value in before.network.state_dict().items()
    )


def test_a_background_process_makes_heads_ahead(tmp_path):
    sampler = sampling(folder=tmp_path)
    sampler.start_ahead(0)
    try:
        process = sampler._ahead.process
        for _ in range(6000):  # the process gives way to others
            if (tmp_path / "head-2").is_dir():
                break
            process.join(0.1)
        assert (tmp_path / "head-2").is_dir()
    finally:
        sampler.close()
    assert sampler._ahead is None


def test_a_recipe_states_the_generation(tmp_path):
    content = {"generation": {"pool": 3, "style": {"noise": [0.0, 0.01], "low_grade": 1.0}}}
    (tmp_path / "r.json").write_text(json.dumps(content))
    recipe = Recipe.read(tmp_path / "r.json")
    assert recipe.generation == Generation(pool=3, style=Style(noise=(0.0, 0.01), low_grade=1.0))
    assert recipe.digest() != Recipe().digest()


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ({"cohort": "brats1999"}, "cohort 'brats1999'"),
        ({"cystic": 0.7, "bulky": 0.6}, "probabilities of rare kinds"),
        ({"speck": -0.1}, "probabilities of rare kinds"),
    ],
)
def test_a_style_that_cannot_be_drawn_is_refused_before_training(style, message):
    recipe = Recipe.from_dict({"generation": {"style": style}})
    with pytest.raises(UsageError, match=message):
        check_numbers(recipe)


def test_subsets_can_be_weighted():
    rng = np.random.default_rng(0)
    protocol = random_subset(BRATS, weights={"t1": 14.0})
    drawn = [tuple(protocol("x", 0, rng)) for _ in range(400)]
    alone = sum(mask == (True, False, False, False) for mask in drawn) / len(drawn)
    assert alone == pytest.approx(0.5, abs=0.1)
    assert len(set(drawn)) > 8
    with pytest.raises(UsageError):
        random_subset(BRATS, weights={"pd": 2.0})
