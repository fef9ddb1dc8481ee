"""What a backbone costs: seconds, memory and arithmetic, for one, two or four modalities present.

Inference encodes only what is there (``inference.segment``), and so does this: encoders of absent modalities are not
run. Seconds are comparable within one run on an idle machine only; on a loaded one even ratios are noisy, which
``NetworkRow.slowest`` against ``fastest`` shows. GFLOP are exact: they are counted on shapes, without computing.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medmap.bench.peer import load_peer
from medmap.devices import resolve_device
from medmap.errors import MedMAPError, UsageError
from medmap.networks import NETWORKS, Backbone, build_network
from medmap.task import BRATS

SIZES = (80, 128)
PRESENT = (1, 2, 4)
MIB = 2**20


@dataclass(frozen=True)
class NetworkRow:
    """One network, one window, so many modalities present.

    Attributes:
        network: its name.
        size: voxels along each side of the window: as asked, rounded up to a multiple of the stride.
        present: number of modalities present; the first ones of the task.
        parameters: number of parameters.
        gflop: 10⁹ floating-point operations of one pass, a multiply-add counted as two; convolutions, matrix products
            and attention only, as ``torch.utils.flop_counter`` counts.
        encoder_gflop: the part of it that is spent in encoders; 0 where a network stacks its inputs.
        encoder_ratio: ``encoder_gflop`` over that of all modalities; None without encoders.
        seconds: median over the repeats of one pass (float32, one sample), after a warm-up.
        fastest, slowest: extremes over the repeats.
        encoder_seconds: median time in encoders; what is left is paid again for every further subset.
        peak_mib: largest memory in MiB: on a CPU resident memory of a process that did nothing else, libraries
            included; on a GPU what tensors held. None where it is not known.
        threads: CPU threads used.
        device: where it ran.
        failure: why there are no seconds; empty if there are.
    """

    network: str
    size: int
    present: int
    parameters: int = 0
    gflop: float = 0.0
    encoder_gflop: float = 0.0
    encoder_ratio: float | None = None
    seconds: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    encoder_seconds: float | None = None
    peak_mib: float | None = None
    threads: int = 1
    device: str = "cpu"
    failure: str = ""


def bench_networks(
    names: Sequence[str] | None = None,
    sizes: Sequence[int] = SIZES,
    modalities: Sequence[int] = PRESENT,
    device: str = "cpu",
    *,
    repeats: int = 3,
    options: Mapping[str, dict] | None = None,
    isolate: bool = True,
    against: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[NetworkRow]:
    """Measure networks one after the other, every row in a process of its own so that its peak memory means something.

    A row that does not fit into memory or whose network cannot be built tells so in ``failure``; the others go on.

    Args:
        names: networks by name; None takes all.
        sizes: sides of cubic windows, in voxels.
        modalities: numbers of modalities present.
        device: a torch device, or ``auto``.
        repeats: timed passes a row, of which the median counts.
        options: options by network name; what is not named is built as published.
        isolate: False measures in this process: quicker, but then its CPU memory is the largest of all rows so far.
        against: a peer's network (``load_peer``): ``callable(image)`` gets [1, 4, size, size, size] on the device,
            absent channels 0, in the same sizes.
        progress: called with a line before each row.

    Raises:
        UsageError: a network is unknown, or a number is not positive.
        UnavailableError: the device is not there.
    """
    chosen = sorted(NETWORKS) if names is None else list(names)
    unknown = [name for name in chosen if name not in NETWORKS]
    if unknown:
        raise UsageError(
            f"The network '{unknown[0]}' is unknown.", f"Use some of {', '.join(sorted(NETWORKS))}."
        )
    if min([*sizes, *modalities, repeats], default=0) < 1:
        raise UsageError(
            "Sizes, numbers of modalities and repeats must be positive.", "Correct the numbers."
        )
    place = str(resolve_device(device))
    measure = _isolated if isolate else _measured
    rows = []
    for name in chosen:
        for size in sizes:
            for present in modalities:
                if progress:
                    progress(f"{name}, {size}³, {present} present")
                rows.append(
                    measure(name, (options or {}).get(name, {}), size, present, place, repeats)
                )
    for size in sizes if against else ():
        for present in modalities:
            if progress:
                progress(f"{against}, {size}³, {present} present")
            rows.append(measure(against, None, size, present, place, repeats))
    return rows


def measure_network(
    name: str, options: dict, size: int, present: int, device: str = "cpu", repeats: int = 3
) -> NetworkRow:
    """Measure one row in this process; its CPU memory is then that of everything the process has ever done.

    Raises:
        UsageError: the network has fewer modalities than shall be present.
        BundleError, UnavailableError: the network cannot be built.
    """
    torch.manual_seed(0)
    network = build_network(name, options).eval()
    if present > network.modalities:
        raise UsageError(
            f"{name} has {network.modalities} modalities, not {present}.",
            "Ask for no more than there are.",
        )
    gflop, encoder_gflop, encoder_ratio = count_gflop(
        name, options, _rounded(size, network.stride), present
    )
    place = torch.device(device)
    network = network.to(place)
    image = _image(network, size, place)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    passes = [_timed(network, image, present) for _ in range(repeats + 1)][1:]
    times = [whole for whole, _ in passes]
    return NetworkRow(
        network=name,
        size=image.shape[-1],
        present=present,
        parameters=sum(p.numel() for p in network.parameters()),
        gflop=gflop,
        encoder_gflop=encoder_gflop,
        encoder_ratio=encoder_ratio,
        seconds=statistics.median(times),
        fastest=min(times),
        slowest=max(times),
        encoder_seconds=statistics.median(encoding for _, encoding in passes),
        peak_mib=peak_mib(place),
        threads=torch.get_num_threads(),
        device=str(place),
    )


def count_gflop(
    name: str, options: dict, size: int, present: int
) -> tuple[float, float, float | None]:
    """Arithmetic of one pass; size a multiple of the stride.

    Counted on the meta device, which knows shapes and no numbers: on a CPU the counter does not see fused attention.

    Returns:
        10⁹ floating-point operations in all; those in encoders; the latter over what encoding all modalities costs
        (None where encoding costs nothing).
    """
    with torch.device("meta"):
        network = build_network(name, options).eval()
    image = _image(network, size, torch.device("meta"))
    features, costs = [], []
    with torch.no_grad():
        for m in range(network.modalities):
            with FlopCounterMode(display=False) as encoding:
                features.append(network.encode(image[:, m : m + 1], m))
            costs.append(encoding.get_total_flops())
        chosen = [f if m < present else None for m, f in enumerate(features)]
        with FlopCounterMode(display=False) as decoding:
            network.decode(chosen, _mask(network, image, present))
    spent, whole = sum(costs[:present]), sum(costs)
    return (spent + decoding.get_total_flops()) / 1e9, spent / 1e9, spent / whole if whole else None


def networks_table(rows: Sequence[NetworkRow]) -> Table:
    """The rows as a table for a terminal; the caption says how to read it."""
    threads, devices = {r.threads for r in rows}, {r.device for r in rows}
    table = Table(
        title="Backbones: cost of one pass",
        caption=f"{', '.join(sorted(devices))}; {'/'.join(map(str, sorted(threads)))} thread(s); float32, random "
        "weights. Seconds: median (fastest to slowest); compare within this table only, and on an idle machine. "
        "In brackets after the encoders' GFLOP: their share of what all modalities cost.",
    )
    table.add_column("network")
    for title in (
        "window",
        "M params",
        "present",
        "GFLOP",
        "in encoders",
        "seconds",
        "in encoders",
        "peak MiB",
    ):
        table.add_column(title, justify="right")
    previous = None
    for row in rows:
        table.add_row(*_cells(row), style="dim" if row.failure else None)
        if previous is not None and previous != row.network:
            table.rows[-2].end_section = True
        previous = row.network
    return table


def _cells(row: NetworkRow) -> list[str]:
    head = [row.network, f"{row.size}³"]
    if row.failure:
        return [*head, "", str(row.present), "", "", row.failure]
    return [
        *head,
        f"{row.parameters / 1e6:.2f}" if row.parameters else "–",
        str(row.present),
        _short(row.gflop) if row.gflop else "–",
        "–"
        if row.encoder_ratio is None
        else f"{_short(row.encoder_gflop)} ({row.encoder_ratio:.0%})",
        f"{_short(row.seconds)} ({_short(row.fastest)} to {_short(row.slowest)})",
        "–" if row.encoder_ratio is None else _short(row.encoder_seconds),
        "–" if row.peak_mib is None else f"{row.peak_mib:,.0f}",
    ]


def _short(number: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def measure_peer(
    target: str, size: int, present: int, device: str = "cpu", repeats: int = 3
) -> NetworkRow:
    """A peer's network in this process: seconds and memory only, since nothing else is known of it."""
    peer, place = load_peer(target), torch.device(device)
    image = torch.randn(1, len(BRATS.modalities), *(size,) * 3, device=place)
    image[:, present:] = 0
    times = []
    for _ in range(repeats + 1):
        started = now(place)
        with torch.inference_mode():
            peer(image)
        times.append(now(place) - started)
    middle, threads = statistics.median(times[1:]), torch.get_num_threads()
    extremes = {"fastest": min(times[1:]), "slowest": max(times[1:])}
    peak = peak_mib(place)
    return NetworkRow(
        target,
        size,
        present,
        seconds=middle,
        **extremes,
        peak_mib=peak,
        threads=threads,
        device=device,
    )


