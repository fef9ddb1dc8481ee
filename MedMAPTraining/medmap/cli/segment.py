"""``medmap segment``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from medmap import NOTICE
from medmap.cli.base import (
    Affine,
    AssumeOrientation,
    BundleOption,
    Device,
    KeepPrepared,
    Labels,
    Overwrite,
    Precision,
    Prepare,
    ScanFiles,
    Verbosity,
    app,
    err,
    interrupts,
    out,
    showing_progress,
)
from medmap.cli.study import (
    ListOption,
    SeriesOption,
    StudyArgument,
    StudyNumber,
    print_series,
    run_study,
    study_options,
)
from medmap.errors import UsageError

if TYPE_CHECKING:
    from medmap.commands.segment import Result
    from medmap.metrics import RegionScore


@app.command()
def segment(
    study: StudyArgument = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the results; created if its parent exists."
        ),
    ] = None,
    t1: ScanFiles = None,
    t1ce: ScanFiles = None,
    t2: ScanFiles = None,
    flair: ScanFiles = None,
    scan: Annotated[
        list[str] | None,
        typer.Option(
            "--scan",
            metavar="NAME=FILE",
            help="A modality of the bundle's task, such as lge=LGE.nii.gz; repeatable.",
        ),
    ] = None,
    series: SeriesOption = None,
    study_number: StudyNumber = None,
    list_series: ListOption = False,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Modality on whose voxel grid the label map is written; the others are resampled "
            "to it. Default: the modality with the smallest voxels, where labels lose least; if "
            "tied t1ce, flair, t1, t2."
        ),
    ] = None,
    bundle: BundleOption = None,
    device: Device = "auto",
    precision: Precision = "auto",
    truth: Annotated[
        Path | None,
        typer.Option(
            help="Reference segmentation on any grid: adds Dice and HD95 to the results.",
            metavar="FILE",
        ),
    ] = None,
    labels: Labels = "",
    affine: Affine = None,
    assume_orientation: AssumeOrientation = False,
    prepare: Prepare = "auto",
    brain_mask: Annotated[
        list[str] | None,
        typer.Option(
            "--brain-mask",
            metavar="[NAME=]FILE",
            help="Brain mask from another program or a person, on any grid in the space of a scan; "
            "repeatable, as t1=MASK.nii.gz for one scan. Scans without a mask use it, too.",
        ),
    ] = None,
    keep_prepared: KeepPrepared = False,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Also write the probability of each region."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment one patient from any subset of T1, T1ce, T2 and FLAIR.

    Give NIfTI files by modality, or the folder of a DICOM study; medmap segment STUDY --list shows
    its series. Scans may show the skull, need not be aligned, and may have thick or oblique
    slices: brain extraction and alignment come first where they are needed.

    Writes segmentation.nii.gz (labels 1 necrosis / non-enhancing core, 2 edema, 4 enhancing tumor),
    overlay.png and report.json (volumes, checks, provenance). Bundles of other tasks take --scan;
    medmap info lists their modalities.
    """
    files = {
        "t1": t1,
        "t1ce": t1ce,
        "t2": t2,
        "flair": flair,
    }
    scans: list[tuple[str, Path]] = []
    for name, paths in files.items():
        scans += [(name, path) for path in paths or []]
    scans += [_parse_scan(text) for text in scan or []]
    _check_sources(study, scans, series or study_number or list_series)
    if study is not None and list_series:
        print_series(study, bundle, study_options(series, study_number))
        return
    if output is None:
        raise UsageError("No folder for the results was given.", "Give one with --output.")
    from medmap.commands.segment import Options, segment_files
    from medmap.preparation.plan import preparation_mode

    options = Options(
        reference,
        device,
        truth,
        affine,
        assume_orientation,
        overwrite,
        precision=precision,
        labels=labels,
        prepare=preparation_mode(prepare),
        brain_masks=tuple(_parse_mask(text) for text in brain_mask or []),
        keep_prepared=keep_prepared,
        probabilities=probabilities,
    )
    with interrupts() as cancelled:
        with showing_progress() as report:
            if study is not None:
                choices = study_options(series, study_number)
                result = run_study(study, output, bundle, choices, options, report, cancelled)
            else:
                result = segment_files(
                    scans, output, bundle, options, progress=report, cancel=cancelled
                )
        # Within the block: Ctrl-C comes too late now, for the files exist and are to be listed.
        _print_result(result)


def _check_sources(study: Path | None, scans: list[tuple[str, Path]], for_study: object) -> None:
    """Raises UsageError unless there are scans or a study, and not both."""
    if study is not None and scans:
        raise UsageError(
            "A study and files by modality were given.", "Give the study or the files."
        )
    if study is None and for_study:
        raise UsageError(
            "--series, --study, and --list are about a DICOM study.", "Give the study's folder."
        )
    if study is None and not scans:
        raise UsageError(
            "No modality was given.",
            "Give at least one of --t1, --t1ce, --t2, --flair, or --scan NAME=FILE, "
            "or the folder of a DICOM study.",
        )


def _parse_scan(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(
            f"'{text}' is not of the form NAME=FILE.", "Write for instance --scan lge=LGE.nii.gz."
        )
    return name, Path(path)


def _parse_mask(text: str) -> tuple[str | None, Path]:
    """``t1=mask.nii.gz`` or ``mask.nii.gz``; a path may hold an equals sign itself."""
    name, equals, path = text.partition("=")
    if equals and name.isidentifier() and path:
        return name, Path(path)
    return None, Path(text)


def _print_preparation(result: Result) -> None:
    preparation = result.segmentation.preparation
    if preparation is None or not preparation.steps:
        return
    for step in preparation.steps:
        out.print(
            f"{step.kind}: {step.summary} ({step.seconds:.1f} s)", soft_wrap=True, markup=False
        )


def _print_result(result: Result) -> None:
    for finding in result.segmentation.findings:
        if finding.level == "warning" or Verbosity.verbose:
            text = f"{finding.level}: {finding.message} {finding.remedy}".rstrip()
            err.print(text, soft_wrap=True, markup=False)
    _print_preparation(result)
    provenance = result.segmentation.provenance
    line = f"used: {', '.join(provenance.used)}"
    line += f"   missing: {', '.join(provenance.missing) or 'none'}"
    if provenance.unused:
        line += f"   not used: {', '.join(provenance.unused)}"
    out.print(line)
    columns = ["region", "volume (ml)"]
    if result.scores:
        columns += ["Dice", "HD95 (mm)", "reference (ml)"]
    table = Table(*columns)
    for region in result.segmentation.task.regions:
        cells = [
            f"{region.name} ({region.title})",
            f"{result.segmentation.volumes_ml[region.name]:.1f}",
        ]
        if result.scores:
            cells += _score_cells(result.scores[region.name])
        table.add_row(*cells)
    out.print(table)
    if result.labels:
        out.print(f"reference: {result.labels}", soft_wrap=True, markup=False)
    for what, path in result.files.items():
        out.print(f"{what}: {path}", soft_wrap=True, markup=False)
    out.print(NOTICE, style="dim", soft_wrap=True)


def _score_cells(score: RegionScore) -> list[str]:
    distance = "not defined"
    if not math.isnan(score.hd95_mm):
        distance = f"{score.hd95_mm:.1f}"
    return [f"{score.dice:.3f}", distance, f"{score.reference_ml:.1f}"]
