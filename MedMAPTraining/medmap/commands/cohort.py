"""``medmap segment-cohort``: many patients, on one machine or many; a failed one stops no other."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle, load_bundle
from medmap.commands import worker
from medmap.commands.cohort_jobs import Job
from medmap.commands.cohort_rows import RESULTS, Row, RowFile, failed_row, result_row
from medmap.commands.cohort_studies import (
    CohortListing,
    SeriesChoice,
    assign_study,
    check_choices,
    find_studies,
    list_studies,
)
from medmap.commands.plugins import load_plugins, loaded_files
from medmap.commands.segment import Options, OutputLayout, segment_files
from medmap.commands.study import files_sha256, segment_assignment
from medmap.devices import resolve_device
from medmap.dicom import holds_dicom
from medmap.errors import MedMAPError, MissingInputError, OutputError, UsageError
from medmap.io.atomic import make_folder, write_json
from medmap.io.bids import BidsIntermediateNames, BidsNames, write_dataset
from medmap.io.cohorts import Case, find_cohort, is_bids
from medmap.io.content import sha256_of
from medmap.preparation.plan import Mode
from medmap.progress import ignore_progress
from medmap.task import Task
from medmap.training.distributed import make_main_module_respawnable, without_interrupts

if TYPE_CHECKING:
    from medmap.dicom.study import Study

Report = Callable[[float, str], None]
SOURCE = "cohort.json"
TRIES = 2
"""How often a case is given to a worker whose process dies over it."""


@dataclass(frozen=True)
class CohortOptions:
    """Options of ``medmap segment-cohort``; see its help."""

    bundle: Path | None = None
    device: str = "auto"
    workers: int = 0
    ray: str | None = None
    again: bool = False
    affine: str | None = None
    assume_orientation: bool = False
    prepare: Mode = "auto"
    series: tuple[SeriesChoice, ...] = ()
    keep_prepared: bool = False


@dataclass(frozen=True)
class SegmentedCohort:
    """Result of ``medmap segment-cohort``.

    Attributes:
        rows: of ``results.csv``, in the order of the cases.
        warning: which files were left out; empty if none were.
    """

    rows: list[Row]
    warning: str = ""


def segment_cohort(
    source: Path, output: Path, options: CohortOptions, report: Report
) -> SegmentedCohort:
    """Segment every case of a table or folder.

    What an earlier run has finished is recognized by its report (hashes of inputs, bundle, and
    label map; preparation) and kept.

    Raises:
        MissingInputError, InputDataError: the cohort itself cannot be read.
        BundleError: the bundle is not intact.
        OutputError: the folder cannot be written.
        UsageError: a choice of series that no study could follow, or no device of that name.
        UnavailableError: the device is not available.
    """
    path = (options.bundle or default_bundle_path()).resolve()
    bundle = load_bundle(path)
    if options.ray is None:
        # Else every case would fail alike.
        resolve_device(options.device)
    cases, studies, warning = _find_cases(source, bundle.task, options)
    _check_studies(studies, bundle.task, options)
    if source.is_dir() and output.resolve() == source.resolve():
        raise OutputError(
            "The results would lie among the scans.",
            "Choose another folder: inputs stay as they are.",
        )
    bids = not studies and source.is_dir() and is_bids(source)
    # BIDS keeps results below the data set, in a folder that new data sets lack.
    if bids and output.absolute().parent == source.absolute() / "derivatives":
        make_folder(output.parent)
    make_folder(output)
    if bids:
        write_dataset(output, bundle.task, bundle.id)
    jobs = [_job(case, output.resolve(), source, path, options, bids) for case in cases]
    if studies:
        # Studies are named by their UIDs and cannot be confused; folders may be named for patients.
        jobs = [replace(job, study=studies[job.case.case_id]) for job in jobs]
    else:
        _note_source(source, output, jobs)
    if options.ray is None:
        run = _by_processes(jobs, options)
    else:
        run = _by_ray(jobs, options.ray)
    rows: dict[str, Row] = {}
    row_file = RowFile(output / RESULTS, bundle.task)
    for done, row in enumerate(run, 1):
        rows[str(row["case"])] = row
        row_file.add(row)
        outcome = f"{row['case']}: {row['state']}"
        if row["error"]:
            outcome += f" ({row['error']})"
        report(done / len(jobs), outcome)
    ordered = [rows[case.case_id] for case in cases]
    row_file.finish(ordered)
    return SegmentedCohort(ordered, warning)


def _find_cases(
    source: Path, task: Task, options: CohortOptions
) -> tuple[list[Case], dict[str, Study], str]:
    """Cases of a cohort, their DICOM studies by case if it consists of such, and a warning."""
    try:
        cohort = find_cohort(
            source,
            task,
            affine=options.affine,
            assume_orientation=options.assume_orientation,
        )
    except MissingInputError:
        if not source.is_dir() or not holds_dicom(source):
            raise
        studies, remarks = find_studies(source)
        cases = [Case(name, {}, None) for name in studies]
        return cases, studies, " ".join(remarks)
    return cohort.cases, {}, cohort.warning


def _check_studies(studies: Mapping[str, Study], task: Task, options: CohortOptions) -> None:
    """Raises UsageError for choices of series that make no sense for this cohort."""
    if options.series and not studies:
        raise _about_studies()
    check_choices(options.series, studies, task)


def _about_studies() -> UsageError:
    return UsageError(
        "Series can be listed and chosen for DICOM studies only.",
        "Give the folder of the studies.",
    )


def list_cohort(source: Path, options: CohortOptions) -> CohortListing:
    """The series of every study of a folder and what each is taken for; nothing is written.

    Raises:
        MissingInputError, UnavailableError: the studies cannot be read.
        UsageError: the cohort does not consist of studies, or as ``check_choices``.
    """
    task = load_bundle((options.bundle or default_bundle_path()).resolve()).task
    _, studies, warning = _find_cases(source, task, options)
    if not studies:
        raise _about_studies()
    return replace(list_studies(source, studies, task, options.series), warning=warning)


def _note_source(source: Path, output: Path, jobs: Sequence[Job]) -> None:
    """Remember the cohort that an output folder belongs to.

    Raises OutputError where it holds results of equally named cases of another cohort, which would
    be replaced. The same cases in another place, or in a longer table, are none.
    """
    path = output / SOURCE
    location = str(source.absolute())
    earlier = location
    with contextlib.suppress(OSError, ValueError, KeyError):
        earlier = str(json.loads(path.read_text(encoding="utf-8"))["source"])
    replaced = []
    if earlier != location:
        replaced = [job.case.case_id for job in jobs if not job.again and _is_of_other_scans(job)]
    if replaced:
        raise OutputError(
            f"{output.name} holds results of other scans of {replaced[0]}, from {earlier}.",
            "Choose another folder, or segment all cases again and lose those results.",
            option="again",
        )
    write_json(path, {"source": location})


def _is_of_other_scans(job: Job) -> bool:
    """Whether the folder of a case holds the result of other files."""
    try:
        report = json.loads((job.folder / job.layout.report).read_text(encoding="utf-8"))
        hashes = {name: sha256_of(file) for name, file in job.case.scans.items()}
        return report["input_sha256"] != hashes
    except (OSError, ValueError, KeyError, TypeError):
        return False


def segment_job(job: Job) -> Row:
    """Segment one case, or see that it is done; whatever goes wrong becomes a row."""
    with worker.working():
        return _segment(job)


def _segment(job: Job) -> Row:
    started = time.monotonic()
    try:
        if job.threads:
            torch.set_num_threads(job.threads)
        load_plugins(job.plugins)
        job.case.check()
        bundle = _bundle(job.bundle)
        report = None
        if not job.again:
            report = _finished(job, bundle)
        state = "kept"
        if report is None:
            state = "done"
            _folders(job)
            options = Options(
                device=job.device,
                overwrite=True,
                affine=job.case.affine,
                assume_orientation=job.case.assume_orientation,
                prepare=job.prepare,
                keep_prepared=job.keep_prepared,
            )
            _segment_case(job, bundle, options)
            report = json.loads((job.folder / job.layout.report).read_text(encoding="utf-8"))
        return result_row(job, state, started, report)
    except MedMAPError as error:
        _remove_empty(job)
        return failed_row(
            job, started, f"{error.cause} {error.command_line_remedy}", error.exit_code
        )
    except Exception as error:
        # An unforeseen fault of one case is no reason to lose a night.
        _remove_empty(job)
        return failed_row(job, started, _unexpected(job, error), 70)


def _unexpected(job: Job, error: Exception) -> str:
    """An unforeseen fault in words. Texts about the files of a study may name a patient."""
    if job.study is not None:
        return f"Unexpected {type(error).__name__}."
    return f"Unexpected {type(error).__name__}: {error}"


def _segment_case(job: Job, bundle: Bundle, options: Options) -> None:
    if job.study is not None:
        segment_assignment(
            assign_study(job.study, bundle.task, job.series),
            (),
            job.folder,
            bundle,
            options,
            progress=ignore_progress,
            cancel=worker.asked_to_stop,
        )
        return
    segment_files(
        job.case.scans,
        job.folder,
        bundle,
        options,
        progress=ignore_progress,
        cancel=worker.asked_to_stop,
        layout=job.layout,
    )


def _job(
    case: Case, output: Path, source: Path, bundle: Path, options: CohortOptions, bids: bool
) -> Job:
    # Absolute, but links are not followed: a scan belongs to the data set that links to it, and
    # keeps the name that it has there.
    scans = {name: path.absolute() for name, path in case.scans.items()}
    folder = output / case.case_id
    layout = OutputLayout()
    if bids:
        bids_names = BidsNames(case.case_id)
        folder = output / bids_names.folder
        layout = OutputLayout(
            label_map=bids_names.files["label map"],
            picture=bids_names.files["picture"],
            report=bids_names.files["report"],
            preparation=f"{case.case_id}_space-orig_desc-preparation_dseg.png",
            intermediate_file=BidsIntermediateNames(
                {name: _stem(path) for name, path in scans.items()}
            ),
            dataset=source.absolute(),
        )
    return Job(
        case=replace(case, scans=scans),
        folder=folder,
        layout=layout,
        root=output,
        bundle=bundle,
        device=options.device,
        again=options.again,
        plugins=loaded_files(),
        prepare=options.prepare,
        series=options.series,
        keep_prepared=options.keep_prepared,
    )


def _stem(path: Path) -> str:
    """Name of a scan without ``.nii`` or ``.nii.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


