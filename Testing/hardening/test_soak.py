"""Two hundred cases one after the other: workers take no more memory at the end than early on."""

from __future__ import annotations

import csv
import faulthandler
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict

import numpy as np
import pytest

from medmap.commands.cohort_rows import RESULTS
from medmap.io.nifti import write_volume

CASES = 200
WORKERS = 2
EARLY = range(40, 100)
LATE = range(140, 200)
SLACK_MIB = 64.0
"""One worker draws a picture of a case while the other reads the next: 100 MiB more or less."""


def workers_mib(parent: int) -> float:
    """Resident memory of the workers of a running command, in MiB."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "ppid=,rss="], capture_output=True, text=True, check=True
    ).stdout
    sizes = []
    for line in listing.splitlines():
        owner, kib = line.split()
        if int(owner) == parent:
            sizes.append(int(kib) / 1024)
    # Beside the workers there is Python's own small process that cleans up after them.
    return sum(sorted(sizes)[-WORKERS:])


def finished_cases(results) -> int:
    if not results.exists():
        return 0
    with results.open(newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


@pytest.mark.slow
def test_the_memory_of_workers_does_not_grow_over_two_hundred_cases(
    tmp_path, make_case, tiny_bundle_path
):
    # On a busy machine two hundred cases take longer than the limit of a test.
    faulthandler.cancel_dump_traceback_later()
    lines = ["case,t1ce,flair"]
    for kind in range(4):
        # Of several sizes: a leak may hide behind memory that is used again.
        volumes = make_case(shape=(40 + 4 * kind, 44, 36))
        for name in ("t1ce", "flair"):
            volume = volumes[name]
            path = tmp_path / f"{kind}-{name}.nii.gz"
            write_volume(path, volume.array.astype(np.int16), volume.affine)
    for case in range(CASES):
        kind = case % 4
        lines.append(f"case-{case:03},{kind}-t1ce.nii.gz,{kind}-flair.nii.gz")
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(lines) + "\n")
    output = tmp_path / "results"
    command = [sys.executable, "-m", "medmap", "segment-cohort", str(table), "-o", str(output)]
    command += ["--workers", str(WORKERS), "--bundle", str(tiny_bundle_path), "--device", "cpu"]
    process = subprocess.Popen(
        command,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    memory: defaultdict[int, list[float]] = defaultdict(list)
    while process.poll() is None:
        memory[finished_cases(output / RESULTS)].append(workers_mib(process.pid))
        time.sleep(0.25)
    assert process.returncode == 0
    assert finished_cases(output / RESULTS) == CASES
    early = [size for case in EARLY for size in memory[case]]
    late = [size for case in LATE for size in memory[case]]
    growth_mib = statistics.median(late) - statistics.median(early)
    print(f"{statistics.median(early):.0f} MiB, {growth_mib:+.1f} MiB later")
    assert growth_mib < SLACK_MIB
