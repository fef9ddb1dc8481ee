"""Checks of good, questionable and unusable images. Brains are ellipsoids of human size."""

from __future__ import annotations

import time
from itertools import permutations, product

import numpy as np
import pytest

from medmap.boxes import bounding_box
from medmap.checks import CHECKS, Finding, affine_problem, check_inputs, replace_not_finite
from medmap.errors import InputDataError, UsageError
from medmap.foreground import background_value, exact_foreground, foreground
from medmap.task import BRATS
from medmap.volume import Volume

SPACING = 3.0
SHAPE = (80, 80, 60)
BRAIN_MM, HEAD_MM = (70, 85, 60), (80, 98, 88)


def ellipsoid(semi_axes, shape=SHAPE, spacing=SPACING, shift=(0, 0, 0)) -> np.ndarray:
    mm = [(np.arange(n) - (n - 1) / 2) * spacing - s for n, s in zip(shape, shift, strict=True)]
    squares = [(x / a) ** 2 for x, a in zip(mm, semi_axes, strict=True)]
    return (squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]) <= 1


def brain(
    seed: int = 0, background: float = 0, shape=SHAPE, spacing=SPACING, shift=(0, 0, 0)
) -> np.ndarray:
    inside = ellipsoid(BRAIN_MM, shape, spacing, shift)
    values = np.random.default_rng(seed).normal(500, 80, shape).round()
    return np.where(inside, values, background).astype(np.float32)


def head(noise: float, seed: int = 0, quantized: bool = True) -> np.ndarray:
    """Not skull-stripped: brain, dark skull, bright scalp, air with Rician noise."""
    rng = np.random.default_rng(seed)
    inner = ellipsoid([a + 5 for a in BRAIN_MM])
    signal = np.where(inner, 60, np.where(ellipsoid(HEAD_MM), 700, 0)).astype(float)
    signal = np.where(ellipsoid(BRAIN_MM), brain(seed), signal)
    signal = np.hypot(signal + rng.normal(0, noise, SHAPE), rng.normal(0, noise, SHAPE))
    return (signal.round() if quantized else signal).astype(np.float32)


def volume(array: np.ndarray, spacing=SPACING, origin=(0, 0, 0), **kwargs) -> Volume:
    affine = np.diag([*np.broadcast_to(spacing, 3), 1.0])
    affine[:3, 3] = origin
    return Volume(array, affine, **kwargs)


def ids(volumes: dict[str, Volume]) -> list[tuple[str, str]]:
    return [(f.level, f.check) for f in check_inputs(volumes, BRATS)]


def only(check: str, volumes: dict[str, Volume]) -> Finding:
    (finding,) = [f for f in check_inputs(volumes, BRATS) if f.check == check]
    return finding


# --- brain and background -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3.6243944, 1000])
def test_the_background_is_the_constant_around_the_brain(value):
    mask, found = foreground(brain(background=value))
    assert found == np.float32(value)
    assert np.array_equal(mask, ellipsoid(BRAIN_MM))


def test_a_slab_whose_faces_are_full_of_brain_keeps_its_background():
    slab = brain(background=-2.5)[:, :, 25:36]
    mask, found = foreground(slab)
    assert found == -2.5
    assert np.array_equal(mask, ellipsoid(BRAIN_MM)[:, :, 25:36])


@pytest.mark.parametrize("part", [slice(None), slice(26, 34)], ids=["whole", "slab"])
def test_a_tight_crop_keeps_its_background(part):
    array = brain(background=-2.5)[:, :, part]
    box = bounding_box(ellipsoid(BRAIN_MM)[:, :, part])
    assert foreground(array[box])[1] == -2.5


def test_padding_after_normalization_is_background_too():
    scan = np.pad((brain() - 512.3) / 80, 6)
    mask, found = foreground(scan)
    assert found == 0
    assert np.array_equal(mask, np.pad(ellipsoid(BRAIN_MM), 6))


@pytest.mark.parametrize("noise", [1.0, 10.0])
def test_noise_in_air_is_background_though_it_is_no_constant(noise):
    array = head(noise)
    assert background_value(array) is None
    mask, background = foreground(array)
    assert 0 <= background < 0.1 * array.max()
    in_air = head(0.0) == 0
    assert mask[in_air].mean() < 0.01
    assert mask[~in_air].mean() > 0.99


def test_not_finite_voxels_are_no_brain():
    array = brain()
    array[40, 40, 30] = np.nan
    array[0, 0, :] = np.inf
    mask, found = foreground(array)
    assert found == 0
    assert not mask[40, 40, 30]
    assert not mask[0, 0].any()
    assert foreground(np.full((3, 3, 3), np.nan))[1] == 0


@pytest.mark.parametrize(
    "array", [brain(background=-1.5), head(5.0), np.pad(brain() - 512.3, 4)[:, :, 30:]]
)
def test_the_brain_moves_with_the_voxels(array):
    mask, value = foreground(array)
    for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        moved = array.transpose(order)[tuple(slice(None, None, f) for f in flips)]
        expected = mask.transpose(order)[tuple(slice(None, None, f) for f in flips)]
        found, background = foreground(moved)
        assert background == value
        assert np.array_equal(found, expected)