@functools.lru_cache(maxsize=1)
def _bundle(path: Path) -> Bundle:
    """The bundle, verified and loaded once a process."""
    return load_bundle(path)


def _folders(job: Job) -> None:
    for folder in reversed([job.folder, *job.folder.parents]):
        if job.root in folder.parents and not folder.is_dir():
            folder.mkdir(exist_ok=True)


def _remove_empty(job: Job) -> None:
    """Take back the folders of a case that has left nothing in them."""
    # A folder that holds something cannot be removed, and stays.
    with contextlib.suppress(OSError):
        for folder in [job.folder, *job.folder.parents]:
            if job.root not in folder.parents:
                return
            folder.rmdir()


def _finished(job: Job, bundle: Bundle) -> dict | None:
    """The report of an earlier run of the same files, bundle, and preparation, if it is intact."""
    try:
        report = json.loads((job.folder / job.layout.report).read_text(encoding="utf-8"))
        if report["bundle"]["sha256"] != bundle.sha256:
            return None
        if report["label_map_sha256"] != sha256_of(job.folder / job.layout.label_map):
            return None
        if report.get("preparation", {}).get("mode", "auto") != job.prepare:
            return None
        if job.keep_prepared and not _has_prepared_scans(job, report):
            return None
        if not _has_same_inputs(job, report, bundle):
            return None
        return report
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_prepared_scans(job: Job, report: dict) -> bool:
    """Whether an earlier run wrote the scans that its steps prepared."""
    steps = report.get("preparation", {}).get("steps", [])
    names = {step["modality"] for step in steps}
    files = [job.folder / job.layout.intermediate_file("prepared", name) for name in names]
    return all(path.is_file() for path in files)


