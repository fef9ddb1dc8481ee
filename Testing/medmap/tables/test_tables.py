"""``medmap table``: what it plans, computes, and prints, without and with training."""

from __future__ import annotations

import csv
import json
import statistics

import numpy as np
import pytest
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from medmap.cli.main import app
from medmap.commands.phantoms import write_phantoms
from medmap.errors import MissingInputError, OutputError, UsageError
from medmap.evaluation import ScoreRow, summarize
from medmap.evaluation.store import Evaluation, Store
from medmap.io.atomic import write_json
from medmap.io.cohorts import find_cases
from medmap.tables.audiovision import METHODS, trainings
from medmap.tables.build import printed_text
from medmap.tables.execution import execute
from medmap.tables.options import TableOptions, parse_data, parse_folds
from medmap.tables.plan import make_plan, write_recipes
from medmap.tables.rendering import csv_text, latex, markdown, number
from medmap.tables.settings import parse_settings, rehearsed, with_settings
from medmap.tables.values import Scores, grid_of, regions_of, subsets_of
from medmap.task import BRATS, find_task
from medmap.training.missingness import build_missingness
from medmap.training.printed import find_table, printed_tables
from medmap.training.published import published_rows
from medmap.training.recipe import Recipe

ROWS = published_rows()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three cases in the layout of BraTS 2018."""
    folder = tmp_path_factory.mktemp("data")
    write_phantoms(
        folder, 3, 40, 4.0, False, "cpu", False, lambda fraction, text: None, layout="brats2018"
    )
    return folder


def options(data, output, **changes) -> TableOptions:
    return TableOptions({"": data}, output, rehearsal=True, devices=("cpu",), **changes)


# ---------------------------------------------------------------------------------------- settings


def test_settings_are_json_or_text_by_dotted_names():
    settings = parse_settings(["seed=3", "preprocess.scaling=minmax", "patch=[16, 16, 16]"])
    assert settings == {"seed": 3, "preprocess.scaling": "minmax", "patch": [16, 16, 16]}
    recipe = with_settings(Recipe(), {"seed": 3, "augmentation.flip": 0.25, "patch": [16] * 3})
    assert (recipe.seed, recipe.augmentation.flip, recipe.patch) == (3, 0.25, (16, 16, 16))
    assert with_settings(Recipe(), {}).digest() == Recipe().digest()


@pytest.mark.parametrize("assignment", ["seed", "=3", "seed=", "color=red", "seed.low=1"])
def test_settings_that_set_nothing_are_refused(assignment):
    with pytest.raises(UsageError):
        with_settings(Recipe(), parse_settings([assignment]))


@pytest.mark.parametrize(
    "name", ["journal-acn-pmix-brats2018", "mckd-mckd", "passion-myops2020-pdt"]
)
def test_a_rehearsal_changes_sizes_only(name):
    recipe = ROWS[name].recipe
    small = rehearsed(recipe)
    for field in ("network", "objective", "alignment", "missingness", "optimizer", "inference"):
        assert getattr(small, field) == getattr(recipe, field)
    assert small.steps == 2
    assert max(small.patch) <= 32
    assert len(small.patch) == len(recipe.patch)


@pytest.mark.parametrize("name", sorted(name for name in ROWS if name.startswith("passion-")))
def test_the_two_cases_of_a_rehearsal_have_every_modality_between_them(name):
    """A modality that neither has is no input of the bundle, and its subsets have no score."""
    recipe = rehearsed(ROWS[name].recipe)
    task = find_task(recipe.task)
    cases = ("BraTS20_Training_050", "BraTS20_Training_051")
    missingness = build_missingness(
        recipe.missingness, task, dict(recipe.missingness_options), cases
    )
    masks = [missingness.available(case) for case in cases]
    assert np.logical_or(*masks).all()


def test_data_are_one_folder_or_one_for_each_set(tmp_path):
    (tmp_path / "a=b").mkdir()
    folders = parse_data([f"brats2020={tmp_path}", str(tmp_path / "a=b")])
    assert folders == {"brats2020": tmp_path, "": tmp_path / "a=b"}
    with pytest.raises(MissingInputError, match="nowhere"):
        parse_data(["brats2018=nowhere"])
    with pytest.raises(UsageError, match="Two folders"):
        parse_data([str(tmp_path), str(tmp_path)])


# -------------------------------------------------------------------------------------------- plan


def test_teachers_come_first_and_once(data, tmp_path):
    plan = make_plan(find_table("conference-1"), options(data, tmp_path / "out"))
    names = [job.name for job in plan.jobs]
    assert len(set(names)) == len(names)
    for job in plan.jobs:
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
    trained = {job.run for job in plan.jobs if job.kind == "train"}
    scored = {job.run for job in plan.jobs if job.kind == "evaluate"}
    assert scored == set(find_table("conference-1").runs)
    assert trained == scored | {ROWS[run].teacher for run in scored} - {""}
    assert not (tmp_path / "out").exists(), "planning writes nothing"


def test_a_teacher_of_one_modality_is_scored_on_every_one(data, tmp_path):
    plan = make_plan(find_table("conference-5"), options(data, tmp_path))
    evaluations = [job for job in plan.jobs if job.kind == "evaluate"]
    assert len(evaluations) == 16
    assert len({job.evaluation for job in evaluations}) == 16
    fed = [dict(job.feed) for job in evaluations if job.run == "conference-single-teacher-t1"]
    assert fed == [{}, {"t1": "t2"}, {"t1": "t1ce"}, {"t1": "flair"}]


def test_published_lengths_give_hours_and_steps_scale_them(data, tmp_path):
    table = find_table("conference-4")
    full = TableOptions({"": data}, tmp_path, settings={"split": "none"})
    tenth = TableOptions({"": data}, tmp_path, settings={"split": "none"}, steps=5000)
    # Four teachers of 49 PFLOP at 72 PFLOP an hour.
    assert make_plan(table, full).hours == pytest.approx(4 * 49 / 72)
    assert make_plan(table, tenth).hours == pytest.approx(0.4 * 49 / 72)


def test_rows_are_chosen_by_run_or_by_title(data, tmp_path):
    table = find_table("conference-4")
    for name in ("P_k", "p_k", "conference-unet-teacher-pk"):
        plan = make_plan(table, options(data, tmp_path, only=(name,)))
        assert [job.name for job in plan.jobs] == [
            "train conference-unet-teacher-pk",
            "evaluate conference-unet-teacher-pk",
        ]
    with pytest.raises(UsageError, match="no row P_z"):
        make_plan(table, options(data, tmp_path, only=("P_z",)))


def test_data_sets_that_are_not_given_are_named(data, tmp_path):
    only = TableOptions({"brats2018": data}, tmp_path, rehearsal=True)
    plan = make_plan(find_table("journal-1"), only)
    assert set(plan.without_data) == {"brats2020"}
    assert all("brats2018" in job.run for job in plan.jobs)


def test_other_settings_in_the_same_folder_are_refused(data, tmp_path):
    table = find_table("conference-4")
    first = options(data, tmp_path / "out", only=("P_k",))
    write_recipes(make_plan(table, first), table, first)
    other = options(data, tmp_path / "out", only=("P_k",), settings={"seed": 1})
    with pytest.raises(OutputError, match="seed was 0, is 1"):
        make_plan(table, other)


def fold_file(path, cases):
    """Every case is the validation part of one fold."""
    folds = []
    for case in cases:
        others = [other for other in cases if other != case]
        folds.append({"train": others, "val": [case]})
    write_json(path, {"folds": folds})
    return path


def test_folds_train_and_score_every_run_and_its_teacher_once_each(data, tmp_path):
    cases = [case.case_id for case in find_cases(data, BRATS)]
    folds = {"brats2020": fold_file(tmp_path / "folds.json", cases)}
    table = find_table("journal-1")
    chosen = options(data, tmp_path / "out", folds=folds)
    plan = make_plan(table, chosen)
    of_2018 = [job for job in plan.jobs if job.run.endswith("brats2018")]
    of_2020 = [job for job in plan.jobs if job.run.endswith("brats2020")]
    assert len(of_2020) == 3 * len(of_2018)
    assert {job.fold for job in of_2018} == {None}
    assert plan.folds == {run: 3 for run in table.runs if run.endswith("brats2020")}
    names = [job.name for job in plan.jobs]
    assert len(set(names)) == len(names)
    for job in plan.jobs:
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
        if job.teacher and job.kind == "train":
            assert job.teacher_bundle.parents[1] == job.output, "a teacher of the same fold"
    write_recipes(plan, table, chosen)
    scored = set()
    for fold in range(3):
        split = json.loads((tmp_path / f"out/fold_{fold}/splits/folds-{fold}.json").read_text())
        assert set(split["train"]) | set(split["test"]) == set(cases)
        assert not set(split["train"]) & set(split["test"])
        scored |= set(split["test"])
        recipe = tmp_path / f"out/fold_{fold}/recipes/journal-mmformer-none-brats2020.json"
        assert json.loads(recipe.read_text())["split"].endswith(f"folds-{fold}.json")
    assert scored == set(cases)


def test_files_without_folds_are_refused(tmp_path):
    write_json(tmp_path / "split.json", {"train": ["a"], "test": ["b"]})
    with pytest.raises(UsageError, match=r"split\.json has no folds"):
        parse_folds([f"brats2020={tmp_path / 'split.json'}"])
    with pytest.raises(MissingInputError, match="There is no file nowhere"):
        parse_folds(["nowhere"])
    folds = fold_file(tmp_path / "folds.json", ["a", "b"])
    assert parse_folds([str(folds)]) == {"": folds}


# ------------------------------------------------------------------------------------------ values


def evaluation(folder, dice) -> None:
    """An evaluation on disk; ``dice(subset, region)`` is that of its two cases."""
    rows = []
    for case in ("a", "b"):
        for subset in BRATS.subsets():
            for index, region in enumerate(BRATS.regions):
                score = dice(subset, index)
                rows.append(
                    ScoreRow(
                        case=case,
                        subset=BRATS.subset_key(subset),
                        region=region.name,
                        dice=score,
                        dice_rule=score,
                        hd95_mm=4.0,
                        hd95_rule_mm=4.0,
                        sensitivity=1.0,
                        precision=1.0,
                        prediction_ml=5.0,
                        reference_ml=5.0,
                        diagonal_mm=373.13,
                    )
                )
    folder.parent.mkdir(parents=True, exist_ok=True)
    store = Store(folder, folder.name)
    store.finish({"bundle": folder.name}, BRATS, rows, summarize(rows, BRATS, "phantoms"))
    assert Evaluation.read(folder).summary.cases == 2


def test_names_of_subsets_and_regions():
    assert subsets_of("t1ce+t1", BRATS) == ["t1+t1ce"]
    assert len(subsets_of("all", BRATS)) == 15
    assert subsets_of("full", BRATS) == ["t1+t1ce+t2+flair"]
    assert set(subsets_of("missing 3", BRATS)) == {"t1", "t1ce", "t2", "flair"}
    assert subsets_of("single", BRATS) == subsets_of("missing 3", BRATS)
    assert len(subsets_of("missing 2", BRATS)) == 6
    assert regions_of("mean", BRATS) == [region.name for region in BRATS.regions]


def cell_of(table, row, column):
    return find_table(table).rows[row].cells[column]


def test_differences_means_gains_and_p_values_by_hand(tmp_path):
    folder = tmp_path / "evaluations"
    base = lambda subset, region: 0.5 + 0.01 * len(subset) + 0.1 * region  # noqa: E731
    better = lambda subset, region: base(subset, region) + 0.02 * len(subset)  # noqa: E731
    evaluation(folder / "journal-pmkl-none-brats2018", base)
    evaluation(folder / "journal-pmkl-pmix-brats2018", better)
    for run in ("u-hemis", "u-hved", "robust-mseg", "mmformer", "shaspec"):
        evaluation(folder / f"mckd-{run}", base)
    evaluation(folder / "mckd-mckd", better)
    scores = Scores(tmp_path)
    sizes = [len(subset) for subset in BRATS.subsets()]
    # Journal, Table II, WT of PMKL: T2, N = 2, all, then MedMAP, then the difference.
    assert scores.value(cell_of("journal-2", 0, 0)) == pytest.approx(51)
    assert scores.value(cell_of("journal-2", 0, 4)) == pytest.approx(52)
    assert scores.value(cell_of("journal-2", 0, 6)) == pytest.approx(
        50 + statistics.mean(sizes), abs=0.01
    )
    assert scores.value(cell_of("journal-2", 2, 5)) == pytest.approx(6)
    assert scores.value(cell_of("journal-2", 0, 7)) is None, "BraTS2020 was not scored"
    # Journal, Table I: over regions and subsets.
    assert scores.value(cell_of("journal-1", 0, 0)) == pytest.approx(
        60 + statistics.mean(sizes), abs=0.01
    )
    table = find_table("mckd-1")
    improvement = [titles[1] for titles in table.columns].index("Imprv")
    flair = scores.value(table.rows[0].cells[improvement])
    et = [region.name for region in BRATS.regions].index("ET")
    plain = 100 * base(("flair",), et)
    assert flair == pytest.approx(100 * 2 / plain, rel=1e-3)
    ours = [better(subset, et) for subset in BRATS.subsets()]
    theirs = [base(subset, et) for subset in BRATS.subsets()]
    expected = ttest_rel(ours, theirs, alternative="greater").pvalue
    assert scores.value(table.rows[-1].cells[0]) == pytest.approx(expected, rel=1e-3)


def test_figures_are_means_over_folds(tmp_path):
    run = "journal-mmformer-pmix-brats2020"
    column = [titles[0] for titles in find_table("journal-1").columns].index("mmFormer (SLS)")
    cell = cell_of("journal-1", 4, column)
    assert cell.run == run
    for fold, dice in enumerate((0.4, 0.5, 0.9)):
        if fold == 2:
            unfinished = Scores(tmp_path, {run: 3})
            assert unfinished.value(cell) is None, "a fold is missing"
        output = tmp_path / f"fold_{fold}/evaluations"
        evaluation(output / run, lambda subset, region, dice=dice: dice)
    scores = Scores(tmp_path, {run: 3})
    assert scores.value(cell) == pytest.approx(60)
    assert scores.cases(run) == 6
    assert Scores(tmp_path).value(cell) is None, "without folds nothing lies in the table's folder"


def test_tables_are_printed_in_three_forms(tmp_path):
    evaluation(tmp_path / "evaluations/conference-unet-teacher-pk", lambda subset, region: 0.5)
    table = find_table("conference-4")
    grid = grid_of(table, Scores(tmp_path))
    text = markdown(table, grid, ["a remark"])
    assert "| P\\_k | 50.00 (86.34) | 50.00 (79.75) | 50.00 (76.91) | 50.00 (81.00) |" in text
    assert "| P\\_N | – (84.14) |" in text
    assert "- a remark" in text
    lines = list(csv.DictReader(csv_text(table, grid).splitlines()))
    assert len(lines) == 16
    (average,) = [line for line in lines if line["row"] == "P_k" and line["column"] == "Average"]
    assert average["run"] == "conference-unet-teacher-pk"
    assert (average["ours"], average["printed"], average["difference"]) == (
        "50.00",
        "81.00",
        "-31.00",
    )
    assert "P\\_k & 50.00 (86.34) & 50.00 (79.75)" in latex(table, grid)
    grouped = find_table("conference-1")
    head = latex(grouped, grid_of(grouped, None))
    assert "\\multicolumn{4}{c}{Original}" in head
    assert "\\multicolumn{5}{c}{P\\_$\\ast$}" in head


@pytest.mark.parametrize("name", sorted(printed_tables()))
def test_every_table_prints_the_papers_figures(name):
    table = find_table(name)
    text = printed_text(table)
    for cell in table.cells:
        if cell.printed is not None and cell.keys.get("statistic") != "p-value":
            assert f"({cell.printed:.2f})" in text
    assert latex(table, grid_of(table, None)).count("\\\\") >= len(table.rows)


def test_bounds_of_the_audiovision_example_are_trained_once():
    needed = trainings(find_table("mckd-2b"))
    assert needed.count(("lower", 0.0)) == needed.count(("upper", 1.0)) == 1
    for competitor in ("smil", "shaspec", "mckd"):
        rates = [rate for method, rate in needed if method == competitor]
        assert rates == [0.05, 0.1, 0.15, 0.2]


def test_a_difference_that_rounds_to_zero_has_no_sign():
    assert number(-0.001, 2) == "0.00"
    assert number(-0.016, 2) == "-0.02"
    assert number(3e-5, -1) == "3.0e-05"


def test_every_column_of_the_audiovision_tables_is_trained():
    methods = {method for method, _ in trainings(find_table("mckd-2a"))}
    assert methods == set(METHODS)
    assert {"autoencoder", "gan", "full2miss", "smil", "shaspec"} < methods


# ---------------------------------------------------------------------------------------- commands


def test_a_table_is_trained_scored_printed_and_resumed(data, tmp_path):
    out = tmp_path / "out"
    arguments = ["table", "conference-4", "--data", str(data), "--out", str(out), "--rehearsal"]
    arguments += ["--only", "P_k", "--device", "cpu", "--workers", "0"]
    dry = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert "to do" in dry.stdout
    assert not out.exists()
    made = CliRunner().invoke(app, arguments)
    assert made.exit_code == 0, made.output
    text = (out / "conference-4.md").read_text()
    assert text in made.stdout
    (line,) = [line for line in text.splitlines() if line.startswith("| P\\_k")]
    assert "–" not in line
    assert "(81.00)" in line
    assert "REHEARSAL" in text
    assert {path.name for path in out.glob("conference-4.*")} == {
        "conference-4.md",
        "conference-4.csv",
        "conference-4.tex",
    }
    card = json.loads((out / "bundles/conference-unet-teacher-pk/metadata.json").read_text())
    assert card["name"] == "conference-unet-teacher-pk"
    assert card["medmap"]["inference"]["weighting"] == "uniform"
    bundle = out / "bundles/conference-unet-teacher-pk/model.safetensors"
    before = bundle.stat().st_mtime_ns
    again = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert again.stdout.count("done") == 2
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert bundle.stat().st_mtime_ns == before
    assert (out / "splits").is_dir(), "scorings of test are recorded here, not among the recipes"


def test_what_fails_stops_nothing_else(data, tmp_path):
    """Of two runs one cannot train; the other's table is written, and the exit code says so."""
    out = tmp_path / "out"
    table = find_table("conference-4")
    broken = options(data, out, only=("P_k",))
    plan = make_plan(table, broken)
    write_recipes(plan, table, broken)
    recipe = json.loads((out / "recipes/conference-unet-teacher-pk.json").read_text())
    del recipe["network"]
    write_json(out / "recipes/conference-unet-teacher-pk.json", recipe | {"patch": [15, 16, 16]})
    failures = execute(plan.jobs, ("cpu",), None, lambda fraction, text: None)
    assert set(failures) == {job.name for job in plan.jobs}
    assert failures["evaluate conference-unet-teacher-pk"] == "what it needs has failed"


