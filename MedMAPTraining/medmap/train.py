"""The training loop, readable from top to bottom."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from medmap.bundle import InferenceSpec, NetworkSpec, save_bundle
from medmap.checkpoint import load_checkpoint, save_checkpoint
from medmap.dataset import Batch, Sampler
from medmap.errors import BundleError, InternalError, UsageError
from medmap.files import make_folder, write_json
from medmap.inference import resolve_device
from medmap.memory import bytes_per_voxel
from medmap.networks import Backbone, build_network
from medmap.networks.stem import naming_modalities
from medmap.objectives import Context, Group, Objective, WithAnchor, build_objective
from medmap.recipe import Recipe, learning_rate
from medmap.task import Task

WHOLE_SLICES = InferenceSpec(window=(512, 512, 512))
"""Slices go through in one pass."""

OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}

Report = Callable[[int, dict], None]
"""Called after a step with its number and a dict of figures."""


def train(
    recipe: Recipe,
    task: Task,
    sampler: Sampler,
    run: str | Path,
    *,
    teacher: Backbone | None = None,
    start: Backbone | None = None,
    held_out: Callable[[int], Batch] | None = None,
    device: str = "auto",
    precision: str = "bf16",
    minutes: float | None = None,
    save_every: int = 250,
    report: Report | None = None,
) -> int:
    """Train, or go on with a training, until the recipe's steps are done.

    Args:
        recipe: what to train.
        task: of the data.
        sampler: gives the batches (``medmap.dataset.PatchSampler`` on cached cases).
        run: the run's folder; a checkpoint in it is resumed, to the same weights as without the break (CPU, same
            number of threads).
        teacher: a trained network, for objectives that distil from one.
        start: a trained network of the recipe's kind whose weights a new run begins with.
        held_out: batches of cases kept out of training, for objectives that learn on two levels.
        device: torch device, or ``auto``.
        precision: ``bf16`` (autocast) or ``fp32``.
        minutes: stop after this time with a checkpoint, so that long trainings go in short runs.
        save_every: steps between checkpoints.
        report: called after every step.

    Returns:
        The number of steps done; ``recipe.steps`` when the training is complete.

    Raises:
        BundleError: the folder holds a run of another recipe.
        InternalError: the loss is not finite; the last checkpoint stays.
    """
    run, place, started = make_folder(run), resolve_device(device), time.monotonic()
    torch.manual_seed(recipe.seed)
    epoch_steps = recipe.epoch_steps or -(-len(sampler.case_ids) // recipe.batch)
    objective = make_objective(recipe, task, sampler, teacher, held_out).to(place).train()
    if start is not None:
        objective.deploy().load_state_dict(start.state_dict())
    average = copy.deepcopy(objective.deploy())
    optimisers = {name: _optimiser(group, recipe) for name, group in objective.groups().items()}
    step = _resume(run, recipe, objective, average, optimisers)
    while step < recipe.steps:
        batch = sampler.batch(step, recipe.batch, recipe.patch_at(step)).to(place)
        for optimiser in optimisers.values():
            _set_rate(optimiser, step, recipe.steps)
        figures = _step(objective, optimisers, batch, step / recipe.steps, recipe.clip, precision)
        _follow(average, objective.deploy(), min(recipe.ema, (1 + step) / (10 + step)))
        step += 1
        if step % epoch_steps == 0:
            figures |= objective.epoch_end(step // epoch_steps - 1)
        if report:
            rate = next(iter(optimisers.values())).param_groups[0]["lr"]
            report(step, {**figures, "learning_rate": rate, "seconds": time.monotonic() - started})
        over = minutes is not None and time.monotonic() - started > 60 * minutes
        if over or step % save_every == 0 or step == recipe.steps:
            save_checkpoint(run, _state(recipe, step, objective, average, optimisers))
        if over:
            break
    return step


def make_objective(
    recipe: Recipe,
    task: Task,
    sampler: Sampler | None = None,
    teacher: Backbone | None = None,
    held_out: Callable[[int], Batch] | None = None,
) -> Objective:
    """The recipe's objective around its backbone, freshly initialised; without a sampler only to be loaded."""
    options = {"modalities": len(task.modalities), "classes": task.num_classes, **recipe.network_options}
    if recipe.preprocess.slices:
        options = {"spatial_dims": 2, **options}
    cases = sampler.case_ids if sampler else ()
    shown = {case: sampler.shows(case) for case in cases} if sampler else {}
    counts = {name: sum(bool(mask[m]) for mask in shown.values()) for m, name in enumerate(task.modality_names)}
    context = Context(
        task=task,
        backbone=build_network(recipe.network, naming_modalities(options, task.modality_names)),
        teacher=teacher,
        steps=recipe.steps,
        epoch_steps=recipe.epoch_steps or max(1, -(-len(cases) // recipe.batch)),
        cases=len(cases),
        cases_with=counts,
        held_out=held_out,
    )
    objective = build_objective(recipe.objective, context, recipe.objective_options)
    return WithAnchor(objective, task, **recipe.alignment) if recipe.alignment else objective


def export(
    run: str | Path | Sequence[str | Path],
    recipe: Recipe,
    task: Task,
    bundle: str | Path,
    *,
    name: str,
    version: str,
    card: dict,
    overwrite: bool = False,
) -> Path:
    """Write the averaged weights of a run, or of one run a set of scans, as a bundle.

    Raises BundleError when a run has no checkpoint.
    """
    networks, steps = [], 0
    for folder in [run] if isinstance(run, (str, Path)) else run:
        state = load_checkpoint(Path(folder))
        if state is None:
            raise BundleError(f"The run {Path(folder).name} has no checkpoint.", "Train first.")
        network = build_network(*state["network"])
        network.load_state_dict(state["average"])
        networks.append((NetworkSpec(*network.built_from), network))
        steps = state["step"]
    (spec, network), *others = networks
    return save_bundle(
        bundle,
        name=name,
        version=version,
        task=task,
        network=network,
        network_spec=spec,
        others=others,
        preprocess=recipe.preprocess,
        inference=replace(
            WHOLE_SLICES if recipe.preprocess.slices else InferenceSpec(), bytes_per_voxel=bytes_per_voxel(network)
        ),
        postprocess=recipe.postprocess,
        card={**card, "steps": steps, "recipe": asdict(recipe)},
        overwrite=overwrite,
    )


def _optimiser(group: Group, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a group, with the recipe's settings where the group states none."""
    name = group.optimiser or recipe.optimiser
    if name not in OPTIMISERS:
        raise UsageError(f"The optimiser '{name}' is unknown.", f"Use one of {', '.join(OPTIMISERS)}.")
    base = recipe.learning_rate if group.learning_rate is None else group.learning_rate
    decay = recipe.weight_decay if group.weight_decay is None else group.weight_decay
    options = recipe.optimiser_options if group.optimiser_options is None else group.optimiser_options
    parameters = [{"params": group.parameters, "weight_decay": decay}]
    if group.undecayed:
        parameters.append({"params": group.undecayed, "weight_decay": 0.0})
    optimiser = OPTIMISERS[name](parameters, lr=base, **options)
    for own in optimiser.param_groups:
        own["base"], own["schedule"] = base, group.schedule or recipe.schedule
    return optimiser


def _set_rate(optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(group["base"], group["schedule"], step, steps)


def _step(
    objective: Objective,
    optimisers: dict[str, torch.optim.Optimizer],
    batch: Batch,
    progress: float,
    clip: float,
    precision: str,
) -> dict[str, float]:
    """Every optimiser step that the objective wants from one batch; returns the losses by name."""
    figures: dict[str, float] = {}
    steps = objective.steps(batch, progress)
    while True:
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=precision == "bf16"):
            group, losses = next(steps, (None, {}))
        if group is None:
            return figures
        total = sum(losses.values())
        if not torch.isfinite(total):
            raise InternalError(
                f"The loss is not finite at case {', '.join(batch.case_id)}.",
                "Lower the learning rate; the last checkpoint is kept.",
            )
        optimiser = optimisers[group]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        parameters = [p for g in optimiser.param_groups for p in g["params"]]
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        figures.update({name: float(value.detach()) for name, value in losses.items()}, loss=float(total.detach()))


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights."""
    for slow, fast in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if slow.dtype.is_floating_point:
            slow.lerp_(fast, 1 - decay)
        else:
            slow.copy_(fast)


def _state(recipe: Recipe, step: int, objective, average, optimisers) -> dict:
    return {
        "recipe": recipe.digest(),
        "step": step,
        "network": list(objective.deploy().built_from),
        "objective": objective.state_dict(),
        "average": average.state_dict(),
        "optimisers": {name: optimiser.state_dict() for name, optimiser in optimisers.items()},
        "rng": torch.get_rng_state(),
    }


def _resume(run: Path, recipe: Recipe, objective, average, optimisers) -> int:
    """Load the run's checkpoint, if any; returns the number of steps already done."""
    state = load_checkpoint(run)
    if state is None:
        write_json(run / "recipe.json", asdict(recipe))
        return 0
    if state["recipe"] != recipe.digest():
        raise BundleError(
            f"The run {run.name} was started with another recipe (see its recipe.json).",
            "Use the same options, or another --run folder.",
        )
    objective.load_state_dict(state["objective"])
    average.load_state_dict(state["average"])
    for name, optimiser in optimisers.items():
        optimiser.load_state_dict(state["optimisers"][name])
    torch.set_rng_state(state["rng"])
    return int(state["step"])
