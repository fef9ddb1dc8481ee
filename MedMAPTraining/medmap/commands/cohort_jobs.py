"""One case of a cohort as a job for a process or another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medmap.commands.cohort_studies import SeriesChoice
from medmap.commands.segment import OutputLayout
from medmap.io.cohorts import Case
from medmap.preparation.plan import Mode

if TYPE_CHECKING:
    from medmap.dicom.study import Study


@dataclass(frozen=True)
class Job:
    """One case and where its result goes; small enough to be sent to another machine.

    Attributes:
        case: with absolute paths.
        folder: of the result.
        layout: names of its files.
        root: of the cohort's results.
        bundle: folder of the bundle.
        device: where to compute.
        again: whether a finished result is made anew.
        threads: of this machine's processor for one worker; 0 leaves it to the machine.
        study: the DICOM study that the case is; None for NIfTI files.
        plugins: files of the plug-ins to load.
        prepare: which preparation comes before the segmentation.
        series: what the user chose about the series of DICOM studies.
        keep_prepared: whether extracted and aligned scans are written, too.
    """

    case: Case
    folder: Path
    layout: OutputLayout
    root: Path
    bundle: Path
    device: str
    again: bool
    threads: int = 0
    study: Study | None = None
    plugins: tuple[str, ...] = ()
    prepare: Mode = "auto"
    series: tuple[SeriesChoice, ...] = ()
    keep_prepared: bool = False
