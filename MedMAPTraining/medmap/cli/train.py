"""``medmap train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from medmap.cli.base import Device, Overwrite, app, out, showing_progress

RecipeArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(help="Recipe: a JSON file, or a name that medmap recipes lists [default: MedMAP's own]."),
]
SplitOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Train on the part train of this split (file or name) instead of the recipe's; none: all."),
]


@app.command()
def train(
    recipe: RecipeArgument = None,
    *,
    run: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log. An unfinished run is resumed.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of cases in the layout of the recipe's task (BraTS, MyoPS), with labels [default: synthetic "
            "heads, made as it goes]."
        ),
    ] = None,
    bundle: Annotated[Path, typer.Option(help="Where to export the bundle when the steps are done.")],
    teacher: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Bundle or run of a trained teacher, for objectives that distil."),
    ] = None,
    subset: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="A set of scans (t1ce+flair) that gets its own network, for methods that train one a set; repeat for "
            "more. Where scans satisfy several sets of the same size, the one named first is used. "
            "[default: the recipe's sets]"
        ),
    ] = None,
    split: SplitOption = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Bundle whose weights to begin with: fine-tuning on your own cases.")
    ] = None,
    anatomy: Annotated[
        Path | None, typer.Option(help="Without --data: label map with FreeSurfer ids, or a folder of them, for heads.")
    ] = None,
    steps: Annotated[Optional[int], typer.Option(min=1, help="Instead of the recipe's number of steps.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(min=0, help="Instead of the recipe's seed.")] = None,  # noqa: UP045
    minutes: Annotated[Optional[float], typer.Option(help="Stop after so long; call again to go on.")] = None,  # noqa: UP045
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    device: Device = "auto",
    name: Annotated[str, typer.Option(help="Name of the bundle.")] = "medmap-custom",
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1.0.0",
    data_statement: Annotated[str, typer.Option(help="What the data are, for the card.")] = "not stated",
    overwrite: Overwrite = False,
) -> None:
    """Train and export a bundle. Safe to interrupt and call again.

    KD-Net, PMKL, ProtoKD, SMU-Net and ACN train one network a set of scans; all of them become one bundle.
    """
    from medmap.workflow.training import TrainOptions, train_bundle

    options = TrainOptions(
        recipe,
        split,
        teacher,
        tuple(subset or ()),
        start,
        anatomy,
        steps,
        seed,
        minutes,
        precision,
        device,
        name,
        version,
        data_statement,
        overwrite,
    )
    with showing_progress() as report:
        done, total = train_bundle(run, data, bundle, options, report)
    if done < total:
        out.print(f"{done} of {total} steps are done. Call the same command again to go on.")
    else:
        out.print(f"Bundle in {bundle}")
