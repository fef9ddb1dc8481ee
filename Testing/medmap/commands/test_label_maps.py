"""``medmap evaluate --predictions``: label maps of other programs, however they are named."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from medmap.commands.comparison import compare_evaluations
from medmap.commands.label_maps import MapOptions, find_pairs, score_maps
from medmap.errors import InputDataError, MissingInputError, OutputError
from medmap.evaluation import Evaluation
from medmap.evaluation.lesions import LESION_RULES
from medmap.evaluation.scoring import FurtherScores
from medmap.io.nifti import write_labels, write_volume
from medmap.metrics import dice
from medmap.task import BRATS
from medmap.volume import Grid

GRID = Grid((28, 30, 26), np.diag([1.0, 1.0, 1.0, 1.0]))
FURTHER = FurtherScores(LESION_RULES["BraTS-GLI"], 1.0)


def labels_of(seed):
    """Edema around an enhancing core, and a second lesion apart."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4 + seed : 14, 4:14, 4:14] = 2
    labels[6 + seed : 11, 6:11, 6:11] = 4
    labels[22:27, 22:27, 20:25] = 2
    return labels


@pytest.fixture
def folders(tmp_path):
    """References as BraTS has them, beside scans, and predictions named by case."""
    references = tmp_path / "references"
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for seed in range(3):
        case = references / f"BraTS-{seed}"
        case.mkdir(parents=True)
        write_labels(case / f"BraTS-{seed}-seg.nii.gz", labels_of(seed), GRID)
        scan = np.random.default_rng(seed).random(GRID.shape)
        write_volume(case / f"BraTS-{seed}-t1c.nii.gz", scan, GRID.affine)
        write_labels(predictions / f"BraTS-{seed}.nii.gz", np.roll(labels_of(seed), 1, 0), GRID)
    return predictions, references


def score(predictions, references, **options):
    settings = MapOptions(further=FURTHER, **options)
    return score_maps(
        predictions, references, BRATS, settings, lambda fraction, text: None, lambda: False
    )


def test_maps_are_scored_by_region_and_by_lesion(folders, tmp_path):
    result = score(*folders, output=tmp_path / "out", table=tmp_path / "scores.csv")
    assert result.summary.cases == 3
    assert result.warnings == []
    row = next(row for row in result.rows if row.region == "WT" and row.case == "BraTS-0")
    reference = labels_of(0) > 0
    assert row.dice == pytest.approx(dice(np.roll(reference, 1, 0), reference))
    assert (row.lesions, row.missed_lesions, row.false_lesions) == (2, 0, 0)
    assert 0 < row.lesion_dice < row.dice
    assert row.nsd == 1.0, "a shift of 1 mm is within the tolerance of 1 mm"
    assert row.volume_error_ml == 0
    assert set(result.summary.further) == {
        "lesion_dice",
        "lesion_hd95_mm",
        "nsd",
        "volume_error_ml",
    }
    read = Evaluation.read(tmp_path / "out")
    assert read.summary == result.summary
    assert list(read.rows) == result.rows


def test_an_evaluation_of_maps_is_compared_with_another_one(folders, tmp_path):
    predictions, references = folders
    score(predictions, references, output=tmp_path / "a")
    for seed in range(3):
        write_labels(predictions / f"BraTS-{seed}.nii.gz", labels_of(seed), GRID)
    score(predictions, references, output=tmp_path / "b")
    tests, _ = compare_evaluations(tmp_path / "b", tmp_path / "a", None, "lesion_dice")
    assert {test.unit for test in tests} >= {"t1+t1ce+t2+flair", "0 missing"}
    assert all(test.mean_a == 1 > test.mean_b for test in tests)


def test_maps_that_are_named_otherwise_are_matched(folders, tmp_path):
    _, references = folders
    ours = tmp_path / "ours"
    for seed in range(3):
        (ours / f"BraTS-{seed}").mkdir(parents=True)
        write_labels(ours / f"BraTS-{seed}/segmentation.nii.gz", labels_of(seed), GRID)
        (ours / f"BraTS-{seed}/._segmentation.nii.gz").write_bytes(b"AppleDouble")
    pairs, _ = find_pairs(ours, references, BRATS)
    assert [pair.case for pair in pairs] == ["BraTS-0", "BraTS-1", "BraTS-2"]
    assert score(ours, references).summary.dice.subsets["t1+t1ce+t2+flair"]["ET"].mean == 1.0


