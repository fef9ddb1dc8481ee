"""Scores of every subset, their tables, and evaluations that stop and resume."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from Testing.medmap.evaluation.scored_rows import rows_of
from typer.testing import CliRunner

from medmap.bundle.loading import load_bundle
from medmap.commands.comparison import compare_evaluations
from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.commands.exchanged_images import parse_feed
from medmap.errors import Cancelled, InputDataError, MissingInputError, OutputError, UsageError
from medmap.evaluation import (
    Evaluation,
    Summary,
    groups,
    identity,
    read_rows,
    summarize,
    table_csv,
    write_rows,
)
from medmap.evaluation.scoring import score_labels
from medmap.io.cohorts import find_cases
from medmap.io.nifti import write_labels, write_volume
from medmap.task import BRATS, Task
from medmap.training.splits import earlier_scorings, ledger, part_of, read_split
from medmap.volume import Grid

GRID = Grid((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture
def cohort(tmp_path, make_case):
    """Three patients with labels; the last one has T1ce and FLAIR only."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    for n in range(3):
        volumes = make_case((28, 32, 26), seed=n)
        (folder / f"Case_{n}").mkdir()
        for name, volume in volumes.items():
            if n < 2 or name in ("t1ce", "flair"):
                write_volume(
                    folder / f"Case_{n}/Case_{n}_{name}.nii.gz",
                    volume.array.astype(np.int16),
                    volume.affine,
                )
        label = np.zeros(volume.array.shape, np.uint8)
        label[12:20, 12:20, 8:16] = 2
        label[14:18, 14:18, 10:14] = 4
        write_labels(folder / f"Case_{n}/Case_{n}_seg.nii.gz", label, volume.grid)
    return folder


def run(cohort, bundle, **options):
    return evaluate_bundle(
        cohort, bundle, EvaluateOptions(device="cpu", **options), lambda f, t: None
    )


# --- scores ---


def test_the_small_region_rule_is_in_mm3_and_touches_only_its_region():
    prediction, reference = np.zeros((2, *GRID.shape), np.uint8)
    prediction[5:9, 5:9, 5:8] = 4  # 48 voxels of 8 mm³: 384 mm³
    wt, _, et = score_labels(prediction, reference, BRATS, GRID, case="c", subset="t1")
    assert (et.dice, et.dice_rule, et.hd95_rule_mm) == (0.0, 1.0, 0.0)
    assert math.isnan(et.hd95_mm)
    assert (wt.dice, wt.dice_rule) == (0.0, 0.0)
    reference[5:9, 5:9, 5:8] = 4
    _, _, et = score_labels(prediction, reference, BRATS, GRID, case="c", subset="t1")
    assert (et.dice, et.dice_rule) == (1.0, 0.0)
    assert math.isnan(et.hd95_rule_mm)
    prediction[5:9, 5:9, 5:9] = 4  # 512 mm³
    _, _, et = score_labels(prediction, reference, BRATS, GRID, case="c", subset="t1")
    assert et.dice_rule == et.dice < 1


def test_a_task_without_the_rule_has_none():
    data = BRATS.to_dict()
    for region in data["regions"]:
        del region["min_volume_mm3"]
    assert Task.from_dict(data) == BRATS  # a bundle of before the rule gets its task's
    other = Task.from_dict({**data, "name": "other"})
    assert [region.min_volume_mm3 for region in other.regions] == [0, 0, 0]
    prediction = np.zeros(GRID.shape, np.uint8)
    prediction[5, 5, 5] = 4
    rows = score_labels(prediction, np.zeros_like(prediction), other, GRID, case="c", subset="t1")
    assert all(row.dice_rule == row.dice for row in rows)


def test_the_penalty_is_brats_diagonal():
    grid = Grid((240, 240, 155), np.eye(4))
    labels = np.zeros(grid.shape, np.uint8)
    assert score_labels(labels, labels, BRATS, grid, case="c", subset="t1")[
        0
    ].diagonal_mm == pytest.approx(373.1287)


