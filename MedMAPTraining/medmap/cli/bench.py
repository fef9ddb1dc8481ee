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
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed forward passes; the median counts.")
    ] = 3,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="PATH",
            help="A peer's network, file.py:callable: callable(image [1, 4, S, S, S]).",
        ),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Measure seconds, peak memory and GFLOP of each backbone with 1, 2 and 4 modalities."""
    from medmap.bench.networks import bench_networks, networks_table

    sides = _numbers(sizes, "--sizes 80,128")
    rows = bench_networks(
        names or None,
        sides,
        device=device,
        repeats=repeats,
        against=against,
        progress=_print_progress,
    )
    out.print(networks_table(rows))


Against = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="PATH",
        help="A peer's model, file.py:callable or module:callable: "
        "labels = callable({modality: array}, affine).",
    ),
]
Repeats = Annotated[int, typer.Option(min=1, help="Timed runs per row; the median counts.")]
Spacing = Annotated[
    float, typer.Option(min=0.5, max=4.0, help="Voxel size of the synthetic patient, in mm.")
]


@bench.command("infer")
def bench_infer(
    t1: Scan = None,
    t1ce: Scan = None,
    t2: Scan = None,
    flair: Scan = None,
    bundle: BundleOption = None,
    present: Annotated[str, typer.Option(help="Numbers of modalities.")] = "1,2,4",
    schemes: Annotated[
        str, typer.Option(help="Some of ours, windows and published.")
    ] = "ours,windows,published",
    against: Against = None,
    repeats: Repeats = 3,
    spacing: Spacing = 1.0,
    device: Device = "cpu",
) -> None:
    """Segment one patient, from files to a label map, by number of modalities and scheme.

    A synthetic patient unless scans are given. ours: what medmap segment does. windows: the same
    network in windows of 128 voxels that overlap by half. published: mmFormer as it is released, in
    such windows, all four encoders always run (minutes on a CPU).
    """
    from medmap.bench.inference import bench_infer
    from medmap.bench.measure import cost_table
    from medmap.bundle.format import default_bundle_path

    numbers = _numbers(present, "--present 1,2,4")
    costs = bench_infer(
        _scans(t1, t1ce, t2, flair),
        bundle or default_bundle_path(),
        present=numbers,
        schemes=[scheme.strip() for scheme in schemes.split(",") if scheme.strip()],
        against=against,
        device=device,
        repeats=repeats,
        spacing=spacing,
        progress=_print_progress,
    )
    ours = [cost for cost in costs if cost.name.startswith("ours")]
    base = costs[0]
    for cost in ours:
        if cost.name.startswith(f"ours, {max(numbers)}"):
            base = cost
    title = "One patient, from files to a label map"
    out.print(cost_table(title, costs, base, f"'{base.name}'"))
    published = [cost for cost in costs if cost.name.startswith("published")]
    if not published:
        return
    for cost in ours:
        ratio = published[0].ratio(cost)
        if ratio:
            out.print(f"{cost.name}: {ratio:.1f} times faster than published.", soft_wrap=True)


def _scans(
    t1: Path | None, t1ce: Path | None, t2: Path | None, flair: Path | None
) -> dict[str, Path]:
    """The files that are given, by modality."""
    scans = {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}
    return {name: path for name, path in scans.items() if path}


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
    """Segment every modality subset of one patient, against one segmentation of all modalities."""
    from medmap.bench.inference import bench_subsets
    from medmap.bench.measure import cost_table
    from medmap.bundle.format import default_bundle_path

    costs = bench_subsets(
        _scans(t1, t1ce, t2, flair),
        bundle or default_bundle_path(),
        against=against,
        device=device,
        repeats=repeats,
        spacing=spacing,
        progress=_print_progress,
    )
    title = "Every modality subset, from arrays to labels"
    out.print(cost_table(title, costs, costs[0], "one segmentation"))


@bench.command("window")
def bench_window(
    network: Annotated[str, typer.Argument(help="A backbone.")] = "SubsetUNet",
    size: Annotated[int, typer.Option(min=16, help="Side of the cube, in voxels.")] = 128,
    window: Annotated[int, typer.Option(min=16, help="Side of the windows, in voxels.")] = 96,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share that neighboring windows have in common.")
    ] = 0.5,
    present: Annotated[int, typer.Option(min=1, help="Number of modalities present.")] = 2,
    against: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="PATH", help="A peer's sliding window, file.py:callable: callable(image)."
        ),
    ] = None,
    repeats: Repeats = 1,
    device: Device = "cpu",
) -> None:
    """Compare our sliding window with MONAI's: same network, windows and weights.

    The note gives the largest difference of the outputs.
    """
    from medmap.bench.measure import cost_table
    from medmap.bench.windows import WindowSetup, bench_window

    setup = WindowSetup(
        network=network,
        size=size,
        window=window,
        overlap=overlap,
        present=present,
        device=device,
    )
    costs = bench_window(setup, against=against, repeats=repeats)
    title = (
        f"{network}, {present} modalities, windows of {window}³ over {size}³, overlap {overlap:g}"
    )
    out.print(cost_table(title, costs, costs[0], "ours"))


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
    batch: Annotated[int, typer.Option(min=1, help="Patches per step.")] = 1,
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
    """Compare ways to make training patches: NIfTI files, prepared arrays, memory-mapped cache.

    Each against the training step. One process makes the batches; medmap train has several that
    work ahead (--workers).
    """
    from medmap.bench.data import bench_data as run
    from medmap.bench.measure import cost_table

    costs = run(
        data,
        network=network,
        patch=patch,
        batch=batch,
        device=device,
        repeats=repeats,
        spacing=spacing,
        against=against,
        progress=_print_progress,
    )
    first = costs[0]
    out.print(cost_table("One batch of patches", costs, first, f"the {first.name}"))


@bench.command("goals")
def bench_goals(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="speed, subsets, preparing, cold, training, scaling [default: all]."),
    ] = None,
    t1: Scan = None,
    t1ce: Scan = None,
    t2: Scan = None,
    flair: Scan = None,
    bundle: BundleOption = None,
    repeats: Repeats = 3,
    steps: Annotated[int, typer.Option(min=2, help="Timed training steps of each way.")] = 5,
) -> None:
    """Measure the goals for speed on this CPU, as ratios from one run each.

    Some minutes for each: the published ways take most of them. Scaling is measured in wall-clock
    seconds and needs a machine without other load.
    """
    from medmap.bench.goals import goals_table, measure_goals
    from medmap.bundle.format import default_bundle_path

    goals = measure_goals(
        _scans(t1, t1ce, t2, flair) or None,
        bundle or default_bundle_path(),
        names=names or (),
        repeats=repeats,
        steps=steps,
        progress=_print_progress,
    )
    out.print(goals_table(goals))


@bench.command("costs")
def bench_costs(
    t1: Scan = None,
    t1ce: Scan = None,
    t2: Scan = None,
    flair: Scan = None,
    bundle: BundleOption = None,
    subsets: Annotated[
        bool, typer.Option("--subsets", help="Segment every subset of the scans.")
    ] = False,
    device: Device = "cpu",
) -> None:
    """Print where the milliseconds of one segmentation go, and what it computes."""
    import tempfile

    from medmap.bench.costs import counts_of_run, counts_table, stages_of_run, stages_table
    from medmap.bench.inference import write_patient
    from medmap.bundle.format import default_bundle_path
    from medmap.bundle.loading import load_bundle

    loaded = load_bundle(bundle or default_bundle_path())
    with tempfile.TemporaryDirectory() as folder:
        files = _scans(t1, t1ce, t2, flair) or write_patient(Path(folder))
        stages = stages_of_run(files, loaded, subsets=subsets, device=device)
        counts = counts_of_run(files, loaded, subsets=subsets, device=device)
    run = "One segmentation"
    if subsets:
        run = "Every subset"
    out.print(stages_table(stages, f"{run} of {len(files)} scans, from files to files"))
    out.print(counts_table(counts, "What it computes with PyTorch"))


def _numbers(text: str, example: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UsageError(
            f"'{text}' is not a list of numbers.", f"Use a form such as {example}."
        ) from None


def _print_progress(text: str) -> None:
    err.print(text, soft_wrap=True)
