"""``medmap train`` and ``medmap export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmap.cli.base import (
    Affine,
    AssumeOrientation,
    Device,
    Labels,
    Overwrite,
    TaskOption,
    app,
    out,
    showing_progress,
)

RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        help="Recipe: a JSON file, or a name from medmap recipes [default: MedMAP's own]."
    ),
]
Teacher = Annotated[
    Path | None,
    typer.Option(help="Bundle or run of a trained teacher, for distillation objectives."),
]
Subsets = Annotated[
    list[str] | None,
    typer.Option(
        help="Modality subset (t1ce+flair) that gets its own network, for methods with one "
        "network per subset; repeatable. Where a patient's modalities satisfy several subsets of "
        "the same size, the first one is used. [default: the recipe's subsets]"
    ),
]
Start = Annotated[
    Path | None,
    typer.Option("--from", help="Initialize from this bundle's weights (fine-tuning)."),
]
Anatomy = Annotated[
    Path | None,
    typer.Option(help="Label map with FreeSurfer ids, or a folder of them, for synthetic cases."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Cases with labels: a folder in the layout of the recipe's task (BraTS, MyoPS), a "
        "BIDS data set, or a CSV table [default: synthetic cases generated on the fly]."
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Train on the train part of this split (file or name) instead of the recipe's; "
        "none: on all cases. If the split has a val part, the best checkpoint on it is exported. "
        "test is never read."
    ),
]
Fold = Annotated[
    str | None,
    typer.Option(
        help="Fold of the split (medmap split, or nnU-Net's splits_final.json): its number from "
        "0, or all: one network per fold, exported as one ensemble."
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0.0, help="Stop after this many minutes; rerun the same command to resume."),
]
Precision = Annotated[
    str, typer.Option(help="auto (what the device computes well), bf16, fp16 or fp32.")
]
Devices = Annotated[
    int, typer.Option(min=1, help="GPUs (or CPU processes) of this machine to train on.")
]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that make batches.")]
CacheFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder of prepared cases, shared by all runs [default: $MEDMAP_CACHE, or medmap "
        "in the user's cache folder].",
    ),
]
CacheSize = Annotated[
    float | None,
    typer.Option(
        "--cache-gb",
        min=0.001,
        help="Largest size of the cache; cases unused for two weeks make room [default: "
        "$MEDMAP_CACHE_GB, or 200].",
    ),
]
PrepareWorkers = Annotated[
    int | None,
    typer.Option(
        "--prepare-workers", min=1, help="Processes that prepare cases [default: one per core]."
    ),
]
Name = Annotated[
    str,
    typer.Option(
        help="Name of the bundle [default: the published row's or the run's, with a hash of the "
        "weights]."
    ),
]
Version = Annotated[str, typer.Option(help="Version of the bundle.")]
DataStatement = Annotated[
    str, typer.Option(help="Description of the training data for the model card.")
]
Author = Annotated[str, typer.Option(help="Who trained the bundle, for its card.")]
License = Annotated[
    str, typer.Option("--license", help="License of the bundle, for its card (CC-BY-4.0).")
]
SaveEvery = Annotated[
    int, typer.Option(min=0, help="Steps between checkpoints; 0: every minute, or 5 % of the time.")
]
ValidateEvery = Annotated[
    int, typer.Option(min=0, help="Steps between validations; 0: twenty in total.")
]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the network (torch.compile).")]
ChannelsLast = Annotated[
    bool | None,
    typer.Option(
        "--channels-last/--channels-first",
        help="Layout of tensors in memory; by default what is faster on this device.",
    ),
]


@app.command()
def train(
    recipe: RecipeArgument = None,
    *,
    run: Annotated[
        Path,
        typer.Option(help="Folder of the run (checkpoint, log). An unfinished run is resumed."),
    ],
    data: Data = None,
    bundle: Annotated[
        Path, typer.Option(help="Folder for the bundle, exported after the last step.")
    ],
    teacher: Teacher = None,
    subset: Subsets = None,
    start: Start = None,
    anatomy: Anatomy = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of steps [default: the recipe's].")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed [default: the recipe's].")] = None,
    split: Split = None,
    fold: Fold = None,
    minutes: Minutes = None,
    precision: Precision = "auto",
    device: Device = "auto",
    devices: Devices = 1,
    workers: Workers = None,
    cache: CacheFolderOption = None,
    cache_gb: CacheSize = None,
    prepare_workers: PrepareWorkers = None,
    save_every: SaveEvery = 0,
    validate_every: ValidateEvery = 0,
    compiled: Compiled = False,
    channels_last: ChannelsLast = None,
    name: Name = "",
    version: Version = "1.0.0",
    data_statement: DataStatement = "not stated",
    author: Author = "",
    license_name: License = "",
    overwrite: Overwrite = False,
    labels: Labels = "",
    task: TaskOption = None,
    affine: Affine = None,
    assume_orientation: AssumeOrientation = False,
) -> None:
    """Train and export a bundle; rerun the same command to resume.

    KD-Net, PMKL, ProtoKD, SMU-Net and ACN train one network per modality subset; all of them are
    exported as one bundle.
    """
    from medmap.commands.training import train_bundle
    from medmap.commands.training_options import BundleOptions, CacheOptions, TrainOptions
    from medmap.training.distributed import is_first
    from medmap.training.loader import default_workers
    from medmap.training.options import RuntimeOptions

    runtime = RuntimeOptions(
        device=device,
        precision=precision,
        devices=devices,
        workers=default_workers(device, devices) if workers is None else workers,
        compiled=compiled,
        channels_last=channels_last,
        minutes=minutes,
        save_every=save_every,
        validate_every=validate_every,
    )
    options = TrainOptions(
        recipe=recipe,
        split=split,
        fold=fold,
        teacher=teacher,
        subsets=tuple(subset or ()),
        start=start,
        anatomy=anatomy,
        steps=steps,
        seed=seed,
        runtime=runtime,
        bundle=BundleOptions(
            name=name,
            version=version,
            data_statement=data_statement,
            author=author,
            license=license_name,
            overwrite=overwrite,
        ),
        cache=CacheOptions(cache, cache_gb, prepare_workers),
        labels=labels,
        task=task,
        affine=affine,
        assume_orientation=assume_orientation,
    )
    with showing_progress() as report:
        steps_done, steps_total = train_bundle(run, data, bundle, options, report)
    if not is_first():
        return
    if steps_done < steps_total:
        out.print(
            f"{steps_done} of {steps_total} steps are done. Run the same command again to continue."
        )
    else:
        out.print(f"Bundle in {bundle}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training, finished or not.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-o", help="Folder for the bundle.")],
    *,
    name: Name = "",
    version: Version = "1.0.0",
    data_statement: DataStatement = "not stated",
    author: Author = "",
    license_name: License = "",
    full_path: Annotated[
        bool,
        typer.Option(
            "--full-path",
            help="Of ACN or SMU-Net, the network that sees every modality, to analyze its latents; "
            "name the run of one modality subset.",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Export the averaged weights of a training as it stands, to try or evaluate them.

    The runs of several folds become one ensemble, the mean of their class probabilities.
    """
    from medmap.commands.bundle_export import export_run
    from medmap.commands.training_options import BundleOptions

    options = BundleOptions(
        name=name,
        version=version,
        data_statement=data_statement,
        author=author,
        license=license_name,
        overwrite=overwrite,
    )
    step = export_run(run, bundle, options, full_path=full_path)
    out.print(f"bundle: {bundle} (step {step})")