def test_scores_survive_their_csv(tmp_path):
    rows = [
        *rows_of(lambda n, s: 0.5 + n / 17),
        replace(rows_of(lambda n, s: 1.0, 1)[0], hd95_mm=math.nan),
    ]
    write_rows(tmp_path / "scores.csv", rows)
    again = read_rows(tmp_path / "scores.csv")
    assert math.isnan(again[-1].hd95_mm)
    assert [(r.case, r.subset, r.region) for r in again] == [
        (r.case, r.subset, r.region) for r in rows
    ]
    assert [r.dice for r in again] == [r.dice for r in rows]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputDataError, match=r"other\.csv"):
        read_rows(tmp_path / "other.csv")


# --- tables ---


def test_subsets_are_in_the_order_of_the_papers_tables():
    titles = [BRATS.subset_title(s) for s in BRATS.table_order()]
    assert titles[:5] == ["T2", "T1ce", "T1", "FLAIR", "T1ce + T2"]
    assert titles[-1] == "T1 + T1ce + T2 + FLAIR"
    assert len(set(titles)) == 15
    other = Task("other", BRATS.modalities[:3], (), ())
    assert other.table_order() == other.subsets()


def test_averages_weigh_every_subset_once():
    value = {1: 0.2, 2: 0.4, 3: 0.6, 4: 0.9}
    summary = summarize(rows_of(lambda n, s: value[len(s)]), BRATS, "made up").to_dict()
    averages = {name: scores["WT"] for name, scores in summary["averages"].items()}
    assert [averages[f"{n} missing"]["mean"] for n in (3, 2, 1, 0)] == [0.2, 0.4, 0.6, 0.9]
    assert [averages[f"{n} missing"]["subsets"] for n in (3, 2, 1, 0)] == [4, 6, 4, 1]
    assert averages["all subsets"]["mean"] == pytest.approx(
        (4 * 0.2 + 6 * 0.4 + 4 * 0.6 + 0.9) / 15, abs=1e-4
    )
    assert averages["without T1ce"]["subsets"] == 7
    assert averages["without T1ce"]["mean"] == pytest.approx(
        (3 * 0.2 + 3 * 0.4 + 0.6) / 7, abs=1e-4
    )
    assert next(iter(summary["subsets"])) == "t2"
    assert summary["subsets"]["t2"]["ET"] == {"mean": 0.2, "sd": 0.0, "n": 6}


def test_summaries_are_read_back_and_so_are_those_with_earlier_keys():
    rows = [
        replace(row, hd95_mm=math.nan) if row.case == "c0" else row
        for row in rows_of(lambda n, s: 0.5)
    ]
    summary = summarize(rows, BRATS, "x")
    content = json.loads(json.dumps(summary.to_dict()))
    assert Summary.from_dict(content) == summary
    former = json.loads(json.dumps(content).replace('"penalized"', '"penalised"'))
    assert former != content
    assert Summary.from_dict(former) == summary
    early = {"data": "x", "cases": 1, "subsets": {"t1": {"WT": {"mean": 0.5, "sd": 0.1, "n": 3}}}}
    assert Summary.from_dict(early).tables.keys() == {"dice"}
    assert Summary.from_dict(early).dice.subsets["t1"]["WT"].mean == 0.5


def test_an_average_of_an_incomplete_group_is_not_given():
    rows = [row for row in rows_of(lambda n, s: 0.5) if row.subset != "t1ce"]
    assert "3 missing" not in summarize(rows, BRATS, "x").dice.averages
    assert "without T1ce" in summarize(rows, BRATS, "x").dice.averages


def test_average_distances_weigh_every_subset_once_and_say_what_is_undefined():
    rows = [
        replace(row, hd95_mm=float(len(row.subset.split("+")))) for row in rows_of(lambda n, s: 0.5)
    ]
    rows = [
        replace(r, hd95_mm=math.nan) if (r.case, r.subset, r.region) == ("c0", "t1", "ET") else r
        for r in rows
    ]
    averages = summarize(rows, BRATS, "x").to_dict()["hd95"]["averages"]
    assert averages["3 missing"]["WT"] == {
        "mean": 1.0, "sd": 0.0, "n": 6, "undefined": 0, "penalized": 1.0, "subsets": 4,
    }  # fmt: skip
    assert averages["all subsets"]["WT"]["mean"] == round((4 * 1 + 6 * 2 + 4 * 3 + 4) / 15, 2)
    assert averages["3 missing"]["ET"]["undefined"] == 1
    assert averages["3 missing"]["ET"]["n"] == 5
    assert averages["3 missing"]["ET"]["penalized"] == round((3 + (5 + 373.13) / 6) / 4, 2)
    gone = [replace(r, hd95_mm=math.nan) if r.subset == "t1" else r for r in rows]
    assert summarize(gone, BRATS, "x").hd95.averages["3 missing"]["WT"].mean is None


