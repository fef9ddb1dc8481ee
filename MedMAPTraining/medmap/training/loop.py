"""The training loop, readable from top to bottom."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from medmap.errors import BundleError, InternalError, UsageError
from medmap.io.atomic import make_folder, only_one, write_json
from medmap.networks import NETWORKS, Backbone, build_network
from medmap.networks.fixed_subset import FixedSubset
from medmap.networks.stem import naming_modalities
from medmap.task import Task
from medmap.training.acceleration import as_channels_last, channels_last, compile_backbone
from medmap.training.checkpoint import load_checkpoint, remove_leftovers, save_best, save_checkpoint
from medmap.training.dataset import Batch, Sampler
from medmap.training.distributed import Team, launch
from medmap.training.loader import Piece, batches
from medmap.training.objectives import Context, Objective, WithAnchor, build_objective
from medmap.training.optimizers import follow, make_optimizer, parameters_of, set_rate
from medmap.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Report = Callable[[int, dict], None]
"""Called after a step with its number and a dict of figures."""


@dataclass(frozen=True)
class Engine:
    """How a training is run; none of it decides what is learned, but for rounding.

    Attributes:
        device: torch device, or ``auto``.
        precision: ``bf16`` or ``fp16`` (autocast, fp16 with a scaled loss) or ``fp32``.
        devices: processes to start on this machine, one a device; launchers (``torchrun``) say it themselves.
        workers: processes that make batches ahead of time; 0 makes them in between.
        compiled: compile the backbone's encoder and decoder (``torch.compile``): slow to start, one graph a subset.
        channels_last: keep weights and images channels-last.
        minutes: stop after this time with a checkpoint, so that long trainings go in short runs.
        save_every: steps between checkpoints.
        validate_every: steps between validations; 0 makes it twenty in all. The first comes after a fifth of it, so
            that a mistake shows early.
    """

    device: str = "auto"
    precision: str = "bf16"
    devices: int = 1
    workers: int = 0
    compiled: bool = False
    channels_last: bool = False
    minutes: float | None = None
    save_every: int = 250
    validate_every: int = 0


class Validator(Protocol):
    """Scores a network on cases kept out of training (``medmap.training.validation.Validation``)."""

    cases: int

    def score(self, network: Backbone, device: torch.device, case: int) -> dict[str, float]:
        """Figures of one case by name; ``dice`` decides which network is the best."""


def train(
    recipe: Recipe,
    task: Task,
    sampler: Sampler,
    run: str | Path,
    *,
    teacher: Backbone | None = None,
    start: Backbone | None = None,
    held_out: Callable[[int], Batch] | None = None,
    validation: Validator | None = None,
    engine: Engine | None = None,
    fabric: Fabric | None = None,
    report: Report | None = None,
    **settings,
) -> int:
    """Train, or go on with a training, until the recipe's steps are done.

    The weights, and with them every figure, are a function of recipe, sampler and number of threads: neither a break
    nor the number of workers changes a bit on a CPU; the number of processes changes rounding only, as long as the
    network draws no random numbers of its own (dropout) and has no batch statistics.

    Args:
        recipe: what to train.
        task: of the data.
        sampler: gives the batches (``medmap.training.dataset.PatchSampler`` on cached cases).
        run: the run's folder; a checkpoint in it is resumed, to the same weights as without the break (CPU, same
            number of threads).
        teacher: a trained network, for objectives that distil from one.
        start: a trained network of the recipe's kind whose weights a new run begins with.
        held_out: batches of cases kept out of training, for objectives that learn on two levels.
        validation: scores the averaged network now and then; the best one is kept and exported.
        engine: how it is run.
        fabric: processes that have been launched already; None launches them.
        report: called after every step, on the first process.
        settings: fields of ``Engine``, instead of it.

    Returns:
        The number of steps done; ``recipe.steps`` when the training is complete.

    Raises:
        BundleError: the folder holds a run of another recipe.
        OutputError: another program trains in the folder.
        UsageError: the batch cannot be dealt out to the processes and passes.
        InternalError: the loss is not finite; the last checkpoint stays.
    """
    engine = engine or Engine(**settings)
    team, run = Team(fabric or launch(engine.device, engine.precision, engine.devices)), Path(run)
    if team.first:
        make_folder(run)
    torch.manual_seed(recipe.seed)
    objective = make_objective(recipe, task, sampler, teacher, held_out)
    if start is not None:
        objective.deploy().load_state_dict(start.state_dict())
    with only_one(run) if team.first else contextlib.nullcontext():
        training = Training(recipe, objective, sampler, run, engine, team)
        return _run(training, validation, report)


def _run(training: Training, validation: Validator | None, report: Report | None) -> int:
    """Step by step to the end, or until time is over; returns the steps done."""
    engine, team, steps, started = (
        training.engine,
        training.team,
        training.recipe.steps,
        time.monotonic(),
    )
    every = engine.validate_every or max(1, steps // 20)
    for step, figures in training.steps():
        over = engine.minutes is not None and time.monotonic() - started > 60 * engine.minutes
        over = team.from_first(over) if engine.minutes is not None else over
        if validation and (step % every == 0 or step in (max(1, every // 5), steps)):
            figures |= training.validate(validation)
        # First told, then saved: a kill in between makes a step be told twice, and the log knows how to take that back.
        if report and team.first:
            report(step, {**figures, "seconds": time.monotonic() - started})
        if over or step % engine.save_every == 0 or step == steps:
            training.save()
        if over:
            break
    return training.step


class Training:
    """A training in progress: networks, optimizers, moving average, and the steps still to do.

    Attributes:
        step: steps done.
        best: the best validation so far: ``step`` and its figures; None before the first.
    """

    def __init__(
        self,
        recipe: Recipe,
        objective: Objective,
        sampler: Sampler,
        run: Path,
        engine: Engine,
        team: Team,
    ):
        self.recipe, self.sampler, self.run, self.engine, self.team = (
            recipe,
            sampler,
            run,
            engine,
            team,
        )
        self.fabric, self.device = team.fabric, team.fabric.device
        self.first, self.share = team.share(_even(recipe))
        self.objective = objective.to(self.device).train()
        self.average = copy.deepcopy(self.objective.deploy()).eval()
        groups = self.objective.groups()
        self.optimizers = {name: make_optimizer(group, recipe) for name, group in groups.items()}
        self.epoch_steps = recipe.epoch_steps or -(-len(sampler.case_ids) // recipe.batch)
        self.step, self.best = 0, None
        self._resume()
        if engine.channels_last:
            channels_last(self.objective)
        if engine.compiled:
            compile_backbone(self.objective.deploy())

    def steps(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Do the steps that are left; yields after each its number and its figures."""
        waiting = self._batches()
        while self.step < self.recipe.steps:
            began = time.monotonic()
            torch.manual_seed(_mixed(self.recipe.seed, self.step, self.team.rank))
            for optimizer in self.optimizers.values():
                set_rate(optimizer, self.step, self.recipe.steps)
            figures, waited = self._step(waiting)
            follow(
                self.average,
                self.objective.deploy(),
                min(self.recipe.ema, (1 + self.step) / (10 + self.step)),
            )
            self.step += 1
            if self.step % self.epoch_steps == 0:
                figures |= self.objective.epoch_end(self.step // self.epoch_steps - 1)
            rate = next(iter(self.optimizers.values())).param_groups[0]["lr"]
            took = time.monotonic() - began
            yield self.step, {**figures, "learning_rate": rate, "waiting": waited / max(took, 1e-9)}

    def _batches(self) -> Iterator[Batch]:
        """This process's part of every pass of every step that is left."""
        recipe, done, per_pass = self.recipe, self.step, _even(self.recipe)

        def piece(number: int) -> Piece:
            step, n = done + number // recipe.accumulate, number % recipe.accumulate
            return Piece(step, n * per_pass + self.first, self.share, recipe.patch_at(step))

        count = (recipe.steps - done) * recipe.accumulate
        return batches(
            self.sampler,
            piece,
            count,
            workers=self.engine.workers,
            device=self.device,
            seed=recipe.seed,
        )

    def _step(self, waiting: Iterator[Batch]) -> tuple[dict[str, float], float]:
        """Every optimizer step that the objective wants from one batch; the losses by name, and seconds waited."""
        began = time.monotonic()
        passes = [next(waiting) for _ in range(self.recipe.accumulate)]
        waited = time.monotonic() - began
        if self.engine.channels_last:
            passes = [replace(b, image=as_channels_last(b.image)) for b in passes]
        names = ", ".join(name for batch in passes for name in batch.case_id)
        wanted = [self.objective.steps(batch, self.step / self.recipe.steps) for batch in passes]
        told: dict[str, Tensor] = {}
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        while (item := self._backward(wanted)) is not None:
            group, losses = item
            told |= {**losses, "loss": self.team.mean(sum(losses.values()))}
            finite &= torch.isfinite(told["loss"])
            self._update(group)
        self.team.average_buffers(self.objective)
        # Read once, when all of the step is queued: each look at a number on a GPU waits until everything is computed.
        *values, sound = torch.stack(
            [*(value.float() for value in told.values()), finite.float()]
        ).tolist()
        if not sound and not self._rescales():
            raise InternalError(
                f"The loss is not finite at case {names}.",
                "Lower the learning rate; the last checkpoint is kept.",
            )
        return dict(zip(told, values, strict=True)), waited

    def _backward(self, wanted: list[Iterator]) -> tuple[str, dict[str, Tensor]] | None:
        """The next item of every pass, and its gradients; the group and the mean losses, or None at the end."""
        group, sums = None, {}
        for steps in wanted:
            with self.fabric.autocast():
                group, losses = next(steps, (None, {}))
            if group is None:
                return None
            if not sums:
                self.optimizers[group].zero_grad(set_to_none=True)
            share = {name: value / len(wanted) for name, value in losses.items()}
            # Into the parameters that are stepped, and no others: a discriminator costs a segmenter's step nothing.
            self.fabric.backward(sum(share.values()), inputs=parameters_of(self.optimizers[group]))
            for name, value in share.items():
                sums[name] = sums.get(name, 0) + value.detach()
        return group, sums

    def _update(self, group: str) -> None:
        optimizer, strategy = self.optimizers[group], self.fabric.strategy
        self.team.average_gradients(parameters_of(optimizer), list(self.optimizers).index(group))
        if self.recipe.clip:
            strategy.clip_gradients_norm(
                self.objective, optimizer, self.recipe.clip, error_if_nonfinite=False
            )
        strategy.optimizer_step(optimizer)

    def _rescales(self) -> bool:
        """Whether an infinite loss only means that fp16's scale is still being found: the step is then left out."""
        scale = self.fabric.strategy.precision.state_dict().get("scale", 0.0)
        return scale > 1.0

    def validate(self, validation: Validator) -> dict[str, float]:
        """Score the averaged network, each process its share of the cases; keeps it if it is the best so far."""
        mine = range(self.team.rank, validation.cases, self.team.size)
        rows = self.team.gather([(n, validation.score(self.average, self.device, n)) for n in mine])
        rows = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
        figures = {
            f"validation_{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]
        }
        if self.best is None or figures["validation_dice"] > self.best["validation_dice"]:
            self.best = {"step": self.step, **figures, "cases": validation.cases}
            if self.team.first:
                save_best(self.run, {**self._deployed(), "selection": self.best})
        return figures

    def save(self) -> None:
        """Write a checkpoint."""
        if self.team.first:
            save_checkpoint(self.run, self._state())

    def _deployed(self) -> dict:
        network = list(self.objective.deploy().built_from)
        return {"step": self.step, "network": network, "average": self.average.state_dict()}

    def _state(self) -> dict:
        """All that the steps still to do depend on. Random numbers are not in it: every step seeds them anew."""
        return {
            **self._deployed(),
            "recipe": self.recipe.digest(),
            "objective": self.objective.state_dict(),
            "optimizers": {
                name: optimizer.state_dict() for name, optimizer in self.optimizers.items()
            },
            "precision": dict(self.fabric.strategy.precision.state_dict()),
            "best": self.best,
            "ran_on": {
                "processes": self.team.size,
                "threads": torch.get_num_threads(),
                "torch": str(torch.__version__),
            },
        }

    def _resume(self) -> None:
        """Load the run's checkpoint, if any; the first process reads it for all."""
        if self.team.first:
            remove_leftovers(self.run)
        state = self.team.from_first(load_checkpoint(self.run) if self.team.first else None)
        precision = self.fabric.strategy.precision
        if state is None:
            if self.team.first:
                write_json(self.run / "recipe.json", asdict(self.recipe))
            if (
                scaler := precision.state_dict()
            ):  # of fp16; the processes may have trained another network before
                precision.load_state_dict({**scaler, "scale": 65536.0, "_growth_tracker": 0})
            return
        if state["recipe"] != self.recipe.digest():
            raise BundleError(
                f"The run {self.run.name} was started with another recipe{_differing(self.run, self.recipe)}.",
                "Use the same options, or another --run folder.",
            )
        self.objective.load_state_dict(state["objective"])
        self.average.load_state_dict(state["average"])
        # Checkpoints of before version 0.2 spell the key otherwise.
        optimizer_states = state.get("optimizers") or state["optimisers"]
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizer_states[name])
        if state["precision"]:
            precision.load_state_dict(state["precision"])
        self.step, self.best = int(state["step"]), state["best"]


