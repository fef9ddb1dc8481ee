"""A case is prepared: what is missing is done and reported, what is there stays as it is."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from Testing.medmap.preparation.conftest import (
    brain_of,
    displaced,
    head_scan,
    in_thick_slices,
    patient,
    stripped_scan,
)

import medmap
from medmap.errors import Cancelled, InputDataError, UnavailableError, UsageError
from medmap.metrics import dice
from medmap.preparation.brain_extraction import GIVEN, extract_brain
from medmap.preparation.plan import PreparationPlan, plan_preparation
from medmap.preparation.workflow import ALIGNMENT, EXTRACTION, prepare_case
from medmap.task import BRATS, MYOPS
from medmap.volume import Volume


@pytest.fixture
def mask():
    """The brain of the synthetic patient as a mask made elsewhere."""
    return Volume(brain_of().astype(np.float32), patient().affine, "mask.nii.gz")


def raw_pair(motion) -> dict[str, Volume]:
    """T1 with a skull, and a displaced T2 with a skull in thick slices."""
    pytest.importorskip("SimpleITK")
    t2 = displaced(in_thick_slices(head_scan("t2"), (2.0, 2.0, 4.0)), motion(6.0, (4.0, 0.0, 7.0)))
    return {"t1": head_scan("t1"), "t2": t2}


class TestPlan:
    def test_prepared_scans_need_nothing(self):
        scans = {name: stripped_scan(name) for name in ("t1", "t1ce", "t2", "flair")}
        plan = plan_preparation(scans, BRATS)
        assert plan.is_empty
        assert plan.text(BRATS) == ""

    def test_the_missing_steps_are_named(self):
        scans = {"t1": head_scan("t1"), "t1ce": stripped_scan("t1ce"), "flair": head_scan("flair")}
        plan = plan_preparation(scans, BRATS, reference="t1ce")
        assert plan == PreparationPlan("t1ce", ("t1", "flair"), ("t1", "flair"))
        assert plan.text(BRATS) == "brain extraction of T1, FLAIR; alignment of T1, FLAIR"

    def test_stripped_scans_that_lie_apart_are_aligned(self, motion):
        moved = displaced(stripped_scan("t2"), motion(5.0, (3.0, 3.0, 0.0)))
        plan = plan_preparation({"t1ce": stripped_scan("t1ce"), "t2": moved}, BRATS)
        assert plan == PreparationPlan("t1ce", (), ("t2",))

    def test_stripped_scans_on_other_grids_in_the_same_place_are_left_alone(self):
        thick = in_thick_slices(stripped_scan("flair"), (1.5, 1.5, 5.0))
        assert plan_preparation({"t1": stripped_scan("t1"), "flair": thick}, BRATS).is_empty

    def test_modes(self):
        scans = {"t1": stripped_scan("t1"), "t2": stripped_scan("t2")}
        assert plan_preparation(scans, BRATS, "always") == PreparationPlan(
            "t1", ("t1", "t2"), ("t2",)
        )
        assert plan_preparation({"t1": head_scan("t1")}, BRATS, "never").is_empty
        with pytest.raises(UsageError, match="auto, always, never"):
            plan_preparation(scans, BRATS, "sometimes")

    def test_other_organs_are_not_prepared(self):
        assert plan_preparation({"t2": head_scan("t2")}, MYOPS, "always").is_empty


class TestPreparedScans:
    def test_they_are_the_same_objects_and_cost_a_tenth_of_a_second(self):
        scans = {name: stripped_scan(name) for name in ("t1", "t1ce", "t2", "flair")}
        for scan in scans.values():
            # The checks of every segmentation need it as well.
            assert scan.foreground.any()
        started = time.process_time()
        preparation = prepare_case(scans, BRATS)
        assert time.process_time() - started <= 0.1
        assert all(preparation.volumes[name] is scan for name, scan in scans.items())
        assert preparation.steps == ()

    def test_their_segmentation_does_not_change(self, volumes, tiny_bundle):
        scans = {name: volumes[name] for name in ("t1ce", "flair")}
        as_they_are = medmap.segment(scans, tiny_bundle, prepare="never", device="cpu")
        prepared = medmap.segment(scans, tiny_bundle, device="cpu")
        assert np.array_equal(prepared.labels, as_they_are.labels)
        assert prepared.findings == as_they_are.findings


class TestRawScans:
    def test_masks_from_elsewhere_and_alignment_give_one_brain_on_the_reference_grid(
        self, motion, mask
    ):
        scans = raw_pair(motion)
        before = {name: scan.array.copy() for name, scan in scans.items()}
        preparation = prepare_case(scans, BRATS, reference="t1", brain_masks={"t1": mask})
        t1 = preparation.volumes["t1"]
        t2 = preparation.volumes["t2"]
        assert np.array_equal(t1.affine, scans["t1"].affine)
        assert np.array_equal(t1.array != 0, brain_of())
        truth = np.linalg.inv(motion(6.0, (4.0, 0.0, 7.0)))
        assert np.abs((preparation.movements["t2"] - truth)[:3, 3]).max() < 3.0
        expected = in_thick_slices(Volume(mask.array, mask.affine), (2.0, 2.0, 4.0))
        assert dice(preparation.masks["t2"], expected.array > 0.5) > 0.95
        assert np.array_equal(t2.array != 0, preparation.masks["t2"])
        for name, scan in scans.items():
            assert np.array_equal(scan.array, before[name])

    def test_every_step_is_reported_with_figures_and_seconds(self, motion, mask):
        preparation = prepare_case(
            raw_pair(motion), BRATS, reference="t1", brain_masks={"t1": mask}
        )
        kinds = [(step.kind, step.modality) for step in preparation.steps]
        assert kinds == [(EXTRACTION, "t1"), (EXTRACTION, "t2"), (ALIGNMENT, "t2")]
        report = preparation.to_dict()
        assert report["steps"][0]["method"] == GIVEN
        assert report["steps"][0]["figures"]["brain_ml"] > 800
        figures = report["steps"][2]["figures"]
        assert figures["mutual_information_after"] > figures["mutual_information_before"]
        assert figures["displacement_mm"] == pytest.approx(10, abs=4)
        assert report["steps"][2]["seconds"] > 0
        notes = [note.check for note in preparation.volumes["t2"].notes]
        assert notes == [EXTRACTION, ALIGNMENT]

    def test_a_step_can_be_skipped(self, motion, mask):
        scans = raw_pair(motion)
        plan = plan_preparation(scans, BRATS, reference="t1", masked=["t1", "t2"])
        plan = replace(plan, align=())
        from medmap.preparation.workflow import prepare_scans

        masks = {"t1": mask, "t2": mask}
        preparation = prepare_scans(scans, BRATS, plan, brain_masks=masks)
        assert [step.kind for step in preparation.steps] == [EXTRACTION, EXTRACTION]
        assert preparation.movements == {}

    def test_without_simpleitk_an_alignment_that_is_needed_is_refused(
        self, motion, mask, monkeypatch
    ):
        scans = raw_pair(motion)
        monkeypatch.setitem(sys.modules, "SimpleITK", None)
        with pytest.raises(UnavailableError, match=r"T2 lies \d+ mm away from T1") as caught:
            prepare_case(scans, BRATS, reference="t1", brain_masks={"t1": mask})
        assert "medmap[clinic]" in caught.value.remedy

    def test_without_simpleitk_aligned_scans_are_taken(self, mask, monkeypatch):
        monkeypatch.setitem(sys.modules, "SimpleITK", None)
        scans = {"t1": head_scan("t1"), "t2": head_scan("t2")}
        preparation = prepare_case(scans, BRATS, reference="t1", brain_masks={"t1": mask})
        assert not preparation.steps[-1].is_applied
        assert np.array_equal(preparation.volumes["t2"].affine, scans["t2"].affine)

    def test_without_any_method_the_error_names_the_remedies(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "deepbet", None)
        monkeypatch.setenv("MEDMAP_BRAIN_BUNDLE", "none")
        with pytest.raises(UnavailableError, match="t1 shows a skull") as caught:
            prepare_case({"t1": head_scan("t1")}, BRATS)
        assert "medmap[clinic]" in caught.value.remedy
        assert caught.value.option == "brain-mask FILE"

    def test_a_mask_elsewhere_in_the_world_is_refused(self, mask):
        far = mask.affine.copy()
        far[:3, 3] += 900
        with pytest.raises(InputDataError, match="does not overlap T1"):
            prepare_case(
                {"t1": head_scan("t1")}, BRATS, brain_masks={"t1": Volume(mask.array, far)}
            )

    def test_it_can_be_cancelled(self, mask):
        with pytest.raises(Cancelled):
            prepare_case(
                {"t1": head_scan("t1")}, BRATS, brain_masks={"t1": mask}, cancel=lambda: True
            )

    def test_intensities_at_and_below_zero_stay_brain(self, mask):
        head = head_scan("flair")
        shifted = Volume(head.array - np.float32(np.median(head.array[brain_of()])), head.affine)
        preparation = prepare_case({"flair": shifted}, BRATS, brain_masks={"flair": mask})
        assert np.array_equal(preparation.volumes["flair"].foreground, brain_of())


def test_deepbet_extracts_the_brain_in_any_orientation():
    pytest.importorskip("deepbet")
    head = head_scan("t1")
    brain = extract_brain(head, "t1", method="deepbet")
    assert dice(brain.mask, brain_of()) > 0.9
    turned = Volume(
        np.ascontiguousarray(head.array.transpose(2, 0, 1)[:, ::-1]),
        head.affine @ _turn(head.array.shape),
        "t1",
    )
    other = extract_brain(turned, "t1", method="deepbet")
    assert np.array_equal(other.mask[:, ::-1].transpose(1, 2, 0), brain.mask)


def _turn(shape: tuple[int, ...]) -> np.ndarray:
    """Index of ``transpose(2, 0, 1)[:, ::-1]`` -> index of the original array."""
    return np.array(
        [
            [0.0, -1.0, 0.0, shape[0] - 1.0],
            [0.0, 0.0, 1.0, 0.0],
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
