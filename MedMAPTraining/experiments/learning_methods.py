"""What ``learning.py`` trains: the budget of all methods, and a recipe for each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medmap.preprocess import PreprocessSpec
from medmap.tables.settings import SMALL_NETWORKS
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe, WindowedInference

COHORT_SPACING = 3.0
"""Voxels of the phantoms, in mm."""
SPACING = 4.0
"""Voxels that networks see, in mm. Scores are taken on the phantoms' own grid."""
TRAINING_PATIENTS = 24
TEST_PATIENTS = 8
STEPS = 800
PATCH = (32, 32, 32)
"""12.8 cm, most of a brain: 13 networks take an hour of one core. Instance normalization takes its
statistics over the patch, so that a network is scored in windows of its patch."""
ALL = "t1+t1ce+t2+flair"
SUBSETS = ("t1ce", ALL)
"""Of dedicated methods, which train a network for each."""

BASE = Recipe(
    objective="sls",
    missingness="random-subset",
    steps=STEPS,
    patch=PATCH,
    large_share=0.0,
    learning_rate=5e-3,
    preprocess=PreprocessSpec(spacing=SPACING),
    objective_options={"class_weighted": False},
    # As the compared papers do it: windows as large as the patch that the network learned from.
    inference=WindowedInference(),
)
RUNTIME = RuntimeOptions(device="cpu", precision="auto")
BY_COST = (
    "SubsetUNet",
    "VNet",
    "MCKD",
    "UNet",
    "SegResNet",
    "UHeMIS",
    "ShaSpec",
    "GatedUNet",
    "UHVED",
    "mmFormer",
    "RFNet",
    "M2FTrans",
    "RobustMSeg",
)
"""Networks, the cheapest first."""
ATTENTION = {"mlp_width": 64, "window": PATCH[0]}
SIZES: dict[str, dict] = {
    # With a level less, attention has eight times the tokens and takes most of a step.
    "M2FTrans": {"widths": [8, 16, 16, 16], **ATTENTION},
    "mmFormer": {"widths": [8, 16, 32, 32], "token_width": 32, **ATTENTION},
    # An eighth, twice the rehearsal's, stayed at a WT of .36: too few channels at half resolution.
    "MCKD": {"width": 0.25},
    "ShaSpec": {"width": 0.25},
}
"""Options of networks for which twice the width of a rehearsal is not the right size."""
PASSION = {"variant": "released", "class_weighted": False}
FIXED = {"rates": {"t1": 0.2, "t1ce": 0.4, "flair": 0.6, "t2": 0.8}, "seed": 0}


@dataclass(frozen=True)
class Method:
    """A training: its recipe, and the method whose bundle is its teacher."""

    recipe: Recipe
    teacher: str = ""


def methods() -> dict[str, Method]:
    """Every network with its own losses, then objectives on the networks that they are for.

    The cheapest networks come first.
    """
    methods_by_name: dict[str, Method] = {}
    for network in BY_COST:
        options = wider(SMALL_NETWORKS.get(network, {"widths": [8, 16, 24]}))
        options |= SIZES.get(network, {})
        recipe = replace(BASE, network=network, network_options=options)
        if network in ("UNet", "VNet", "SegResNet"):
            recipe = replace(
                recipe,
                objective="plain",
                objective_options={},
                missingness="full",
                subsets=(ALL,),
            )
        methods_by_name[network] = Method(recipe)
    for network in ("SubsetUNet", "RFNet", "mmFormer", "M2FTrans"):
        idt = replace(
            methods_by_name[network].recipe, missingness="fixed", missingness_options=FIXED
        )
        methods_by_name[f"{network}-imbalanced"] = Method(idt)
        passion = replace(idt, objective="passion", objective_options=PASSION)
        methods_by_name[f"{network}-passion"] = Method(passion)
    for network in ("SubsetUNet", "mmFormer"):
        recipe = methods_by_name[network].recipe
        aligned = replace(
            recipe,
            network_options={**recipe.network_options, "stem": {"at": "mod_bottleneck"}},
            alignment={"anchor": "mixture", "tap": "mod_bottleneck"},
        )
        methods_by_name[f"{network}-aligned"] = Method(aligned)
    distilled = replace(
        methods_by_name["MCKD"].recipe,
        objective="mckd",
        missingness_options={"by": "cardinality"},
        held_out_cases=3,
    )
    methods_by_name["MCKD-distilled"] = Method(distilled)
    # The same cases and subsets, so that the distillation is all that differs.
    undistilled = replace(
        distilled, objective_options={**distilled.objective_options, "alpha": 0.0}
    )
    methods_by_name["MCKD-undistilled"] = Method(undistilled)
    student = replace(BASE, objective_options={}, missingness="full", subsets=SUBSETS)
    for name, objective, network in (
        ("kd-net", "kd-net", "UNet"),
        ("pmkl", "pmkl", "UNet"),
        ("protokd", "protokd", "VNet"),
    ):
        recipe = replace(
            student,
            objective=objective,
            network=network,
            network_options=methods_by_name[network].recipe.network_options,
        )
        methods_by_name[name] = Method(recipe, teacher=network)
    for objective in ("acn", "smu-net"):
        recipe = replace(
            student,
            objective=objective,
            objective_options={"discriminator_width": 8},
            network="SegResNet",
            network_options={
                **methods_by_name["SegResNet"].recipe.network_options,
                "style": objective == "smu-net",
            },
        )
        methods_by_name[objective] = Method(recipe)
    return methods_by_name


def wider(options: dict) -> dict:
    """Small options at twice the width, where networks have ``widths`` or ``width``."""
    doubled = dict(options)
    for name in ("widths", "width"):
        value = doubled.get(name)
        if isinstance(value, list):
            doubled[name] = [2 * width for width in value]
        elif value is not None:
            doubled[name] = 2 * value
    return doubled