def _differing(run: Path, recipe: Recipe) -> str:
    """Which settings of a run are not those of a recipe, in words; empty when its recipe.json does not tell."""
    with contextlib.suppress(OSError, ValueError):
        before = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
        now = json.loads(json.dumps(asdict(recipe)))
        keys = [key for key in now if key != "about" and before.get(key) != now[key]]
        shown = "; ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in keys)
        return f": {shown}" if shown else ""
    return ""


def _even(recipe: Recipe) -> int:
    """Patches of one pass, over all processes. Raises UsageError if the passes do not come out even."""
    if recipe.batch % recipe.accumulate:
        raise UsageError(
            f"A batch of {recipe.batch} does not go through in {recipe.accumulate} equal passes.",
            "Choose a batch that is a multiple of accumulate.",
        )
    return recipe.batch // recipe.accumulate


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def make_objective(
    recipe: Recipe,
    task: Task,
    sampler: Sampler | None = None,
    teacher: Backbone | None = None,
    held_out: Callable[[int], Batch] | None = None,
) -> Objective:
    """The recipe's objective around its backbone, freshly initialized; without a sampler only to be loaded.

    Raises:
        UsageError: the network cannot take patches of the recipe's size.
    """
    backbone = build_network(
        recipe.network, naming_modalities(_network_options(recipe, task), task.modality_names)
    )
    _check_patches(recipe, backbone)
    cases = sampler.case_ids if sampler else ()
    shown = {case: sampler.shows(case) for case in cases} if sampler else {}
    counts = {
        name: sum(bool(mask[m]) for mask in shown.values())
        for m, name in enumerate(task.modality_names)
    }
    context = Context(
        task=task,
        backbone=backbone,
        teacher=teacher,
        steps=recipe.steps,
        epoch_steps=recipe.epoch_steps or max(1, -(-len(cases) // recipe.batch)),
        cases=len(cases),
        cases_with=counts,
        held_out=held_out,
    )
    objective = build_objective(recipe.objective, context, recipe.objective_options)
    return WithAnchor(objective, task, **recipe.alignment) if recipe.alignment else objective


def _check_patches(recipe: Recipe, backbone: Backbone) -> None:
    for patch in {recipe.patch, *([recipe.large_patch] if recipe.large_share else [])}:
        if any(size % backbone.stride for size in patch):
            raise UsageError(
                f"Patches of {' x '.join(map(str, patch))} do not fit {recipe.network}.",
                f"Give sizes that {backbone.stride} divides.",
            )


def _network_options(recipe: Recipe, task: Task) -> dict:
    """Options of the recipe's network, with what follows from the task and the data.

    A stack of modalities that is trained on complete cases only is made for these, and its bundle says so: it has
    never met a missing one.
    """
    options = {
        "modalities": len(task.modalities),
        "classes": task.num_classes,
        **recipe.network_options,
    }
    if recipe.preprocess.slices:
        options = {"spatial_dims": 2, **options}
    stacked = issubclass(NETWORKS.get(recipe.network, Backbone), FixedSubset)
    if stacked and recipe.missingness == "full" and options.get("inputs") is None:
        options["inputs"] = list(range(len(task.modalities)))
    return options
