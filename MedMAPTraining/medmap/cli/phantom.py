"""``medmap phantom``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmap.cli.base import Device, Overwrite, app, out, showing_progress


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Folder for the cases, in BraTS layout.")],
    count: Annotated[int, typer.Option(min=1, help="How many patients.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first; the next ones follow.")] = 0,
    spacing: Annotated[float, typer.Option(min=0.5, max=4.0, help="Voxel size in mm.")] = 1.0,
    healthy: Annotated[bool, typer.Option("--healthy", help="Without a tumour.")] = False,
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Make synthetic patients: four aligned, skull-stripped scans and the true labels. Same seed, same patient."""
    from medmap.workflow.phantoms import write_phantoms

    with showing_progress() as report:
        write_phantoms(output, count, seed, spacing, healthy, device, overwrite, report)
    out.print(f"{count} synthetic case{'s' * (count > 1)} in {output}")
