"""The table of parameters on the page of backbones is what the code builds, and what was published,
to its printed digits.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from medmap.networks import NETWORKS, build_network
from medmap.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[3] / "MedMAPTraining"
TEXT = (ROOT.parent / "docs/reference/networks.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| (\w+) \| (?:`(\{.*?\})`)? ?\| ([\d,]+) \| ([\d.]+ M|–) \| (.*?) \|$", TEXT, re.MULTILINE
)
UNUSED_IN_RELEASED_MMFORMER = 4 * (512 * 128 + 128)


def built(name: str, options: str) -> int:
    with torch.device("meta"):
        network = build_network(name, json.loads(options or "{}"))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "options", "stated", "published", "why"), ROWS, ids=[f"{r[0]} {r[1]}" for r in ROWS]
)
def test_the_table_is_true(name, options, stated, published, why):
    count = built(name, options)
    assert count == int(stated.replace(",", ""))
    if published == "–":
        return
    if name == "mmFormer" and not options:
        count += UNUSED_IN_RELEASED_MMFORMER
    digits = len(published.split()[0].partition(".")[2])
    assert f"{count / 1e6:.{digits}f} M" == published


NO_RECIPES = ("papers", "splits", "tables")
"""Folders of other data: printed figures, splits, rows of tables."""
RECIPES = sorted(
    path for path in (ROOT / "recipes").rglob("*.json") if path.parent.name not in NO_RECIPES
)


def test_every_network_is_in_the_table_and_has_a_recipe():
    assert {row[0] for row in ROWS} == set(NETWORKS)
    recipes = {Recipe.read(path).network for path in RECIPES}
    assert recipes == set(NETWORKS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_says_what_it_is_and_builds(path):
    recipe = Recipe.read(path)
    assert len(recipe.about) > 40
    with torch.device("meta"):
        network = build_network(recipe.network, recipe.network_options)
    for patch in (recipe.patch, recipe.large_patch):
        assert all(n % network.stride == 0 for n in patch), (
            f"patches are no multiples of {network.stride}"
        )
