"""Benchmarks: runtime and memory, as ratios from one run.

``data`` and ``training`` are imported only where they are used.
"""

from medmap.bench.inference import bench_infer, bench_subsets, published_way
from medmap.bench.measure import Cost, cost_table, isolated, timed
from medmap.bench.networks import (
    NetworkRow,
    bench_networks,
    count_gflop,
    measure_network,
    networks_table,
)
from medmap.bench.peer import load_peer
from medmap.bench.windows import WindowSetup, bench_window

__all__ = [
    "Cost",
    "NetworkRow",
    "WindowSetup",
    "bench_infer",
    "bench_networks",
    "bench_subsets",
    "bench_window",
    "cost_table",
    "count_gflop",
    "isolated",
    "load_peer",
    "measure_network",
    "networks_table",
    "published_way",
    "timed",
]
