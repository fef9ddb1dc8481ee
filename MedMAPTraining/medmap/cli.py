"""The command line: the only module that prints and exits."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from medmap import NOTICE, __version__
from medmap.errors import Cancelled, InternalError, MedMAPError, UnavailableError, UsageError
from medmap.task import BRATS

# Into a file or a pipe tables are written wide, not folded to a terminal's 80 columns.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True, highlight=False)
app = typer.Typer(
    help=f"Segment brain tumours from whatever MRI a patient has.\n\n{NOTICE}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

bench = typer.Typer(help="Measure cost: ratios from one run.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")

Scan = Annotated[Optional[Path], typer.Option(metavar="FILE")]  # noqa: UP045 (typer evaluates annotations on 3.10)
BundleOption = Annotated[Optional[Path], typer.Option("--bundle", help="Bundle folder [default: the one shipped].")]  # noqa: UP045
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are already there.")]


@app.command()
def segment(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; its last level is created.")],
    t1: Scan = None,
    t1ce: Scan = None,
    t2: Scan = None,
    flair: Scan = None,
    reference: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Modality on whose grid the label map is written; the other scans are resampled to it. "
            "Default: the scan with the smallest voxels, since labels lose least there; among equals t1ce, flair, "
            "t1, t2."
        ),
    ] = None,
    bundle: BundleOption = None,
    device: Device = "auto",
    truth: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Reference labels on any grid: adds Dice to the output and the picture.", metavar="FILE"),
    ] = None,
    affine: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="sform or qform: which to believe in files where the two contradict each other."),
    ] = None,
    assume_orientation: Annotated[
        bool, typer.Option(help="Accept files that do not say how they lie in space (i right, j front, k top).")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment one patient from any non-empty set of T1, T1ce, T2 and FLAIR (NIfTI, skull-stripped).

    Writes segmentation.nii.gz (labels 1 necrosis / non-enhancing core, 2 oedema, 4 enhancing tumour), overlay.png and
    report.json (volumes, checks, provenance).
    """
    scans = {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}
    scans = {name: path for name, path in scans.items() if path is not None}
    if not scans:
        raise UsageError("No scan was given.", "Give at least one of --t1, --t1ce, --t2, --flair.")
    from medmap.workflow.segment import Options, segment_files

    options = Options(reference, device, truth, affine, assume_orientation, overwrite)
    with _interrupts() as cancelled:
        with _progress() as report:
            result = segment_files(scans, output, bundle, options, progress=report, cancel=cancelled)
        _print_result(result)  # Ctrl-C comes too late now: the files are there, and it is said where


@app.command()
def info(bundle: Annotated[Optional[Path], typer.Argument(help="Bundle folder.")] = None) -> None:  # noqa: UP045
    """Show what a bundle is, what it has seen and how well it does for each set of scans."""
    loaded = _load(bundle)
    out.print(f"[bold]{loaded.id}[/bold]  SHA-256 {loaded.sha256}")
    for key in ("description", "data", "training", "limits"):
        if loaded.card.get(key):
            out.print(f"{key.capitalize()}: {loaded.card[key]}")
    parameters = sum(p.numel() for p in loaded.network.parameters())
    out.print(f"Network: {loaded.network_spec.name}, {parameters / 1e6:.2f} M parameters")
    table = loaded.card.get("dice")
    if not table:
        out.print("Validation: none.")
        return
    regions = [region.name for region in loaded.task.regions]
    grid = Table("scans", *regions, title=f"Dice, mean ± SD over {table['cases']} cases: {table['data']}")
    for subset, scores in table["subsets"].items():
        grid.add_row(subset, *(f"{scores[r]['mean']:.3f} ± {scores[r]['sd']:.3f}" for r in regions))
    out.print(grid)


