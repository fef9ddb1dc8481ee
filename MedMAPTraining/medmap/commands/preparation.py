"""From a cohort to prepared cases: in parallel, into the shared cache, with an estimate first."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from medmap.commands import worker
from medmap.errors import (
    InputDataError,
    MedMAPError,
    MissingInputError,
    OutputError,
    UnavailableError,
    combined_error,
)
from medmap.io.cohorts import Case
from medmap.preprocess import PreprocessSpec
from medmap.progress import Progress
from medmap.task import Task
from medmap.training.cache import cache_case, content_hash, is_complete, label_of, modalities_of
from medmap.training.cache_folder import CacheFolder
from medmap.training.distributed import (
    Team,
    make_main_module_respawnable,
    without_interrupts,
)
from medmap.training.log import duration

Available = Callable[[str], np.ndarray]
"""[M] bool by case: what training may ever see of it (``Missingness.available``)."""

CASES_PER_PROCESS = 4
"""Starting a process takes about as long as preparing three cases (importing PyTorch: 4 s)."""


@dataclass(frozen=True)
class PreparationJob:
    """One case to prepare, as plain data for another process.

    Attributes:
        case: on disk.
        task: names the modalities.
        spec: the preprocessing.
        available: [M] bool, see ``cache_case``; None shows all.
        hashes: SHA-256 of the case's files.
        folder: of the prepared case in the cache.
    """

    case: Case
    task: Task
    spec: PreprocessSpec
    available: tuple[bool, ...] | None
    hashes: dict[Path, str]
    folder: Path

    def prepare(self, cache: Path) -> Path:
        """Prepare the case below a cache; returns its folder there."""
        return cache_case(self.case, self.task, self.spec, cache, self.available, self.hashes)


@dataclass(frozen=True)
class Estimate:
    """What preparing a cohort takes, from the first case that was prepared.

    Attributes:
        cases: number of cases to prepare.
        seconds: processor time of one case on one core.
        case_bytes: size of one prepared case.
        processes: number of processes that prepare.
    """

    cases: int
    seconds: float
    case_bytes: int
    processes: int

    @property
    def total_bytes(self) -> int:
        """Size of all cases."""
        return self.cases * self.case_bytes

    def total_seconds(self, processes: int) -> float:
        """Time for all cases."""
        return self.cases * self.seconds / processes

    def __str__(self) -> str:
        time_text = duration(self.total_seconds(self.processes))
        unit = "process" if self.processes == 1 else "processes"
        return (
            f"{self.cases} cases to prepare: about {time_text} with {self.processes} {unit}, "
            f"{self.total_bytes / 1e9:.2f} GB"
        )


def default_processes() -> int:
    """One per core that this program may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare_cases(
    cases: Sequence[Case],
    task: Task,
    spec: PreprocessSpec,
    cache: CacheFolder,
    report: Progress,
    *,
    available: Available | None = None,
    processes: int | None = None,
    team: Team | None = None,
) -> list[Path]:
    """Prepare the cases that the cache does not hold yet.

    Args:
        cases: with reference labels.
        task: names the modalities.
        spec: the preprocessing.
        cache: of all runs.
        report: called with the share of the cases that are done, and a text.
        available: what training may see of each case; None shows all.
        processes: that prepare in parallel; None takes one per core, or one for a few cases.
        team: processes of a training, which divide the cases among them.

    Returns:
        Folder of each prepared case, in order.

    Raises:
        InputDataError, MissingInputError: with the faults of all cases, not one a night.
        OutputError: budget or disk do not suffice; found out after the first case.
    """
    if team is None or team.first:
        cache.create()
    if team is not None:
        team.wait()
    rank = 0
    size = 1
    if team is not None:
        rank = team.rank
        size = team.size
    jobs, faults = _jobs(cases[rank::size], task, spec, cache, report, available)
    # Nothing is prepared for a cohort that cannot be used as a whole.
    _raise_faults(faults, len(cases), team)
    faults = _prepare_missing(jobs, cache, report, processes, size)
    # Told on every process: one that raised alone would leave the others waiting.
    _raise_faults(faults, len(cases), team)
    folders = {job.case.case_id: job.folder for job in jobs}
    if team is not None:
        folders = dict(team.gather(list(folders.items())))
        # Another machine may have a cache of its own.
        other_jobs, _ = _jobs(cases, task, spec, cache, report, available, folders)
        other_faults = _prepare_missing(other_jobs, cache, report, 1, size)
        _raise_faults(other_faults, len(cases), team)
    ordered = [folders[case.case_id] for case in cases]
    cache.mark_used(ordered)
    return ordered


