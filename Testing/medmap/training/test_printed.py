"""The papers' tables as data: figures by value, averages by arithmetic, cells by what they show."""

from __future__ import annotations

import json
import statistics

import pytest

from medmap.errors import BundleError, MissingInputError
from medmap.training.printed import find_table, printed_tables, published_means
from medmap.training.published import published_rows

TABLES = printed_tables()
TOLERANCE = 0.0151
"""Means of figures that were rounded to two digits, and rounded again."""

ODD_AVERAGES = {
    ("conference-1", "T1", "PMKL", "Original", "Avg."): 59.647,
    ("conference-1", "T2", "Unimodal", "Original", "Avg."): 64.88,
    ("conference-1", "T1ce", "PMKL", "Without alignment", "Avg."): 75.117,
    ("conference-1", "T1ce", "SMU-Net", "P_N", "Avg."): 76.82,
    ("conference-2", "Unimodal", "T2", "Avg."): 64.88,
    ("conference-2", "ProtoKD", "Flair", "Avg."): 64.667,
    ("conference-4", "P_N", "Average"): 78.8,
    ("journal-3", "without T", "T1", "Average"): 59.647,
    ("journal-4", "Full", "Teachers", "P_N", "Avg."): 78.8,
}
"""Misprints: averages over regions that are not those of their columns, and what these give."""


def cell(table: str, row: tuple[str, ...], column: tuple[str, ...]):
    found = TABLES[table]
    position = found.columns.index(column)
    (titled,) = [r for r in found.rows if r.titles == row]
    return titled.cells[position]


@pytest.mark.parametrize(
    ("table", "row", "column", "figure"),
    [
        ("journal-1", ("BraTS2018", "w. MedMAP"), ("mmFormer (SLS)",), 78.29),
        ("journal-2", ("ET", "mmFormer"), ("BraTS2018", "T1ce"), 72.19),
        ("journal-2", ("WT", "ACN"), ("BraTS2020", "Total Avg."), 85.74),
        ("journal-3", ("T*", "T1"), ("Avg.",), 66.40),
        ("journal-4", ("T1", "ACN"), ("P_*", "Avg."), 65.69),
        ("conference-1", ("T1", "SMU-Net"), ("Original", "Avg."), 60.02),
        ("conference-1", ("T2", "SMU-Net"), ("Original", "Avg."), 67.84),
        ("conference-1", ("T1ce", "SMU-Net"), ("Original", "Avg."), 76.99),
        ("conference-1", ("Flair", "SMU-Net"), ("Original", "Avg."), 62.25),
        ("conference-1", ("T1", "KD-Net"), ("P_*", "Imp."), 2.25),
        ("conference-2", ("SMU-Net",), ("T1", "T1ce Avg."), 61.37),
        ("conference-3", ("TC", "Δ, with the paradigm"), ("T1+T1ce+T2+Flair",), 79.22),
        ("conference-4", ("P_*",), ("Average",), 81.29),
        ("conference-5", ("T1ce",), ("Average",), 41.15),
        ("conference-5", ("T2",), ("T1",), 4.29),
        ("passion-1", ("PDT", "Baseline"), ("MyoPS2020", "HD", "RVB"), 15.46),
        ("passion-1", ("(m,l,s)", "+PMR"), ("BraTS2020", "DSC", "Avg."), 68.06),
        ("passion-2", ("●", "●", "○", "○"), ("MyoPS2020", "DSC", "Avg."), 71.86),
        ("passion-3", ("ET", "IDT (+PASSION)", "RFNet"), ("Avg.",), 52.87),
        ("mckd-1", ("T1+T1ce+Flair",), ("Enhancing Tumor", "MCKD"), 77.66),
        ("mckd-1", ("Average",), ("Whole Tumor", "Imprv"), 1.14),
        ("mckd-2a", ("10%",), ("Full2miss",), 91.11),
        ("mckd-3", ("Softmax",), ("Tumor Core",), 85.36),
    ],
)
def test_figures_by_value(table, row, column, figure):
    assert cell(table, row, column).printed == figure


