"""One training on several processes: launching them, averaging gradients, sharing decisions.

Processes and devices come from Lightning Fabric; the exchange of gradients is ours. PyTorch's
wrapper for it (``DistributedDataParallel``) hooks into ``forward`` of one module and counts on the
same parameters each time, while objectives here call ``encode`` and ``decode`` of several networks,
step one optimizer group after the other on one batch, and use only the encoders of the scans that
their samples show. So gradients are averaged explicitly, after the last backward pass of a step and
only those of the group that is stepped. What it costs is that sending does not overlap with
computing: 36 M parameters (mmFormer) are 146 MB a step, a few milliseconds within a machine.
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

from medmap.devices import AUTO, SMALLEST_DEEPEST_GRID, computes_bf16, resolve_device
from medmap.errors import InternalError, UnavailableError, UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Numerical precisions, our names to Fabric's.

bf16 and fp16 compute under autocast; weights stay in fp32.
"""

PATIENCE = timedelta(hours=3)
"""How long a process waits for the others: one may be preparing cases or validating meanwhile."""

BUCKET = 32 << 20
"""Elements that are sent in one message."""


def choose_precision(precision: str, device: torch.device, deepest_grid: int) -> str:
    """Resolve ``auto``.

    Args:
        precision: as in ``PRECISIONS``, or ``auto``.
        device: where the network is trained.
        deepest_grid: voxels along the shortest side of the deepest feature map.

    Returns:
        bf16 on GPUs, and on CPUs that compute it (AVX512-BF16 or AMX) where the feature
        maps are large enough for it to be safe; fp32 elsewhere. CPUs without such
        instructions take ten times as long.
    """
    if precision != AUTO:
        return precision
    if device.type != "cpu":
        return "bf16"
    if computes_bf16(device) and deepest_grid >= SMALLEST_DEEPEST_GRID:
        return "bf16"
    return "fp32"


def launch(device: str = "auto", precision: str = "fp32", devices: int = 1) -> Fabric:
    """Join (or start) the processes of a training.

    Under ``torchrun``, ``fabric run`` or Slurm's ``srun`` the processes exist already, and the
    environment names their number. Otherwise ``devices`` processes are started on this machine by
    running the same command again.

    Args:
        device: torch device, or ``auto``; with several processes only its kind counts.
        precision: ``bf16``, ``fp16`` or ``fp32``; ``auto`` is bf16 on a GPU and fp32 on a CPU.
        devices: processes on this machine where no launcher has started them.

    Raises:
        UsageError: the precision is unknown.
        UnavailableError: there are not so many devices.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    torch_device = resolve_device(device)
    precision = choose_precision(precision, torch_device, deepest_grid=0)
    if precision not in PRECISIONS:
        raise UsageError(
            f"The precision '{precision}' is unknown.",
            f"Use one of {', '.join([AUTO, *PRECISIONS])}.",
        )
    nodes, processes = _launched() or (1, devices)
    if torch_device.type == "cuda" and processes > torch.cuda.device_count():
        raise UnavailableError(
            f"{processes} processes were requested, but there are {torch.cuda.device_count()} "
            "CUDA devices.",
            "Start one process per device, or choose the CPU.",
            option="device",
        )
    is_single = nodes * processes == 1
    if torch_device.type == "cuda" and torch_device.index is not None and is_single:
        chosen_devices: int | list[int] = [torch_device.index]
    else:
        chosen_devices = processes
    settings: dict[str, Any] = {
        "accelerator": torch_device.type,
        "devices": chosen_devices,
        "num_nodes": nodes,
    }
    if not is_single:
        settings["strategy"] = DDPStrategy(timeout=PATIENCE)
        make_main_module_respawnable()
    # ``fabric run`` has launched the processes, and has options of its own for all of these.
    is_launched_by_fabric = os.environ.get("LT_CLI_USED") == "1"
    if is_launched_by_fabric:
        settings = {}
    fabric = Fabric(precision=PRECISIONS[precision], **settings)
    if not is_launched_by_fabric:
        fabric.launch()
    return fabric


def _launched() -> tuple[int, int] | None:
    """(machines, processes per machine) as a launcher names them in the environment, or None."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        processes = int(environment["LOCAL_WORLD_SIZE"])
        return int(environment["WORLD_SIZE"]) // processes, processes
    tasks = int(environment.get("SLURM_NTASKS", 1))
    if tasks > 1 and "SLURM_PROCID" in environment:
        nodes = int(environment.get("SLURM_NNODES", 1))
        return nodes, tasks // nodes
    return None


