"""Several methods in one figure: a row each for one case, and a line each over all subsets."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from Testing.medmap.report.invented_evaluations import evaluation, picture
from typer.testing import CliRunner

from medmap.cli.main import app
from medmap.evaluation.store import Evaluation
from medmap.report.subset_chart import mean_dice, scored_subsets, subset_chart
from medmap.report.subset_grid import GridRow, subset_grid
from medmap.task import BRATS

CELL = 150
STRIDE = 156
LEFT = 54
TOP = 112


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def cell(page: np.ndarray, top: int, column: int, height: int) -> np.ndarray:
    """The picture in one column of a grid; column 0 is the reference."""
    left = LEFT + STRIDE * column
    return page[top : top + height, left : left + CELL]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations")
    first = evaluation(folder / "a", "first-1.0", 0.1, cases=8)
    return first, evaluation(folder / "b", "second-1.0", 0.0, cases=8)


def test_every_method_has_a_row_and_the_reference_is_shown_once():
    one = picture("A", 0)
    height = round(CELL * 40 / 36)
    empty = {key: np.zeros_like(labels) for key, labels in one.predictions.items()}
    other = replace(one, predictions=empty)
    rows = [GridRow("with", one, {}), GridRow("without", other, {}, with_reference=False)]
    both = pixels(subset_grid(rows, BRATS))
    alone = pixels(subset_grid([GridRow("without", other, {})], BRATS))
    second_top = TOP + height + 46
    for column in range(1, 16):
        above = cell(both, TOP, column, height)
        below = cell(both, second_top, column, height)
        assert np.array_equal(below, cell(alone, TOP, column, height))
        assert not np.array_equal(above, below), "the second method predicts nothing"
    assert (cell(both, TOP, 0, height) < 255).any()
    # Only the middle: titles of the rows stand at the left.
    assert (cell(both, second_top, 0, height) == 255).all()


def test_a_grid_has_the_columns_that_were_chosen():
    rows = [GridRow("A", picture("A", 0), {})]
    height = round(CELL * 40 / 36)
    every = pixels(subset_grid(rows, BRATS))
    order = [BRATS.subset_key(subset) for subset in BRATS.table_order()]
    chosen = pixels(subset_grid(rows, BRATS, [("flair",), ("t1", "t2")]))
    for column, key in enumerate(("flair", "t1+t2"), 1):
        expected = cell(every, TOP, 1 + order.index(key), height)
        assert np.array_equal(cell(chosen, TOP, column, height), expected)
    assert (cell(chosen, TOP, 3, height) == 255).all()
    assert (chosen[:, -10:] == 255).all(), "the legend is not cut off"


def test_the_chart_averages_regions_and_leaves_gaps(two):
    summary = Evaluation.read(two[0]).summary
    subsets = scored_subsets([summary], BRATS)
    assert subsets == [BRATS.subset_key(subset) for subset in BRATS.table_order()]
    by_hand = np.mean([summary.dice.subsets["t1+flair"][name].mean for name in ("WT", "TC", "ET")])
    assert mean_dice(summary, ["t1+flair"], BRATS) == [pytest.approx(by_hand)]
    assert math.isnan(mean_dice(summary, ["none"], BRATS)[0])
    chart = Image.open(io.BytesIO(subset_chart({"a": summary, "b": summary}, BRATS)))
    assert chart.width > chart.height > 400


def test_the_command_draws_the_chosen_case_and_subsets(two, tmp_path):
    figures = tmp_path / "png"
    arguments = ["report", str(two[0]), str(two[1]), "-o", str(tmp_path / "r.html")]
    arguments += ["--figures", str(figures), "--case", "C6", "--subset", "t1", "--subset", "t1+t2"]
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 0, made.output
    names = {path.stem for path in figures.iterdir()}
    assert {"methods-C6", "methods-by-subset"} <= names
    assert "methods-C0" not in names
    drawn = np.asarray(Image.open(figures / "methods-C6.png").convert("RGB"))
    height = round(CELL * 40 / 36)
    assert (cell(drawn, TOP, 2, height) < 255).any()
    assert (cell(drawn, TOP, 3, height) == 255).all()


@pytest.mark.parametrize(
    ("choice", "cause"),
    [
        (["--case", "C5"], "No evaluation has a picture of the case C5."),
        (["--subset", "t9"], "t9"),
        (["--case", "C0", "--subset", "t1", "--subset", "t1+x"], "x"),
    ],
)
def test_what_has_no_picture_is_refused_before_anything_is_written(two, tmp_path, choice, cause):
    page = tmp_path / "r.html"
    refused = CliRunner().invoke(app, ["report", str(two[0]), "-o", str(page), *choice])
    assert refused.exit_code != 0
    assert cause in str(refused.exception) + refused.output
    assert not page.exists()
