"""Pieces that the network is not sure of are left out, and it is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from medmap.bundle.loading import load_bundle, update_doubt
from medmap.confidence import DoubtSpec, pieces, tumor_probability, without_doubtful
from medmap.errors import BundleError
from medmap.inference import Run, segment
from medmap.postprocess import PostprocessSpec, label_map, most_probable
from medmap.preprocess import Prepared, prepare
from medmap.task import BRATS
from medmap.volume import Grid

SHAPE = (60, 64, 60)
ISLANDS = PostprocessSpec(island_ml=1.0, island_share=0.1)
LEFT, RIGHT, SPECK = (
    (slice(4, 24), slice(10, 30), slice(10, 30)),
    (slice(36, 56),) * 3,
    (slice(28, 31),) * 3,
)


def answer(left: float, right: float, speck: float = 0.0) -> torch.Tensor:
    """[4, ...] logits with three pieces of edema of these probabilities; background is certain elsewhere."""
    probability = torch.full(SHAPE, 1e-3)
    for place, value in ((LEFT, left), (RIGHT, right), (SPECK, speck)):
        probability[place] = max(value, 1e-3)
    rest = torch.full(SHAPE, -20.0)
    return torch.stack([torch.zeros(SHAPE), rest, torch.logit(probability), rest])


def case() -> Prepared:
    grid = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))
    image = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Prepared(
        image,
        torch.ones(4, dtype=torch.bool),
        torch.ones(SHAPE, dtype=torch.bool),
        grid,
        "flair",
        grid,
    )


def kept(
    logits: torch.Tensor, least: dict[str, float], subset=("flair",)
) -> tuple[torch.Tensor, float]:
    """What is left of an answer, and how much is not."""
    return without_doubtful(logits, case(), subset, BRATS, ISLANDS, DoubtSpec(least))


def found(logits: torch.Tensor, place) -> bool:
    return bool((most_probable(logits)[place] > 0).all())


def test_the_certainty_of_a_piece_is_the_ninetieth_percentile_of_its_probability_of_tumor():
    logits = answer(0.7, 0.9)
    logits[2, 4:7, 10:30, 10:30] = float(torch.logit(torch.tensor(0.99)))  # 15 % of the left piece
    numbers, certainty = pieces(logits, case(), ISLANDS)
    by_place = [certainty[int(numbers[place][0, 0, 0]) - 1] for place in (LEFT, RIGHT)]
    assert by_place == pytest.approx([0.99, 0.9], abs=1e-4)
    assert numbers.max() == 2


def test_the_probability_of_tumor_is_that_of_all_classes_but_background():
    logits = torch.randn(4, 5, 6, 7)
    assert torch.allclose(tumor_probability(logits), 1 - torch.softmax(logits, 0)[0], atol=1e-6)


def test_a_doubtful_piece_is_left_out_and_its_volume_told():
    logits, left_out = kept(answer(0.7, 0.99), {"flair": 0.95})
    assert found(logits, RIGHT)
    assert not (most_probable(logits)[LEFT] > 0).any()
    assert left_out == pytest.approx(20**3 * 8 / 1000)


def test_what_was_left_out_still_shows_as_uncertain():
    logits, _ = kept(answer(0.7, 0.99), {"flair": 0.95})
    assert 0.4 < float(tumor_probability(logits)[LEFT].mean()) <= 0.5


def test_a_speck_that_was_an_island_beside_the_piece_left_out_does_not_come_back():
    logits, _ = kept(answer(0.7, 0.0, speck=0.999), {"flair": 0.95})
    assert not label_map(logits, case(), ISLANDS, BRATS).any()


def test_the_limit_is_that_of_the_set_of_scans():
    least = {"flair": 0.95, "t2+flair": 0.5}
    assert found(kept(answer(0.7, 0.99), least, ("t2", "flair"))[0], LEFT)
    assert found(kept(answer(0.7, 0.99), least, ("t1",))[0], LEFT)
    assert not found(kept(answer(0.7, 0.99), least)[0], LEFT)


def test_an_answer_that_is_certain_or_empty_is_the_same_tensor():
    for logits in (answer(0.99, 0.9995), answer(0.0, 0.0)):
        assert kept(logits, {"flair": 0.95}) == (logits, 0.0)


@pytest.fixture
def doubting(tiny_bundle):
    """The small bundle, in doubt about all that it finds in two sets."""
    return replace(tiny_bundle, doubt=DoubtSpec({"t1+flair": 1.0, "flair": 1.0}))


def logits_of(bundle, prepared, subsets):
    run = Run(bundle, torch.device("cpu"), lambda fraction, text: None, lambda: False)
    return run.logits(prepared, subsets), run.left_out_ml


def test_many_subsets_at_once_are_doubted_as_each_alone(volumes, doubting):
    prepared = prepare(volumes, BRATS, doubting.preprocess, multiple=8)
    subsets = [("flair",), ("t1", "flair"), BRATS.modality_names]
    together, left_out = logits_of(doubting, prepared, subsets)
    assert set(left_out) == {0, 1}
    assert not (most_probable(together[0]) > 0)[prepared.brain].any()
    assert (most_probable(together[2]) > 0)[prepared.brain].any()
    for n, subset in enumerate(subsets):
        (alone,), volume = logits_of(doubting, prepared, [subset])
        assert torch.equal(alone, together[n])
        assert volume.get(0) == left_out.get(n)


def test_a_result_tells_what_was_left_out(volumes, doubting, tiny_bundle):
    result = segment({"flair": volumes["flair"]}, doubting)
    before = segment({"flair": volumes["flair"]}, tiny_bundle)
    assert before.provenance["run"]["left_out_ml"] == 0
    assert before.labels.any()
    assert not result.labels.any()
    volume = result.provenance["run"]["left_out_ml"]
    assert volume == pytest.approx(before.volumes_ml["WT"], rel=0.05)
    said = [f for f in result.findings if f.check == "doubt"]
    assert len(said) == 1
    assert f"{volume:.1f} ml" in said[0].message
    assert not [f for f in before.findings if f.check == "doubt"]


def test_a_bundle_keeps_its_doubt_and_an_older_one_has_none(tmp_path, tiny_bundle_path):
    assert load_bundle(tiny_bundle_path).doubt == DoubtSpec()
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_path, path)
    weights = (path / "model.safetensors").read_bytes()
    spec = DoubtSpec({"flair": 0.5})
    update_doubt(path, spec, version="9.9.9", change="doubt")
    again = load_bundle(path)
    assert again.doubt == spec
    assert again.id.endswith("-9.9.9")
    assert (path / "model.safetensors").read_bytes() == weights
    assert next(iter(json.loads((path / "metadata.json").read_text())["changelog"])) == "9.9.9"


@pytest.mark.parametrize("data", [{"most": 1}, {"least": 3}, {"least": {"flair": "x"}}])
def test_a_way_with_doubt_that_is_not_understood_is_refused(data):
    with pytest.raises(BundleError, match="way with doubt"):
        DoubtSpec.from_dict(data)
