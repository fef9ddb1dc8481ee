"""Score rows of made-up evaluations."""

from medmap.evaluation import ScoreRow
from medmap.task import BRATS


def rows_of(scores, cases=6, region="WT"):
    """Rows of every subset of BraTS; ``scores(case, subset)`` is the Dice of every region."""
    return [
        ScoreRow(
            f"c{n}",
            BRATS.subset_key(s),
            r.name,
            scores(n, s),
            scores(n, s),
            4.0,
            4.0,
            1.0,
            1.0,
            5.0,
            5.0,
            373.13,
        )
        for n in range(cases)
        for s in BRATS.subsets()
        for r in BRATS.regions
    ]
