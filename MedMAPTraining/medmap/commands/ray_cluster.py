"""Jobs on the machines of a Ray cluster; the only importer of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from medmap.errors import UnavailableError

RETRIES = 3
"""How often a job is repeated elsewhere when its worker or its machine is lost."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def on_cluster(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    address: str,
    lost: Callable[[Job, str], Result],
) -> Iterator[Result]:
    """Results of ``work`` on every job, as they come.

    Each job takes a CPU, and a GPU where the cluster has some. A worker that is killed, or a
    machine that is lost, is noticed by Ray, and its job is done elsewhere.

    Args:
        work: a function of the installed package; every machine needs the same version of it.
        jobs: what to do; small.
        address: of the cluster's head, ``auto`` for the one that this machine belongs to.
        lost: the result of a job that has failed too often, with the reason.

    Raises:
        UnavailableError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "Ray is not installed.", "Install it: pip install 'medmap[ray]'."
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UnavailableError(
            f"No Ray cluster answers at {address}.", "Start one with ray start --head."
        ) from error
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(work)
    pending = {remote.remote(job): job for job in jobs}
    try:
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            job = pending.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                yield lost(job, f"Lost on the cluster: {type(error).__name__}.")
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        ray.shutdown()
