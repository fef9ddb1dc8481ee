"""The example beyond segmentation, on glyphs and tones.

MedMAP's own trainer and MCKD objective on two modalities.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from medmap.errors import InputDataError, MissingInputError
from medmap.training.optimizers import make_optimizer

FOLDER = Path(__file__).resolve().parents[2] / "MedMAPTraining/examples/audiovision"


@pytest.fixture(scope="module")
def example():
    """The example's files; what they add to MedMAP's tables is taken out again."""
    from medmap.networks import NETWORKS
    from medmap.training.objectives import OBJECTIVES
    from medmap.training.recipe import SCHEDULES

    tables = (NETWORKS, OBJECTIVES, SCHEDULES)
    before = [dict(table) for table in tables]
    sys.path.insert(0, str(FOLDER))
    import av_competitors
    import av_data
    import av_model
    import av_table

    class Example:
        data = av_data
        model = av_model
        table = av_table
        competitors = av_competitors

    yield Example
    sys.path.remove(str(FOLDER))
    for name in [name for name in sys.modules if name.startswith("av_")]:
        del sys.modules[name]
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


@pytest.fixture(scope="module")
def parts(example):
    return example.data.pair(*example.data.synthetic(), seed=0)


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def test_mnists_files_are_read_packed_or_not(example, tmp_path):
    images, digits = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 256, np.array([4, 0, 9])
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(digits))
    found = example.data.read_mnist(tmp_path)
    assert np.array_equal(found[0], images)
    assert np.array_equal(found[1], digits)


@pytest.mark.parametrize("content", [b"<html>", b"", idx(np.zeros((3, 28, 28)))[:-5]])
def test_what_is_no_mnist_file_is_refused(example, tmp_path, content):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3)))
    with pytest.raises(InputDataError):
        example.data.read_mnist(tmp_path)


def test_missing_data_are_named(example, tmp_path):
    with pytest.raises(MissingInputError, match="MNIST"):
        example.data.read_mnist(tmp_path)
    with pytest.raises(MissingInputError, match="0_jackson_0"):
        example.data.read_sounds(tmp_path)


def test_recordings_at_another_rate_are_refused(example, tmp_path):
    wavfile.write(tmp_path / "0_jackson_0.wav", 16000, np.zeros(4000, np.int16))
    with pytest.raises(InputDataError, match="8 kHz"):
        example.data.read_sounds(tmp_path)


def test_the_mel_filters_are_slaneys(example):
    filters = example.data.mel_filters(8000, 2048, 128)
    assert filters.shape == (128, 1025)
    at = np.fft.rfftfreq(2048, 1 / 8000)
    wide = filters[60:]  # narrow ones have too few bins for the sum to be the integral
    assert np.allclose(wide.sum(1) * (at[1] - at[0]), 1, atol=0.05)
    # Slaney's scale: 1000 Hz is 15 mel, below it is linear at 200 / 3 Hz a
    # mel; 4000 Hz is 35.16 mel.
    top = 15 + np.log(4) / (np.log(6.4) / 27)
    peaks = at[filters.argmax(1)]
    low = np.linspace(0, top, 130)[1:40] * 200 / 3
    assert np.abs(peaks[:39] - low).max() < 4


@pytest.mark.parametrize(("legacy", "columns"), [(True, 3), (False, 21)])
def test_a_cepstrum_has_the_columns_of_its_way(example, legacy, columns):
    tone = np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
    found = example.data.mfcc(0.5 * tone, legacy)
    assert found.shape == (20, 20)
    filled = (np.abs(found + 1) > 1e-6).any(0).sum()
    assert filled == min(columns, 20)


def test_a_tone_fills_the_band_it_lies_in(example):
    """The cepstrum, undone, has its maximum at the tone."""
    from scipy.fft import idct

    for hertz in (400, 1200, 2500):
        tone = np.sin(2 * np.pi * hertz * np.arange(4000) / 8000)
        cepstrum = example.data.mfcc(tone, legacy=False)[:, 8] * 0.5 + 0.5
        bands = idct(np.pad(cepstrum, (0, 20)), norm="ortho")
        filters = example.data.mel_filters(8000, 512, 40)
        loudest = np.fft.rfftfreq(512, 1 / 8000)[filters[bands.argmax()].argmax()]
        assert abs(loudest - hertz) < 0.12 * hertz


def test_parts_are_smils_and_no_picture_is_in_two_pairs(example):
    images, digits, sounds = example.data.synthetic()
    parts = example.data.pair(images, digits, sounds, seed=3)
    assert {name: len(p.digit) for name, p in parts.items()} == {
        "train": 900,
        "meta": 150,
        "test": 450,
    }
    for name, count in (("train", 90), ("meta", 15), ("test", 45)):
        assert np.bincount(parts[name].digit).tolist() == [count] * 10
    pictures = torch.cat([p.image[:, 0] for p in parts.values()]).flatten(1)
    assert len(pictures.unique(dim=0)) == 1500
    again = example.data.pair(images, digits, sounds, seed=3)
    other = example.data.pair(images, digits, sounds, seed=4)
    assert torch.equal(again["test"].image, parts["test"].image)
    assert not torch.equal(other["test"].image, parts["test"].image)


def test_an_epoch_shows_every_pair_once_and_the_sound_of_a_fixed_share(example, parts):
    sampler = example.data.PairSampler(parts["train"], 0.15, 0, 30)
    heard = {name for name in sampler.case_ids if sampler.available(name)[1]}
    assert len(heard) == 135
    for epoch in (0, 1):
        seen: list[str] = []
        for step in range(30):
            batch = sampler.batch(30 * epoch + step, 30)
            assert (batch.image[~batch.present] == 0).all()
            assert {
                n for n, p in zip(batch.case_id, batch.present, strict=True) if p[1]
            } == heard & set(batch.case_id)
            seen += batch.case_id
        assert sorted(seen) == sorted(sampler.case_ids)
    halves = [sampler.batch(7, 15, (), first) for first in (0, 15)]
    assert halves[0].case_id + halves[1].case_id == sampler.batch(7, 30).case_id


def test_images_can_be_the_half_that_is_missing(example, parts):
    """Table 2b: every pair has its sound, some have an image, and the test gives sounds alone."""
    sampler = example.data.PairSampler(parts["train"], 0.1, 0, 32, missing="image")
    present = sampler.present.float().mean(0)
    assert present.tolist() == pytest.approx([0.1, 1.0])
    batch = sampler.batch(0, 32)
    assert (batch.image[~batch.present[:, 0], 0] == 0).all()
    assert batch.image[:, 1].flatten(1).any(1).all()


def test_the_features_have_the_sizes_of_the_papers(example):
    network = example.model.AudioVision()
    assert network.image(torch.zeros(2, 1, 28, 28)).shape == (2, 160)
    assert network.sound[:-1](torch.zeros(2, 1, 20, 20)).shape == (2, 320)


@pytest.mark.parametrize("m", [0, 1])
def test_the_absent_half_has_no_influence(example, parts, m):
    network = example.model.AudioVision().eval()
    image = parts["test"].image[:8]
    present = torch.zeros(8, 2, dtype=torch.bool)
    present[:, m] = True
    other = image.clone()
    other[:, 1 - m] = float("nan")
    with torch.no_grad():
        assert torch.equal(network(image, present).logits, network(other, present).logits)


def test_pairs_without_sound_do_not_enter_the_batch_statistics(example, parts):
    torch.manual_seed(0)
    network = example.model.AudioVision()
    image = parts["train"].image[:16]
    heard = torch.arange(16) % 4 == 0
    masked = torch.where(heard[:, None, None, None], image[:, 1:], 0.0)
    network.encode(masked, 1)
    torch.manual_seed(0)
    alone = example.model.AudioVision()
    alone.encode(image[heard, 1:], 1)
    for one, two in zip(network.buffers(), alone.buffers(), strict=True):
        assert torch.equal(one, two)


def test_mckd_trains_on_pairs_and_beats_chance_with_pictures_alone(example, parts):
    found = example.table.score(parts, 0.2, "MCKD", seed=0, epochs=4)
    assert found["image"] > 30
    assert 0 < found["importance_image"] < 1


def test_the_settings_are_those_that_the_paper_prints(example):
    """MCKD, Section 4.2: both optimizers are Adam with a weight decay of 1e-2."""
    from medmap.training.setup import make_objective

    recipe = example.table.recipe(0.05, "MCKD", 0, 60, 900)
    held_out = lambda n: None  # noqa: E731
    objective = make_objective(recipe, example.data.AUDIOVISION, held_out=held_out)
    groups = objective.groups()
    meta = make_optimizer(groups["meta"], recipe)
    main = make_optimizer(groups["main"], recipe)
    assert {group["weight_decay"] for group in meta.param_groups} == {1e-2}
    assert {group["lr"] for group in meta.param_groups} == {1e-2}
    assert {group["weight_decay"] for group in main.param_groups} == {1e-2}
    assert {group["lr"] for group in main.param_groups} == {1e-3}
    assert recipe.steps == 60 * 29


def test_the_meta_step_of_pairs_moves_the_importance_alone(example, parts):
    from medmap.training.objectives import Context

    meta = example.data.PairSampler(parts["meta"], 1.0, 0, 16)
    network = example.model.AudioVision()
    network.built_from = ("AudioVision", {})
    objective = example.model.ClassDistillation(
        Context(
            task=example.data.AUDIOVISION,
            backbone=network,
            held_out=lambda n: meta.batch(n, 16),
            cases=900,
        )
    )
    (importance,) = objective.groups()["meta"].parameters
    assert importance is objective.importance
    assert not any(importance is p for p in objective.groups()["main"].parameters)
    objective.meta_loss(meta.batch(0, 16)).backward()
    assert importance.grad.abs().sum() > 0


def test_the_table_shows_mean_and_sd_beside_what_was_published(example):
    rows = [
        {
            "audio": 0.05,
            "method": "MCKD",
            "seed": n,
            "image": 90 + n,
            "both": 95,
            "importance_image": 0.6,
        }
        for n in range(3)
    ]
    text = example.table.table(rows)
    assert "91.00 ± 1.00 (n=3)" in text
    assert "93.56" in text
    assert "Standard error" in text


# ------------------------------------------------------------------- the table's other methods

COMPETITORS = ("autoencoder", "gan", "full2miss", "smil", "shaspec")


def objective_of(example, parts, method: str, rate: float = 0.2):
    """A method as the table trains it, and a batch with complete and incomplete pairs."""
    from medmap.training.setup import make_objective

    torch.manual_seed(0)
    recipe = example.table.recipe(rate, method, 0, 3, 900)
    sampler = example.data.PairSampler(parts["train"], rate, 0, 32)
    second = example.data.PairSampler(sampler.complete_pairs(), 1.0, 0, 32)
    objective = make_objective(
        recipe, example.data.AUDIOVISION, sampler, held_out=lambda n: second.batch(n, 32)
    )
    return objective.train(), sampler.batch(0, 32)


@pytest.mark.parametrize("method", COMPETITORS)
def test_every_method_of_the_table_learns_from_sounds_alone(example, parts, method):
    scored = example.table.score(parts, 0.2, method, seed=0, epochs=2, missing="image")
    assert scored["sound"] > 40, "chance is 10"


@pytest.mark.slow
@pytest.mark.parametrize("method", COMPETITORS)
def test_every_method_of_the_table_learns_from_pictures_alone(example, parts, method):
    scored = example.table.score(parts, 0.2, method, seed=0, epochs=8)
    assert scored["image"] > 20, "chance is 10"
    assert scored["both"] > 60


@pytest.mark.parametrize("m", [0, 1])
@pytest.mark.parametrize("method", COMPETITORS)
def test_the_absent_half_has_no_influence_on_any_method(example, parts, method, m):
    objective, _ = objective_of(example, parts, method)
    network = objective.deploy().eval()
    if method == "smil":
        network.priors.normal_()
    image = parts["test"].image[:8]
    present = torch.zeros(8, 2, dtype=torch.bool)
    present[:, m] = True
    other = image.clone()
    other[:, 1 - m] = float("nan")
    with torch.no_grad():
        expected = network(image, present).logits
        assert torch.equal(network(other, present).logits, expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize("method", ["autoencoder", "gan"])
def test_what_generates_a_feature_is_not_trained_by_the_classes(example, parts, method):
    objective, batch = objective_of(example, parts, method)
    generators = list(objective.backbone.generators.parameters())
    encoder = list(objective.backbone.image.parameters())
    _, losses = next(objective.steps(batch, 0.0))
    losses["classification"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in generators)
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder)
    if method == "autoencoder":
        before = [parameter.grad.clone() for parameter in encoder]
        (losses["reconstruction_0"] + losses["reconstruction_1"]).backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in generators)
        assert all(torch.equal(p.grad, b) for p, b in zip(encoder, before, strict=True))


def test_the_reconstruction_is_the_mean_square_of_complete_pairs(example, parts):
    objective, batch = objective_of(example, parts, "autoencoder")
    objective.eval()
    _, losses = next(objective.steps(batch, 0.0))
    heard = batch.present[:, 1]
    network = objective.backbone
    with torch.no_grad():
        (image,) = network.encode(batch.image[heard, :1], 0)
        (sound,) = network.encode(batch.image[heard, 1:], 1)
        expected = (network.generators[1](image) - sound).square().mean()
    torch.testing.assert_close(losses["reconstruction_1"].detach(), expected)


def test_the_gan_steps_one_side_at_a_time_on_complete_pairs(example, parts):
    objective, batch = objective_of(example, parts, "gan")
    groups = objective.groups()
    everything = {id(p) for group in groups.values() for p in group.parameters}
    assert everything == {id(p) for p in objective.parameters()}
    assert sum(len(group.parameters) for group in groups.values()) == len(everything)
    steps = dict(objective.steps(batch, 0.0))
    assert list(steps) == ["main", "generator", "disc"]
    gradients = torch.autograd.grad(
        sum(steps["disc"].values()), groups["generator"].parameters, allow_unused=True
    )
    assert all(gradient is None for gradient in gradients)
    none = example.data.PairSampler(parts["train"], 0.0, 0, 32).batch(0, 32)
    without = dict(objective.steps(none, 0.0))
    assert all(float(value.detach()) == 0 for value in without["generator"].values())


def test_full2miss_adapts_the_missing_path_of_complete_pairs(example, parts):
    objective, batch = objective_of(example, parts, "full2miss")
    objective.eval()
    assert objective.rare == 1
    (_, main), (_, critic) = objective.steps(batch, 0.0)
    network = objective.backbone
    heard = batch.present[:, 1]
    alone = torch.tensor([[True, False]]).expand(int(heard.sum()), 2)
    with torch.no_grad():
        missing = network(batch.image[heard], alone, ("decoder",)).taps["decoder"]
        full = network(batch.image[heard], batch.present[heard], ("decoder",)).taps["decoder"]
        deceived = -objective.discriminator(missing).sigmoid().log().mean()
        real = -objective.discriminator(full).sigmoid().log().mean()
        fake = -(1 - objective.discriminator(missing).sigmoid()).log().mean()
    torch.testing.assert_close(main["similarity"].detach(), 0.1 * deceived)
    torch.testing.assert_close(critic["disc"].detach(), 0.5 * (real + fake))


def test_smil_fills_with_a_mixture_of_its_priors(example):
    network = example.competitors.SMILNetwork().eval()
    network.priors[1] = torch.randn(10, 160)
    image = torch.randn(3, 160)
    present = torch.tensor([[True, False]]).expand(3, 2)
    _, sound = network.fill([image, None], present)
    weights = torch.nn.functional.softplus(network.mixture[1](image))
    expected = (weights[:, :, None] * network.priors[1]).sum(1) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(sound, expected)


def test_smil_looks_one_gradient_step_ahead(example, parts):
    """The second level's loss is that of p - 0.001 g, and its gradient goes through g."""
    objective, batch = objective_of(example, parts, "smil")
    network = objective.backbone
    _, first = next(objective.steps(batch, 0.0))
    assert set(first) == {"classification"}
    assert not network.priors.any()
    _, second = next(objective.steps(batch, 0.5))
    assert network.priors[1].any()
    assert set(second) > {"classification", "validation", "agreement_bottleneck"}
    loss = second["classification"]
    stepped = objective._stepped(loss)
    assert {name.split(".")[0] for name in stepped} == {"image", "head"}
    weight = network.head[0].weight
    (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
    torch.testing.assert_close(stepped["head.0.weight"], weight - 1e-3 * gradient)
    # Through g alone: the perturbation in front of the head acts on it.
    (through,) = torch.autograd.grad(stepped["head.0.weight"].sum(), network.perturb_fused.weight)
    assert through.abs().sum() > 0
    sound = list(network.sound.parameters())
    gradients = torch.autograd.grad(sum(second.values()), sound, allow_unused=True)
    assert all(gradient is None for gradient in gradients), "the clustered encoder is frozen"


def test_shaspec_fuses_and_fills_as_printed(example, parts):
    objective, batch = objective_of(example, parts, "shaspec")
    network = objective.backbone.eval()
    image = batch.image[:4, :1]
    specific, shared, fused = network.encode(image, 0)
    expected = shared + network.projection(torch.cat([shared, specific], 1))
    torch.testing.assert_close(fused, expected)
    alone = torch.tensor([[True, False]]).expand(4, 2)
    tap = network(batch.image[:4], alone, ("bottleneck",)).taps["bottleneck"]
    torch.testing.assert_close(tap, torch.cat([fused, shared], 1))
    _, losses = next(objective.eval().steps(batch, 0.0))
    heard = batch.present[:, 1]
    _, image_shared, _ = network.encode(batch.image[heard, :1], 0)
    _, sound_shared, _ = network.encode(batch.image[heard, 1:], 1)
    distance = (image_shared - sound_shared).abs().mean()
    torch.testing.assert_close(losses["alignment"], 0.1 * distance)


@pytest.mark.parametrize("method", COMPETITORS)
def test_the_other_methods_have_the_papers_optimizer(example, method):
    """MCKD, Section 4.2, trains all compared models alike."""
    ours = example.table.recipe(0.05, "MCKD", 0, 60, 900)
    theirs = example.table.recipe(0.05, method, 0, 60, 900)
    for name in ("steps", "batch", "optimizer", "learning_rate", "weight_decay", "schedule"):
        assert getattr(theirs, name) == getattr(ours, name)