def test_the_table_is_a_csv_too(tmp_path):
    rows = [
        replace(r, hd95_mm=math.nan) if r.region == "ET" else r
        for r in rows_of(lambda n, s: 0.1 * n)
    ]
    lines = list(csv.DictReader(table_csv(summarize(rows, BRATS, "x"), BRATS).splitlines()))
    assert [line["scans"] for line in lines[:2]] == ["t2", "t1ce"]
    assert lines[14]["scans"] == "t1+t1ce+t2+flair"
    assert [line["scans"] for line in lines[15:]] == [f"mean, {name}" for name in groups(BRATS)]
    assert float(lines[0]["WT_dice_mean"]) == 0.25
    assert float(lines[0]["TC_hd95_mean"]) == 4
    assert (lines[0]["ET_hd95_mean"], lines[0]["ET_hd95_undefined"]) == ("", "6")
    assert lines[0]["ET_hd95_rule_mean"] == "4.0"


def test_undefined_distances_are_counted_and_penalized_not_averaged():
    rows = [row for row in rows_of(lambda n, s: 0.5, 4) if row.subset == "t1"]
    rows = [
        replace(row, hd95_mm=math.nan, prediction_ml=0.0) if row.case == "c0" else row
        for row in rows
    ]
    summary = summarize(rows, BRATS, "x").to_dict()
    entry = summary["hd95"]["subsets"]["t1"]["WT"]
    assert (entry["mean"], entry["n"], entry["undefined"]) == (4.0, 3, 1)
    assert entry["penalized"] == pytest.approx((3 * 4 + 373.13) / 4, abs=0.01)
    assert summary["empty"]["WT"]["prediction"] == 1


def test_groups_follow_the_task():
    two = Task("two", BRATS.modalities[:2], (), ())
    assert list(groups(two)) == ["1 missing", "0 missing", "all subsets", "without T1ce"]


# --- splits ---


def test_splits_are_read_from_json_csv_and_lists(tmp_path):
    (tmp_path / "s.json").write_text('{"train": ["a"], "validation": ["b"], "test": ["c", "d"]}')
    (tmp_path / "s.csv").write_text("case, part\na, train\nb, val\nc, test\nd, test\n")
    (tmp_path / "test.txt").write_text("c\nd\n")
    expected = {"train": ("a",), "val": ("b",), "test": ("c", "d")}
    assert read_split(tmp_path / "s.json") == read_split(tmp_path / "s.csv") == expected
    assert read_split(tmp_path / "test.txt") == {"test": ("c", "d")}
    with pytest.raises(UsageError, match="no part"):
        part_of(expected, "holdout")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"train": ["a"], "test": ["a"]}', "twice"),
        ("[1, 2]", "not understood"),
        ("{}", "no case"),
        ('{"train": ["a"', "not understood"),
    ],
)
def test_a_split_that_leaks_or_is_garbled_is_refused(text, words, tmp_path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputDataError, match=words):
        read_split(tmp_path / "s.json")


# --- from files to files ---


