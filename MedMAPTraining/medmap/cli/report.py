"""``medmap report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from medmap.cli.base import Overwrite, app, out, showing_progress


@app.command()
def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Evaluations (medmap evaluate --output), bundles, training runs, PNG files, "
            "in any order."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        Path | None, typer.Option(help="Also write every figure as a PNG into this folder.")
    ] = None,
    cases: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--case",
            help="Case to draw, every method in a row of its own; repeatable [default: four cases, "
            "from the best to the worst].",
        ),
    ] = None,
    subsets: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--subset",
            help="Modality subset to draw, such as t1ce+flair; repeatable [default: all].",
        ),
    ] = None,
    title: Annotated[
        str, typer.Option(help="Title of the page.")
    ] = "Segmentation with missing modalities",
    overwrite: Overwrite = False,
) -> None:
    """Write one self-contained HTML page: tables, tests, pictures, worst cases, training curves."""
    from medmap.commands.report import write_report

    with showing_progress() as progress:
        page = write_report(
            sources,
            output,
            title=title,
            figures=figures,
            overwrite=overwrite,
            report=progress,
            example_cases=cases or (),
            example_subsets=subsets or (),
        )
    out.print(f"Report in {page}")
