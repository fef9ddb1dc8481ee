"""Training objectives by name. A new paradigm is a file here and a line in ``OBJECTIVES``."""

from __future__ import annotations

from medmap.errors import UsageError
from medmap.option_names import misfit
from medmap.training.objectives.acn import ACN
from medmap.training.objectives.base import Context, Frozen, Group, Objective
from medmap.training.objectives.kd_net import KDNet
from medmap.training.objectives.mckd import ModalityDistillation
from medmap.training.objectives.passion import Passion
from medmap.training.objectives.plain import Plain
from medmap.training.objectives.pmkl import PMKL
from medmap.training.objectives.pmr import PMR
from medmap.training.objectives.protokd import ProtoKD
from medmap.training.objectives.sls import SharedLatentSpace
from medmap.training.objectives.smu_net import SMUNet
from medmap.training.objectives.with_anchor import WithAnchor

OBJECTIVES: dict[str, type[Objective]] = {
    "acn": ACN,
    "kd-net": KDNet,
    "mckd": ModalityDistillation,
    "passion": Passion,
    "plain": Plain,
    "pmkl": PMKL,
    "pmr": PMR,
    "protokd": ProtoKD,
    "sls": SharedLatentSpace,
    "smu-net": SMUNet,
}

__all__ = ["OBJECTIVES", "Context", "Frozen", "Group", "Objective", "WithAnchor", "build_objective"]


def build_objective(name: str, context: Context, options: dict) -> Objective:
    """Build an objective from plain data, as a recipe states it.

    Raises:
        UsageError: the name is unknown.
        BundleError: an option is unknown.
    """
    if name not in OBJECTIVES:
        raise UsageError(
            f"The objective '{name}' is unknown.", f"Use one of {', '.join(OBJECTIVES)}."
        )
    try:
        return OBJECTIVES[name](context, **options)
    except TypeError as error:
        raise misfit(
            f"The objective {name}", OBJECTIVES[name], options, error, ("context",)
        ) from error