def test_a_stopped_evaluation_goes_on_where_it_was(cohort, tiny_bundle_path, tmp_path, monkeypatch):
    from medmap.commands import evaluation

    scored = []
    original = evaluation.score_case

    def counted(case, *rest):
        scored.append(case.case_id)
        return original(case, *rest)

    monkeypatch.setattr(evaluation, "score_case", counted)
    options = EvaluateOptions(output=tmp_path / "out", device="cpu")
    with pytest.raises(Cancelled, match="1 of 3"):
        evaluate_bundle(
            cohort, tiny_bundle_path, options, lambda f, t: None, lambda: len(scored) == 1
        )
    assert not (tmp_path / "out/evaluation.json").exists()
    found = evaluate_bundle(cohort, tiny_bundle_path, options, lambda f, t: None)
    assert scored == ["Case_0", "Case_1", "Case_2"]
    whole = run(cohort, tiny_bundle_path, output=tmp_path / "whole")
    assert found.summary == whole.summary == Evaluation.read(tmp_path / "out").summary
    assert (tmp_path / "out/scores.csv").read_bytes() == (
        tmp_path / "whole/scores.csv"
    ).read_bytes()
    read = Evaluation.read(tmp_path / "out")
    assert len(read.rows) == (15 + 15 + 3) * 3
    assert (tmp_path / "out/table.csv").read_text() == table_csv(read.summary, read.task)
    assert read.summary.dice.subsets["t1"]["WT"].n == 2
    assert read.summary.dice.subsets["t1ce+flair"]["WT"].n == 3
    picture = read.picture("Case_2")
    assert set(picture.scans) == {"t1ce", "flair"}
    assert set(picture.predictions) == {"t1ce", "flair", "t1ce+flair"}
    assert (
        picture.reference.shape
        == picture.scans["flair"].shape
        == picture.predictions["flair"].shape
    )


def test_predictions_are_those_of_segment_and_each_scan_is_encoded_once(
    cohort, tiny_bundle, monkeypatch
):
    from medmap.evaluation import score_case
    from medmap.inference import segment

    encoded, encode = [], tiny_bundle.network.encode
    monkeypatch.setattr(
        tiny_bundle.network, "encode", lambda image, m: encoded.append(m) or encode(image, m)
    )
    scored = score_case(find_cases(cohort, BRATS)[0], tiny_bundle)
    assert encoded == [0, 1, 2, 3], "each scan once for all 15 subsets"
    alone = segment(scored.volumes, tiny_bundle, reference="t1").labels
    assert np.array_equal(scored.predictions["t1+t1ce+t2+flair"], alone)
    assert len(scored.rows) == 45


def test_another_bundle_does_not_mix_into_the_same_folder(cohort, tiny_bundle_path, tmp_path):
    import shutil

    from medmap.bundle.loading import save_bundle

    run(cohort, tiny_bundle_path, output=tmp_path / "out", pictures=False)
    one = load_bundle(tiny_bundle_path)
    with_other_window = replace(one.inference, overlap=0.5)
    other = save_bundle(
        tmp_path / "other",
        name="other",
        version="1",
        task=one.task,
        network=one.network,
        network_spec=one.network_spec,
        preprocess=one.preprocess,
        inference=with_other_window,
        card={},
    )
    assert identity(other) != identity(tiny_bundle_path)
    with pytest.raises(OutputError, match="another bundle"):
        run(cohort, other, output=tmp_path / "out")
    copied = shutil.copytree(tiny_bundle_path, tmp_path / "copy")
    run(cohort, copied, update_card=True, data_statement="heads")
    assert identity(copied) == identity(tiny_bundle_path)  # the card is no part of the model
    card = load_bundle(copied).card["dice"]
    assert card["subsets"]["t2"]["WT"].keys() == {"mean", "sd", "n"}
    assert "mean, all subsets" in (copied / "README.md").read_text()


def test_a_case_that_cannot_be_scored_stops_the_table_not_the_others(
    cohort, tiny_bundle_path, tmp_path
):
    import shutil

    data = shutil.copytree(cohort, tmp_path / "data")
    (data / "Case_1/Case_1_seg.nii.gz").unlink()
    with pytest.raises(InputDataError, match=r"1 of 3 cases.*Case_1"):
        run(data, tiny_bundle_path, output=tmp_path / "out")
    assert {p.stem for p in (tmp_path / "out/cases").iterdir()} == {"Case_0", "Case_2"}
    assert not (tmp_path / "out/evaluation.json").exists()