@app.command()
def verify(bundle: Annotated[Optional[Path], typer.Argument(help="Bundle folder.")] = None) -> None:  # noqa: UP045
    """Check every byte of a bundle against its SHA-256, then build and load it."""
    loaded = _load(bundle)
    out.print(f"{loaded.id} is intact. SHA-256 {loaded.sha256}")


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Folder for the cases, in BraTS layout.")],
    count: Annotated[int, typer.Option(min=1, help="How many patients.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first; the next ones follow.")] = 0,
    spacing: Annotated[float, typer.Option(min=0.5, max=4.0, help="Voxel size in mm.")] = 1.0,
    healthy: Annotated[bool, typer.Option("--healthy", help="Without a tumour.")] = False,
    device: Device = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Make synthetic patients: four aligned, skull-stripped scans and the true labels. Same seed, same patient."""
    from medmap.workflow.phantoms import write_phantoms

    with _progress() as report:
        write_phantoms(output, count, seed, spacing, healthy, device, overwrite, report)
    out.print(f"{count} synthetic case{'s' * (count > 1)} in {output}")


@app.command()
def train(
    run: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log. An unfinished run is resumed.")],
    data: Annotated[Path, typer.Option(help="Folder of cases in BraTS layout, with labels.")],
    bundle: Annotated[Path, typer.Option(help="Where to export the bundle when the steps are done.")],
    recipe: Annotated[Optional[Path], typer.Option(help="Recipe (JSON) [default: MedMAP's own].")] = None,  # noqa: UP045
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
    """Train under random subsets of modalities and export a bundle. Safe to interrupt and call again."""
    from medmap.workflow.training import TrainOptions, train_bundle

    options = TrainOptions(recipe, steps, seed, minutes, precision, device, name, version, data_statement, overwrite)
    with _progress() as report:
        done, total = train_bundle(run, data, bundle, options, report)
    if done < total:
        out.print(f"{done} of {total} steps are done. Call the same command again to go on.")
    else:
        out.print(f"Bundle in {bundle}")


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of cases in BraTS layout, with labels.")],
    bundle: BundleOption = None,
    table: Annotated[Optional[Path], typer.Option(help="Write Dice per case and subset as CSV.")] = None,  # noqa: UP045
    data_statement: Annotated[str, typer.Option(help="What the data are, for the table.")] = "not stated",
    update_card: Annotated[bool, typer.Option(help="Write the table into the bundle's card.")] = False,
    limits: Annotated[str, typer.Option(help="Known limits, for the card; with --update-card.")] = "",
    device: Device = "auto",
) -> None:
    """Dice of every subset of modalities on a cohort, mean ± SD over cases."""
    from medmap.workflow.training import EvaluateOptions, evaluate_bundle

    with _progress() as report:
        options = EvaluateOptions(table, data_statement, update_card, limits, device)
        summary = evaluate_bundle(data, bundle, options, report)
    regions = [region.name for region in BRATS.regions]
    grid = Table("scans", *regions, title=f"Dice, mean ± SD over {summary['cases']} cases: {summary['data']}")
    for subset, scores in summary["subsets"].items():
        grid.add_row(subset, *(f"{scores[r]['mean']:.3f} ± {scores[r]['sd']:.3f}" for r in regions))
    out.print(grid)


@bench.command("networks")
def bench_networks(
    names: Annotated[list[str] | None, typer.Argument(help="Backbones [default: all].")] = None,
    sizes: Annotated[str, typer.Option(help="Sides of the cubic windows, in voxels.")] = "80,128",
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes; the median counts.")] = 3,
    device: Device = "cpu",
) -> None:
    """Seconds, peak memory and GFLOP of each backbone with 1, 2 and 4 modalities present, in one run."""
    from medmap import bench as measure

    try:
        sides = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        raise UsageError(f"'{sizes}' is no list of sizes.", "Write for instance --sizes 80,128.") from None
    rows = measure.bench_networks(
        names or None, sides, device=device, repeats=repeats, progress=lambda text: err.print(text, soft_wrap=True)
    )
    out.print(measure.networks_table(rows))


def _load(path: Path | None):
    from medmap.bundle import default_bundle_path, load_bundle

    return load_bundle(path or default_bundle_path())


def _print_result(result) -> None:
    for finding in result.segmentation.findings:
        if finding.level == "warning":
            err.print(f"warning: {finding.message} {finding.remedy}".rstrip(), soft_wrap=True)
    used = result.segmentation.provenance["modalities"]
    out.print(f"used: {', '.join(used['used'])}   missing: {', '.join(used['missing']) or 'none'}")
    table = Table("region", "volume (ml)", *(["Dice", "HD95 (mm)", "reference (ml)"] if result.scores else []))
    for region in result.segmentation.task.regions:
        cells = [f"{region.name} ({region.title})", f"{result.segmentation.volumes_ml[region.name]:.1f}"]
        if result.scores:
            score = result.scores[region.name]
            distance = f"{score.hd95_mm:.1f}" if score.hd95_mm == score.hd95_mm else "not defined"
            cells += [f"{score.dice:.3f}", distance, f"{score.reference_ml:.1f}"]
        table.add_row(*cells)
    out.print(table)
    for what, path in result.files.items():
        out.print(f"{what}: {path}", soft_wrap=True)
    out.print(NOTICE, style="dim", soft_wrap=True)


@contextmanager
def _progress() -> Iterator:
    """Yield ``report(fraction, text)``: a live bar on a terminal, one line a tenth elsewhere."""
    if not err.is_terminal:
        told = [-1]

        def plain(fraction: float, text: str) -> None:
            if int(10 * fraction) > told[0]:
                told[0] = int(10 * fraction)
                err.print(f"{100 * fraction:3.0f} %  {text}", soft_wrap=True)

        yield plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda fraction, text: bar.update(task, completed=fraction, description=text)


@contextmanager
def _interrupts() -> Iterator:
    """Yield a function that says whether Ctrl-C was pressed; a second Ctrl-C stops at once."""
    pressed = []

    def handle(number, frame) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(pressed)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(error: MedMAPError) -> int:
    err.print(f"error: {error.cause}", soft_wrap=True, markup=False)
    err.print(f"fix: {error.remedy}", soft_wrap=True, markup=False)
    return error.exit_code


def main() -> None:
    """Run the command line; every MedMAPError becomes two lines and its exit code."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(arguments, prog_name="medmap", standalone_mode=True)
    except MedMAPError as error:
        if debug:
            raise
        sys.exit(_fail(error))
    except KeyboardInterrupt:
        sys.exit(_fail(Cancelled()))
    except ModuleNotFoundError as error:
        if debug:
            raise
        library = {"torch": "PyTorch"}.get(error.name, error.name)
        sys.exit(
            _fail(
                UnavailableError(f"{library} is not installed.", f"Install it: pip install {error.name or 'medmap'}.")
            )
        )
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        sys.exit(
            _fail(InternalError(f"Unexpected {kind}: {error}.", "Run again with --debug and report what it says."))
        )


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False) -> None:
    if version:
        out.print(f"medmap {__version__}. {NOTICE}", soft_wrap=True)
        raise typer.Exit()


__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
