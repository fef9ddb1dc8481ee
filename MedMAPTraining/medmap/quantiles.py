"""Quantiles of many values, without sorting them. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAMPLED_VALUES = 4000
"""Values that say about where an end of the distribution begins."""

SPARE_RANKS = 40
"""Ranks within the sample by which an end is taken longer than it should need to be."""


def percentiles(values: np.ndarray, percentages: Sequence[float]) -> np.ndarray:
    """What ``np.percentile`` gives for these values in float64, to the last bit.

    Args:
        values: [N] finite numbers, at least one.
        percentages: 0..100; the fewer values lie beyond them, the faster.
    """
    positions = (values.size - 1) * (np.array(percentages) / 100)
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, values.size - 1)
    ends = order_statistics(values, np.concatenate([lower, upper])).astype(np.float64)
    low_ends = ends[: len(lower)]
    high_ends = ends[len(lower) :]
    share = positions - lower
    step = high_ends - low_ends
    # From the nearer end, as NumPy has it.
    return np.where(share >= 0.5, high_ends - step * (1 - share), low_ends + step * share)


def order_statistics(values: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """``np.sort(values)[ranks]``.

    A sample says about where the smallest and the largest values begin, and only these are put in
    order: for quantiles near the ends that takes a quarter of the time. Where the sample misleads,
    all values are.

    Args:
        values: [N] finite numbers, at least one.
        ranks: [R] 0 .. N - 1.
    """
    result = np.empty(len(ranks), values.dtype)
    is_low = ranks < values.size // 2
    if is_low.any():
        low_ranks = ranks[is_low]
        end = _low_end(values, int(low_ranks.max()))
        result[is_low] = np.partition(end, np.unique(low_ranks))[low_ranks]
    if not is_low.all():
        ranks_from_top = values.size - 1 - ranks[~is_low]
        end = _high_end(values, int(ranks_from_top.max()))
        high_ranks = end.size - 1 - ranks_from_top
        result[~is_low] = np.partition(end, np.unique(high_ranks))[high_ranks]
    return result


def _low_end(values: np.ndarray, last: int) -> np.ndarray:
    """Some values, among them the ``last`` + 1 smallest."""
    sample = _sorted_sample(values)
    spare = _spare_rank(last, values, sample)
    if spare >= sample.size:
        return values
    end = values[values <= sample[spare]]
    if end.size > last:
        return end
    return values


def _high_end(values: np.ndarray, last: int) -> np.ndarray:
    """Some values, among them the ``last`` + 1 largest."""
    sample = _sorted_sample(values)
    spare = _spare_rank(last, values, sample)
    if spare >= sample.size:
        return values
    end = values[values >= sample[sample.size - 1 - spare]]
    if end.size > last:
        return end
    return values


def _sorted_sample(values: np.ndarray) -> np.ndarray:
    return np.sort(values[:: max(1, values.size // SAMPLED_VALUES)])


def _spare_rank(last: int, values: np.ndarray, sample: np.ndarray) -> int:
    """A rank in the sample that lies surely beyond a rank among all values."""
    return last * sample.size // values.size + SPARE_RANKS