def estimate_preparation(
    cases: Sequence[Case],
    task: Task,
    spec: PreprocessSpec,
    cache: CacheFolder,
    report: Progress,
    processes: int | None = None,
) -> Estimate:
    """Measure one case in a temporary folder and extrapolate; the cache stays as it is.

    Args:
        cases, task, spec, cache, report, processes: as for ``prepare_cases``.

    Raises:
        InputDataError, MissingInputError: the cases cannot be used.
    """
    missing = list(cases)
    # Comparing contents reads every file, which an empty cache spares.
    if cache.path.is_dir() and cache.case_folders():
        jobs, faults = _jobs(cases, task, spec, cache, report, None)
        _raise_faults(faults, len(cases), None)
        missing = [job.case for job in jobs if not is_complete(job.folder)]
    if not missing:
        return Estimate(0, 0.0, 0, 1)
    with tempfile.TemporaryDirectory(prefix="medmap-") as folder:
        report(0.0, f"measuring {missing[0].case_id}")
        trial = CacheFolder(Path(folder), cache.budget_gb)
        job = _job(missing[0], task, spec, trial, None)
        count = _process_count(processes, len(missing), 1)
        return _measured(job, len(missing), trial, count)


def _jobs(
    cases: Sequence[Case],
    task: Task,
    spec: PreprocessSpec,
    cache: CacheFolder,
    report: Progress,
    available: Available | None,
    folders: dict[str, Path] | None = None,
) -> tuple[list[PreparationJob], list[MedMAPError]]:
    """What is to be prepared, with hashes of all files, and the faults that show without reading.

    With ``folders``, only cases whose folder is not there.
    """
    jobs = []
    faults: list[MedMAPError] = []
    for number, case in enumerate(cases):
        if folders is not None and is_complete(folders[case.case_id]):
            continue
        text = f"comparing case {number + 1} of {len(cases)} with the cache"
        report((number + 1) / len(cases), text)
        visible = None
        if available is not None:
            visible = tuple(bool(flag) for flag in available(case.case_id))
        try:
            jobs.append(_job(case, task, spec, cache, visible))
        except (InputDataError, MissingInputError) as error:
            faults.append(_named(case, error))
    return jobs, faults


def _job(
    case: Case,
    task: Task,
    spec: PreprocessSpec,
    cache: CacheFolder,
    available: tuple[bool, ...] | None,
) -> PreparationJob:
    case.check()
    names = modalities_of(case, task, available)
    scan_files = [case.scans[name] for name in names]
    files = [label_of(case, task), *scan_files]
    for path in files:
        if not path.is_file():
            raise MissingInputError(f"There is no file {path.name}.", "Check its path.")
    hashes = cache.hash_files(files)
    content = content_hash(case, task, spec, names, hashes)
    folder = cache.path / content / case.case_id
    return PreparationJob(case, task, spec, available, hashes, folder)