def test_integer_arrays_work_too():
    mask, value = foreground(brain().astype(np.int16))
    assert value == 0
    assert np.array_equal(mask, ellipsoid(BRAIN_MM))
    assert exact_foreground(head(5.0).astype(np.int16))[1] == 0


def test_a_whole_head_takes_little_time():
    array = brain(shape=(240, 240, 155), spacing=1.0)
    times = []
    for _ in range(3):
        start = time.process_time()
        foreground(array)
        times.append(time.process_time() - start)
    assert min(times) < 0.3


# --- refusals -------------------------------------------------------------------------------------

GOOD = brain()


def refused(volumes: dict[str, Volume], words: str, kind=InputDataError):
    with pytest.raises(kind, match=words) as caught:
        check_inputs(volumes, BRATS)
    assert caught.value.remedy
    return caught.value


def test_refuses_no_scan_and_unknown_names():
    assert refused({}, "No image was given", UsageError).exit_code == 2
    assert refused({"dwi": volume(GOOD)}, "'dwi' is not a modality", UsageError).exit_code == 2


@pytest.mark.parametrize("value", [0.0, 7.0, -3e4])
def test_refuses_a_constant_volume_and_says_to_leave_it_out(value):
    error = refused(
        {"t1": volume(GOOD), "t2": volume(np.full(SHAPE, value, np.float32))}, "t2 has no contrast"
    )
    assert error.remedy == "Leave this modality out."
    assert error.exit_code == 65


def test_refuses_a_mask_given_as_a_scan():
    refused({"t1": volume((GOOD > 0).astype(np.float32))}, "t1 has no contrast within the brain")


def test_refuses_one_image_given_twice_and_names_both():
    refused(
        {"t2": volume(GOOD), "flair": volume(brain(1)), "t1": volume(GOOD.copy())},
        "t1 and t2 are the same image",
    )


def test_refuses_scans_of_different_places():
    far = {"t1": volume(GOOD), "t2": volume(brain(1), origin=(400, 0, 0))}
    refused(far, "t1 and t2 do not show the same place: their brains overlap by 0%")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"array": GOOD[:, :, 0]}, "has the shape 80 x 80"),
        ({"array": GOOD[:, :, :1]}, "has the shape 80 x 80 x 1"),
        ({"array": np.where(GOOD > 600, np.nan, GOOD)}, "NaN or infinite"),
        ({"affine": np.diag([3, 3, 0, 1.0])}, "gives a voxel no extent"),
        ({"affine": np.diag([3, 3, 0.1, 1.0])}, "gives voxels of 3 x 3 x 0.1 mm"),
        (
            {"affine": np.array([[3, 0.5, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])},
            "is sheared: axes i and j",
        ),
    ],
)
def test_refuses_volumes_that_a_scene_may_hold_but_no_scan(change, words):
    given = {"array": GOOD, "affine": np.diag([3, 3, 3, 1.0])} | change
    refused({"t1": Volume(**given)}, words)


def test_an_oblique_matrix_in_float32_is_no_shear():
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.array([[c, -s, 0, 9], [s, c, 0, 9], [0, 0, 5, 9], [0, 0, 0, 1]], np.float32).astype(
        float
    )
    assert affine_problem(affine) is None
    assert "singular" in affine_problem(
        np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    )
    assert "not finite" in affine_problem(np.full((4, 4), np.nan))


# --- findings -------------------------------------------------------------------------------------


def test_four_good_scans_give_nothing_to_say():
    volumes = {name: volume(brain(seed)) for seed, name in enumerate(BRATS.modality_names)}
    assert check_inputs(volumes, BRATS) == ()


def test_nothing_depends_on_the_order_given_and_nothing_is_changed():
    volumes = {
        "flair": volume(GOOD),
        "t1": volume(brain(1)[:, :, 20:40], origin=(0, 0, 60)),
        "t2": volume(head(5)),
    }
    before = {name: v.array.copy() for name, v in volumes.items()}
    findings = check_inputs(volumes, BRATS)
    assert findings == check_inputs(dict(reversed(volumes.items())), BRATS)
    assert all(np.array_equal(v.array, before[name]) for name, v in volumes.items())


def test_notes_from_reading_come_first():
    note = Finding("warning", "frames", "t1 is stored as 4-D.")
    assert check_inputs({"t1": volume(GOOD, notes=(note,))}, BRATS) == (note,)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("quantized", [True, False])
def test_a_head_is_told_from_a_brain(noise, quantized):
    finding = only("skull-strip", {"t1": volume(head(noise, quantized=quantized))})
    assert finding.level == "warning"
    assert finding.message.startswith("t1 does not look skull-stripped: ")
    assert "are background" in finding.message or "liters" in finding.message


def test_the_skull_strip_warning_says_what_was_seen():
    full = volume(1.0 + np.random.default_rng(0).random((80, 80, 60)))
    assert "only 0% of its voxels are background" in only("skull-strip", {"t1": full}).message
    assert (
        "liters are not background; a brain has at most 2.2"
        in only("skull-strip", {"t1": volume(head(0))}).message
    )