def write_cohort(root, name_of):
    """Three cases of a scan and labels, whose files ``name_of(case, kind)`` names."""
    for seed in range(3):
        case = f"case{seed}"
        for kind in ("flair", "seg"):
            path = root / f"{name_of(case, kind)}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "seg":
                write_labels(path, labels_of(seed), GRID)
            else:
                write_volume(path, np.ones(GRID.shape, np.int16), GRID.affine)
    return root


@pytest.mark.parametrize(
    ("name_of", "prefix"),
    [
        (lambda case, kind: f"{case}/{kind}", ""),
        (lambda case, kind: f"{case}/{case}_{kind}", ""),
        (lambda case, kind: f"{case}_{kind}", ""),
        (lambda case, kind: f"sub-{case}/anat/sub-{case}_{BIDS_SUFFIX[kind]}", "sub-"),
    ],
    ids=["plain names", "folders", "side by side", "BIDS"],
)
def test_the_references_may_be_a_cohort_in_any_layout(tmp_path, name_of, prefix):
    """Training cohorts score label maps, too; files that are no labels are no maps."""
    cohort = write_cohort(tmp_path / "cohort", name_of)
    pairs, _ = find_pairs(_maps_named(tmp_path / "maps", prefix), cohort, BRATS)
    assert [pair.case for pair in pairs] == [f"{prefix}case{seed}" for seed in range(3)]
    for pair in pairs:
        assert "seg" in pair.reference.name


BIDS_SUFFIX = {"flair": "FLAIR", "seg": "dseg"}


def _maps_named(root, prefix):
    """Maps as ``medmap segment-cohort`` leaves them, in BIDS or in a folder for each case."""
    for seed in range(3):
        folder = root / f"{prefix}case{seed}"
        path = folder / "segmentation.nii.gz"
        if prefix:
            path = folder / f"anat/{folder.name}_space-orig_desc-medmap_dseg.nii.gz"
        path.parent.mkdir(parents=True)
        write_labels(path, labels_of(seed), GRID)
    return root


def test_label_files_that_end_otherwise_are_those_of_the_task(tmp_path):
    task = replace(BRATS, label_endings=("lesion",))
    for seed in range(2):
        path = tmp_path / f"labels/case{seed}/lesion.nii.gz"
        path.parent.mkdir(parents=True)
        write_labels(path, labels_of(seed), GRID)
        maps = tmp_path / f"maps/case{seed}_lesion.nii.gz"
        maps.parent.mkdir(exist_ok=True)
        write_labels(maps, labels_of(seed), GRID)
    pairs, _ = find_pairs(tmp_path / "maps", tmp_path / "labels", task)
    assert [pair.case for pair in pairs] == ["case0", "case1"]


def test_a_cohort_without_label_files_says_which_task_was_asked(tmp_path):
    cohort = write_cohort(tmp_path / "cohort", lambda case, kind: f"{case}/{kind}")
    for path in cohort.rglob("seg.nii.gz"):
        path.rename(path.with_name("lesion.nii.gz"))
    with pytest.raises(InputDataError, match="No case in cohort has reference labels") as error:
        find_pairs(_maps_named(tmp_path / "maps", ""), cohort, BRATS)
    assert "this one is BraTS (--task)" in error.value.command_line_remedy


def test_the_same_voxels_in_another_order_score_the_same(folders):
    predictions, references = folders
    plain = score(predictions, references)
    for seed in range(3):
        turned = np.roll(labels_of(seed), 1, 0)[::-1, ::-1]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        affine[:2, 3] = [GRID.shape[0] - 1, GRID.shape[1] - 1]
        write_labels(predictions / f"BraTS-{seed}.nii.gz", turned, Grid(GRID.shape, affine))
    assert score(predictions, references).rows == plain.rows


