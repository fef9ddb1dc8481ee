"""``medmap analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from medmap.cli.base import Overwrite, app, out, showing_progress


@app.command()
def analyze(
    bundles: Annotated[
        list[Path], typer.Argument(help="Bundles to compare, such as before and after alignment.")
    ],
    data: Annotated[Path, typer.Option(help="Folder of cases that have every scan.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for latents.json and tsne.png.")
    ],
    tap: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="stem or mod_bottleneck [default: where T* stands, or mod_bottleneck]."),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="At most so many cases.")] = 10,
    places: Annotated[int, typer.Option(min=10, help="At most so many places a case.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which places, and t-SNE's start.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Measure and draw how far apart the scans lie in the latent space of each bundle."""
    from medmap.commands.analysis import AnalyzeOptions, analyze_bundles

    options = AnalyzeOptions(tap, cases, places, seed, overwrite)
    with showing_progress() as report:
        found = analyze_bundles(bundles, data, output, options, report)
    names = ("centroid_distance", "mmd", "two_sample_accuracy", "paired_distance")
    table = Table("bundle", "tap", *(name.replace("_", " ") for name in names))
    for bundle, measures in found.items():
        table.add_row(bundle, measures["tap"], *(f"{measures[name]['mean']:.3f}" for name in names))
    out.print(table)
    out.print(
        "Means over pairs of scans. Centroid distance: in widths of a scan's own latents. MMD²: 0 alike. Two-sample "
        "accuracy: 0.5 chance. Paired distance: 0 alike, 2 unrelated.",
        soft_wrap=True,
    )
