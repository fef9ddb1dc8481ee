"""Several processes, one training: the losses and weights of one process.

Workers and micro-batches change nothing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from medmap.errors import InternalError, UsageError
from medmap.task import BRATS
from medmap.training.checkpoint import load_checkpoint
from medmap.training.dataset import PatchSampler
from medmap.training.distributed import Team, launch
from medmap.training.loop import train
from medmap.training.missingness import random_subset
from medmap.training.objectives import OBJECTIVES, Group, Objective
from medmap.training.recipe import Recipe

SMALL = Recipe(
    network_options={"widths": (4, 8)},
    steps=6,
    batch=4,
    patch=(16, 16, 16),
    large_patch=(16, 16, 16),
    seed=3,
)


class Duel(Objective):
    """A segmenter and a discriminator in turn; the segmenter's loss is a mean over samples."""

    def __init__(self, context):
        super().__init__()
        self.backbone = context.backbone
        self.judge = nn.Sequential(
            nn.Conv3d(context.task.num_classes, 4, 3), nn.ReLU(), nn.Conv3d(4, 1, 1)
        )
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))

    def groups(self):
        main = Group([*self.backbone.parameters(), self.unused])
        return {"main": main, "judge": Group(list(self.judge.parameters()), learning_rate=0.01)}

    def steps(self, batch, progress):
        self.seen += batch.label.float().mean()
        logits = self.backbone(batch.image, batch.present, known=batch.modalities).logits
        probability = logits.softmax(1)
        yield (
            "main",
            {
                "segmentation": cross_entropy(logits, batch.label),
                "fool": -0.01 * self.judge(probability).mean(),
            },
        )
        yield "judge", {"judge": self.judge(probability.detach()).pow(2).mean()}

    def deploy(self):
        return self.backbone


@pytest.fixture(autouse=True)
def _duel(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "duel", Duel)


class DefaultDtypeSampler(PatchSampler):
    """Images as networks made in the test take them."""

    def batch(self, *arguments, **options):
        batch = super().batch(*arguments, **options)
        return replace(batch, image=batch.image.to(torch.get_default_dtype()))


def sampling(folders, recipe=SMALL) -> PatchSampler:
    return DefaultDtypeSampler(folders, random_subset(BRATS), recipe.seed, recipe.augmentation)


def run_one(folders, run, recipe=SMALL, **settings) -> list[float]:
    """Train here; returns the losses."""
    losses: list[float] = []
    train(
        recipe,
        BRATS,
        sampling(folders, recipe),
        run,
        **{"device": "cpu", "precision": "fp32", **settings},
        report=lambda step, figures: losses.append(figures["loss"]),
    )
    return losses


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(count: int, task) -> list:
    """Call ``task(rank)`` in processes as a launcher like torchrun starts them.

    Returns their answers by rank.
    """
    context, port = multiprocessing.get_context("fork"), free_port()
    answers = context.SimpleQueue()

    def child(rank: int) -> None:
        os.environ.update(
            TORCHELASTIC_RUN_ID="test",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            LOCAL_WORLD_SIZE=str(count),
            GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        try:
            answers.put((rank, task(rank)))
        except BaseException as error:
            answers.put((rank, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        os._exit(0)

    children = [context.Process(target=child, args=(rank,)) for rank in range(count)]
    for process in children:
        process.start()
    got = dict(answers.get() for _ in children)
    for process in children:
        process.join()
    return [got[rank] for rank in range(count)]


def weights(run) -> dict:
    state = load_checkpoint(run)
    return {**state["objective"], **{f"average.{k}": v for k, v in state["average"].items()}}


REPORTED = {"rtol": 1e-6}
"""Losses are reported in float32, whatever they are computed in."""


# In float64 two orders of addition differ by 1e-16. Adam divides by the gradient's size plus 1e-8,
# which makes 1e-9 of it where a gradient is nearly nothing. A gradient that is not averaged shows
# at 1e-3, one that is wrong by a thousandth at 1e-7 with Adam and at 1e-4 with SGD.
@pytest.mark.usefixtures("float64")
def test_two_processes_are_one_process_with_the_same_batch(cached_heads, tmp_path):
    alone = run_one(cached_heads, tmp_path / "alone")
    first, second = together(2, lambda rank: run_one(cached_heads, tmp_path / "pair"))
    assert second == [], "the first process reports"
    np.testing.assert_allclose(first, alone, **REPORTED)
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "pair")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-8, msg=name)


@pytest.mark.usefixtures("float64")
def test_objectives_of_several_groups_keep_working_on_two_processes(cached_heads, tmp_path):
    recipe = replace(SMALL, objective="duel", optimizer="sgd", learning_rate=0.05, clip=0.0)
    alone = run_one(cached_heads, tmp_path / "alone", recipe)
    first, _ = together(2, lambda rank: run_one(cached_heads, tmp_path / "pair", recipe))
    np.testing.assert_allclose(first, alone, **REPORTED)
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "pair")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-12, msg=name)
    assert torch.equal(two["unused"], torch.ones(3)), (
        "weight decay leaves alone what no process has used"
    )


