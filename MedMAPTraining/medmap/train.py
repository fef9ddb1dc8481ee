"""The training loop, readable from top to bottom."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from medmap.bundle import InferenceSpec, NetworkSpec, save_bundle
from medmap.checkpoint import load_checkpoint, save_checkpoint
from medmap.dataset import Augmentation, Batch, PatchSampler
from medmap.errors import BundleError, InternalError, MissingInputError, UsageError
from medmap.files import make_folder, write_json
from medmap.inference import resolve_device
from medmap.missingness import PROTOCOLS
from medmap.networks import build_network
from medmap.objectives import OBJECTIVES, Objective
from medmap.postprocess import PostprocessSpec
from medmap.preprocess import PreprocessSpec
from medmap.task import Task

ISLANDS = PostprocessSpec(island_ml=1.0, island_share=0.1)
"""Of 123 BraTS tumours, 95 % have at most two pieces of more than 1 ml; what is smaller, beside a large tumour, is
mostly skull base or vessel."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training besides the data.

    Attributes:
        about: for people: what it is, where its numbers come from, what is known of its results.
        network, network_options: backbone by name, as in ``medmap.networks.NETWORKS``.
        objective: as in ``medmap.objectives.OBJECTIVES``.
        missingness: as in ``medmap.missingness.PROTOCOLS``.
        steps: optimisation steps in all.
        batch: patches a step.
        patch: voxels of a patch, multiples of the network's stride.
        large_patch, large_share: this share of the steps, spread evenly, uses patches this large: instance
            normalisation takes its statistics over the patch, and inference passes whole heads through in one.
        learning_rate, weight_decay: AdamW's; the rate warms up over 2 % of the steps and falls as a cosine to zero.
        ema: decay of the exponential moving average of the weights, which is what is exported.
        clip: largest norm of the gradient.
        seed: of weights, patches, augmentation and missingness.
    """

    about: str = ""
    network: str = "SubsetUNet"
    network_options: dict = field(default_factory=dict)
    objective: str = "plain"
    missingness: str = "random-subset"
    steps: int = 6000
    batch: int = 1
    patch: tuple[int, int, int] = (80, 80, 80)
    large_patch: tuple[int, int, int] = (128, 144, 128)
    large_share: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    ema: float = 0.998
    clip: float = 5.0
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)

    def digest(self) -> str:
        """Hash of what determines the training, by which a resumed run knows that it is the same one."""
        content = {key: value for key, value in asdict(self).items() if key != "about"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def read(path: str | Path) -> Recipe:
        """A recipe from a JSON file with these fields. Raises MissingInputError or BundleError."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            nested = {"augmentation": Augmentation, "preprocess": PreprocessSpec}
            data = {key: nested[key](**_tuples(value)) if key in nested else value for key, value in data.items()}
            return Recipe(**_tuples(data))
        except FileNotFoundError:
            raise MissingInputError(f"There is no recipe {Path(path).name}.", "Check the path.") from None
        except (ValueError, TypeError) as error:
            raise BundleError(f"The recipe {Path(path).name} is not understood ({error}).", "Correct it.") from error


def _tuples(data: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


Report = Callable[[int, dict], None]
"""Called after a step with its number and a dict of figures."""


def train(
    recipe: Recipe,
    task: Task,
    folders: Sequence[Path],
    run: str | Path,
    *,
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
        folders: cached cases (``medmap.dataset.cache_case``).
        run: the run's folder; a checkpoint in it is resumed, to the same weights as without the break (CPU, same
            number of threads).
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
    objective, average = build_objective(recipe, task).to(place), build_objective(recipe, task)
    optimisers = {
        name: torch.optim.AdamW(group, recipe.learning_rate, weight_decay=recipe.weight_decay)
        for name, group in objective.groups().items()
    }
    average.load_state_dict(objective.state_dict())
    average.to(place)
    step = _resume(run, recipe, objective, average, optimisers)
    sampler = PatchSampler(folders, PROTOCOLS[recipe.missingness](task), recipe.seed, recipe.augmentation)
    objective.train()
    while step < recipe.steps:
        batch = sampler.batch(step, recipe.batch, _patch(recipe, step)).to(place)
        rate = learning_rate(recipe, step)
        losses = _step(objective, optimisers, batch, step / recipe.steps, rate, recipe.clip, precision)
        _follow(average, objective, min(recipe.ema, (1 + step) / (10 + step)))
        step += 1
        if report:
            report(step, {**losses, "learning_rate": rate, "seconds": time.monotonic() - started})
        over = minutes is not None and time.monotonic() - started > 60 * minutes
        if over or step % save_every == 0 or step == recipe.steps:
            save_checkpoint(run, _state(recipe, step, objective, average, optimisers))
        if over:
            break
    return step


def build_objective(recipe: Recipe, task: Task) -> Objective:
    """The recipe's objective around its backbone, freshly initialised."""
    if recipe.objective not in OBJECTIVES:
        raise UsageError(f"The objective '{recipe.objective}' is unknown.", f"Use one of {', '.join(OBJECTIVES)}.")
    options = {"modalities": len(task.modalities), "classes": task.num_classes, **recipe.network_options}
    return OBJECTIVES[recipe.objective](build_network(recipe.network, options))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up over the first 2 % of the steps, then a cosine to zero (Loshchilov and Hutter, ICLR 2017)."""
    warm = max(1, recipe.steps // 50)
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    angle = torch.pi * (step - warm) / max(1, recipe.steps - warm)
    return recipe.learning_rate * 0.5 * (1 + float(torch.cos(torch.tensor(angle))))


def export(
    run: str | Path,
    recipe: Recipe,
    task: Task,
    bundle: str | Path,
    *,
    name: str,
    version: str,
    card: dict,
    overwrite: bool = False,
) -> Path:
    """Write the averaged weights of a run as a bundle. Raises BundleError when the run has no checkpoint."""
    state = load_checkpoint(Path(run))
    if state is None:
        raise BundleError(f"The run {Path(run).name} has no checkpoint.", "Train first.")
    objective = build_objective(recipe, task)
    objective.load_state_dict(state["average"])
    options = {"modalities": len(task.modalities), "classes": task.num_classes, **recipe.network_options}
    return save_bundle(
        bundle,
        name=name,
        version=version,
        task=task,
        network=objective.deploy(),
        network_spec=NetworkSpec(recipe.network, options),
        preprocess=recipe.preprocess,
        inference=InferenceSpec(),
        postprocess=ISLANDS,
        card={**card, "steps": state["step"], "recipe": asdict(recipe)},
        overwrite=overwrite,
    )


def _patch(recipe: Recipe, step: int) -> tuple[int, int, int]:
    """Every 1 / large_share-th step is a large one."""
    large = int((step + 1) * recipe.large_share) > int(step * recipe.large_share)
    return recipe.large_patch if large else recipe.patch


def _step(
    objective: Objective,
    optimisers: dict[str, torch.optim.Optimizer],
    batch: Batch,
    progress: float,
    rate: float,
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
        nn.utils.clip_grad_norm_(parameters, clip)
        for g in optimiser.param_groups:
            g["lr"] = rate
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
