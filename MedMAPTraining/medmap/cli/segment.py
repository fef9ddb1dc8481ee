"""``medmap segment``, ``info`` and ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from medmap import NOTICE
from medmap.cli.base import (
    BundleOption,
    Device,
    Overwrite,
    Scan,
    app,
    err,
    interrupts,
    loaded_bundle,
    out,
    showing_progress,
)
from medmap.errors import UsageError


@app.command()
def segment(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for the results; its last level is created."),
    ],
    t1: Scan = None,
    t1ce: Scan = None,
    t2: Scan = None,
    flair: Scan = None,
    scan: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--scan",
            metavar="NAME=FILE",
            help="A scan of any bundle's task, such as lge=LGE.nii.gz; repeat.",
        ),
    ] = None,
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
        typer.Option(
            help="Reference labels on any grid: adds Dice to the output and the picture.",
            metavar="FILE",
        ),
    ] = None,
    affine: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="sform or qform: which to believe in files where the two contradict each other."
        ),
    ] = None,
    assume_orientation: Annotated[
        bool,
        typer.Option(
            help="Accept files that do not say how they lie in space (i right, j front, k top)."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment one patient from any non-empty set of T1, T1ce, T2 and FLAIR (NIfTI, skull-stripped).

    Writes segmentation.nii.gz (labels 1 necrosis / non-enhancing core, 2 edema, 4 enhancing tumor), overlay.png and
    report.json (volumes, checks, provenance). Bundles of other tasks take --scan; medmap info names their scans.
    """
    given = {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}
    scans = [(name, path) for name, path in given.items() if path is not None] + [
        _named(text) for text in scan or []
    ]
    if not scans:
        raise UsageError(
            "No scan was given.",
            "Give at least one of --t1, --t1ce, --t2, --flair, or --scan NAME=FILE.",
        )
    from medmap.commands.segment import Options, segment_files

    options = Options(reference, device, truth, affine, assume_orientation, overwrite)
    with interrupts() as cancelled:
        with showing_progress() as report:
            result = segment_files(
                scans, output, bundle, options, progress=report, cancel=cancelled
            )
        _print_result(
            result
        )  # Ctrl-C comes too late now: the files are there, and it is said where


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(f"'{text}' names no scan.", "Write for instance --scan lge=LGE.nii.gz.")
    return name, Path(path)


@app.command()
def info(bundle: Annotated[Optional[Path], typer.Argument(help="Bundle folder.")] = None) -> None:  # noqa: UP045
    """Show what a bundle is, what it has seen and how well it does for each set of scans."""
    from medmap.bundle.loading import ANY

    loaded = loaded_bundle(bundle)
    out.print(f"[bold]{loaded.id}[/bold]  SHA-256 {loaded.sha256}")
    for key in ("description", "data", "training", "limits"):
        if loaded.card.get(key):
            out.print(f"{key.capitalize()}: {loaded.card[key]}")
    scans = ", ".join(f"{m.name} ({m.title})" for m in loaded.task.modalities)
    out.print(f"Task: {loaded.task.name}; scans: {scans}")
    for entry in loaded.entries:
        parameters = sum(p.numel() for p in entry.network.parameters())
        takes = "any set of scans" if entry.name == ANY else loaded.task.titles(entry.modalities)
        out.print(
            f"Network: {entry.network_spec.name}, {parameters / 1e6:.2f} M parameters, for {takes}"
        )
    table = loaded.card.get("dice")
    if not table:
        out.print("Validation: none.")
        return
    regions = [region.name for region in loaded.task.regions]
    grid = Table(
        "scans", *regions, title=f"Dice, mean ± SD over {table['cases']} cases: {table['data']}"
    )
    for subset, scores in table["subsets"].items():
        grid.add_row(subset, *(f"{scores[r]['mean']:.3f} ± {scores[r]['sd']:.3f}" for r in regions))
    out.print(grid)


@app.command()
def verify(bundle: Annotated[Optional[Path], typer.Argument(help="Bundle folder.")] = None) -> None:  # noqa: UP045
    """Check every byte of a bundle against its SHA-256, then build and load it."""
    loaded = loaded_bundle(bundle)
    several = f" ({len(loaded.entries)} networks)" if loaded.others else ""
    out.print(f"{loaded.id} is intact{several}. SHA-256 {loaded.sha256}")


def _print_result(result) -> None:
    for finding in result.segmentation.findings:
        if finding.level == "warning":
            err.print(f"warning: {finding.message} {finding.remedy}".rstrip(), soft_wrap=True)
    used = result.segmentation.provenance["modalities"]
    unused = f"   not used: {', '.join(used['not_used'])}" if used["not_used"] else ""
    out.print(
        f"used: {', '.join(used['used'])}   missing: {', '.join(used['missing']) or 'none'}{unused}"
    )
    table = Table(
        "region", "volume (ml)", *(["Dice", "HD95 (mm)", "reference (ml)"] if result.scores else [])
    )
    for region in result.segmentation.task.regions:
        cells = [
            f"{region.name} ({region.title})",
            f"{result.segmentation.volumes_ml[region.name]:.1f}",
        ]
        if result.scores:
            score = result.scores[region.name]
            distance = f"{score.hd95_mm:.1f}" if score.hd95_mm == score.hd95_mm else "not defined"
            cells += [f"{score.dice:.3f}", distance, f"{score.reference_ml:.1f}"]
        table.add_row(*cells)
    out.print(table)
    for what, path in result.files.items():
        out.print(f"{what}: {path}", soft_wrap=True)
    out.print(NOTICE, style="dim", soft_wrap=True)