@pytest.mark.usefixtures("float64")
def test_passes_that_are_accumulated_are_the_whole_batch(cached_heads, tmp_path):
    recipe = replace(SMALL, objective="duel", optimizer="sgd", learning_rate=0.05)
    whole = run_one(cached_heads, tmp_path / "whole", recipe)
    passes = run_one(cached_heads, tmp_path / "passes", replace(recipe, accumulate=2))
    np.testing.assert_allclose(passes, whole, **REPORTED)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "passes")
    for name in one:
        if name != "seen":  # counted once a pass
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-12, msg=name)


def test_workers_change_nothing(cached_heads, tmp_path):
    assert run_one(cached_heads, tmp_path / "a") == run_one(cached_heads, tmp_path / "b", workers=2)
    one, two = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("float64")
def test_a_run_of_two_processes_goes_on_with_one(cached_heads, tmp_path):
    whole = run_one(cached_heads, tmp_path / "whole")
    begun, _ = together(2, lambda rank: run_one(cached_heads, tmp_path / "run", minutes=0.0))
    rest = run_one(cached_heads, tmp_path / "run")
    np.testing.assert_allclose([*begun, *rest], whole, **REPORTED)


def test_processes_that_step_different_groups_are_stopped():
    def task(rank):
        team = Team(launch("cpu", "fp32"))
        parameter = nn.Parameter(torch.ones(2))
        parameter.grad = torch.ones(2) * rank
        team.average_gradients([parameter], 0)
        with pytest.raises(InternalError, match="same optimizer group"):
            team.average_gradients([parameter], rank)
        return parameter.grad.tolist()

    assert together(2, task) == [[0.5, 0.5], [0.5, 0.5]]


def test_a_batch_that_cannot_be_dealt_out_is_refused(cached_heads, tmp_path):
    with pytest.raises(UsageError, match="equal micro-batches"):
        run_one(cached_heads, tmp_path / "a", replace(SMALL, accumulate=3))
    answers = together(
        2, lambda rank: run_one(cached_heads, tmp_path / "b", replace(SMALL, batch=3))
    )
    assert all("cannot be divided evenly among 2 processes" in answer for answer in answers)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_and_resumes(cached_heads, tmp_path, precision):
    whole = run_one(cached_heads, tmp_path / "whole", precision=precision)
    assert np.isfinite(whole).all()
    run_one(cached_heads, tmp_path / "run", precision=precision, minutes=0.0)
    run_one(cached_heads, tmp_path / "run", precision=precision)
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="fp8"):
        launch("cpu", "fp8")


@pytest.mark.slow
def test_two_nodes_start_from_the_documented_command(tmp_path, request):
    """Two torchrun agents that meet on loopback, as two machines would: docs/how-to/cluster.md."""
    data, port = tmp_path / "data", free_port()
    python = [sys.executable, "-m"]
    subprocess.run(
        [*python, "medmap.cli", "phantom", data, "--count", "2", "--spacing", "4"], check=True
    )
    options = {
        "network_options": {"widths": [4, 8]},
        "batch": 2,
        "steps": 4,
        "preprocess": {"spacing": 4.0},
    }
    options |= {"patch": [16, 16, 16], "large_patch": [16, 16, 16]}
    (tmp_path / "r.json").write_text(json.dumps(options))
    command = [
        "train",
        tmp_path / "r.json",
        "--data",
        data,
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    launcher = [*python, "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    launcher += ["--rdzv-id", "test", "--local-addr", "127.0.0.1", "-m", "medmap.cli", "--"]
    outputs = ["--run", tmp_path / "run", "--bundle", tmp_path / "bundle"]
    agents = []
    for _ in range(2):
        agent = subprocess.Popen(
            [*launcher, *command, *outputs],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        agents.append(agent)
    texts = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], texts
    assert load_checkpoint(tmp_path / "run")["ran_on"]["processes"] == 2
    one = [*python, "medmap.cli", *command, "--run", tmp_path / "alone", "--bundle", tmp_path / "b"]
    subprocess.run(one, check=True)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / run / "log.jsonl").read_text().splitlines()
        ]
        for run in ("run", "alone")
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], atol=2e-5)