def test_a_map_whose_header_was_lost_is_refused(folders):
    predictions, references = folders
    shifted = GRID.affine.copy()
    shifted[0, 3] = 30
    write_labels(predictions / "BraTS-1.nii.gz", labels_of(1), Grid(GRID.shape, shifted))
    with pytest.raises(InputDataError, match=r"1 of 3.*lies up to 30\.0 mm away"):
        score(predictions, references)


def test_a_finer_map_is_compared_at_the_nearest_voxels(folders):
    predictions, references = folders
    fine = np.repeat(np.repeat(np.repeat(labels_of(1), 2, 0), 2, 1), 2, 2)
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = -0.25
    write_labels(predictions / "BraTS-1.nii.gz", fine, Grid(fine.shape, affine))
    result = score(predictions, references)
    assert "another grid" in result.warnings[0]
    exact = [row.dice for row in result.rows if row.case == "BraTS-1"]
    assert exact == [1.0, 1.0, 1.0]


def test_a_case_without_prediction_and_a_map_without_reference(folders):
    predictions, references = folders
    write_labels(predictions / "Other.nii.gz", labels_of(0), GRID)
    assert "Other" in score(predictions, references).warnings[0]
    (predictions / "BraTS-2.nii.gz").unlink()
    with pytest.raises(InputDataError, match=r"1 of 3 cases.*BraTS-2"):
        score(predictions, references)
    write_labels(predictions / "BraTS-2.nii.gz", labels_of(0), GRID)
    write_labels(predictions / "BraTS-2.nii", labels_of(1), GRID)
    with pytest.raises(InputDataError, match="two label maps of BraTS-2"):
        score(predictions, references)
    with pytest.raises(MissingInputError, match="nowhere"):
        score(predictions.parent / "nowhere", references)


def test_probabilities_are_not_labels_but_rounding_errors_are(folders):
    predictions, references = folders
    almost = labels_of(0).astype(float)
    almost[almost == 2] = 1.9999999
    write_volume(predictions / "BraTS-0.nii.gz", almost, GRID.affine)
    row = next(row for row in score(predictions, references).rows if row.case == "BraTS-0")
    assert row.dice == 1.0
    write_volume(predictions / "BraTS-0.nii.gz", almost * 0.3, GRID.affine)
    with pytest.raises(InputDataError, match="holds fractions"):
        score(predictions, references)


def test_scores_that_were_not_asked_for_are_not_invented(folders, tmp_path):
    predictions, references = folders
    settings = MapOptions(output=tmp_path / "plain")
    result = score_maps(
        predictions, references, BRATS, settings, lambda fraction, text: None, lambda: False
    )
    assert math.isnan(result.rows[0].lesion_dice)
    assert set(result.summary.further) == {"volume_error_ml"}
    with pytest.raises(InputDataError, match="no lesion_dice"):
        compare_evaluations(tmp_path / "plain", tmp_path / "plain", None, "lesion_dice")


def never_reached(fraction, text):
    raise AssertionError("a case was scored")


def test_occupied_and_impossible_outputs_are_refused_before_anything_is_scored(folders, tmp_path):
    out = tmp_path / "out"
    score(*folders, output=out)
    score(*folders, output=out)
    predictions, _ = folders
    write_labels(predictions / "BraTS-0.nii.gz", labels_of(0), GRID)
    (tmp_path / "file").write_bytes(b"")
    for options in (
        {"output": out},
        {"output": tmp_path / "nowhere/out"},
        {"output": tmp_path / "file"},
        {"table": tmp_path / "nowhere/scores.csv"},
    ):
        settings = MapOptions(further=FURTHER, **options)
        with pytest.raises(OutputError):
            score_maps(*folders, BRATS, settings, never_reached, lambda: False)
    (out / "calibration.json").write_text("of the earlier maps")
    (out / "comparison.csv").write_text("of the earlier maps")
    result = score(*folders, output=out, overwrite=True)
    assert Evaluation.read(out).summary == result.summary
    assert not (out / "calibration.json").exists()
    assert not (out / "comparison.csv").exists()
