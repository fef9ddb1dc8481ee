"""What things cost, as ratios from one run."""

from medmap.bench.networks import NetworkRow, bench_networks, count_gflop, measure_network, networks_table

__all__ = ["NetworkRow", "bench_networks", "count_gflop", "measure_network", "networks_table"]