def test_test_is_scored_once_and_says_so(cohort, tiny_bundle_path, tmp_path):
    split = tmp_path / "split.json"
    split.write_text('{"val": ["Case_0"], "test": ["Case_1"]}')
    chosen = run(cohort, tiny_bundle_path, split=split)
    assert chosen.summary.part == "val"
    assert not ledger(split).exists()
    first = run(cohort, tiny_bundle_path, split=split, part="test", output=tmp_path / "out")
    assert first.warnings == []
    assert first.scoring == "Scoring 1 of test with these weights, by split.scored.jsonl."
    assert Evaluation.read(tmp_path / "out").about["scoring"] == first.scoring
    assert first.summary.cases == 1
    again = run(cohort, tiny_bundle_path, split=split, part="test", output=tmp_path / "out")
    assert (again.warnings, again.scoring) == ([], first.scoring)  # the same evaluation, read back
    third = run(cohort, tiny_bundle_path, split=split, part="test")
    assert "before with these weights" in third.warnings[0]
    assert third.scoring.startswith("Scoring 2")
    assert chosen.scoring == ""
    assert len(earlier_scorings(split, identity(tiny_bundle_path))) == 2
    split.write_text('{"test": ["Case_1", "Case_9"]}')
    with pytest.raises(InputDataError, match="Case_9"):
        run(cohort, tiny_bundle_path, split=split, part="test")


def test_another_modality_can_be_given_in_the_place_of_one(cohort, tiny_bundle_path, tmp_path):
    """Conference, Table V: scores of t1 <- t2 are those of a cohort whose T1 is the T2 file."""
    (cohort / "Case_2/Case_2_t1ce.nii.gz").rename(cohort / "Case_2/Case_2_t2.nii.gz")
    fed = run(cohort, tiny_bundle_path, feed=parse_feed(["t1=t2"]))
    assert set(fed.summary.dice.subsets) == {"t1"}
    exchanged = tmp_path / "exchanged"
    for n in range(3):
        (exchanged / f"Case_{n}").mkdir(parents=True)
        source = cohort / f"Case_{n}" / f"Case_{n}_t2.nii.gz"
        shutil.copy(source, exchanged / f"Case_{n}" / f"Case_{n}_t1.nii.gz")
        label = f"Case_{n}/Case_{n}_seg.nii.gz"
        shutil.copy(cohort / label, exchanged / label)
    by_hand = run(exchanged, tiny_bundle_path)
    assert fed.summary.dice.subsets["t1"] == by_hand.summary.dice.subsets["t1"]


@pytest.mark.parametrize("assignment", ["t1", "t1=", "=t2", "t1=t9", "t9=t1"])
def test_a_feed_that_names_nothing_is_refused(assignment, cohort, tiny_bundle_path):
    with pytest.raises(UsageError):
        run(cohort, tiny_bundle_path, feed=parse_feed([assignment]))


def test_a_feed_of_an_image_that_is_not_there_is_refused(cohort, tiny_bundle_path):
    with pytest.raises(InputDataError, match="Case_2 has no T2"):
        run(cohort, tiny_bundle_path, feed={"t1": "t2"})


def test_a_split_is_named_or_a_file(cohort, tiny_bundle_path):
    from medmap.cli.main import app

    arguments = ["evaluate", "--data", str(cohort), "--bundle", str(tiny_bundle_path)]
    result = CliRunner().invoke(app, [*arguments, "--split", "brats2018_protokd"])
    assert isinstance(result.exception, InputDataError), "found, but of another cohort"
    assert "28 cases of the split" in result.exception.cause
    result = CliRunner().invoke(app, [*arguments, "--split", "nowhere"])
    assert isinstance(result.exception, MissingInputError)


def test_two_evaluations_are_compared_and_the_card_carries_it(cohort, tiny_bundle_path, tmp_path):
    import shutil

    run(cohort, tiny_bundle_path, output=tmp_path / "a", pictures=False)
    copied = shutil.copytree(tiny_bundle_path, tmp_path / "copy")
    found = run(
        cohort,
        copied,
        output=tmp_path / "b",
        against=tmp_path / "a",
        update_card=True,
        pictures=False,
    )
    assert all(test.p == 1 for test in found.tests)
    assert load_bundle(copied).card["comparison"]["against"] == "tiny-1.0.0"
    tests, _ = compare_evaluations(tmp_path / "a", tmp_path / "b", tmp_path / "tests.csv", "dice")
    assert len((tmp_path / "tests.csv").read_text().splitlines()) == 1 + len(tests)
