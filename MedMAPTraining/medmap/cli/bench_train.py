"""``medmap bench train``."""

from __future__ import annotations

from typing import Annotated, Optional

import typer
from rich.table import Table

from medmap.cli.base import Device, bench, err, out


@bench.command("train")
def bench_train(
    methods: Annotated[
        list[str] | None, typer.Argument(help="plain, auxiliary, PASSION [default: all].")
    ] = None,
    network: Annotated[str, typer.Option(help="Backbone.")] = "mmFormer",
    patch: Annotated[int, typer.Option(min=16, help="Side of the patches, in voxels.")] = 80,
    batch: Annotated[
        int, typer.Option(min=1, help="Samples per step of our way; the published way has 1.")
    ] = 4,
    precision: Annotated[
        str, typer.Option(help="Precision of our way [default: bf16 on a GPU, fp32 on a CPU].")
    ] = "",
    workers: Annotated[int, typer.Option(min=0, help="Data loader processes of our way.")] = 4,
    steps: Annotated[int, typer.Option(min=2, help="Timed steps of each way.")] = 10,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network of our way.")
    ] = False,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="PATH", help="A peer's training step, file.py:callable: callable(image, label)."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare training steps with the published way, in one run.

    Published: eager fp32, batch size 1, students one after another.
    """
    from medmap.bench.training import METHODS, bench_training, training_table
    from medmap.devices import resolve_device
    from medmap.errors import UsageError

    unknown = set(methods or ()) - set(METHODS)
    if unknown:
        raise UsageError(
            f"The method '{sorted(unknown)[0]}' is unknown.", f"Use some of {', '.join(METHODS)}."
        )
    rows = bench_training(
        methods or tuple(METHODS),
        network=network,
        patch=patch,
        batch=batch,
        precision=precision or ("bf16" if resolve_device(device).type == "cuda" else "fp32"),
        workers=workers,
        compiled=compiled,
        device=device,
        steps=steps,
        against=against,
        progress=lambda text: err.print(text, soft_wrap=True),
    )
    header, *lines = training_table(rows)
    table = Table(*header, title=f"{network}, patches of {patch}³, {resolve_device(device)}")
    for line in lines:
        table.add_row(*line)
    out.print(table)