def test_without_a_name_tables_are_listed_and_without_data_printed():
    listed = CliRunner().invoke(app, ["table"]).stdout
    assert all(name in listed for name in printed_tables())
    assert "– (41.15)" in CliRunner().invoke(app, ["table", "conference-5"]).stdout


def test_a_dry_run_without_data_says_what_would_be_trained_and_how_long():
    dry = CliRunner().invoke(app, ["table", "conference-4", "--dry-run"])
    assert dry.exit_code == 0, dry.output
    (missing,) = [line for line in dry.stdout.splitlines() if line.startswith("no folder of")]
    assert missing.count("conference-unet-teacher-") == 4
    # 49 PFLOP each (the part unet-teacher), 72 PFLOP an hour.
    assert "4 of 4 trainings to do, about 3 h" in dry.stdout
    half = CliRunner().invoke(app, ["table", "conference-4", "--dry-run", "--steps", "25000"])
    assert "about 1 h" in half.stdout


def test_a_dry_run_of_the_classification_example_counts_each_bound_once(tmp_path):
    arguments = ["table", "mckd-2a", "--out", str(tmp_path), "--dry-run"]
    (tmp_path / "mckd-2a-results.csv").write_text("method,rate,accuracy\nsmil,0.05,50\n")
    dry = CliRunner().invoke(app, arguments).stdout
    assert dry.count("train lower") == dry.count("train upper") == 1
    assert dry.count("train smil") == 4
    # Six methods at four rates and two bounds, one of them done.
    assert "25 of 26 trainings to do, about 15 minutes" in dry


@pytest.mark.parametrize("option", [["--rehearsal"], ["--only", "P_k"], ["--steps", "2"]])
def test_what_needs_data_is_not_ignored_without_them(option):
    result = CliRunner().invoke(app, ["table", "conference-4", *option])
    assert isinstance(result.exception, UsageError)
    assert "without data" in str(result.exception)
