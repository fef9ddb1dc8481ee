"""``medmap train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from medmap.cli.base import Device, Overwrite, app, out, showing_progress

RecipeArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(
        help="Recipe: a JSON file, or a name that medmap recipes lists [default: MedMAP's own]."
    ),
]
Teacher = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Bundle or run of a trained teacher, for objectives that distil."),
]
Subsets = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="A set of scans (t1ce+flair) that gets its own network, for methods that train one a set; repeat for "
        "more. Where scans satisfy several sets of the same size, the one named first is used. "
        "[default: the recipe's sets]"
    ),
]
Start = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Bundle whose weights to begin with: fine-tuning on your own cases."
    ),
]
Anatomy = Annotated[
    Path | None,
    typer.Option(
        help="Without --data: label map with FreeSurfer ids, or a folder of them, for heads."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder of cases in the layout of the recipe's task (BraTS, MyoPS), with labels [default: synthetic "
        "heads, made as it goes]."
    ),
]
Split = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Train on the part train of this split (file or name) instead of the recipe's; none: on all. Has it a "
        "part val, the network that validates best on it is exported; test is not opened."
    ),
]
Minutes = Annotated[Optional[float], typer.Option(help="Stop after so long; call again to go on.")]  # noqa: UP045
Precision = Annotated[str, typer.Option(help="bf16, fp16 or fp32.")]
Devices = Annotated[
    int, typer.Option(min=1, help="GPUs (or CPU processes) of this machine to train on.")
]
Workers = Annotated[Optional[int], typer.Option(min=0, help="Processes that make batches ahead.")]  # noqa: UP045
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
ValidateEvery = Annotated[
    int, typer.Option(min=0, help="Steps between validations; 0: twenty in all.")
]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the network (torch.compile).")]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Keep channels innermost in memory.")
]


@app.command()
def train(
    recipe: RecipeArgument = None,
    *,
    run: Annotated[
        Path, typer.Option(help="Folder of the run: checkpoint, log. An unfinished run is resumed.")
    ],
    data: Data = None,
    bundle: Annotated[
        Path, typer.Option(help="Where to export the bundle when the steps are done.")
    ],
    teacher: Teacher = None,
    subset: Subsets = None,
    start: Start = None,
    anatomy: Anatomy = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Instead of the recipe's number of steps.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's seed.")] = None,
    split: Split = None,
    minutes: Minutes = None,
    precision: Precision = "bf16",
    device: Device = "auto",
    devices: Devices = 1,
    workers: Workers = None,
    save_every: SaveEvery = 250,
    validate_every: ValidateEvery = 0,
    compiled: Compiled = False,
    channels_last: ChannelsLast = False,
    name: Annotated[str, typer.Option(help="Name of the bundle.")] = "medmap-custom",
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1.0.0",
    data_statement: Annotated[
        str, typer.Option(help="What the data are, for the card.")
    ] = "not stated",
    overwrite: Overwrite = False,
) -> None:
    """Train and export a bundle. Safe to interrupt and call again.

    KD-Net, PMKL, ProtoKD, SMU-Net and ACN train one network a set of scans; all of them become one bundle.
    """
    from medmap.commands.training import TrainOptions, train_bundle
    from medmap.training.distributed import is_first
    from medmap.training.loader import default_workers

    options = TrainOptions(
        recipe=recipe,
        teacher=teacher,
        subsets=tuple(subset or ()),
        start=start,
        anatomy=anatomy,
        steps=steps,
        seed=seed,
        split=split,
        minutes=minutes,
        precision=precision,
        device=device,
        devices=devices,
        workers=default_workers(device, devices) if workers is None else workers,
        save_every=save_every,
        validate_every=validate_every,
        compiled=compiled,
        channels_last=channels_last,
        name=name,
        version=version,
        data_statement=data_statement,
        overwrite=overwrite,
    )
    with showing_progress() as report:
        done, total = train_bundle(run, data, bundle, options, report)
    if not is_first():
        return
    if done < total:
        out.print(f"{done} of {total} steps are done. Call the same command again to go on.")
    else:
        out.print(f"Bundle in {bundle}")
