"""Optimizers of objectives' groups, their learning rates, and the moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from medmap.errors import BundleError, UsageError
from medmap.training.objectives import Group
from medmap.training.recipe import Recipe, learning_rate

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def make_optimizer(group: Group, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a group, with the recipe's settings where the group states none.

    Raises:
        UsageError: the optimizer is unknown.
        BundleError: it has no such option, or not with that value.
    """
    name = group.optimizer or recipe.optimizer
    if name not in OPTIMIZERS:
        raise UsageError(
            f"The optimizer '{name}' is unknown.", f"Use one of {', '.join(OPTIMIZERS)}."
        )
    base = recipe.learning_rate if group.learning_rate is None else group.learning_rate
    decay = recipe.weight_decay if group.weight_decay is None else group.weight_decay
    options = (
        recipe.optimizer_options if group.optimizer_options is None else group.optimizer_options
    )
    parameters = [{"params": group.parameters, "weight_decay": decay}]
    if group.undecayed:
        parameters.append({"params": group.undecayed, "weight_decay": 0.0})
    try:
        optimizer = OPTIMIZERS[name](parameters, lr=base, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BundleError(
            f"The options of the optimizer {name} do not fit ({error}).", "Correct them."
        ) from error
    for own in optimizer.param_groups:
        own["base"], own["schedule"] = base, group.schedule or recipe.schedule
    return optimizer


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every parameter that an optimizer steps."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set the learning rates of a step, each by its group's schedule."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group["base"], group["schedule"], step, steps)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an exponential moving average of the weights one step toward them; counters are copied."""
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    floating = [pair for pair in pairs if pair[0].dtype.is_floating_point]
    if (
        floating
    ):  # all in one call: hundreds of small ones would cost a GPU more than the step's arithmetic
        slow, fast = zip(*floating, strict=True)
        torch._foreach_lerp_(slow, fast, 1 - decay)
    for slow, fast in pairs:
        if not slow.dtype.is_floating_point:
            slow.copy_(fast)
