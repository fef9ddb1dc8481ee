"""What the picture of a case shows, and where."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medmap.errors import InputDataError, IOFailure, OutputError, UsageError
from medmap.metrics import RegionScore, compare
from medmap.report.overlay import save_overlay
from medmap.report.overlay_panels import AGREE, ONLY_PREDICTION, ONLY_REFERENCE
from medmap.resampling import reorient
from medmap.task import BRATS
from medmap.volume import Grid, Volume

NCR, ED, ET = (label.color for label in BRATS.labels)
SHAPE = (48, 56, 44)


def head(modality_seed: int = 0) -> np.ndarray:
    """An ellipsoid with texture on a background of zero, in RAS order."""
    x, y, z = (np.linspace(-1, 1, n) for n in SHAPE)
    radius = np.hypot(
        np.hypot(x[:, None, None] / 0.8, y[None, :, None] / 0.9), z[None, None] / 0.85
    )
    texture = np.random.default_rng(modality_seed).normal(100, 10, SHAPE)
    return np.where(radius < 1, texture + 40 * radius, 0).astype(np.float32)


def lesion(center=(30, 36, 26), radii=((8, 2), (5, 4), (3, 1))) -> np.ndarray:
    """Nested spheres of labels, the largest first."""
    i, j, k = np.indices(SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    for radius, value in radii:
        labels[(i - center[0]) ** 2 + (j - center[1]) ** 2 + (k - center[2]) ** 2 <= radius**2] = (
            value
        )
    return labels


GRID = Grid(SHAPE, np.array([[3.0, 0, 0, -70], [0, 3, 0, -80], [0, 0, 3, -60], [0, 0, 0, 1]]))
EMPTY = np.zeros(SHAPE, np.uint8)


def picture(path) -> np.ndarray:
    """[H, W, 3] int."""
    image = Image.open(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def near(pixels: np.ndarray, color) -> np.ndarray:
    return np.abs(pixels - color).max(axis=2) <= 12


def drawn(path, **options) -> np.ndarray:
    given = {
        "scans": {"flair": head()},
        "prediction": lesion(),
        "grid": GRID,
        "task": BRATS,
        **options,
    }
    scans, prediction, on, task = (
        given.pop(name) for name in ("scans", "prediction", "grid", "task")
    )
    save_overlay(path, scans, prediction, on, task, **given)
    return picture(path)


def test_every_label_of_the_prediction_appears_in_its_color(tmp_path):
    legend_only, full = drawn(tmp_path / "a.png", prediction=EMPTY), drawn(tmp_path / "b.png")
    for color in (NCR, ED, ET):
        assert near(full, color).sum() > near(legend_only, color).sum() + 100


@pytest.mark.parametrize(
    ("side", "center"),
    [("left", (34, 40, 22)), ("right", (13, 15, 22))],
    ids=["right-anterior", "left-posterior"],
)
def test_right_and_anterior_are_on_the_left_of_the_picture(tmp_path, side, center):
    pixels = drawn(tmp_path / "a.png", prediction=lesion(center))
    column = near(pixels, ED)[
        :, pixels.shape[1] // 2 :
    ]  # one scan: the prediction is the right half of the page
    across = np.argwhere(column)[:, 1] / column.shape[1]
    assert (across < 0.5).all() if side == "left" else (across > 0.5).all()


def test_superior_and_anterior_are_at_the_top(tmp_path):
    high, low = (
        drawn(tmp_path / "a.png", prediction=lesion((24, 28 + d, 22 + d))) for d in (10, -10)
    )
    halves = [near(p, ED)[:, p.shape[1] // 2 :] for p in (high, low)]
    assert np.argwhere(halves[0])[:, 0].mean() < np.argwhere(halves[1])[:, 0].mean() - 20


def test_agreement_is_drawn_only_with_a_reference(tmp_path):
    alone = drawn(tmp_path / "a.png")
    compared = drawn(tmp_path / "b.png", reference_labels=lesion((33, 36, 26)))
    for color in (AGREE, ONLY_PREDICTION, ONLY_REFERENCE):
        assert near(alone, color).sum() == 0
        assert near(compared, color).sum() > 16 * 16 + 50  # more than the legend's square


@pytest.mark.parametrize(
    ("prediction", "reference", "shown"),
    [
        (lesion(), lesion(), AGREE),
        (lesion(), EMPTY, ONLY_PREDICTION),
        (EMPTY, lesion(), ONLY_REFERENCE),
    ],
)
def test_the_agreement_map_tells_who_found_the_tumor(tmp_path, prediction, reference, shown):
    pixels = drawn(tmp_path / "a.png", prediction=prediction, reference_labels=reference)
    counts = {
        color: near(pixels, color).sum() for color in (AGREE, ONLY_PREDICTION, ONLY_REFERENCE)
    }
    assert [color for color, count in counts.items() if count > 16 * 16 + 50] == [shown]


@pytest.mark.parametrize("code", ["LPS", "SRA", "PIL", "RAS"])
def test_how_the_scans_are_stored_does_not_change_the_picture(tmp_path, code):
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
    )

    def stored(array):
        return np.ascontiguousarray(nibabel.apply_orientation(array, turn))

    affine = GRID.affine @ nibabel.orientations.inv_ornt_aff(turn, SHAPE)
    turned = Grid(stored(EMPTY).shape, affine)
    expected = drawn(tmp_path / "a.png", reference_labels=lesion((33, 36, 26)))
    found = drawn(
        tmp_path / "b.png",
        scans={"flair": stored(head())},
        prediction=stored(lesion()),
        grid=turned,
        reference_labels=stored(lesion((33, 36, 26))),
    )
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.01


def test_thick_slices_are_drawn_in_proportion(tmp_path):
    thick = Grid((48, 56, 11), GRID.affine @ np.diag([1, 1, 4, 1]))
    fine = drawn(tmp_path / "a.png")
    coarse = drawn(
        tmp_path / "b.png",
        scans={"flair": head()[..., ::4]},
        prediction=lesion()[..., ::4],
        grid=thick,
    )
    assert abs(coarse.shape[0] - fine.shape[0]) < 0.08 * fine.shape[0]
    assert coarse.shape[1] == pytest.approx(fine.shape[1], rel=0.08)


def test_the_same_inputs_give_the_same_bytes_without_metadata(tmp_path):
    for name in ("a.png", "b.png"):
        drawn(tmp_path / name, reference_labels=lesion(), title="case 7")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").info == {}


def test_inputs_are_not_changed(tmp_path):
    arrays = [head(), lesion(), lesion((33, 36, 26))]
    arrays[0][20, 20, 20] = np.nan
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    scan = Volume(arrays[0], GRID.affine)
    drawn(
        tmp_path / "a.png", scans={"flair": scan}, prediction=arrays[1], reference_labels=arrays[2]
    )
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, before, strict=True))


@pytest.mark.parametrize("subset", BRATS.subsets(), ids="+".join)
def test_any_subset_of_modalities_gives_a_page_of_reasonable_size(tmp_path, subset):
    scans = {name: head(number) for number, name in enumerate(subset)}
    pixels = drawn(tmp_path / "a.png", scans=scans, reference_labels=lesion())
    assert 950 <= pixels.shape[1] <= 1600
    assert 600 <= pixels.shape[0] <= 1650
    assert (tmp_path / "a.png").stat().st_size < 1_500_000


def test_the_order_in_which_scans_are_given_does_not_matter(tmp_path):
    scans = {"flair": head(1), "t1": head(2)}
    one = drawn(tmp_path / "a.png", scans=scans)
    other = drawn(tmp_path / "b.png", scans=dict(reversed(scans.items())))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "scan",
    [
        np.zeros(SHAPE),
        np.full(SHAPE, np.nan),
        np.where(head() > 0, head() - 120, -500),
        np.where(head() > 0, head() - 120, 0),
    ],
    ids=["zero", "nan", "constant background", "z-scored"],
)
def test_odd_intensities_are_drawn_all_the_same(tmp_path, scan):
    pixels = drawn(tmp_path / "a.png", scans={"t2": scan.astype(np.float32)})
    assert near(pixels, ED).sum() > 16 * 16 + 100


def test_a_background_that_is_not_zero_is_black_and_cropped_away(tmp_path):
    zero = drawn(tmp_path / "a.png")
    other = drawn(tmp_path / "b.png", scans={"flair": head() - np.float32(500)})
    assert zero.shape == other.shape
    assert np.abs(zero - other).mean() < 1


def test_a_slab_is_drawn(tmp_path):
    slab = Grid((48, 56, 6), GRID.affine)
    pixels = drawn(
        tmp_path / "a.png",
        scans={"t1": head()[..., 20:26]},
        prediction=lesion()[..., 20:26],
        grid=slab,
    )
    assert near(pixels, ED).sum() > 16 * 16 + 100


def test_an_empty_prediction_says_so(tmp_path):
    amber = (255, 192, 77)
    scans = {
        name: head() for name in BRATS.modality_names
    }  # all four: nothing else is written in amber
    assert near(drawn(tmp_path / "a.png", scans=scans, prediction=EMPTY), amber).sum() > 100
    assert near(drawn(tmp_path / "b.png", scans=scans), amber).sum() == 0


def test_given_scores_and_volumes_are_printed_instead_of_counted_ones(tmp_path):
    reference = lesion((33, 36, 26))
    scores = compare(lesion(), reference, BRATS, GRID)
    own = drawn(tmp_path / "a.png", reference_labels=reference, scores=scores)
    other = drawn(
        tmp_path / "b.png",
        reference_labels=reference,
        scores={**scores, "TC": RegionScore(0.1, 0.2, 0.3, 4.0, 5.0, 6.0)},
    )
    volumes = drawn(
        tmp_path / "c.png", reference_labels=reference, scores=scores, volumes_ml={"ED": 12345.6}
    )
    assert own.shape == other.shape == volumes.shape
    assert not np.array_equal(own, other)
    assert not np.array_equal(own, volumes)
    assert np.array_equal(own[: len(own) // 2], other[: len(own) // 2])


@pytest.mark.parametrize("title", ["a$b$c_{", "Müller\n2. line", "x" * 500, ""])
def test_any_title_is_taken_literally(tmp_path, title):
    assert drawn(tmp_path / "a.png", title=title).shape[1] <= 1600


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scans": {}}, UsageError, "no scan"),
        ({"scans": {"pet": head()}}, UsageError, "pet"),
        ({"missing": ("dwi",)}, UsageError, "dwi"),
        ({"missing": ("flair",)}, UsageError, "flair is both given and called missing"),
        ({"scans": {"t1": head()[1:]}}, InputDataError, "t1 has the shape"),
        ({"prediction": EMPTY[1:]}, InputDataError, "The prediction has the shape"),
        ({"reference_labels": EMPTY[1:]}, InputDataError, "The reference has the shape"),
        ({"prediction": EMPTY + 9}, InputDataError, "values 9"),
    ],
)
def test_refuses_what_it_cannot_draw(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        drawn(tmp_path / "a.png", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        drawn(tmp_path / "no" / "a.png")


def test_a_failed_write_leaves_the_old_picture_and_no_rubbish(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"old")

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(IOFailure, match="No space left"):
        drawn(tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_a_picture_leaves_nothing_to_the_garbage_collector(tmp_path):
    # A cohort draws one after the other: what refers to itself stays for hundreds of cases.
    drawn(tmp_path / "a.png", reference_labels=lesion())
    gc.collect()
    gc.disable()
    try:
        drawn(tmp_path / "b.png", reference_labels=lesion())
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_matplotlib_is_never_imported(tmp_path):
    code = (
        "import sys, numpy as np; from medmap.report.overlay import save_overlay; from "
        "medmap.task import BRATS;from medmap.volume import Grid; labels = np.zeros((20, 20, "
        "20), 'u1'); labels[5:9, 5:9, 5:9] = 1;save_overlay(sys.argv[1], {'t1': labels * 10.0}, "
        "labels, Grid((20, 20, 20), np.eye(4)), BRATS);assert 'matplotlib' "
        "not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], env=environment, check=False
    )
    assert done.returncode == 0


@settings(max_examples=60, deadline=None)
@given(
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3),
    st.tuples(*[st.floats(-0.4, 0.4)] * 3),
    st.tuples(*[st.floats(0.4, 6.0)] * 3),
)
def test_reorienting_is_the_one_of_nibabel(order, signs, angles, spacing):
    affine = np.eye(4)
    affine[:3, :3] = (
        _rotation(*angles) @ np.eye(3)[list(order)] @ np.diag(np.multiply(signs, spacing))
    )
    affine[:3, 3] = (10, -20, 30)
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    found, grid = reorient(array, Grid(array.shape, affine))
    moved = grid.affine
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(array.astype(np.int32), affine))
    assert np.array_equal(found, np.asarray(expected.dataobj))
    assert moved == pytest.approx(expected.affine)
    assert np.shares_memory(found, array)


def _rotation(a: float, b: float, c: float) -> np.ndarray:
    result = np.eye(3)
    for axis, angle in enumerate((a, b, c)):
        i, j = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result