def _prepare_missing(
    jobs: Sequence[PreparationJob],
    cache: CacheFolder,
    report: Progress,
    processes: int | None,
    programs: int,
) -> list[MedMAPError]:
    """Prepare what the cache lacks, and return the faults.

    The first case is prepared alone: it tells how long the others take, and whether they fit.
    """
    missing = [job for job in jobs if not is_complete(job.folder)]
    faults: list[MedMAPError] = []
    if not missing:
        return faults
    number_missing = len(missing)
    count = _process_count(processes, number_missing, programs)
    first = missing[0]
    try:
        estimate = _measured(first, number_missing, cache, count)
        others_bytes = estimate.total_bytes - estimate.case_bytes
        cache.make_room(others_bytes, [job.folder for job in jobs])
    except (InputDataError, MissingInputError) as error:
        faults.append(_named(first.case, error))
    except OutputError as error:
        return [error]
    else:
        report(0.0, f"{estimate} in {cache.path}")
    started = time.monotonic()
    prepared = _prepared(missing[1:], cache.path, count)
    for number, (job, fault) in enumerate(prepared, 2):
        if fault is not None:
            faults.append(_named(job.case, fault))
        # The first case was prepared before the clock was started.
        seconds_per_case = (time.monotonic() - started) / (number - 1)
        seconds_left = seconds_per_case * (number_missing - number)
        text = f"prepared {number} of {number_missing} cases, {duration(seconds_left)} left"
        report(number / number_missing, text)
    return faults


def _measured(job: PreparationJob, cases: int, cache: CacheFolder, processes: int) -> Estimate:
    """Prepare one case; what it took stands for the others."""
    started = time.process_time()
    folder = job.prepare(cache.path)
    seconds = time.process_time() - started
    case_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return Estimate(cases, seconds, case_bytes, processes)


def _process_count(processes: int | None, cases: int, programs: int) -> int:
    """How many processes prepare; ``programs`` of a training share the cores of a machine."""
    if processes is None:
        per_program = default_processes() // programs
        # Starting a process takes as long as some cases do.
        worthwhile = cases // CASES_PER_PROCESS
        processes = min(per_program, worthwhile)
    return max(1, min(processes, cases))


Outcome = tuple[PreparationJob, MedMAPError | None]


def _prepared(jobs: Sequence[PreparationJob], cache: Path, processes: int) -> Iterator[Outcome]:
    """The jobs as they are done, each with its fault, if any."""
    if processes <= 1:
        for job in jobs:
            yield job, _outcome(job, cache)
        return
    with _pool(processes) as pool:
        running: dict[Future, PreparationJob] = {}
        waiting = list(reversed(jobs))
        while waiting or running:
            # Few jobs are handed over at a time, so that Ctrl-C leaves little unfinished.
            while waiting and len(running) < 2 * processes:
                job = waiting.pop()
                with without_interrupts():
                    running[pool.submit(_outcome, job, cache)] = job
            done, _ = wait_for(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), _result(future)


def _result(future: Future) -> MedMAPError | None:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise UnavailableError(
            "A process that prepares cases died.",
            "Prepare with fewer processes, which take less memory.",
            option="workers 1",
        ) from error


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this program, however it ends."""
    make_main_module_respawnable()
    context = multiprocessing.get_context("spawn")
    lifeline, own_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin_worker, initargs=(lifeline,)
    )
    try:
        yield pool
    except BaseException:
        # Closing the pipe ends the workers; what they have written lies under temporary names.
        own_end.close()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    else:
        pool.shutdown()
        own_end.close()
    finally:
        lifeline.close()


def _begin_worker(lifeline: Connection) -> None:
    torch.set_num_threads(1)
    worker.begin(lifeline)


def _outcome(job: PreparationJob, cache: Path) -> MedMAPError | None:
    """Prepare one case; a fault of its files is returned, so that all faults are reported."""
    with worker.working():
        try:
            job.prepare(cache)
        except (InputDataError, MissingInputError) as error:
            return error
    return None


def _named(case: Case, error: MedMAPError) -> MedMAPError:
    """An error that says which case it is about."""
    if case.case_id in error.cause:
        return error
    cause = f"{case.case_id}: {error.cause}"
    return type(error)(cause, error.remedy, error.option)


def _raise_faults(faults: Sequence[MedMAPError], cases: int, team: Team | None) -> None:
    """Raise the faults of all cases, on every process."""
    everywhere = list(faults)
    if team is not None:
        everywhere = team.gather(everywhere)
    if everywhere:
        raise combined_error(everywhere, cases)
