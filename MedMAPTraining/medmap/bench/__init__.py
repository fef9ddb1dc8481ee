"""Benchmarks: runtime and memory, as ratios from one run."""
