"""Appearance: no finding with images in their slots; a warning if T1, T2 or FLAIR are swapped."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.appearance import MODALITIES, NAMES, describe_appearance, mismatches, t2_relation
from medmap.checks import check_inputs, check_modality_appearance
from medmap.foreground import foreground
from medmap.phantom import generate
from medmap.task import BRATS, MYOPS
from medmap.volume import Volume

SHAPE, SPACING = (56, 66, 56), 3.0


@pytest.fixture(scope="module")
def patient() -> dict[str, Volume]:
    made = generate(9010, shape=SHAPE, spacing=SPACING)
    return {name: Volume(image.numpy(), made.affine, name) for name, image in made.images.items()}


def exchanged(volumes, one, other):
    return {**volumes, one: volumes[other], other: volumes[one]}


def told(volumes) -> str:
    return " ".join(f.message for f in check_inputs(volumes, BRATS) if f.check == "modality")


def test_scans_in_their_slots_are_not_doubted(patient):
    assert told(patient) == ""
    for name, volume in patient.items():
        assert told({name: volume}) == ""


@pytest.mark.parametrize("pair", [("t2", "flair"), ("t1", "t2"), ("t1ce", "t2")])
def test_exchanged_scans_are_told_with_a_remedy(patient, pair):
    swapped = exchanged(patient, *pair)
    message = told(swapped)
    assert "T2" in message
    (finding, *_) = [f for f in check_inputs(swapped, BRATS) if f.check == "modality"]
    assert finding.level == "warning"
    assert "slot" in finding.remedy


@pytest.mark.parametrize("slot", ["t1", "t1ce", "flair"])
def test_a_t2_alone_in_another_slot_is_told(patient, slot):
    assert "more like T2" in told({slot: patient["t2"]})


def test_t1_against_t1ce_is_never_judged(patient):
    assert told(exchanged(patient, "t1", "t1ce")) == ""


def test_titles_as_the_panel_has_them_are_understood(patient):
    (finding,) = check_modality_appearance({"FLAIR": patient["t2"]}, BRATS)
    assert finding.message == "FLAIR looks more like T2."


def test_stored_orientation_scale_and_offset_change_no_feature(patient):
    volume = patient["t2"]
    mask = foreground(volume.array)[0]
    base = describe_appearance(volume, mask)
    assert base.features.shape == (len(NAMES),)
    scaled = Volume(np.where(mask, 3 * volume.array + 50, 0), volume.affine)
    assert np.allclose(describe_appearance(scaled, mask).features, base.features, atol=1e-4)
    turned = Volume(
        np.ascontiguousarray(volume.array.transpose(2, 0, 1)), volume.affine[:, [2, 0, 1, 3]]
    )
    assert np.allclose(
        describe_appearance(turned, foreground(turned.array)[0]).features, base.features, atol=1e-9
    )


def test_t1_and_flair_are_told_apart_beside_t2_alone(patient):
    assert "look exchanged" in told(exchanged(patient, "t1", "flair"))
    pair = {name: patient[name] for name in ("t1", "flair")}
    assert told(exchanged(pair, "t1", "flair")) == "", "without T2 nothing is known"
    looks = {
        name: describe_appearance(volume, foreground(volume.array)[0])
        for name, volume in patient.items()
    }
    assert t2_relation(looks["t1"], looks["t2"]) < t2_relation(looks["flair"], looks["t2"]) - 0.6


def test_what_is_no_brain_is_not_judged(patient):
    rng = np.random.default_rng(0)
    speckle = Volume(
        np.where(patient["t1"].array > 0, rng.normal(500, 80, SHAPE), 0).astype(np.float32),
        np.diag([3.0] * 3 + [1]),
    )
    assert told({"flair": speckle}) == ""
    assert mismatches({"flair": None}) == []
    few = Volume(patient["t2"].array[26:30, 30:34, 26:30], patient["t2"].affine)
    assert describe_appearance(few, np.ones(few.array.shape, bool)) is None


def test_other_tasks_are_left_alone(patient):
    assert set(MODALITIES) == set(BRATS.modality_names)
    assert "modality" not in {f.check for f in check_inputs({"t2": patient["t1"]}, MYOPS)}
