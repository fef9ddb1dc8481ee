"""``medmap curves``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmap.cli.base import Overwrite, app, out


@app.command()
def curves(
    run: Annotated[Path, typer.Argument(help="Folder of a training (medmap train --run).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG file to write.")] = Path(
        "curves.png"
    ),
    losses: Annotated[
        bool, typer.Option("--losses", help="Draw losses and learning rate instead.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw what a training logged: preference and importance of each modality, or losses."""
    from medmap.commands.curves import draw_curves

    path = draw_curves(run, output, losses=losses, overwrite=overwrite)
    out.print(f"Curves in {path}")
