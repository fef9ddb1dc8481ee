"""Is one bundle better than another on the same cases? Paired tests, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from medmap.errors import InputDataError
from medmap.evaluation.scoring import ScoreRow
from medmap.evaluation.summary import FURTHER_SCORES, groups, per_case_averages, table
from medmap.task import Task

METHOD = (
    "Two-sided Wilcoxon signed-rank test on the cases' differences (zeros by Pratt's method; exact "
    "up to 50 cases); Holm and Benjamini-Hochberg corrections over all tests of one kind (single "
    "subsets, or averages); effect size: matched-pairs rank-biserial correlation (-1 B always "
    "better, +1 A always better); 95 % confidence interval of the mean difference: bootstrap over "
    "cases (BCa). Of HD95 less is better, and an undefined one counts as the diagonal of the "
    "labels' grid."
)
"""What the tests are; printed beside them."""


EXACT = 50
"""Cases up to which p is exact."""

METRICS = {
    "dice": 1,
    "dice_rule": 1,
    "hd95_mm": -1,
    "hd95_rule_mm": -1,
    "lesion_dice": 1,
    "lesion_hd95_mm": -1,
    "nsd": 1,
}
"""What can be compared, by column of ``ScoreRow``: 1 where more is better, -1 where less is."""


SIGNIFICANT = 0.05
"""Corrected p below which a difference counts as found."""

FEW_CASES = 20
"""Below this number only large differences can be found, which the verdict says."""


@dataclass(frozen=True)
class PairedTest:
    """One comparison of A with B.

    Attributes:
        unit: a subset's key or the name of a group of subsets (``medmap.evaluation.groups``),
            averaged per case.
        kind: ``subset`` or ``average``: the family that the corrections run over.
        region: short name.
        cases: number of pairs.
        mean_a, mean_b: mean scores.
        difference: mean of A - B, with its confidence interval ``low`` to ``high``.
        p: uncorrected; ``p_holm`` controls the chance of any false finding, ``p_bh`` the share of
            false ones.
        effect: rank-biserial correlation (Kerby, Comprehensive Psychology 2014): (sum of ranks that
            favor A - sum that favor B) / their total; 0 when all pairs are equal.
        better, worse: pairs in which A is better, worse.
    """

    unit: str
    kind: str
    region: str
    cases: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    effect: float
    better: int
    worse: int
    p_holm: float = 1.0
    p_bh: float = 1.0

    def to_dict(self) -> dict:
        """Plain JSON-ready form, rounded; what is not defined is None."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def compare(
    ours: Sequence[ScoreRow],
    theirs: Sequence[ScoreRow],
    task: Task,
    *,
    metric: str = "dice",
    resamples: int = 2000,
    seed: int = 0,
) -> list[PairedTest]:
    """Test every subset and every average of A (``ours``) against B (``theirs``), on common cases.

    Args:
        ours, theirs: scores of two bundles.
        task: of both.
        metric: of ``METRICS``.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputDataError: no case, or no subset, is in both, or one of them was scored without the
            metric.
    """
    for rows in (ours, theirs):
        _check_available(rows, metric)
    scores_a = table([_defined(row, metric) for row in ours], task, metric)
    scores_b = table([_defined(row, metric) for row in theirs], task, metric)
    # Paired tests need pairs: what only one of both has scored is left out.
    common_cases = {row.case for row in ours} & {row.case for row in theirs}
    units = _units(task, [subset for subset in scores_a if subset in scores_b])
    if not common_cases or not units:
        raise InputDataError(
            "The two evaluations have no case and subset in common.",
            "Evaluate both bundles on the same cases.",
        )
    tests = []
    for kind, name, members in units:
        for region in task.regions:
            averages_a = per_case_averages(scores_a, members, region.name)
            averages_b = per_case_averages(scores_b, members, region.name)
            cases = sorted(common_cases & set(averages_a) & set(averages_b))
            if not cases:
                continue
            pairs = _Pairs(
                unit=name,
                kind=kind,
                region=region.name,
                a=np.array([averages_a[case] for case in cases]),
                b=np.array([averages_b[case] for case in cases]),
            )
            tests.append(_test(pairs, sign=METRICS[metric], resamples=resamples, seed=seed))
    return _corrected(tests)


def verdict(
    tests: Sequence[PairedTest], metric: str = "dice", names: tuple[str, str] = ("A", "B")
) -> str:
    """What paired tests show, in words: of the average over all subsets, else of the last unit.

    Args:
        tests: of ``compare``.
        metric: of ``METRICS``.
        names: what A and B are called.
    """
    units = [test.unit for test in tests]
    if not units:
        return "There is nothing to compare."
    unit = units[-1]
    scope = f"For {unit}"
    if "all subsets" in units:
        unit = "all subsets"
        scope = "Averaged over all subsets"
    decisive = [test for test in tests if test.unit == unit]
    cases = decisive[0].cases
    statements = [_statement(test, metric, names) for test in decisive]
    number = "1 case" if cases == 1 else f"{cases} cases"
    caution = ""
    if cases < FEW_CASES:
        caution = " With so few cases only large differences can be found."
    return f"{scope}, {number}: {'; '.join(statements)}.{caution}"