def _isolated(
    name: str, options: dict | None, size: int, present: int, device: str, repeats: int
) -> NetworkRow:
    """``measure_network`` in a fresh process; what goes wrong there becomes the row's ``failure``."""
    threads = torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        try:
            return pool.submit(_measured, name, options, size, present, device, repeats).result()
        except BrokenProcessPool:
            reason = "ended by the system, probably out of memory"
            return NetworkRow(name, size, present, threads=threads, device=device, failure=reason)


def _measured(
    name: str, options: dict | None, size: int, present: int, device: str, repeats: int
) -> NetworkRow:
    """One failure must not end the table, so every error becomes a row. Without options it is a peer's."""
    try:
        if options is None:
            return measure_peer(name, size, present, device, repeats)
        return measure_network(name, options, size, present, device, repeats)
    except MedMAPError as error:
        reason = error.cause
    except (
        MemoryError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: also torch's, when memory does not suffice
        reason = (str(error) or type(error).__name__).splitlines()[0]
    return NetworkRow(
        name, size, present, threads=torch.get_num_threads(), device=device, failure=reason
    )


def _image(network: Backbone, size: int, device: torch.device) -> Tensor:
    """[1, M, *S] of noise, every side rounded up to a multiple of the stride."""
    side = _rounded(size, network.stride)
    return torch.randn(
        1, network.modalities, *(side,) * getattr(network, "spatial_dims", 3), device=device
    )


def _rounded(size: int, stride: int) -> int:
    return -(-size // stride) * stride


def _encode(network: Backbone, image: Tensor, present: int) -> list:
    return [
        network.encode(image[:, m : m + 1], m) if m < present else None
        for m in range(network.modalities)
    ]


def _mask(network: Backbone, image: Tensor, present: int) -> Tensor:
    return (torch.arange(network.modalities, device=image.device) < present)[None]


@torch.inference_mode()
def _timed(network: Backbone, image: Tensor, present: int) -> tuple[float, float]:
    """Seconds of one pass as inference makes it, and of its first part, the encoding of present modalities."""
    mask = _mask(network, image, present)
    started = now(image.device)
    features = _encode(network, image, present)
    encoded = now(image.device)
    network.decode(features, mask)
    return now(image.device) - started, encoded - started


def now(device: torch.device) -> float:
    """The time at which the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_mib(device: torch.device) -> float | None:
    """Peak memory so far.

    On Linux from /proc: ``ru_maxrss`` of a child starts at what its parent held when it was forked.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    status = Path("/proc/self/status")
    if status.exists():
        line = next((s for s in status.read_text().splitlines() if s.startswith("VmHWM:")), None)
        return int(line.split()[1]) / 1024 if line else None
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
