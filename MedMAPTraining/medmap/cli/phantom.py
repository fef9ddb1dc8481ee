"""``medmap phantom``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmap.cli.base import Device, Overwrite, app, out, showing_progress
from medmap.errors import UsageError


@app.command()
def phantom(
    output: Annotated[
        Path, typer.Argument(help="Folder for the cases, in the layout of BraTS or MyoPS 2020.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of cases.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the first case; the following ones count up.")
    ] = 0,
    spacing: Annotated[float, typer.Option(min=0.5, max=4.0, help="Voxel size in mm.")] = 1.0,
    healthy: Annotated[bool, typer.Option("--healthy", help="Tumor-free cases.")] = False,
    task: Annotated[
        str, typer.Option(help="BraTS: brains with a tumor; MyoPS: hearts after an infarct.")
    ] = "BraTS",
    anatomy: Annotated[
        Path | None,
        typer.Option(
            help="Label map with FreeSurfer ids, or a folder of them, instead of procedural "
            "anatomy."
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="Folders and names of a BraTS release: plain, brats2018, brats2019, brats2020, "
            "brats2021, brats2023.",
        ),
    ] = "plain",
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Generate synthetic cases with ground truth; the same seed gives the same case.

    Brains are skull-stripped and have four aligned modalities, hearts are stacks of thick slices
    with three.
    """
    from medmap.commands.phantoms import write_hearts, write_phantoms
    from medmap.task import BRATS, MYOPS, find_task

    chosen = find_task(task)
    if chosen not in (BRATS, MYOPS):
        raise UsageError(
            f"There are no synthetic cases of the task {chosen.name}.",
            f"Use {BRATS.name} or {MYOPS.name}.",
        )
    is_brain = chosen is BRATS
    if healthy and not is_brain:
        raise UsageError("--healthy applies to brains only.", "Omit it.")
    if layout != "plain" and not is_brain:
        raise UsageError("--layout applies to brains only.", "Omit it.")
    with showing_progress() as report:
        if is_brain:
            write_phantoms(
                output, count, seed, spacing, healthy, device, overwrite, report, anatomy, layout
            )
        else:
            write_hearts(output, count, seed, spacing, device, overwrite, report)
    noun = "case"
    if count > 1:
        noun = "cases"
    out.print(f"{count} synthetic {noun} in {output}")
