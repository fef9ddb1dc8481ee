"""Rare kinds of gliomas: what a plan of a usual one is changed into.

``Style`` holds the probability of each. The kind comes from a stream of its own, so that a style
without rare kinds draws the cases that it always drew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from medmap.errors import UsageError
from medmap.phantom.fields import Draw
from medmap.phantom.style import Style
from medmap.phantom.tumor_plan import Plan, sphere_radius

USUAL = "usual"
CYSTIC = "cystic"
DIFFUSE = "diffuse"
SPECK = "speck"
BULKY = "bulky"

CLOSED = 3.0
"""``Habit.rim_open`` above every value of its field: no rim at all."""

NO_NODULES = 5.0
"""``Habit.nodules`` above every value of its field."""

Z = dict[str, float]
"""Tissue -> z in one modality."""


def _probabilities(style: Style) -> dict[str, float]:
    return {
        CYSTIC: style.cystic,
        DIFFUSE: style.diffuse,
        SPECK: style.speck,
        BULKY: style.bulky,
    }


def require_probabilities(style: Style) -> None:
    """Raises UsageError unless the probabilities of rare kinds are such, together at most 1."""
    probabilities = list(_probabilities(style).values())
    if min(probabilities) < 0 or sum(probabilities) > 1 + 1e-9:
        raise UsageError(
            f"The probabilities of rare kinds of tumors are {probabilities}.",
            "Give numbers from 0 on whose sum is at most 1.",
        )


def draw_kind(draw: Draw, style: Style) -> str:
    """Kind of one case's tumor."""
    level = draw.uniform()
    for kind, probability in _probabilities(style).items():
        if level < probability:
            return kind
        level -= probability
    return USUAL


def plan_of_kind(draw: Draw, plan: Plan, kind: str) -> Plan:
    """The plan of a usual tumor as one of a kind."""
    if kind == CYSTIC:
        return _cystic(draw, plan)
    if kind == DIFFUSE:
        return _diffuse(draw, plan)
    if kind == SPECK:
        return _speck(draw, plan)
    if kind == BULKY:
        return _bulky(draw, plan)
    return plan


def _cystic(draw: Draw, plan: Plan) -> Plan:
    """A smooth cavity of fluid in a thin wall, and little edema."""
    habit = replace(
        plan.habit,
        lobes=0.4 * plan.habit.lobes,
        nodules=NO_NODULES,
        necrosis=1.0,
        necrosis_start=draw.uniform(-0.5, 1.0),
        soft=draw.uniform(0.4, 0.8),
        blood=0.0,
    )
    core_ml = plan.total_ml * draw.uniform(0.5, 0.85)
    return replace(plan, core_ml=core_ml, rim_mm=draw.uniform(1.0, 2.5), habit=habit)


def _diffuse(draw: Draw, plan: Plan) -> Plan:
    """Faint infiltration without a border, hardly any core, no enhancement."""
    habit = replace(
        plan.habit,
        soft=draw.uniform(3.0, 7.0),
        cortex=draw.uniform(0.6, 1.0),
        necrosis=0.0,
        blood=0.0,
    )
    core_ml = plan.total_ml * draw.uniform(0.04, 0.2)
    push = draw.uniform(0.05, 0.25)
    return replace(plan, core_ml=core_ml, enhancing=False, push=push, habit=habit)


def _speck(draw: Draw, plan: Plan) -> Plan:
    """A solid core of which a few tenths of a milliliter enhance."""
    habit = replace(
        plan.habit,
        rim_open=CLOSED,
        # Of a field of unit variance, 0.8 to 4 % lie above: under 1 ml of most cores.
        nodules=draw.uniform(1.75, 2.4),
        necrosis=float(draw.chance(0.3)),
    )
    return replace(plan, enhancing=True, habit=habit)


def _bulky(draw: Draw, plan: Plan) -> Plan:
    """At least 50 ml of uneven enhancement, necrosis in between."""
    total_ml = max(plan.total_ml, math.exp(draw.uniform(math.log(120.0), math.log(220.0))))
    core_ml = total_ml * draw.uniform(0.5, 0.8)
    habit = replace(
        plan.habit,
        rim_open=draw.uniform(-3.0, -2.0),
        nodules=draw.uniform(-0.6, 0.3),
        necrosis=1.0,
        necrosis_start=draw.uniform(0.0, 2.0),
    )
    rim_mm = min(10.0, 0.5 * sphere_radius(core_ml))
    return replace(
        plan, total_ml=total_ml, core_ml=core_ml, enhancing=True, rim_mm=rim_mm, habit=habit
    )


def shade_kind(draw: Draw, means: Mapping[str, Z], kind: str) -> None:
    """Change the means of a usual tumor to those of a kind, in place."""
    if kind == CYSTIC:
        _shade_cyst(draw, means)
    if kind == DIFFUSE:
        _fade(draw, means)


def _shade_cyst(draw: Draw, means: Mapping[str, Z]) -> None:
    """The cavity has the signal of fluid, which proteins brighten in some T1 and FLAIR."""
    for z in means.values():
        z["necrosis"] = z["csf"] + 0.15 * abs(draw.normal())
    if draw.chance(0.4):
        brightening = draw.uniform(0.4, 1.8)
        for modality in ("t1", "t1ce", "flair"):
            means[modality]["necrosis"] += brightening


def _fade(draw: Draw, means: Mapping[str, Z]) -> None:
    """A part of the contrast between tumor and white matter is lost."""
    share = draw.uniform(0.3, 0.7)
    for z in means.values():
        white = z["wm"]
        for tissue in ("ed", "solid"):
            contrast = z[tissue] - white
            z[tissue] = white + share * contrast