def _statement(test: PairedTest, metric: str, names: tuple[str, str]) -> str:
    """The verdict on one region."""
    digits = 3
    unit = ""
    if metric.endswith("_mm"):
        digits = 1
        unit = " mm"
    if test.p_holm >= SIGNIFICANT:
        size = f"{test.difference:+.{digits}f}{unit}"
        return f"{test.region}: no difference was found ({size}, p {test.p_holm:.2g})"
    # Wilcoxon's test is about ranks: the sign of the effect, not of the mean, says who is better.
    first, second = names
    better = second
    if test.effect > 0:
        better = first
    size = f"{abs(test.difference):.{digits}f}{unit}"
    return f"{test.region}: {better} is better by {size} (p {test.p_holm:.2g})"


@dataclass(frozen=True)
class _Pairs:
    """Scores [N] of A and B of the same N cases; other fields as in ``PairedTest``."""

    unit: str
    kind: str
    region: str
    a: np.ndarray
    b: np.ndarray


def _units(task: Task, subsets: Sequence[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Kind, name and subsets of everything to test: averages first, then single subsets."""
    units = []
    scored = set(subsets)
    for name, members in groups(task).items():
        if set(members) <= scored:
            units.append(("average", name, members))
    for subset in subsets:
        units.append(("subset", subset, (subset,)))
    return units


def _plain(value: str | float) -> str | float | None:
    if not isinstance(value, float):
        return value
    if np.isnan(value):
        return None
    return round(value, 6)


def _check_available(rows: Sequence[ScoreRow], metric: str) -> None:
    """Refuse a score that an evaluation was not asked for.

    Plain HD95 may be undefined in all rows.
    """
    if metric not in FURTHER_SCORES:
        return
    if any(np.isnan(getattr(row, metric)) for row in rows):
        raise InputDataError(
            f"One of the evaluations has no {metric}.",
            "Evaluate again with the lesion-wise scores.",
            option="lesions",
        )


def _defined(row: ScoreRow, metric: str) -> ScoreRow:
    """The row with the diagonal of its grid for an undefined score."""
    if np.isnan(getattr(row, metric)):
        penalty: dict[str, Any] = {metric: row.diagonal_mm}
        return replace(row, **penalty)
    return row


def _test(pairs: _Pairs, *, sign: int, resamples: int, seed: int) -> PairedTest:
    # Differences that are rounding errors only have to count as ties.
    difference = np.round(pairs.a - pairs.b, 12)
    low, high = _interval(difference, resamples, seed)
    return PairedTest(
        unit=pairs.unit,
        kind=pairs.kind,
        region=pairs.region,
        cases=len(pairs.a),
        mean_a=float(pairs.a.mean()),
        mean_b=float(pairs.b.mean()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p=_wilcoxon(difference),
        effect=rank_biserial(sign * difference),
        better=int((sign * difference > 0).sum()),
        worse=int((sign * difference < 0).sum()),
    )


def _wilcoxon(difference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of differences [N], with Pratt's zeros.

    Exact up to ``EXACT`` cases, then by the normal approximation. Exact also where differences are
    tied, which SciPy answers for few cases by going through every choice of signs, seconds a test.
    Here the number of choices that give each sum of ranks is counted rank by rank instead.
    """
    from scipy.stats import rankdata, wilcoxon

    if not difference.any():
        return 1.0
    if len(difference) > EXACT:
        return float(wilcoxon(difference, zero_method="pratt", method="asymptotic").pvalue)
    # Tied ranks are halves; doubled they are whole numbers, which index the table of sums.
    doubled = np.round(2 * rankdata(np.abs(difference))).astype(int)
    favor = doubled[difference > 0].sum()
    # Pratt: zeros are ranked, and their ranks then left out.
    signed_ranks = doubled[difference != 0]
    total = signed_ranks.sum()
    # choices[s]: how many choices of signs give the sum s of (doubled) positive ranks.
    choices = np.zeros(total + 1)
    choices[0] = 1
    for rank in signed_ranks:
        choices[rank:] = choices[rank:] + choices[:-rank]
    distance_from_center = np.abs(2 * np.arange(total + 1) - total)
    at_least_as_far = distance_from_center >= abs(2 * favor - total)
    return float(choices[at_least_as_far].sum() / choices.sum())


def rank_biserial(difference: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation of differences [N], -1..1.

    Zeros are ranked, and then count for neither (Pratt).
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(difference))
    favor = ranks[difference > 0].sum()
    against = ranks[difference < 0].sum()
    total = favor + against
    if not total:
        return 0.0
    return float((favor - against) / total)


def _interval(difference: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % confidence interval of the mean; (nan, nan) of one case, a point where all are equal."""
    from scipy.stats import bootstrap

    if len(difference) < 2:
        return float("nan"), float("nan")
    if np.ptp(difference) == 0:
        return float(difference[0]), float(difference[0])
    interval = bootstrap(
        (difference,),
        np.mean,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
        method="BCa",
        vectorized=True,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values [N] corrected by Holm's step-down method (Scandinavian Journal of Statistics, 1979).

    The i-th smallest (from 0) is multiplied by N - i; none falls below a smaller one's.
    """
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    scaled = values[order] * factors
    monotone = np.maximum.accumulate(scaled)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(monotone, 1.0)
    return corrected


def _corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The tests with p corrected within each kind; kinds in their order."""
    from scipy.stats import false_discovery_control

    corrected = []
    for kind in dict.fromkeys(test.kind for test in tests):
        family = [test for test in tests if test.kind == kind]
        p = [test.p for test in family]
        p_holm = holm(p)
        p_bh = false_discovery_control(p, method="bh")
        for test, holm_value, bh_value in zip(family, p_holm, p_bh, strict=True):
            with_p = replace(test, p_holm=float(holm_value), p_bh=float(bh_value))
            corrected.append(with_p)
    return corrected
