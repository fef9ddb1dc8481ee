"""Doing a plan's jobs: here, on several devices, or on a Ray cluster; finished ones are kept."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.commands.ray_cluster import on_cluster
from medmap.commands.training import train_bundle
from medmap.commands.training_options import BundleOptions, TrainOptions
from medmap.errors import Cancelled, MedMAPError
from medmap.tables.jobs import Job
from medmap.training.distributed import make_main_module_respawnable
from medmap.training.options import RuntimeOptions

Report = Callable[[float, str], None]
Failures = dict[str, str]
"""Why a job could not be done, by its name."""


def carry_out(job: Job, report: Report = lambda fraction, text: None) -> None:
    """Do one job; what an earlier attempt left is resumed. Errors are those of the commands."""
    if job.kind == "train":
        _train(job, report)
    else:
        _evaluate(job, report)


def execute(
    jobs: Sequence[Job], devices: Sequence[str], ray: str | None, report: Report
) -> Failures:
    """Do all jobs that are not done, each after those that it needs.

    A job that fails, and what needs it, is reported at the end and stops nothing else.

    Raises:
        Cancelled: a stop was asked for; the same call resumes.
    """
    waiting = [job for job in jobs if job.state != "done"]
    if ray is not None:
        return _on_ray(waiting, ray, report)
    if len(devices) > 1:
        return _on_devices(waiting, devices, report)
    failures: Failures = {}
    for number, job in enumerate(waiting):
        if _lacks(job, failures):
            failures[job.name] = "what it needs has failed"
            continue

        def report_job(fraction: float, text: str, number: int = number, job: Job = job) -> None:
            report((number + fraction) / len(waiting), f"{job.name}: {text}")

        try:
            carry_out(replace(job, device=devices[0]), report_job)
        except Cancelled:
            raise
        except MedMAPError as error:
            failures[job.name] = error.cause
    return failures


def _train(job: Job, report: Report) -> None:
    runtime = RuntimeOptions(device=job.device, precision=job.precision, workers=job.workers)
    options = TrainOptions(
        recipe=job.recipe_file,
        teacher=job.teacher_bundle,
        runtime=runtime,
        bundle=BundleOptions(
            name=job.run,
            data_statement=f"{job.data.name}, split {job.split.stem if job.split else 'none'}",
        ),
    )
    train_bundle(job.run_folder, job.data, job.bundle, options, report)


def _evaluate(job: Job, report: Report) -> None:
    options = EvaluateOptions(
        output=job.evaluation,
        split=job.split,
        part="test",
        feed=dict(job.feed),
        data_statement=job.data.name,
        device=job.device,
    )
    evaluate_bundle(job.data, job.bundle, options, report)


def _lacks(job: Job, failures: Failures) -> bool:
    return any(name in failures for name in job.needs)


def _attempt(job: Job) -> str:
    """Why a job failed, in another process; empty where it did not."""
    try:
        carry_out(job)
    except Cancelled:
        return "stopped"
    except MedMAPError as error:
        return error.cause
    except Exception as error:  # an unforeseen fault of one job is no reason to lose the others
        return f"unexpected {type(error).__name__}: {error}"
    return ""


def _on_devices(waiting: list[Job], devices: Sequence[str], report: Report) -> Failures:
    """A process for each device; a job starts as soon as what it needs is done."""
    make_main_module_respawnable()
    context = multiprocessing.get_context("spawn")
    failures: Failures = {}
    total = len(waiting)
    idle = list(devices)
    running: dict[Future, Job] = {}
    with ProcessPoolExecutor(len(devices), mp_context=context) as pool:
        while waiting or running:
            unfinished = {job.name for job in [*waiting, *running.values()]}
            for job in [job for job in waiting if not unfinished & set(job.needs)]:
                if _lacks(job, failures):
                    failures[job.name] = "what it needs has failed"
                    waiting.remove(job)
                elif idle:
                    placed = replace(job, device=idle.pop())
                    running[pool.submit(_attempt, placed)] = placed
                    waiting.remove(job)
            if not running:
                continue
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                job = running.pop(future)
                idle.append(job.device)
                try:
                    reason = future.result()
                except BrokenProcessPool:
                    reason = "its process died; is there enough memory?"
                if reason:
                    failures[job.name] = reason
                report(1 - (len(waiting) + len(running)) / total, job.name)
    return failures


def _on_ray(waiting: list[Job], address: str, report: Report) -> Failures:
    """Wave by wave: all jobs whose needs are done."""
    failures: Failures = {}
    total = len(waiting)
    done = 0
    while waiting:
        unfinished = {job.name for job in waiting}
        wave = [job for job in waiting if not unfinished & set(job.needs)]
        waiting = [job for job in waiting if job not in wave]
        for job in [job for job in wave if _lacks(job, failures)]:
            failures[job.name] = "what it needs has failed"
            wave.remove(job)
        if not wave:
            continue
        for name, reason in on_cluster(_named_attempt, wave, address, _lost):
            done += 1
            report(done / total, name)
            if reason:
                failures[name] = reason
    return failures


def _lost(job: Job, reason: str) -> tuple[str, str]:
    return job.name, reason


def _named_attempt(job: Job) -> tuple[str, str]:
    return job.name, _attempt(job)
