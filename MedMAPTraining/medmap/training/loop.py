"""The training loop, readable from top to bottom."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medmap.errors import BundleError, Cancelled, InternalError
from medmap.io.atomic import exclusive_lock, make_folder, write_json
from medmap.networks import Backbone
from medmap.task import Task
from medmap.training.acceleration import (
    as_channels_last,
    channels_last,
    compile_backbone,
    narrow_channels_last,
)
from medmap.training.batch import Batch, Sampler
from medmap.training.checkpoint import (
    load_checkpoint,
    remove_leftovers,
    save_best,
    save_checkpoint,
)
from medmap.training.distributed import Team, launch
from medmap.training.loader import MicroBatch, batches
from medmap.training.objectives import Objective
from medmap.training.optimizers import follow, make_optimizer, parameters_of, set_rate
from medmap.training.options import CheckpointSchedule, RuntimeOptions, StopRequest
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Report = Callable[[int, dict], None]
"""Called after a step with its number and a dict of figures."""

INITIAL_FP16_SCALE = 65536.0
"""What torch's gradient scaler begins with."""


class Validator(Protocol):
    """Scores a network on cases kept out of training (``training.validation.Validation``)."""

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
    options: RuntimeOptions | None = None,
    fabric: Fabric | None = None,
    report: Report | None = None,
    **settings: Any,
) -> int:
    """Train, or go on with a training, until the recipe's steps are done.

    The weights, and with them every figure, are a function of recipe, sampler and number of
    threads: neither a break nor the number of workers changes a bit on a CPU; the number of
    processes changes rounding only, as long as the network draws no random numbers of its own
    (dropout) and has no batch statistics.

    Args:
        recipe: what to train.
        task: of the data.
        sampler: gives the batches (``medmap.training.dataset.PatchSampler`` on cached cases).
        run: the run's folder; a checkpoint in it is resumed, to the same weights as without the
            break (CPU, same number of threads).
        teacher: a trained network, for objectives that distil from one.
        start: a trained network of the recipe's kind whose weights a new run begins with.
        held_out: batches of cases kept out of training, for objectives that learn on two levels.
        validation: scores the averaged network now and then; the best one is kept and exported.
        options: how it is run.
        fabric: processes that have been launched already; None launches them.
        report: called after every step, on the first process.
        settings: fields of ``RuntimeOptions``, instead of it.

    Returns:
        The number of steps done; ``recipe.steps`` when the training is complete.

    Raises:
        BundleError: the folder holds a run of another recipe.
        OutputError: another program trains in the folder.
        UsageError: the batch cannot be dealt out to the processes and passes.
        InternalError: loss, gradients or weights are not finite; the last checkpoint stays.
        Cancelled: Ctrl-C or SIGTERM came; a checkpoint was written at the end of the step.
    """
    options = options or RuntimeOptions(**settings)
    if fabric is None:
        fabric = launch(options.device, options.precision, options.devices)
    team = Team(fabric)
    run = Path(run)
    if team.first:
        make_folder(run)
    torch.manual_seed(recipe.seed)
    objective = make_objective(recipe, task, sampler, teacher, held_out)
    if start is not None:
        objective.deploy().load_state_dict(start.state_dict())
    lock = exclusive_lock(run) if team.first else contextlib.nullcontext()
    with lock:
        training = Training(recipe, objective, sampler, run, options, team)
        return _run(training, validation, report)


def _run(training: Training, validation: Validator | None, report: Report | None) -> int:
    """Step by step to the end, until time is over or a stop is asked for.

    Returns the steps done.
    """
    steps = training.recipe.steps
    started = time.monotonic()
    schedule = CheckpointSchedule(training.options.save_every)
    with StopRequest() as stop:
        for step, figures in training.steps():
            if validation and _validates(training.options, step, steps):
                figures |= training.validate(validation)
            # First reported, then saved: a kill in between makes a step be reported twice, and the
            # log knows how to take that back.
            if report and training.team.first:
                report(step, {**figures, "seconds": time.monotonic() - started})
            time_is_over = _time_is_over(training, started)
            is_stopped = training.team.any(stop.is_set)
            if schedule.is_due(step) or step == steps or time_is_over or is_stopped:
                training.save()
            if is_stopped and step < steps:
                raise Cancelled(
                    f"Stopped after step {step} of {steps}; a checkpoint was written.",
                    "The same command goes on from there.",
                )
            if time_is_over:
                break
    return training.step


