"""Is one bundle better than another on the same cases? Paired tests, corrected for how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from medmap.errors import InputDataError
from medmap.evaluation.scoring import Row
from medmap.evaluation.summary import groups, per_case_averages, table
from medmap.task import Task

METHOD = (
    "Two-sided Wilcoxon signed-rank test on the cases' differences (zeros by Pratt's method; exact up to 50 cases); "
    "Holm and Benjamini-Hochberg corrections over all tests of one kind (single subsets, or averages); effect size: "
    "matched-pairs rank-biserial correlation (-1 B always better, +1 A always better); 95 % confidence interval of "
    "the mean difference: bootstrap over cases (BCa). Of HD95 less is better, and an undefined one counts as the "
    "diagonal of the labels' grid."
)
"""What the tests are; printed beside them."""


EXACT = 50
"""Cases up to which p is exact."""

METRICS = {"dice": 1, "dice_rule": 1, "hd95_mm": -1, "hd95_rule_mm": -1}
"""What can be compared, by column of ``Row``: 1 where more is better, -1 where less is."""


@dataclass(frozen=True)
class PairedTest:
    """One comparison of A with B.

    Attributes:
        unit: a subset's key or the name of a group of subsets (``medmap.evaluation.groups``), averaged per case.
        kind: ``subset`` or ``average``: the family that the corrections run over.
        region: short name.
        cases: number of pairs.
        mean_a, mean_b: mean scores.
        difference: mean of A - B, with its confidence interval ``low`` to ``high``.
        p: uncorrected; ``p_holm`` controls the chance of any false finding, ``p_bh`` the share of false ones.
        effect: rank-biserial correlation (Kerby, Comprehensive Psychology 2014): (sum of ranks that favor A - sum
            that favor B) / their total; 0 when all pairs are equal.
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
    ours: Sequence[Row],
    theirs: Sequence[Row],
    task: Task,
    *,
    metric: str = "dice",
    resamples: int = 2000,
    seed: int = 0,
) -> list[PairedTest]:
    """Test every subset and every average of A (``ours``) against B (``theirs``) on the cases that both have.

    Args:
        ours, theirs: scores of two bundles.
        task: of both.
        metric: of ``METRICS``.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputDataError: no case, or no subset, is in both.
    """
    a, b = (table([_defined(row, metric) for row in rows], task, metric) for rows in (ours, theirs))
    common = {row.case for row in ours} & {row.case for row in theirs}
    units = [
        ("average", name, members)
        for name, members in groups(task).items()
        if set(members) <= set(a) & set(b)
    ]
    units += [("subset", subset, (subset,)) for subset in a if subset in b]
    if not common or not units:
        raise InputDataError(
            "The two evaluations have no case and subset in common.",
            "Evaluate both bundles on the same cases.",
        )
    tests = []
    for kind, name, members in units:
        for region in task.regions:
            left, right = (per_case_averages(values, members, region.name) for values in (a, b))
            cases = sorted(common & set(left) & set(right))
            if cases:
                pairs = (np.array([side[case] for case in cases]) for side in (left, right))
                tests.append(
                    _test(kind, name, region.name, *pairs, METRICS[metric], resamples, seed)
                )
    return _corrected(tests)


def _plain(value):
    if not isinstance(value, float):
        return value
    return None if np.isnan(value) else round(value, 6)


def _defined(row: Row, metric: str) -> Row:
    """The row with the diagonal of its grid for an undefined score."""
    return replace(row, **{metric: row.diagonal_mm}) if np.isnan(getattr(row, metric)) else row


def _test(
    kind: str,
    unit: str,
    region: str,
    a: np.ndarray,
    b: np.ndarray,
    sign: int,
    resamples: int,
    seed: int,
) -> PairedTest:
    difference = np.round(a - b, 12)  # differences of rounding are ties
    low, high = _interval(difference, resamples, seed)
    return PairedTest(
        unit=unit,
        kind=kind,
        region=region,
        cases=len(a),
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p=_wilcoxon(difference),
        effect=rank_biserial(sign * difference),
        better=int((sign * difference > 0).sum()),
        worse=int((sign * difference < 0).sum()),
    )


def _wilcoxon(difference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test with Pratt's zeros: exact up to ``EXACT`` cases, then normal.

    Exact also where differences are tied, which SciPy answers for few cases by going through every choice of signs,
    seconds a test. Here the number of choices that give each sum of ranks is counted rank by rank instead.
    """
    from scipy.stats import rankdata, wilcoxon

    if not difference.any():
        return 1.0
    if len(difference) > EXACT:
        return float(wilcoxon(difference, zero_method="pratt", method="asymptotic").pvalue)
    doubled = np.round(2 * rankdata(np.abs(difference))).astype(int)  # tied ranks are halves
    favor, total = doubled[difference > 0].sum(), doubled[difference != 0].sum()
    ways = np.zeros(total + 1)
    ways[0] = 1
    for rank in doubled[difference != 0]:
        ways[rank:] = ways[rank:] + ways[:-rank]
    far = np.abs(2 * np.arange(total + 1) - total) >= abs(2 * favor - total)
    return float(ways[far].sum() / ways.sum())


def rank_biserial(difference: np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation of differences; zeros are ranked, and then count for neither (Pratt)."""
    from scipy.stats import rankdata

    ranks = rankdata(np.abs(difference))
    favor, against = ranks[difference > 0].sum(), ranks[difference < 0].sum()
    total = favor + against
    return float((favor - against) / total) if total else 0.0


def _interval(difference: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % confidence interval of the mean; (nan, nan) of a single case, and a point where all are equal."""
    from scipy.stats import bootstrap

    if len(difference) < 2:
        return float("nan"), float("nan")
    if np.ptp(difference) == 0:
        return float(difference[0]), float(difference[0])
    found = bootstrap(
        (difference,),
        np.mean,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
        method="BCa",
        vectorized=True,
    ).confidence_interval
    return float(found.low), float(found.high)


def _corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    from statsmodels.stats.multitest import multipletests

    done = []
    for kind in dict.fromkeys(test.kind for test in tests):
        family = [test for test in tests if test.kind == kind]
        values = [test.p for test in family]
        holm, bh = (multipletests(values, method=method)[1] for method in ("holm", "fdr_bh"))
        done += [
            replace(t, p_holm=float(h), p_bh=float(q))
            for t, h, q in zip(family, holm, bh, strict=True)
        ]
    return done
