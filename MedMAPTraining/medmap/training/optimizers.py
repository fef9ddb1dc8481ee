"""Optimizers of objectives' groups, their learning rates, and the EMA of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medmap.errors import UsageError
from medmap.option_names import misfit
from medmap.training.objectives import Group
from medmap.training.recipe import Recipe, learning_rate

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
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
    rate = _first_set(group.learning_rate, recipe.learning_rate)
    decay = _first_set(group.weight_decay, recipe.weight_decay)
    options = _first_set(group.optimizer_options, recipe.optimizer_options)
    parameters = [{"params": group.parameters, "weight_decay": decay}]
    if group.undecayed:
        parameters.append({"params": group.undecayed, "weight_decay": 0.0})
    try:
        optimizer = OPTIMIZERS[name](parameters, lr=rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise misfit(
            f"The optimizer {name}", OPTIMIZERS[name], options, error, ("params", "lr")
        ) from error
    for parameter_group in optimizer.param_groups:
        parameter_group["base"] = rate
        parameter_group["schedule"] = group.schedule or recipe.schedule
    return optimizer


def _first_set(value: Any, default: Any) -> Any:
    """The group's value, or the recipe's where the group states none."""
    return default if value is None else value


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every parameter that an optimizer steps."""
    parameters: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    return parameters


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set the learning rates of a step, each by its group's schedule."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group["base"], group["schedule"], step, steps)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an exponential moving average (EMA) one step toward the weights; counters are copied."""
    averages = average.state_dict().values()
    weights = model.state_dict().values()
    pairs = list(zip(averages, weights, strict=True))
    # Counters of batch norm are integers and have no mean.
    floating = [pair for pair in pairs if pair[0].dtype.is_floating_point]
    if floating:
        # All in one call: hundreds of small ones would cost a GPU more than the step's arithmetic.
        slow_weights, fast_weights = zip(*floating, strict=True)
        torch._foreach_lerp_(slow_weights, fast_weights, 1 - decay)
    for slow, fast in pairs:
        if not slow.dtype.is_floating_point:
            slow.copy_(fast)
