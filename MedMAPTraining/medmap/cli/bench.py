"""``medmap bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from medmap.cli.base import Device, bench, err, out
from medmap.errors import UsageError


@bench.command("networks")
def bench_networks(
    names: Annotated[list[str] | None, typer.Argument(help="Backbones [default: all].")] = None,
    sizes: Annotated[str, typer.Option(help="Sides of the cubic windows, in voxels.")] = "80,128",
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes; the median counts.")] = 3,
    device: Device = "cpu",
) -> None:
    """Seconds, peak memory and GFLOP of each backbone with 1, 2 and 4 modalities present, in one run."""
    from medmap import bench as measure

    try:
        sides = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise UsageError(f"'{sizes}' is no list of sizes.", "Write for instance --sizes 80,128.") from None
    rows = measure.bench_networks(
        names or None, sides, device=device, repeats=repeats, progress=lambda text: err.print(text, soft_wrap=True)
    )
    out.print(measure.networks_table(rows))
