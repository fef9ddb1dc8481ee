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
    data: Annotated[Path, typer.Option(help="Folder of cases that have every modality.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for latents.json and tsne.png.")
    ],
    tap: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Latents: stem, mod_bottleneck, or another tap of the network (bottleneck, "
            "decoder) that is given each modality alone [default: where T* stands, or "
            "mod_bottleneck, or bottleneck]."
        ),
    ] = None,
    cases: Annotated[int, typer.Option(min=1, help="Maximum number of cases.")] = 10,
    places: Annotated[
        int, typer.Option(min=10, help="Maximum number of sampled voxels per case.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling and of t-SNE.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Measure and draw the gap between modalities in the latent space of each bundle."""
    from medmap.commands.analysis import AnalyzeOptions, analyze_bundles

    options = AnalyzeOptions(tap, cases, places, seed, overwrite)
    with showing_progress() as report:
        results = analyze_bundles(bundles, data, output, options, report)
    columns = {
        "centroid_distance": "centroid distance",
        "mmd": "MMD²",
        "two_sample_accuracy": "domain-classifier accuracy",
        "paired_distance": "paired distance",
    }
    table = Table("bundle", "latents", *columns.values())
    for bundle, measures in results.items():
        means = [f"{measures[name]['mean']:.3f}" for name in columns]
        table.add_row(bundle, measures["tap"], *means)
    out.print(table)
    out.print(
        "Means over pairs of modalities. Centroid distance: in standard deviations within a "
        "modality. MMD²: 0 for equal distributions. Domain-classifier accuracy: 0.5 is chance. "
        "Paired distance: 0 alike, 2 unrelated.",
        soft_wrap=True,
    )