def _has_same_inputs(job: Job, report: dict, bundle: Bundle) -> bool:
    if job.study is None:
        hashes = {name: sha256_of(path) for name, path in job.case.scans.items()}
        return report["input_sha256"] == hashes
    assignment = assign_study(job.study, bundle.task, job.series)
    return report["dicom"]["files_sha256"] == files_sha256(assignment)


def _devices(options: CohortOptions) -> list[str]:
    """The device of each worker: one a GPU, or as many as asked for on the CPU."""
    gpus = 0
    if options.device in ("auto", "cuda"):
        gpus = torch.cuda.device_count()
    if gpus == 0:
        return [options.device] * max(1, options.workers)
    # More workers than GPUs share them in turn.
    return [f"cuda:{n % gpus}" for n in range(options.workers or gpus)]


def _by_processes(jobs: Sequence[Job], options: CohortOptions) -> Iterator[Row]:
    """Rows as they come, from a process per worker: one that dies takes only its own case along."""
    make_main_module_respawnable()
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    rows: queue.SimpleQueue[Row] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    stop = threading.Event()
    devices = _devices(options)
    lifeline, main_end = multiprocessing.get_context("spawn").Pipe(duplex=False)
    cores = 0
    if len(devices) > 1:
        cores = max(1, torch.get_num_threads() // len(devices))
        # PyTorch's threads are set in the worker. NumPy's library for matrices reads this when it
        # is loaded; else each worker has threads for all cores, which wait for each other.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(cores))
    threads = [
        threading.Thread(
            target=_serve, args=(waiting, rows, device, cores, stop, lifeline), daemon=True
        )
        for device in devices[: len(jobs)]
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            yield rows.get()
    except BaseException:
        stop.set()
        # Workers end with the pipe: the cases under way are left where they are.
        main_end.close()
        raise
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        main_end.close()
        lifeline.close()


def _serve(
    waiting: queue.SimpleQueue,
    rows: queue.SimpleQueue,
    device: str,
    cores: int,
    stop: threading.Event,
    lifeline: Connection,
) -> None:
    """One worker: a process that keeps its model, made anew when it dies."""
    context = multiprocessing.get_context("spawn")
    pool: ProcessPoolExecutor | None = None
    while not stop.is_set():
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            break
        job = replace(job, device=device, threads=cores)
        started = time.monotonic()
        row = failed_row(
            job, started, f"The worker's process died {TRIES} times. Is there enough memory?", 69
        )
        for _ in range(TRIES):
            try:
                pool = pool or ProcessPoolExecutor(
                    1, mp_context=context, initializer=worker.begin, initargs=(lifeline,)
                )
                with without_interrupts():
                    future = pool.submit(segment_job, job)
                row = future.result()
                break
            except BrokenProcessPool:
                pool = None
                if stop.is_set():
                    return
            except Exception as error:
                # The other cases must go on, whatever it is.
                row = failed_row(job, started, f"The worker's process cannot be used: {error}.", 70)
                break
        rows.put(row)
    if pool:
        pool.shutdown()


def _by_ray(jobs: Sequence[Job], address: str) -> Iterator[Row]:
    """Rows as they come from the machines of a Ray cluster; all of them see the same folders."""
    from medmap.commands.ray_cluster import on_cluster

    yield from on_cluster(
        segment_job, jobs, address, lambda job, why: failed_row(job, time.monotonic(), why, 69)
    )
