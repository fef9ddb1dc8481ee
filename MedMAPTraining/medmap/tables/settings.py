"""What a table changes in its rows' recipes: steps, settings by name, sizes of a rehearsal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from medmap.errors import BundleError, UsageError
from medmap.training.recipe import Recipe

SMALL_NETWORKS: dict[str, dict] = {
    "GatedUNet": {"widths": [4, 6, 8]},
    "M2FTrans": {"widths": [4, 8, 8], "depth": 2, "heads": 2, "mlp_width": 16, "window": 16},
    "MCKD": {"width": 0.0625, "blocks": [1, 1]},
    "RFNet": {"widths": [4, 6, 8], "region_hidden": 4, "weight_hidden": 6},
    "RobustMSeg": {"widths": [4, 6, 8], "style_width": 2},
    "SegResNet": {"width": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    "ShaSpec": {"width": 0.0625, "blocks": [1, 1]},
    "UHVED": {"widths": [4, 8, 16]},
    "UHeMIS": {"widths": [4, 8, 16]},
    "UNet": {"widths": [4, 6, 8]},
    "VNet": {"widths": [4, 6, 8], "depths": [1, 2, 1]},
    "mmFormer": {
        "widths": [4, 8, 8],
        "token_width": 16,
        "mlp_width": 32,
        "heads": 2,
        "window": 16,
    },
}
"""Options by backbone with which a rehearsal takes seconds."""
REHEARSAL_STEPS = 2
REHEARSAL_SPACING_MM = 4.0
REHEARSAL_MISSING_RATE = 0.5
"""Largest missing rate. A rehearsal has two training cases: of a higher rate neither would have the
modality, and no subset with it could be scored."""


def parse_settings(assignments: Sequence[str]) -> dict[str, object]:
    """``seed=1``, ``preprocess.scaling=minmax`` ... by name; values are JSON, or else text.

    Raises:
        UsageError: an assignment has no name or no value, or a name comes twice.
    """
    settings: dict[str, object] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator or not name or not text or name in settings:
            raise UsageError(
                f"'{assignment}' sets nothing.", "Write NAME=VALUE once for each field of a recipe."
            )
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings


def with_settings(recipe: Recipe, settings: Mapping[str, object]) -> Recipe:
    """The recipe with fields set by their dotted names. Raises UsageError for an unknown one."""
    content = json.loads(json.dumps(asdict(recipe)))
    for name, value in settings.items():
        *outer, inner = name.split(".")
        section = content
        for key in outer:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise UsageError(f"A recipe has no field {name}.", "Name one that holds fields.")
        section[inner] = value
    try:
        return Recipe.from_dict(content)
    except BundleError as error:
        # Settings come from the command line: a wrong one is a wrong use, not a damaged recipe.
        raise UsageError(error.cause, error.remedy) from error
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The recipe cannot be changed so ({error}).", "See medmap recipes NAME for its fields."
        ) from error


def rehearsed(recipe: Recipe, steps: int = REHEARSAL_STEPS) -> Recipe:
    """The same recipe in everything but its sizes: small networks and patches at 4 mm."""
    edge = 32 if recipe.network in ("MCKD", "ShaSpec") else 16
    dimensions = 2 if recipe.preprocess.slices else 3
    preprocess = replace(recipe.preprocess, spacing=REHEARSAL_SPACING_MM)
    if recipe.preprocess.slices:
        preprocess = replace(preprocess, field=64.0)
    objective_options = dict(recipe.objective_options)
    if recipe.objective in ("acn", "smu-net"):
        objective_options["discriminator_width"] = 4
    if recipe.objective == "mckd" and objective_options.get("alpha", 1):
        objective_options |= {"meta_every": 1, "meta_batches": 1}
    return replace(
        recipe,
        network_options={**recipe.network_options, **SMALL_NETWORKS.get(recipe.network, {})},
        objective_options=objective_options,
        missingness_options=_with_lower_rates(recipe.missingness_options),
        preprocess=preprocess,
        patch=(edge,) * dimensions,
        large_patch=(edge,) * dimensions,
        batch=min(recipe.batch, 2),
        steps=steps,
        epoch_steps=1,
    )


def _with_lower_rates(options: Mapping) -> dict:
    """Options of a missingness protocol, and of the one within it, at rates of a rehearsal."""
    changed = dict(options)
    if "rates" in changed:
        rates = changed["rates"].items()
        changed["rates"] = {name: min(rate, REHEARSAL_MISSING_RATE) for name, rate in rates}
    if "options" in changed:
        changed["options"] = _with_lower_rates(changed["options"])
    return changed