def _validates(options: RuntimeOptions, step: int, steps: int) -> bool:
    every = options.validate_every or max(1, steps // 20)
    return step % every == 0 or step in (max(1, every // 5), steps)


def _time_is_over(training: Training, started: float) -> bool:
    minutes = training.options.minutes
    if minutes is None:
        return False
    return training.team.from_first(time.monotonic() - started > 60 * minutes)


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    """Sum of an objective's losses, of which there is at least one."""
    return reduce(torch.add, losses.values())


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
        options: RuntimeOptions,
        team: Team,
    ):
        self.recipe = recipe
        self.sampler = sampler
        self.run = run
        self.options = options
        self.team = team
        self.fabric = team.fabric
        self.device = team.fabric.device
        self.first, self.share = team.share(recipe.micro_batch_size())
        self.objective = objective.to(self.device).train()
        self.average = copy.deepcopy(self.objective.deploy()).eval()
        self.optimizers = {}
        for name, group in self.objective.groups().items():
            self.optimizers[name] = make_optimizer(group, recipe)
        self.epoch_steps = recipe.epoch_steps or -(-len(sampler.case_ids) // recipe.batch)
        self.step = 0
        self.best: dict | None = None
        self._resume()
        if options.channels_last:
            channels_last(self.objective)
        elif options.channels_last is None and self.device.type == "cpu":
            narrow_channels_last(self.objective)
        if options.compiled:
            compile_backbone(self.objective.deploy())

    def steps(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Do the steps that remain; yields after each its number and its figures."""
        incoming = self._batches()
        while self.step < self.recipe.steps:
            started = time.monotonic()
            torch.manual_seed(_seed_of(self.recipe.seed, self.step, self.team.rank))
            for optimizer in self.optimizers.values():
                set_rate(optimizer, self.step, self.recipe.steps)
            figures, seconds_waited = self._step(incoming)
            # A short memory at first: the average would otherwise hold on to the random weights.
            decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
            follow(self.average, self.objective.deploy(), decay)
            self.step += 1
            if self.step % self.epoch_steps == 0:
                figures |= self.objective.epoch_end(self.step // self.epoch_steps - 1)
            first_optimizer = next(iter(self.optimizers.values()))
            figures["learning_rate"] = first_optimizer.param_groups[0]["lr"]
            seconds = time.monotonic() - started
            figures["waiting"] = seconds_waited / max(seconds, 1e-9)
            yield self.step, figures

    def _batches(self) -> Iterator[Batch]:
        """This process's part of every micro-batch of every step that remains."""
        recipe = self.recipe
        first_step = self.step
        size = recipe.micro_batch_size()

        def micro_batch(number: int) -> MicroBatch:
            step = first_step + number // recipe.accumulate
            position = number % recipe.accumulate
            first_sample = position * size + self.first
            return MicroBatch(step, first_sample, self.share, recipe.patch_at(step))

        return batches(
            self.sampler,
            micro_batch,
            count=(recipe.steps - first_step) * recipe.accumulate,
            workers=self.options.workers,
            device=self.device,
            seed=recipe.seed,
        )

    def _step(self, incoming: Iterator[Batch]) -> tuple[dict[str, float], float]:
        """Every optimizer step that the objective takes on one batch.

        Returns:
            The losses by name, and the seconds that were spent waiting for data.

        Raises:
            InternalError: a loss or the norm of a gradient is not finite. Nothing is saved
                afterwards, so that the last checkpoint stays usable.
        """
        started = time.monotonic()
        micro_batches = [next(incoming) for _ in range(self.recipe.accumulate)]
        seconds_waited = time.monotonic() - started
        if self.options.channels_last:
            micro_batches = [replace(b, image=as_channels_last(b.image)) for b in micro_batches]
        progress = self.step / self.recipe.steps
        iterators = [self.objective.steps(batch, progress) for batch in micro_batches]
        figures: dict[str, Tensor] = {}
        is_finite = torch.ones((), dtype=torch.bool, device=self.device)
        while (item := self._backward(iterators)) is not None:
            group, losses = item
            figures |= losses
            loss = self.team.mean(_total(losses))
            # The first group is the segmenter; a discriminator's or a meta step's loss is another.
            figures.setdefault("loss", loss)
            norm = self._update(group)
            is_finite &= torch.isfinite(loss)
            is_finite &= torch.isfinite(norm)
        self.team.average_buffers(self.objective)
        # Read once, when all of the step is queued: each look at a number on a GPU waits until
        # everything is computed.
        numbers = [value.float() for value in figures.values()]
        *values, finite = torch.stack([*numbers, is_finite.float()]).tolist()
        if not finite and not self._is_rescaling():
            raise self._not_finite(micro_batches)
        return dict(zip(figures, values, strict=True)), seconds_waited

    def _not_finite(self, micro_batches: list[Batch]) -> InternalError:
        names = ", ".join(name for batch in micro_batches for name in batch.case_id)
        return InternalError(
            f"Loss or gradient is not finite at step {self.step + 1}, case {names}.",
            "Use fp32, or lower the learning rate; the last checkpoint is intact.",
            option="precision",
        )

    def _backward(self, iterators: list[Iterator]) -> tuple[str, dict[str, Tensor]] | None:
        """The next optimizer step of every micro-batch, and its gradients.

        Returns:
            The optimizer group and the mean losses; None at the end.
        """
        group = ""
        means: dict[str, Tensor] = {}
        for steps in iterators:
            with self.fabric.autocast():
                item = next(steps, None)
            if item is None:
                return None
            group, losses = item
            if not means:
                self.optimizers[group].zero_grad(set_to_none=True)
            shares = {name: value / len(iterators) for name, value in losses.items()}
            # Into the parameters that are stepped, and no others: a discriminator costs a
            # segmenter's step nothing.
            parameters = parameters_of(self.optimizers[group])
            self.fabric.backward(_total(shares), inputs=parameters)
            for name, value in shares.items():
                means[name] = means.get(name, 0) + value.detach()
        return group, means

    def _update(self, group: str) -> Tensor:
        """Step one optimizer; returns the norm of its gradient before clipping."""
        optimizer = self.optimizers[group]
        strategy = self.fabric.strategy
        parameters = parameters_of(optimizer)
        self.team.average_gradients(parameters, list(self.optimizers).index(group))
        # Without clipping the norm is still taken: a gradient that is not
        # finite must not go unseen.
        largest = self.recipe.clip or float("inf")
        norm = strategy.clip_gradients_norm(
            self.objective, optimizer, largest, error_if_nonfinite=False
        )
        strategy.optimizer_step(optimizer)
        return norm

    def _is_rescaling(self) -> bool:
        """Whether fp16's scale is still being found: an infinite loss then only skips the step."""
        scale = self.fabric.strategy.precision.state_dict().get("scale", 0.0)
        return scale > 1.0

    def validate(self, validation: Validator) -> dict[str, float]:
        """Score the averaged network, each process its share of the cases; save the best."""
        own_cases = range(self.team.rank, validation.cases, self.team.size)
        own_rows = []
        for case in own_cases:
            own_rows.append((case, validation.score(self.average, self.device, case)))
        rows = sorted(self.team.gather(own_rows), key=lambda row: row[0])
        figures = {}
        for name in rows[0][1]:
            figures[f"validation_{name}"] = sum(scores[name] for _, scores in rows) / len(rows)
        is_better = self.best is None or figures["validation_dice"] > self.best["validation_dice"]
        if is_better:
            self.best = {"step": self.step, **figures, "cases": validation.cases}
            if self.team.first:
                save_best(self.run, {**self._deployed(), "selection": self.best})
        return figures

    def save(self) -> None:
        """Write a checkpoint. Raises InternalError, and writes none, if a weight is not finite."""
        if not self.team.first:
            return
        tensors = [*self.objective.state_dict().values(), *self.average.state_dict().values()]
        if not _all_finite(tensors):
            raise InternalError(
                f"The weights are not finite after step {self.step}.",
                "Use fp32, or lower the learning rate; the last checkpoint is intact.",
                option="precision",
            )
        save_checkpoint(self.run, self._state())

    def _deployed(self) -> dict:
        network = list(self.objective.deploy().built_from)
        return {"step": self.step, "network": network, "average": self.average.state_dict()}

    def _state(self) -> dict:
        """All that the remaining steps depend on; every step seeds its random numbers anew."""
        optimizers = {}
        for name, optimizer in self.optimizers.items():
            optimizers[name] = optimizer.state_dict()
        return {
            **self._deployed(),
            "recipe": self.recipe.digest(),
            "objective": self.objective.state_dict(),
            "optimizers": optimizers,
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
        state = None
        if self.team.first:
            remove_leftovers(self.run)
            state = load_checkpoint(self.run)
        state = self.team.from_first(state)
        if state is None:
            self._begin()
            return
        if state["recipe"] != self.recipe.digest():
            raise BundleError(
                f"The run {self.run.name} was started with another recipe"
                f"{_differences(self.run, self.recipe)}.",
                "Use the same options, or another run folder.",
            )
        self._load(state)

    def _begin(self) -> None:
        if self.team.first:
            write_json(self.run / "recipe.json", asdict(self.recipe))
        # The scale of fp16: the processes may have trained another network before this one.
        precision = self.fabric.strategy.precision
        scaler = precision.state_dict()
        if scaler:
            fresh = {**scaler, "scale": INITIAL_FP16_SCALE, "_growth_tracker": 0}
            precision.load_state_dict(fresh)

    def _load(self, state: Mapping[str, Any]) -> None:
        self.objective.load_state_dict(state["objective"])
        self.average.load_state_dict(state["average"])
        # Checkpoints of before version 0.2 spell the key otherwise.
        optimizer_states = state.get("optimizers") or state["optimisers"]
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizer_states[name])
        if state["precision"]:
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step = int(state["step"])
        self.best = state["best"]


def _all_finite(tensors: list[Tensor]) -> bool:
    checks = [torch.isfinite(t).all() for t in tensors if t.is_floating_point()]
    return not checks or bool(torch.stack([check.cpu() for check in checks]).all())


def _differences(run: Path, recipe: Recipe) -> str:
    """Settings of a run that differ from a recipe; empty when its recipe.json does not tell."""
    try:
        text = (run / "recipe.json").read_text(encoding="utf-8")
        before = Recipe.from_dict(json.loads(text))
    except (OSError, ValueError, TypeError):
        return ""
    earlier = asdict(before)
    differences = []
    for key, value in asdict(recipe).items():
        if key != "about" and earlier[key] != value:
            differences.append(f"{key} was {earlier[key]!r}, is {value!r}")
    if not differences:
        return ""
    return ": " + "; ".join(differences)


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