@pytest.mark.parametrize(
    "array",
    [brain(background=-3.6), GOOD[:, :, 24:36], GOOD[bounding_box(GOOD > 0)], np.pad(GOOD, 20)],
    ids=["z-scored", "slab", "tight crop", "wide field of view"],
)
def test_a_stripped_scan_gives_no_skull_strip_warning(array):
    assert ("warning", "skull-strip") not in ids({"t1": volume(array)})


def test_scans_on_different_grids_are_named_with_their_grids():
    volumes = {
        "t1ce": volume(GOOD),
        "flair": volume(brain(1)),
        "t2": volume(brain(2)[:, :, ::2], (3, 3, 6)),
    }
    finding = only("grids", volumes)
    assert finding.level == "warning"
    assert "t1ce and flair 80 x 80 x 60 at 3 x 3 x 3 mm" in finding.message
    assert "t2 80 x 80 x 30 at 3 x 3 x 6 mm" in finding.message
    assert "resampled" in finding.message


@pytest.mark.parametrize(("shift_mm", "said"), [(0.2, False), (0.6, True)])
def test_a_tenth_of_a_voxel_is_the_same_grid(shift_mm, said):
    volumes = {"t1": volume(GOOD), "t2": volume(brain(1), origin=(shift_mm, 0, 0))}
    assert (("warning", "grids") in ids(volumes)) == said


def test_scans_that_overlap_badly_are_told_with_the_share():
    volumes = {"t1": volume(GOOD), "t2": volume(brain(1, shift=(40, 0, 0)))}
    assert only("overlap", volumes).message.startswith("The brains in t1 and t2 overlap by 5")
    assert ("warning", "overlap") not in ids(
        {"t1": volume(GOOD), "t2": volume(brain(1, shift=(6, 0, 0)))}
    )


def test_overlap_is_measured_in_the_world_not_in_the_array():
    flipped = volume(brain(1, shift=(20, 0, 0))[::-1])
    affine = flipped.affine @ np.diag([-1, 1, 1, 1.0])
    affine[0, 3] = SPACING * (SHAPE[0] - 1)
    volumes = {"t1": volume(brain(shift=(20, 0, 0))), "t2": Volume(flipped.array, affine)}
    assert ("warning", "overlap") not in ids(volumes)


def test_a_slab_lies_within_the_whole_brain():
    slab = volume(brain(1)[:, :, 25:36], origin=(0, 0, 75))
    assert ("warning", "overlap") not in ids({"t1": volume(GOOD), "t2": slab})


def test_a_cut_brain_is_told_by_anatomical_names():
    slab = GOOD[:, :, 25:36]
    assert (
        "cut at the bottom and top"
        in only("field-of-view", {"t1": volume(slab), "t2": volume(slab + 1)}).message
    )
    assert (
        "t1 and t2: " in only("field-of-view", {"t1": volume(slab), "t2": volume(slab + 1)}).message
    )
    turned = Volume(
        GOOD[:, 40:].transpose(1, 0, 2),
        np.array([[0, -3, 0, 0], [-3, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]]),
    )
    assert "cut at the front." in only("field-of-view", {"t1": turned}).message


def test_a_tight_box_does_not_cut_the_brain():
    assert ("info", "field-of-view") not in ids({"t1": volume(GOOD[bounding_box(GOOD > 0)])})


def test_a_tiny_brain_is_a_warning_and_part_of_one_is_not():
    finding = only("brain-volume", {"t1": volume(GOOD, spacing=1.5)})
    assert finding.level == "warning"
    assert "t1 shows 187 ml of brain" in finding.message
    assert only("brain-volume", {"t1": volume(GOOD[:, :, 28:32])}).level == "info"


def test_thick_slices_are_mentioned():
    finding = only("thick-slices", {"t2": volume(GOOD[:, :, ::2], (3, 3, 6))})
    assert finding.level == "info"
    assert "6.0 mm apart" in finding.message


def test_a_label_map_given_as_a_scan_is_noticed():
    labels = np.where(GOOD > 500, 2, np.where(GOOD > 0, 1, 0)).astype(np.float32)
    assert "only 2 different values" in only("label-map", {"t1": volume(labels)}).message


def test_a_few_not_finite_voxels_are_replaced_in_a_copy():
    array = brain(background=-2)
    array[40, 40, 30] = np.inf
    fixed, findings = replace_not_finite(array, "t1")
    assert fixed[40, 40, 30] == -2
    assert np.isinf(array[40, 40, 30])
    assert findings[0].message.startswith("t1: 1 voxels")
    same, nothing = replace_not_finite(fixed, "t1")
    assert same is fixed
    assert nothing == ()


def test_every_check_can_be_called_alone():
    volumes = {"t1": volume(GOOD), "t2": volume(brain(1))}
    assert all(list(check(volumes, BRATS)) == [] for check in CHECKS)
    assert all(check.__doc__ for check in CHECKS)
