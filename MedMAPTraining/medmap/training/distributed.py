"""One training on several processes: who there is, gradients in common, facts in common.

Processes and devices come from Lightning Fabric; the exchange of gradients is ours. PyTorch's wrapper for it
(``DistributedDataParallel``) hooks into ``forward`` of one module and counts on the same parameters each time, while
objectives here call ``encode`` and ``decode`` of several networks, step one optimizer group after the other on one
batch, and use only the encoders of the scans that their samples show. So gradients are averaged explicitly, after the
last backward pass of a step and only those of the group that is stepped. What it costs is that sending does not overlap
with computing: 36 M parameters (mmFormer) are 146 MB a step, a few milliseconds within a machine.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medmap.errors import InternalError, UnavailableError, UsageError
from medmap.inference import resolve_device

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Names of numerical precisions, ours to Fabric's; bf16 and fp16 compute under autocast, weights stay in fp32."""

PATIENCE = timedelta(hours=3)
"""How long a process waits for the others: one may be preparing cases or validating meanwhile."""

BUCKET = 32 << 20
"""Elements that are sent in one message."""


def launch(device: str = "auto", precision: str = "bf16", devices: int = 1) -> Fabric:
    """Join (or start) the processes of a training.

    Under ``torchrun``, ``fabric run`` or Slurm's ``srun`` the processes are there already, and how many is read from
    the environment. Otherwise ``devices`` processes are started on this machine by running the same command again.

    Args:
        device: torch device, or ``auto``; with several processes only its kind counts.
        precision: ``bf16``, ``fp16`` or ``fp32``.
        devices: processes on this machine where no launcher has started them.

    Raises:
        UsageError: the precision is unknown.
        UnavailableError: there are not so many devices.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    if precision not in PRECISIONS:
        raise UsageError(
            f"The precision '{precision}' is unknown.", f"Use one of {', '.join(PRECISIONS)}."
        )
    nodes, local = _launched() or (1, devices)
    place = resolve_device(device)
    if place.type == "cuda" and local > torch.cuda.device_count():
        raise UnavailableError(
            f"{local} processes were asked for, but there are {torch.cuda.device_count()} CUDA devices.",
            "Start one process a device, or choose --device cpu.",
        )
    chosen = (
        [place.index]
        if place.type == "cuda" and place.index is not None and nodes * local == 1
        else local
    )
    settings: dict[str, Any] = {"accelerator": place.type, "devices": chosen, "num_nodes": nodes}
    if nodes * local > 1:
        settings["strategy"] = DDPStrategy(timeout=PATIENCE)
    launched = (
        os.environ.get("LT_CLI_USED") == "1"
    )  # by ``fabric run``, which has its own options for these
    if launched:
        settings = {}
    if nodes * local > 1:
        repeatable()
    fabric = Fabric(precision=PRECISIONS[precision], **settings)
    if not launched:
        fabric.launch()
    return fabric


def _launched() -> tuple[int, int] | None:
    """(machines, processes a machine) as a launcher says them in the environment, or None."""
    said = os.environ
    if "TORCHELASTIC_RUN_ID" in said:
        local = int(said["LOCAL_WORLD_SIZE"])
        return int(said["WORLD_SIZE"]) // local, local
    if int(said.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in said:
        nodes = int(said.get("SLURM_NNODES", 1))
        return nodes, int(said["SLURM_NTASKS"]) // nodes
    return None


def repeatable() -> None:
    """Make this process's main program one that fresh processes can begin with.

    The script ``medmap`` need not be a Python file, nor guarded against being run once more when it is imported.
    """
    main = sys.modules["__main__"]
    if main.__spec__ is None and Path(sys.argv[0]).stem == "medmap":
        main.__spec__ = importlib.util.find_spec("medmap.cli.__main__")


def is_first() -> bool:
    """Whether this process is the one that speaks and writes, as far as the environment says before ``launch``."""
    return all(
        os.environ.get(name, "0") == "0"
        for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    )


class Team:
    """The processes of one training, as seen from one of them.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    def __init__(self, fabric: Fabric):
        self.fabric, self.rank, self.size = fabric, fabric.global_rank, fabric.world_size
        # Facts that the host decides on travel beside the device's queue, so that asking does not drain it.
        self._host = (
            torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if self.size > 1 else None
        )

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """(first, size) of this process's part of ``count`` samples. Raises UsageError if they cannot be dealt out."""
        if count % self.size:
            raise UsageError(
                f"{count} patches cannot be dealt out evenly to {self.size} processes.",
                "Choose a batch that is a multiple of the processes (times the passes, where a recipe accumulates).",
            )
        size = count // self.size
        return self.rank * size, size

    def average_gradients(self, parameters: Sequence[nn.Parameter], group: int) -> None:
        """Replace the gradients by their mean over the processes.

        A parameter that no process has used keeps no gradient, as with one process: optimizers then leave it alone,
        weight decay included.

        Args:
            parameters: of the group that is about to be stepped.
            group: its number; all processes must be about to step the same one.
        """
        if self.size == 1:
            return
        facts = torch.tensor(
            [group, -group, *(p.grad is not None for p in parameters)], dtype=torch.int32
        )
        torch.distributed.all_reduce(facts, torch.distributed.ReduceOp.MAX, group=self._host)
        highest, lowest, *used = facts.tolist()
        if highest != -lowest:
            raise InternalError(
                "The processes do not step the same optimizer group.",
                "The objective may not decide that by the batch.",
            )
        shared = [p for p, here in zip(parameters, used, strict=True) if here]
        for p in shared:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self._average([p.grad for p in shared])

    def average_buffers(self, module: nn.Module) -> None:
        """Replace floating-point buffers (running statistics, slow weights) by their mean over the processes."""
        if self.size > 1:
            self._average([b for b in module.buffers() if b.dtype.is_floating_point])

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the processes, without a gradient."""
        if self.size == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value / self.size

    def gather(self, rows: list) -> list:
        """The lists of all processes, one after the other, on every process."""
        if self.size == 1:
            return rows
        parts: list = [None] * self.size
        torch.distributed.all_gather_object(parts, rows, group=self._host)
        return [row for part in parts for row in part]

    def from_first(self, value: Any) -> Any:
        """What the first process holds, on every process."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self._host)
        return box[0]

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            torch.distributed.barrier(group=self._host)

    def _average(self, tensors: Sequence[Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            torch.distributed.all_reduce(flat)
            flat /= self.size
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Tensors of one type at a time, up to ``BUCKET`` elements."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


class _Sum(torch.autograd.Function):
    """Sum over the processes; the gradient is summed likewise (the adjoint of an all-reduce is an all-reduce)."""

    @staticmethod
    def forward(context, value: Tensor) -> Tensor:
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum of a tensor over all processes, differentiable; the tensor itself where there is one process.

    For losses that are no mean over samples, such as a Dice over the batch: built on sums over all processes, they are
    the loss of one process with the whole batch. Every process must call it equally often.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return _Sum.apply(value) if several and torch.distributed.get_world_size() > 1 else value


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes begun within this never see Ctrl-C, which a terminal sends to all of a command; the parent answers it.

    Where there are no signal masks (Windows) it does nothing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
