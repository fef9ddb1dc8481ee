"""``medmap bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from medmap.cli.base import BundleOption, Device, Scan, bench, err, out
from medmap.errors import UsageError


@bench.command("networks")
def bench_networks(
    names: Annotated[list[str] | None, typer.Argument(help="Backbones [default: all].")] = None,
    sizes: Annotated[str, typer.Option(help="Sides of the cubic windows, in voxels.")] = "80,128",
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes; the median counts.")] = 3,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="PATH",
            help="A peer's network, file.py:callable: callable(image [1, 4, S, S, S]).",
        ),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Seconds, peak memory and GFLOP of each backbone with 1, 2 and 4 modalities present, in one run."""
    from medmap import bench as measure

    sides = _numbers(sizes, "--sizes 80,128")
    options = {"device": device, "repeats": repeats, "against": against, "progress": _tell}
    rows = measure.bench_networks(names or None, sides, **options)
    out.print(measure.networks_table(rows))


Against = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="PATH",
        help="A peer's model, file.py:callable or module:callable: labels = callable({modality: array}, affine).",
    ),
]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs a row; the median counts.")]
Spacing = Annotated[float, typer.Option(min=0.5, max=4.0, help="Of the synthetic patient, in mm.")]


@bench.command("infer")
def bench_infer(
    t1: Scan = None,
    t1ce: Scan = None,
    t2: Scan = None,
    flair: Scan = None,
    bundle: BundleOption = None,
    present: Annotated[str, typer.Option(help="Numbers of scans.")] = "1,2,4",
    schemes: Annotated[
        str, typer.Option(help="Of ours, windows and published.")
    ] = "ours,windows,published",
    against: Against = None,
    repeats: Repeats = 3,
    spacing: Spacing = 1.0,
    device: Device = "cpu",
) -> None:
    """One patient from files to a label map, by number of scans and scheme; a synthetic one unless scans are given.

    ours: what medmap segment does. windows: the same network in windows of 128 voxels, half in common. published:
    mmFormer as it is released, in such windows, all four encoders always run (minutes on a CPU).
    """
    from medmap import bench as measure
    from medmap.bundle.format import default_bundle_path

    given = {
        name: path
        for name, path in (("t1", t1), ("t1ce", t1ce), ("t2", t2), ("flair", flair))
        if path
    }
    numbers = _numbers(present, "--present 1,2,4")
    costs = measure.bench_infer(
        given,
        bundle or default_bundle_path(),
        present=numbers,
        schemes=[s.strip() for s in schemes.split(",") if s.strip()],
        against=against,
        device=device,
        repeats=repeats,
        spacing=spacing,
        progress=_tell,
    )
    full = [cost for cost in costs if cost.name.startswith(f"ours, {max(numbers)}")]
    base = full[0] if full else costs[0]
    out.print(
        measure.cost_table("One patient, from files to a label map", costs, base, f"'{base.name}'")
    )
    for cost in costs:
        slow = next((c for c in costs if c.name.startswith("published")), None)
        if slow and cost.name.startswith("ours") and (ratio := slow.ratio(cost)):
            out.print(
                f"{cost.name}: {ratio:.1f} times less than the published way.", soft_wrap=True
            )


@bench.command("subsets")
def bench_subsets(
    t1: Scan = None,
    t1ce: Scan = None,
    t2: Scan = None,
    flair: Scan = None,
    bundle: BundleOption = None,
    against: Against = None,
    repeats: Repeats = 1,
    spacing: Spacing = 1.0,
    device: Device = "cpu",
) -> None:
    """Every subset of one patient's scans, each scan encoded once, against one segmentation of all of them."""
    from medmap import bench as measure
    from medmap.bundle.format import default_bundle_path

    given = {
        name: path
        for name, path in (("t1", t1), ("t1ce", t1ce), ("t2", t2), ("flair", flair))
        if path
    }
    costs = measure.bench_subsets(
        given,
        bundle or default_bundle_path(),
        against=against,
        device=device,
        repeats=repeats,
        spacing=spacing,
        progress=_tell,
    )
    out.print(
        measure.cost_table(
            "Every subset of the scans, from arrays to labels", costs, costs[0], "one"
        )
    )


@bench.command("window")
def bench_window(
    network: Annotated[str, typer.Argument(help="A backbone.")] = "SubsetUNet",
    size: Annotated[int, typer.Option(min=16, help="Side of the cube, in voxels.")] = 128,
    window: Annotated[int, typer.Option(min=16, help="Side of the windows, in voxels.")] = 96,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share that neighbors have in common.")
    ] = 0.5,
    present: Annotated[int, typer.Option(min=1, help="Number of scans present.")] = 2,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="PATH", help="A peer's way over the cube, file.py:callable: callable(image)."
        ),
    ] = None,
    repeats: Repeats = 1,
    device: Device = "cpu",
) -> None:
    """Our sliding window against MONAI's: same network, windows and weights; the note says how far outputs differ."""
    from medmap import bench as measure

    arguments = {
        "size": size,
        "window": window,
        "overlap": overlap,
        "present": present,
        "against": against,
    }
    costs = measure.bench_window(network, **arguments, device=device, repeats=repeats)
    words = f"{network}, {present} scans, windows of {window}³ over {size}³, overlap {overlap:g}"
    out.print(measure.cost_table(words, costs, costs[0], "ours"))


@bench.command("data")
def bench_data(
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder of cases with labels, in BraTS layout; two synthetic ones unless given."
        ),
    ] = None,
    network: Annotated[
        str, typer.Option(help="Backbone whose training step is the measure.")
    ] = "mmFormer",
    patch: Annotated[int, typer.Option(min=16, help="Side of the patches, in voxels.")] = 80,
    batch: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 1,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="PATH",
            help="A peer's loader of one patch: callable({modality: path}, label, patch).",
        ),
    ] = None,
    repeats: Repeats = 5,
    spacing: Spacing = 1.0,
    device: Device = "cpu",
) -> None:
    """What data cost a training: patches from NIfTI files, prepared arrays and the memory-mapped cache, and the step.

    One process makes the batches; medmap train lets several work ahead (--workers).
    """
    from medmap import bench as measure
    from medmap.bench.data import bench_data as run

    arguments = {"network": network, "patch": patch, "batch": batch, "against": against}
    costs = run(data, **arguments, device=device, repeats=repeats, spacing=spacing, progress=_tell)
    out.print(measure.cost_table("One batch of patches", costs, costs[0], f"the {costs[0].name}"))


def _numbers(text: str, example: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UsageError(
            f"'{text}' is no list of numbers.", f"Write for instance {example}."
        ) from None


def _tell(text: str) -> None:
    err.print(text, soft_wrap=True)
