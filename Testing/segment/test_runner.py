"""The runners: same outcome inline and on the thread, cancel between windows, failures in words,
order kept.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from medmap.errors import Cancelled, InputDataError, InternalError
from MedMAPSegmentLib.runner import InlineRunner, JobState, ThreadRunner


@pytest.fixture(params=["inline", "thread"])
def runner(request):
    runner = InlineRunner() if request.param == "inline" else ThreadRunner()
    yield runner
    if request.param == "thread":
        assert runner.shutdown()


def finish(job, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not job.poll(0.02).finished:
        assert time.monotonic() < deadline, "the job does not end"
    return job


def test_result_and_progress_arrive_in_order(runner):
    def work(progress, cancelled):
        for n in range(5):
            progress(n / 5, f"window {n}")
        return "labels"

    job = finish(runner.start(work))
    assert job.state is JobState.DONE
    assert job.result == "labels"
    assert job.takeMessages() == [(n / 5, f"window {n}") for n in range(5)]
    assert job.takeMessages() == []


def test_a_known_error_surfaces_with_cause_and_remedy(runner):
    def work(progress, cancelled):
        raise InputDataError("The scan is empty.", "Choose another.")

    job = finish(runner.start(work))
    assert job.state is JobState.FAILED
    assert (job.error.cause, job.error.remedy, job.details) == (
        "The scan is empty.",
        "Choose another.",
        "",
    )


@pytest.mark.parametrize("error", [ValueError("bad shape"), MemoryError(), SystemExit(1)])
def test_an_unexpected_error_surfaces_as_message_with_details(runner, error):
    def work(progress, cancelled):
        raise error

    job = finish(runner.start(work))
    assert job.state is JobState.FAILED
    assert isinstance(job.error, InternalError)
    assert type(error).__name__ in str(job.error)
    assert "Traceback" in job.details


def test_the_thread_survives_a_failure_and_takes_the_next_job():
    runner = ThreadRunner()

    def fail(progress, cancelled):
        raise SystemExit(1)

    finish(runner.start(fail))
    assert finish(runner.start(lambda progress, cancelled: 7)).result == 7
    assert runner.shutdown()


def test_cancel_stops_between_two_windows():
    runner, started, windows = ThreadRunner(), threading.Event(), []

    def work(progress, cancelled):
        for n in range(1000):
            if cancelled():
                raise Cancelled()
            windows.append(n)
            started.set()
            time.sleep(0.01)

    job = runner.start(work)
    assert started.wait(5)
    job.cancel()
    seen = len(windows)
    assert finish(job).state is JobState.CANCELLED
    assert len(windows) <= seen + 1
    assert job.result is None
    assert runner.shutdown()


def test_a_result_that_arrives_after_cancel_is_dropped():
    runner, go = ThreadRunner(), threading.Event()
    job = runner.start(lambda progress, cancelled: go.wait(5) and "labels")
    job.cancel()
    go.set()
    assert finish(job).state is JobState.CANCELLED
    assert job.result is None
    assert runner.shutdown()


def test_a_job_cancelled_while_it_waits_never_starts():
    runner, go, ran = ThreadRunner(), threading.Event(), []
    first = runner.start(lambda progress, cancelled: go.wait(5))
    second = runner.start(lambda progress, cancelled: ran.append(1))
    second.cancel()
    go.set()
    assert finish(first).state is JobState.DONE
    assert finish(second).state is JobState.CANCELLED
    assert ran == []
    assert runner.shutdown()


def test_all_jobs_run_on_one_thread_that_is_not_this_one_one_after_the_other():
    runner, order = ThreadRunner(), []

    def work(n):
        return lambda progress, cancelled: order.append(n) or threading.get_ident()

    jobs = [runner.start(work(n)) for n in range(5)]
    threads = {finish(job).result for job in jobs}
    assert order == list(range(5))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert runner.shutdown()


def test_poll_returns_at_once_when_done_and_after_its_timeout_otherwise():
    runner, go = ThreadRunner(), threading.Event()
    job = runner.start(lambda progress, cancelled: go.wait(10))
    began = time.monotonic()
    assert not job.poll(0.05).finished
    assert 0.04 < time.monotonic() - began < 2
    go.set()
    finish(job)
    began = time.monotonic()
    assert job.poll(5) is JobState.DONE
    assert time.monotonic() - began < 1
    assert runner.shutdown()


def test_shutdown_does_not_wait_for_ever_for_a_hung_job():
    runner, go = ThreadRunner(), threading.Event()
    runner.start(lambda progress, cancelled: go.wait(30))
    began = time.monotonic()
    assert runner.shutdown(0.1) is False
    assert time.monotonic() - began < 5
    go.set()


def test_a_runner_works_again_after_shutdown():
    runner = ThreadRunner()
    finish(runner.start(lambda progress, cancelled: 1))
    assert runner.shutdown()
    assert finish(runner.start(lambda progress, cancelled: 2)).result == 2
    assert runner.shutdown()


class Big:
    """Stands for an array that must not outlive its use."""


def gone(reference, seconds=5.0):
    deadline = time.monotonic() + seconds
    while reference() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    return reference() is None


def test_a_finished_job_does_not_keep_its_inputs_nor_the_runner_the_result(runner):
    taken, made = Big(), Big()
    inputs, result = weakref.ref(taken), weakref.ref(made)
    job = finish(runner.start(lambda progress, cancelled, taken=taken, made=made: made))
    del taken, made
    assert gone(inputs)
    assert job.result is result()
    del job
    assert gone(result)


def test_a_listener_hears_the_progress_of_inline_work():
    heard = []
    InlineRunner(lambda fraction, text: heard.append((fraction, text))).start(
        lambda progress, cancelled: progress(0.5, "half")
    )
    assert heard == [(0.5, "half")]