def make_main_module_respawnable() -> None:
    """Name the module that fresh processes have to begin with.

    ``multiprocessing`` and Fabric start a process by importing the main module anew. The console
    script ``medmap`` is no importable file on every system (Windows has an .exe), and importing it
    would run the command once more; the module behind it is importable and guarded.
    """
    main = sys.modules["__main__"]
    is_console_script = Path(sys.argv[0]).stem == "medmap"
    if main.__spec__ is None and is_console_script:
        main.__spec__ = importlib.util.find_spec("medmap.cli.__main__")


def is_first() -> bool:
    """Whether this process reports and writes files, as far as known before ``launch``."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


class Team:
    """The processes of one training, as seen from one of them.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    def __init__(self, fabric: Fabric):
        self.fabric = fabric
        self.rank = fabric.global_rank
        self.size = fabric.world_size
        # Decisions of the host travel in a group of their own: over the device's group each of them
        # would wait until everything queued on the GPU is computed.
        self._host = None
        if self.size > 1:
            self._host = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """(first, size) of this process's part of ``count`` samples.

        Raises UsageError if they do not divide evenly.
        """
        if count % self.size:
            raise UsageError(
                f"{count} patches cannot be divided evenly among {self.size} processes.",
                "Choose a batch that is a multiple of the processes (times the micro-batches, "
                "where a recipe accumulates gradients).",
            )
        size = count // self.size
        return self.rank * size, size

    def average_gradients(self, parameters: Sequence[nn.Parameter], group: int) -> None:
        """Replace the gradients by their mean over the processes.

        A parameter that no process has used keeps no gradient, as with one process: optimizers then
        leave it alone, weight decay included.

        Args:
            parameters: of the group that is about to be stepped.
            group: its number; all processes must be about to step the same one.
        """
        if self.size == 1:
            return
        has_gradient = [parameter.grad is not None for parameter in parameters]
        # One message: the group and its negative, whose maxima agree only if all groups are the
        # same, and which parameters some process has used.
        message = torch.tensor([group, -group, *has_gradient], dtype=torch.int32)
        torch.distributed.all_reduce(message, torch.distributed.ReduceOp.MAX, group=self._host)
        highest, negative_lowest, *is_used = message.tolist()
        if highest != -negative_lowest:
            raise InternalError(
                "The processes do not step the same optimizer group.",
                "The objective may not decide that by the batch.",
            )
        gradients = []
        for parameter, used in zip(parameters, is_used, strict=True):
            if not used:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self._average(gradients)

    def average_buffers(self, module: nn.Module) -> None:
        """Replace floating-point buffers by their mean over the processes.

        Such as running statistics and slow weights.
        """
        if self.size > 1:
            self._average([b for b in module.buffers() if b.dtype.is_floating_point])

    def any(self, value: bool) -> bool:
        """Whether the value is true on some process."""
        if self.size == 1:
            return value
        flag = torch.tensor([value], dtype=torch.int32)
        # The largest of 0 and 1 is "or".
        largest = torch.distributed.ReduceOp.MAX
        torch.distributed.all_reduce(flag, largest, group=self._host)
        return bool(flag.item())

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
        gathered = []
        for part in parts:
            gathered += part
        return gathered

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
            sizes = [tensor.numel() for tensor in bucket]
            parts = flat.split(sizes)
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Tensors of one type at a time, up to ``BUCKET`` elements."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(member.numel() for member in bucket)
        is_full = size + tensor.numel() > BUCKET
        # A bucket is sent as one tensor, which has one type.
        if bucket and (is_full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


class _Sum(torch.autograd.Function):
    """Sum over the processes.

    The gradient is summed likewise: the adjoint of an all-reduce is an all-reduce.
    """

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum of a tensor over all processes, differentiable; of one process, the tensor itself.

    For losses that are no mean over samples, such as a Dice over the batch: built on sums
    over all processes, they are the loss of one process with the whole batch. Every process
    must call it equally often.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    if torch.distributed.get_world_size() == 1:
        return value
    return _Sum.apply(value)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes begun within this never see Ctrl-C, which a terminal sends to all of a command.

    The parent answers it.

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
