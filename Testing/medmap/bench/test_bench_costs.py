"""Costs that do not depend on the machine: what is computed, how often, and on how many bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medmap.bench import goals as bench_goals
from medmap.bench.costs import (
    counts_of,
    counts_of_run,
    counts_table,
    stages_of_run,
    stages_table,
)
from medmap.bench.goals import GOALS, Goal, GoalSetup, goals_table, measure_goals
from medmap.errors import UsageError
from medmap.inference import segment, segment_subsets
from medmap.io.nifti import write_volume
from medmap.postprocess.prediction import predict
from medmap.postprocess.reference_labels import label_map
from medmap.postprocess.spec import ConfidenceSpec, PostprocessSpec
from medmap.preprocess import prepare
from medmap.task import BRATS
from medmap.volume import Grid

SMALL = {"widths": [4, 8, 8], "token_width": 16, "mlp_width": 32, "heads": 2, "window": 16}


@pytest.fixture
def files(tmp_path, volumes):
    folder = tmp_path
    paths = {}
    for name, volume in volumes.items():
        paths[name] = folder / f"{name}.nii.gz"
        write_volume(paths[name], volume.array.astype(np.int16), volume.affine)
    return paths


def calls_of(stages):
    return {stage.title: stage.calls for stage in stages}


def test_stages_add_up_to_the_run_and_count_its_calls(files, tiny_bundle):
    one = stages_of_run(files, tiny_bundle)
    assert calls_of(one) | {"encode": 4, "decode": 1, "normalize": 4} == calls_of(one)
    total = one[-1].milliseconds
    parts = sum(stage.milliseconds for stage in one[:-1] if not stage.is_part)
    assert parts == pytest.approx(total)
    every = calls_of(stages_of_run(files, tiny_bundle, subsets=True))
    assert every | {"encode": 4, "decode": 15, "normalize": 4, "find the brain": 4} == every
    assert stages_table(one, "One run").row_count == len(one)


def test_every_subset_costs_its_decoder_alone(volumes, tiny_bundle):
    """In floating-point operations: encoders once, and the decoder once for each subset."""
    network = tiny_bundle.entry_for(list(volumes)).network
    prepared = prepare(volumes, BRATS, tiny_bundle.preprocess, multiple=tiny_bundle.stride)
    image = prepared.image[0][None, None]
    with torch.inference_mode():
        encoder = counts_of(lambda: network.encode(image, 0)).flop
    one = counts_of(lambda: segment(volumes, tiny_bundle, precision="fp32")).flop
    subsets = [(name,) for name in BRATS.modality_names]
    every = counts_of(lambda: segment_subsets(volumes, tiny_bundle, subsets, precision="fp32")).flop
    decoder = one - 4 * encoder
    # Interpolation counts, too, as its last axis is a matrix product.
    assert every == pytest.approx(4 * encoder + 4 * decoder, rel=0.1)


def test_a_run_on_parallel_grids_has_no_operation_that_is_slow_on_a_cpu(files, tiny_bundle):
    counts = counts_of_run(files, tiny_bundle)
    slow = {"grid_sampler", "grid_sampler_3d", "upsample_trilinear3d", "sort", "argmax"}
    assert not slow & set(counts.operations)
    assert counts_table(counts, "One run").row_count == 4


@pytest.mark.parametrize("spacing", [1.0, 1.5])
def test_post_processing_reads_the_logits_a_few_times(make_prepared, spacing):
    """A tumor of 1 % of the volume: beside the logits, only its surroundings are computed on."""
    shape = (64, 64, 64)
    logits = torch.zeros(4, *shape)
    logits[0] = 8.0
    logits[2, 20:34, 24:38, 20:34] = 12.0
    brain = torch.ones(shape, dtype=torch.bool)
    working = Grid(shape, np.diag([1.5, 1.5, 1.5, 1.0]))
    reference = Grid(shape, np.diag([spacing, spacing, spacing, 1.0]))
    prepared = make_prepared(torch.zeros(4, *shape), brain, working, reference)
    spec = PostprocessSpec(1.0, 0.1, 0.4, by_region=True)
    confidence = ConfidenceSpec({"t1+t1ce+t2+flair": 0.5})

    def work():
        prediction = predict(logits, prepared, BRATS.modality_names, BRATS, spec, confidence)
        assert label_map(prediction, prepared, spec, BRATS).any()

    assert counts_of(work).bytes < 9 * logits.nbytes


def test_views_are_no_operations():
    image = torch.zeros(4, 4)
    counts = counts_of(lambda: image.T[1:].reshape(-1).add(1))
    assert counts.operations == {"clone": 1, "add": 1} or counts.operations == {
        "_unsafe_view": 1,
        "clone": 1,
        "add": 1,
    }
    assert counts_of(lambda: image @ image).flop == 2 * 4**3


def test_goals_say_whether_they_are_met(files, tiny_bundle_path):
    (goal,) = measure_goals(files, tiny_bundle_path, names=["preparing"], repeats=1)
    assert goal.title == "preparing a case"
    assert goal.figure.endswith("CPU-s")
    assert goal.is_met is not None
    table = goals_table([goal, Goal("no figure", "–", "≥ 2×", None)])
    assert table.row_count == 2
    with pytest.raises(UsageError, match="unknown"):
        measure_goals(files, tiny_bundle_path, names=["light"])


def test_a_goal_is_at_least_or_at_most():
    assert bench_goals._goal("a", 2.0, 1.8, "×", "").is_met
    assert not bench_goals._goal("a", 2.0, 1.8, "×", "", at_most=True).is_met
    assert bench_goals._goal("a", None, 1.8, "×", "").figure == "–"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GOALS if name != "speed"])
def test_every_goal_can_be_measured(files, tiny_bundle_path, name):
    """Apart from the published way's minutes, which ``test_bench_inference`` has in small."""
    setup = GoalSetup(
        files, tiny_bundle_path, repeats=1, steps=2, patch=16, network=("mmFormer", SMALL)
    )
    for goal in GOALS[name](setup):
        assert goal.figure != "–" or "one core only" in goal.note, goal
