"""Quantiles near the ends, found without sorting, are those of NumPy to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.quantiles import order_statistics, percentiles


def values_of(kind: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    values = rng.normal(300, 80, count)
    if kind == "sorted":
        values = np.sort(values)
    elif kind == "few":
        values = values.round(-2)
    elif kind == "misleading":
        # The sample takes every n-th value: here it sees none of the small ones.
        step = max(1, count // 4000)
        values[np.arange(count) % step > 0] -= 1e5
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", ["random", "sorted", "few", "misleading"])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 4000, 50_001])
@pytest.mark.parametrize("shares", [(0.5, 99.5), (0, 16.3, 50, 100)])
def test_percentiles_are_those_of_numpy(kind, count, shares):
    values = values_of(kind, count)
    expected = np.percentile(values.astype(np.float64), shares)
    np.testing.assert_array_equal(percentiles(values, shares), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int16])
def test_order_statistics_of_every_type(dtype):
    values = values_of("random", 30_000).clip(0).astype(dtype)
    ranks = np.array([0, 29_999, 3, 14_999, 15_000, 29_990])
    np.testing.assert_array_equal(order_statistics(values, ranks), np.sort(values)[ranks])