def test_every_table_of_the_papers_is_there():
    names = {f"journal-{n}" for n in range(1, 5)} | {f"conference-{n}" for n in range(1, 6)}
    names |= {"passion-1", "passion-2", "passion-3", "mckd-1", "mckd-2a", "mckd-2b", "mckd-3"}
    assert names <= set(TABLES)
    counts = {name: sum(c.printed is not None for c in TABLES[name].cells) for name in names}
    assert counts == {
        "journal-1": 18,
        "journal-2": 27 * 14,
        "journal-3": 12 * 4 + 3,
        "journal-4": 13 * 12,
        "conference-1": 4 * (4 + 4 * 21),
        "conference-2": 16 + 4 * 20,
        "conference-3": 6 * 16,
        "conference-4": 16,
        "conference-5": 20,
        "passion-1": 25 * 16,
        "passion-2": 6 * 16,
        "passion-3": 27 * 16,
        "mckd-1": 16 * 21 + 15,
        "mckd-2a": 32,
        "mckd-2b": 0,
        "mckd-3": 9,
    }


@pytest.mark.parametrize("name", sorted(TABLES))
def test_averages_over_regions_follow_from_their_columns(name):
    table = TABLES[name]
    for row in table.rows:
        parts: list[float] = []
        for titles, shown in zip(table.columns, row.cells, strict=True):
            keys = shown.keys
            if "minus" in keys or keys.get("subset") == "single" or titles[-1] == "T1ce Avg.":
                continue
            if keys.get("region") != "mean":
                parts += [] if shown.printed is None else [shown.printed]
                continue
            if shown.printed is not None and parts:
                mean = statistics.mean(parts)
                key = (name, *row.titles, *titles)
                if key in ODD_AVERAGES:
                    assert mean == pytest.approx(ODD_AVERAGES[key], abs=0.006)
                    assert abs(mean - shown.printed) > TOLERANCE
                else:
                    assert shown.printed == pytest.approx(mean, abs=TOLERANCE), key
            parts = []


@pytest.mark.parametrize("name", ["conference-3", "passion-3"])
def test_averages_over_subsets_follow_from_their_rows(name):
    for row in TABLES[name].rows:
        figures = [shown.printed for shown in row.cells]
        assert statistics.mean(figures[:-1]) == pytest.approx(figures[-1], abs=TOLERANCE)
        assert len({shown.keys["subset"] for shown in row.cells}) == 16


def test_averages_of_mckd_follow_from_their_columns_but_for_one_misprint():
    table = TABLES["mckd-1"]
    for position, titles in enumerate(table.columns):
        column = [row.cells[position].printed for row in table.rows]
        if titles[1] == "Imprv":
            continue
        mean = statistics.mean(column[:15])
        if titles == ("Tumor Core", "MCKD"):
            # 87.85 is printed from T1 and T1ce, where the average needs 81.85.
            mean -= (87.85 - 81.85) / 15
        assert mean == pytest.approx(column[15], abs=TOLERANCE)


def test_rows_show_their_means():
    rows = published_rows()
    assert rows["conference-smunet-none"].published == {
        "t1 mean": 60.02,
        "t2 mean": 67.84,
        "t1ce mean": 76.99,
        "flair mean": 62.25,
    }
    assert rows["mckd-mckd"].published == {"all ET": 63.74, "all TC": 79.15, "all WT": 86.90}
    assert set(published_means(TABLES)) <= set(rows)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_run_of_a_table_is_a_row(name):
    assert set(TABLES[name].runs) <= set(published_rows())
    assert TABLES[name].runs or TABLES[name].kind == "audiovision"


def test_differences_name_both_of_their_runs():
    shown = TABLES["journal-2"].rows[-1].cells[-1]
    assert shown.run == "journal-acn-pmix-brats2020"
    assert len(shown.operands) == 2
    improvement = cell("mckd-1", ("Average",), ("Enhancing Tumor", "Imprv"))
    assert len(improvement.operands) == 6


def test_a_table_that_is_not_understood_is_refused(tmp_path):
    row = {"title": ["x"], "printed": [1.0, 2.0]}
    content = {"title": "t", "source": "s", "notes": [], "columns": [{"title": ["a"]}]}
    (tmp_path / "odd.json").write_text(json.dumps({**content, "rows": [row]}))
    with pytest.raises(BundleError, match="2 figures in 1 columns"):
        printed_tables(tmp_path)
    with pytest.raises(MissingInputError, match="journal-1"):
        find_table("nothing")
