"""Where a segmentation spends its time, and what it computes: stages in milliseconds, and counts.

Milliseconds belong to one machine. Counts (calls of the encoders, operations, bytes, floating-point
operations) are the same on every machine, so tests can hold them.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from medmap.appearance import describe_appearance
from medmap.bench.process import MIB, one_thread
from medmap.bundle.loading import Bundle
from medmap.checks import check_inputs
from medmap.foreground import find_foreground
from medmap.inference import segment, segment_subsets
from medmap.io.nifti import read_scans, write_labels
from medmap.io.nifti_bytes import read_verified
from medmap.networks.base import Backbone
from medmap.postprocess.prediction import predict
from medmap.postprocess.reference_labels import label_map
from medmap.preprocess import Scaling, prepare, scaling_of
from medmap.resampling import resample_to_grid


@dataclass(frozen=True)
class Stage:
    """The cost of one stage of a run.

    Attributes:
        title: what it does.
        calls: how often it was entered.
        milliseconds: processor time of all calls, over all threads.
        is_part: whether it is part of the stage above it.
    """

    title: str
    calls: int
    milliseconds: float
    is_part: bool = False


@dataclass(frozen=True)
class Counts:
    """What a run computes with PyTorch, on any machine.

    Attributes:
        operations: calls by the name of PyTorch's operation; views are not counted.
        bytes: of all tensors that these operations read and write.
        flop: floating-point operations of convolutions and matrix products, a multiply-add counted
            as two (``torch.utils.flop_counter``).
    """

    operations: Mapping[str, int]
    bytes: int
    flop: int


def stages_of_run(
    files: Mapping[str, Path], bundle: Bundle, *, subsets: bool = False, device: str = "cpu"
) -> list[Stage]:
    """Segment one patient from files to a label map, and say which stage takes how long.

    A first run warms up.

    Args:
        files: scans by modality.
        bundle: a loaded bundle.
        subsets: segment every subset of the scans instead of all of them together.
        device: a torch device.

    Returns:
        The stages in the order of a run, the remainder, and the whole run as the last one.
    """
    work = _run_of(files, bundle, subsets, device)
    # Time of the processor: on a busy machine the clock on the wall measures other programs.
    profile = cProfile.Profile(time.process_time)
    # A profile sees what its own thread does.
    with one_thread():
        work()
        started = time.process_time()
        profile.runcall(work)
        total = 1000 * (time.process_time() - started)
    calls = _calls_by_function(profile)
    stages = []
    for title, function, is_part in _functions(bundle):
        count, seconds = calls.get(_key(function), (0, 0.0))
        if count:
            stages.append(Stage(title, count, 1000 * seconds, is_part))
    remainder = total - sum(stage.milliseconds for stage in stages if not stage.is_part)
    return [*stages, Stage("everything else", 1, remainder), Stage("one run", 1, total)]


def counts_of_run(
    files: Mapping[str, Path], bundle: Bundle, *, subsets: bool = False, device: str = "cpu"
) -> Counts:
    """Counts of the same run; arguments as for ``stages_of_run``."""
    return counts_of(_run_of(files, bundle, subsets, device))


def counts_of(work: Callable[[], object]) -> Counts:
    """What ``work`` computes with PyTorch."""
    operations = _OperationCounter()
    flop = FlopCounterMode(display=False)
    # Both count what their own thread does.
    with one_thread(), flop, operations:
        work()
    return Counts(dict(operations.calls), operations.bytes, flop.get_total_flops())


class _OperationCounter(TorchDispatchMode):
    """Counts PyTorch's operations, and the bytes of what they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        result = func(*args, **keywords)
        if not _is_view(func):
            self.calls[func.overloadpacket.__name__] += 1
            tensors = [*_tensors_in(args), *_tensors_in(keywords.values()), *_tensors_in([result])]
            distinct = {id(tensor): tensor for tensor in tensors}
            self.bytes += sum(tensor.nbytes for tensor in distinct.values())
        return result


def _is_view(operation: Any) -> bool:
    """Whether its result is another look at its input, which moves no data."""
    returned = operation._schema.returns
    return any(entry.alias_info and not entry.alias_info.is_write for entry in returned)


def _tensors_in(values: Any) -> list[Tensor]:
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors += _tensors_in(value)
    return tensors


def _run_of(
    files: Mapping[str, Path], bundle: Bundle, subsets: bool, device: str
) -> Callable[[], None]:
    def work() -> None:
        volumes = read_scans(files)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "labels.nii.gz"
            if not subsets:
                result = segment(volumes, bundle, device=device)
                write_labels(target, result.labels, result.grid)
                return
            every = [s for s in bundle.task.subsets() if set(s) <= set(volumes)]
            grid = next(iter(volumes.values())).grid
            for labels in segment_subsets(volumes, bundle, every, device=device).values():
                write_labels(target, labels, grid)

    return work


def _functions(bundle: Bundle) -> list[tuple[str, Callable, bool]]:
    """Title, function, and whether it is part of the one above."""
    network: type[Backbone] = type(bundle.entries[0].network)
    return [
        ("read the files", read_scans, False),
        ("unpack and verify", read_verified, True),
        ("check the scans", check_inputs, False),
        ("find the brain", find_foreground, True),
        ("compare the appearance", describe_appearance, True),
        ("bring them to one grid", prepare, False),
        ("measure the intensities", scaling_of, True),
        ("normalize", Scaling.applied, True),
        ("interpolate", resample_to_grid, True),
        ("encode", network.encode, False),
        ("decode", network.decode, False),
        ("post-process", predict, False),
        ("labels on the scan's grid", label_map, False),
        ("write", write_labels, False),
    ]


def _key(function: Callable) -> tuple[str, int, str]:
    code = function.__code__
    return code.co_filename, code.co_firstlineno, code.co_name


def _calls_by_function(profile: cProfile.Profile) -> dict[tuple[str, int, str], tuple[int, float]]:
    """Calls, and seconds with everything that they call, by function."""
    calls = {}
    # pstats keeps its table in an attribute that its type stubs do not list.
    for key, (_, count, _, cumulative, _) in vars(pstats.Stats(profile))["stats"].items():
        calls[key] = (count, cumulative)
    return calls


def stages_table(stages: Sequence[Stage], title: str) -> Table:
    """The stages as a table for a terminal, with their share of the run."""
    caption = "Processor time of one thread after a warm-up. Indented: parts."
    table = Table(title=title, caption=caption)
    table.add_column("stage")
    for column in ("calls", "ms", "share"):
        table.add_column(column, justify="right")
    total = stages[-1].milliseconds
    for stage in stages:
        indent = "  " if stage.is_part else ""
        share = f"{stage.milliseconds / total:.0%}"
        table.add_row(indent + stage.title, str(stage.calls), f"{stage.milliseconds:,.0f}", share)
    return table


def counts_table(counts: Counts, title: str) -> Table:
    """The counts as a table for a terminal."""
    table = Table(title=title, caption="The same on every machine, in the same precision.")
    table.add_column("count")
    table.add_column("", justify="right")
    convolutions = sum(n for name, n in counts.operations.items() if "conv" in name)
    table.add_row("operations of PyTorch", f"{sum(counts.operations.values()):,}")
    table.add_row("of these convolutions", f"{convolutions:,}")
    table.add_row("MiB read and written", f"{counts.bytes / MIB:,.0f}")
    table.add_row("GFLOP", f"{counts.flop / 1e9:,.1f}")
    return table
