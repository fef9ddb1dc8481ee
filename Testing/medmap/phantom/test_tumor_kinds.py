"""Cohorts and rare kinds of tumors: what they are named for is what a case shows."""

from __future__ import annotations

from functools import cache

import pytest

from medmap.errors import UsageError
from medmap.phantom import Phantom, Style, generate
from medmap.phantom.cohorts import COHORTS
from medmap.phantom.contrast import MODALITIES, draw_means
from medmap.phantom.fields import Draw
from medmap.phantom.tumor_kinds import BULKY, CYSTIC, DIFFUSE, SPECK, USUAL, draw_kind

SEEDS = (31, 32, 33, 34)
RARE_KINDS = (CYSTIC, DIFFUSE, SPECK, BULKY)


@cache
def case(seed: int, kind: str) -> Phantom:
    """A case of one kind, from a procedural anatomy."""
    style = Style(low_grade=0.0, small=0.0)
    if kind != USUAL:
        style = Style(low_grade=0.0, small=0.0, **{kind: 1.0})
    return generate(seed, shape=(80, 96, 80), spacing=2.0, style=style)


def z_of(seed: int, kind: str, modality: str, tissue: str) -> float:
    """Mean of a tissue that a case reports."""
    return case(seed, kind).facts["tissue_z"][modality][tissue]


@pytest.mark.parametrize("kind", [USUAL, *RARE_KINDS])
def test_a_case_names_its_kind(kind):
    assert case(SEEDS[0], kind).facts["kind"] == kind


def test_without_a_tumor_there_is_no_kind():
    patient = generate(1, shape=(32, 38, 32), spacing=5.0, tumor=False)
    assert patient.facts["kind"] is None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cyst_has_the_signal_of_fluid_and_fills_the_core(seed):
    usual_gap = abs(z_of(seed, USUAL, "t2", "necrosis") - z_of(seed, USUAL, "t2", "csf"))
    gap = abs(z_of(seed, CYSTIC, "t2", "necrosis") - z_of(seed, CYSTIC, "t2", "csf"))
    assert gap < 0.6
    assert gap < usual_gap or usual_gap < 0.6
    volumes_ml = case(seed, CYSTIC).facts["volumes_ml"]
    assert volumes_ml["NCR"] > 2 * volumes_ml["ET"]


@pytest.mark.parametrize("seed", SEEDS)
def test_diffuse_infiltration_is_fainter_and_does_not_enhance(seed):
    assert case(seed, DIFFUSE).facts["volumes_ml"]["ET"] == 0
    for modality in ("t2", "flair"):
        usual = z_of(seed, USUAL, modality, "ed") - z_of(seed, USUAL, modality, "wm")
        faint = z_of(seed, DIFFUSE, modality, "ed") - z_of(seed, DIFFUSE, modality, "wm")
        assert 0 < faint < usual


@pytest.mark.parametrize("seed", SEEDS)
def test_a_speck_of_enhancement_is_below_two_milliliters(seed):
    specks = case(seed, SPECK).facts["volumes_ml"]["ET"]
    assert specks < 2.0
    assert specks < case(seed, USUAL).facts["volumes_ml"]["ET"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bulky_tumor_enhances_in_fifty_milliliters(seed):
    assert case(seed, BULKY).facts["volumes_ml"]["ET"] > 45


@pytest.mark.parametrize("seed", SEEDS)
def test_flat_contrast_concerns_every_modality(seed):
    usual = draw_means(Draw(seed, "contrast"), Style(pale=0.0))
    flat = draw_means(Draw(seed, "contrast"), Style(pale=0.0, flat=1.0))
    for modality in MODALITIES:
        contrast = abs(usual[modality]["wm"] - usual[modality]["gm"])
        assert abs(flat[modality]["wm"] - flat[modality]["gm"]) < 0.7 * contrast


def test_kinds_have_their_probabilities():
    style = Style(cystic=0.2, diffuse=0.1, speck=0.1, bulky=0.1)
    kinds = [draw_kind(Draw(seed, "tumor kind"), style) for seed in range(1000)]
    assert kinds.count(CYSTIC) == pytest.approx(200, abs=45)
    assert kinds.count(BULKY) == pytest.approx(100, abs=35)
    assert kinds.count(USUAL) == pytest.approx(500, abs=55)


def test_a_cohort_of_larger_tumors_and_brains_has_them():
    measured = Style(cohort="brats2021", low_grade=0.0, small=0.0)
    tumor_ml = 0.0
    former_ml = 0.0
    for seed in SEEDS:
        patient = generate(seed, shape=(80, 96, 80), spacing=2.0, style=measured)
        former = case(seed, USUAL)
        assert patient.facts["brain_ml"] > 1.08 * former.facts["brain_ml"]
        tumor_ml += patient.facts["tumor_ml"]
        former_ml += former.facts["tumor_ml"]
    assert tumor_ml > 1.3 * former_ml


def test_enhancement_of_the_later_cohort_is_weaker():
    def mean_uptake(cohort: str) -> float:
        style = Style(cohort=cohort)
        draws = [draw_means(Draw(seed, "contrast"), style) for seed in range(200)]
        return sum(means["t1ce"]["enhancing"] for means in draws) / len(draws)

    assert mean_uptake("brats2021") < mean_uptake("brats2013") - 0.3


def test_an_unknown_cohort_is_refused_with_the_names():
    with pytest.raises(UsageError, match="cohort 'brats1999'") as caught:
        generate(1, shape=(32, 38, 32), spacing=5.0, style=Style(cohort="brats1999"))
    for name in COHORTS:
        assert name in caught.value.remedy
