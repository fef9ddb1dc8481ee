"""Paired tests: clear differences are found, corrections and effect sizes are those by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from Testing.medmap.evaluation.scored_rows import rows_of

from medmap.errors import InputDataError
from medmap.evaluation import (
    PairedTest,
    compare,
)
from medmap.evaluation.significance import _corrected, _wilcoxon, holm, rank_biserial
from medmap.task import BRATS


def test_a_clear_difference_is_found_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.02, (30, 16))
    ours = rows_of(lambda n, s: 0.8 + noise[n, len(s)], 30)
    theirs = rows_of(lambda n, s: 0.7 + noise[(n + 1) % 30, len(s)], 30)
    tests = compare(ours, theirs, BRATS)
    assert {test.kind for test in tests} == {"average", "subset"}
    assert len([test for test in tests if test.kind == "subset"]) == 45
    for test in tests:
        assert test.p <= test.p_bh <= test.p_holm < 0.001
        assert test.low < test.difference < test.high
        assert test.difference == pytest.approx(0.1, abs=1e-9)
        assert test.effect > 0.99
    same = compare(ours, ours, BRATS)
    assert all(
        test.p_holm == 1 and test.effect == 0 and test.difference == test.low == 0 for test in same
    )


def test_holm_by_hand():
    # Holm (1979): the smallest of four times 4, the next times 3, and so on,
    # never falling, at most 1.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.2, 0.8]), [1.0, 0.6, 1.0])
    np.testing.assert_allclose(holm([0.02, 0.02, 0.02]), [0.06, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.3]), [0.3])


def test_benjamini_hochberg_by_hand():
    # Benjamini and Hochberg (1995): p times N over its rank, never above a larger one's.
    tests = [
        PairedTest(f"{n}", "subset", "WT", 6, 0.0, 0.0, 0.0, 0.0, 0.0, p, 0.0, 0, 0)
        for n, p in enumerate([0.01, 0.04, 0.03, 0.005])
    ]
    found = [test.p_bh for test in _corrected(tests)]
    np.testing.assert_allclose(found, [0.02, 0.04, 0.04, 0.02])


def test_tests_agree_with_scipy_and_a_hand_made_holm():
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(1)
    a, b = rng.random((2, 12, 16))
    tests = compare(
        rows_of(lambda n, s: a[n, len(s)], 12), rows_of(lambda n, s: b[n, len(s)], 12), BRATS
    )
    one = next(test for test in tests if test.unit == "t1" and test.region == "WT")
    assert one.p == pytest.approx(wilcoxon(a[:, 1], b[:, 1]).pvalue)
    family = sorted((test for test in tests if test.kind == "subset"), key=lambda test: test.p)
    by_hand = np.maximum.accumulate([min(1, (45 - k) * test.p) for k, test in enumerate(family)])
    np.testing.assert_allclose([test.p_holm for test in family], by_hand)


def test_p_is_exact_with_ties_and_zeros_and_that_of_scipy():
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(5)
    for n in (3, 5, 7):
        tied = rng.integers(-3, 4, n) / 10
        if tied.any():
            assert _wilcoxon(tied) == pytest.approx(wilcoxon(tied, zero_method="pratt").pvalue)
    smooth = rng.normal(0.3, 1, 20)
    assert _wilcoxon(smooth) == pytest.approx(wilcoxon(smooth, method="exact").pvalue)
    assert _wilcoxon(np.full(4, 0.1)) == 2 / 2**4
    many = rng.normal(0.1, 1, 80)
    assert _wilcoxon(many) == pytest.approx(wilcoxon(many, method="asymptotic").pvalue)


def test_of_distances_less_is_better_and_an_undefined_one_is_far():
    near = [
        replace(row, hd95_mm=2.0 + 0.1 * int(row.case[1:]))
        for row in rows_of(lambda n, s: 0.5, cases=8)
    ]
    far = [replace(row, hd95_mm=math.nan if row.case == "c0" else row.hd95_mm + 3) for row in near]
    test = next(t for t in compare(near, far, BRATS, metric="hd95_mm") if t.unit == "all subsets")
    assert (test.effect, test.better, test.worse, test.cases) == (1.0, 8, 0, 8)
    assert test.difference == pytest.approx(-(7 * 3 + 373.13 - 2.0) / 8)
    back = next(t for t in compare(far, near, BRATS, metric="hd95_mm") if t.unit == "all subsets")
    assert (back.effect, back.better) == (-1.0, 0)


def test_the_effect_size_by_hand():
    assert rank_biserial(np.array([1.0, 2, 3])) == 1
    assert rank_biserial(np.array([-1.0, 2, 3])) == pytest.approx((5 - 1) / 6)
    assert rank_biserial(np.zeros(3)) == 0


def test_evaluations_without_a_common_case_are_refused():
    ours = rows_of(lambda n, s: 0.5)
    with pytest.raises(InputDataError, match="in common"):
        compare(ours, [replace(row, case="z" + row.case) for row in ours], BRATS)


def test_one_case_gives_no_interval_and_plain_json():
    tests = compare(rows_of(lambda n, s: 0.5, 1), rows_of(lambda n, s: 0.4, 1), BRATS)
    json.dumps([test.to_dict() for test in tests], allow_nan=False)
