"""Cost of backbones: seconds, memory and arithmetic, with one, two or four modalities present.

As in inference, encoders of absent modalities are not run. Seconds are comparable within one run on
an idle machine only; on a loaded one even ratios are noisy, which ``NetworkRow.slowest`` against
``fastest`` shows. GFLOP are exact: they are counted on shapes, without computing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medmap.bench.peer import load_peer
from medmap.bench.process import (
    ProcessEnded,
    first_line,
    in_fresh_process,
    peak_mib,
    read_clock,
)
from medmap.devices import resolve_device
from medmap.errors import MedMAPError, UsageError
from medmap.networks import NETWORKS, Backbone, build_network
from medmap.networks.base import Features
from medmap.task import BRATS

SIZES = (80, 128)
PRESENT = (1, 2, 4)


@dataclass(frozen=True)
class NetworkRow:
    """Cost of one network with one window size and one number of modalities present.

    Attributes:
        network: its name.
        size: voxels along each side of the window, rounded up to a multiple of the stride.
        present: number of modalities present; the first ones of the task.
        parameters: number of parameters.
        gflop: 10⁹ floating-point operations of one forward pass, a multiply-add counted as two;
            convolutions, matrix products and attention only (``torch.utils.flop_counter``).
        encoder_gflop: the part of it in encoders; 0 where a network stacks its inputs.
        encoder_ratio: ``encoder_gflop`` over that of all modalities; None without encoders.
        seconds: median over the repeats of one pass (float32, one sample), after a warm-up.
        fastest, slowest: extremes over the repeats.
        encoder_seconds: median time in encoders; the remainder is paid for every further subset.
        peak_mib: largest memory (``process.peak_mib``) of a process that did nothing else.
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
    """Measure networks one after the other.

    Every row is measured in a process of its own, so that its peak memory is its own. A row that
    does not fit into memory or whose network cannot be built reports it in ``failure``; the other
    rows are measured nevertheless.

    Args:
        names: networks by name; None takes all.
        sizes: sides of cubic windows, in voxels.
        modalities: numbers of modalities present.
        device: a torch device, or ``auto``.
        repeats: timed passes for each row, of which the median counts.
        options: options by network name; networks without are built as published.
        isolate: False measures in this process: quicker, but then its CPU memory is the largest of
            all rows so far.
        against: a peer's network (``load_peer``): ``callable(image)`` gets
            [1, 4, size, size, size] on the device, absent channels 0, in the same sizes.
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
    resolved = str(resolve_device(device))
    measure = _isolated if isolate else _measured
    measurements: list[tuple[str, dict | None]] = []
    for name in chosen:
        measurements.append((name, (options or {}).get(name, {})))
    if against:
        measurements.append((against, None))
    rows = []
    for name, network_options in measurements:
        for size in sizes:
            for present in modalities:
                if progress:
                    progress(f"{name}, {size}³, {present} present")
                rows.append(measure(name, network_options, size, present, resolved, repeats))
    return rows


def measure_network(
    name: str, options: dict, size: int, present: int, device: str = "cpu", repeats: int = 3
) -> NetworkRow:
    """Measure one row in this process.

    Its CPU memory is then that of everything the process has ever done.

    Raises:
        UsageError: the network has fewer modalities than shall be present.
        BundleError, UnavailableError: the network cannot be built.
    """
    torch.manual_seed(0)
    network = build_network(name, options).eval()
    if present > network.modalities:
        raise UsageError(
            f"{name} has {network.modalities} modalities, not {present}.",
            f"Ask for at most {network.modalities}.",
        )
    arithmetic = count_gflop(name, options, _rounded(size, network.stride), present)
    gflop, encoder_gflop, encoder_ratio = arithmetic
    clock = torch.device(device)
    network = network.to(clock)
    image = _image(network, size, clock)
    if clock.type == "cuda":
        torch.cuda.reset_peak_memory_stats(clock)
    _timed(network, image, present)  # warm-up
    passes = [_timed(network, image, present) for _ in range(repeats)]
    seconds = [total for total, _ in passes]
    encoder_seconds = [encoding for _, encoding in passes]
    return NetworkRow(
        network=name,
        size=image.shape[-1],
        present=present,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gflop=gflop,
        encoder_gflop=encoder_gflop,
        encoder_ratio=encoder_ratio,
        seconds=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        encoder_seconds=statistics.median(encoder_seconds),
        peak_mib=peak_mib(clock),
        threads=torch.get_num_threads(),
        device=str(clock),
    )


def count_gflop(
    name: str, options: dict, size: int, present: int
) -> tuple[float, float, float | None]:
    """Arithmetic of one forward pass; size a multiple of the stride.

    Returns:
        10⁹ floating-point operations in all; those in encoders; the latter over what encoding all
        modalities costs (None where encoding costs nothing).
    """
    # The meta device knows shapes and no numbers; on a CPU the counter misses fused attention.
    meta = torch.device("meta")
    with meta:
        network = build_network(name, options).eval()
    image = _image(network, size, meta)
    features: list[Features | None] = [None] * network.modalities
    encoder_flop = []
    with torch.no_grad():
        for m in range(network.modalities):
            with FlopCounterMode(display=False) as encoding:
                levels = network.encode(image[:, m : m + 1], m)
            encoder_flop.append(encoding.get_total_flops())
            if m < present:
                features[m] = levels
        with FlopCounterMode(display=False) as decoding:
            network.decode(features, _mask(network, image, present))
    encoding_flop = sum(encoder_flop[:present])
    ratio = None
    if sum(encoder_flop):
        ratio = encoding_flop / sum(encoder_flop)
    return (encoding_flop + decoding.get_total_flops()) / 1e9, encoding_flop / 1e9, ratio


def networks_table(rows: Sequence[NetworkRow]) -> Table:
    """The rows as a table for a terminal; the caption says how to read it."""
    thread_counts = sorted({row.threads for row in rows})
    threads = "/".join(map(str, thread_counts))
    devices = ", ".join(sorted({row.device for row in rows}))
    table = Table(
        title="Backbones: cost of one forward pass",
        caption=f"{devices}; {threads} thread(s); float32, random weights. Seconds: median "
        "(fastest to slowest); compare within this table only, and on an idle machine. In "
        "parentheses after the encoders' GFLOP: their share of what all modalities cost.",
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
    window = f"{row.size}³"
    if row.failure:
        return [row.network, window, "", str(row.present), "", "", row.failure]
    parameters = "–"
    if row.parameters:
        parameters = f"{row.parameters / 1e6:.2f}"
    gflop = "–"
    if row.gflop:
        gflop = _short(row.gflop)
    encoder_gflop = "–"
    encoder_seconds = "–"
    if row.encoder_ratio is not None:
        encoder_gflop = f"{_short(row.encoder_gflop)} ({row.encoder_ratio:.0%})"
        encoder_seconds = _short(row.encoder_seconds)
    seconds = f"{_short(row.seconds)} ({_short(row.fastest)} to {_short(row.slowest)})"
    memory = "–"
    if row.peak_mib is not None:
        memory = f"{row.peak_mib:,.0f}"
    return [
        row.network,
        window,
        parameters,
        str(row.present),
        gflop,
        encoder_gflop,
        seconds,
        encoder_seconds,
        memory,
    ]


def _short(number: float | None) -> str:
    """Three significant digits, or all before the point; a dash for none."""
    if number is None:
        return "–"
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.3g}"


def measure_peer(
    target: str, size: int, present: int, device: str = "cpu", repeats: int = 3
) -> NetworkRow:
    """A peer's network in this process: seconds and memory, since nothing else is known of it."""
    peer = load_peer(target)
    clock = torch.device(device)
    image = torch.randn(1, len(BRATS.modalities), *(size,) * 3, device=clock)
    image[:, present:] = 0
    seconds = []
    for _ in range(repeats + 1):
        started = read_clock(clock)
        with torch.inference_mode():
            peer(image)
        seconds.append(read_clock(clock) - started)
    timed_seconds = seconds[1:]  # the first is a warm-up
    return NetworkRow(
        target,
        size,
        present,
        seconds=statistics.median(timed_seconds),
        fastest=min(timed_seconds),
        slowest=max(timed_seconds),
        peak_mib=peak_mib(clock),
        threads=torch.get_num_threads(),
        device=device,
    )


def _isolated(
    name: str, options: dict | None, size: int, present: int, device: str, repeats: int
) -> NetworkRow:
    """``_measured`` in a fresh process."""
    try:
        return in_fresh_process(_measured, name, options, size, present, device, repeats)
    except ProcessEnded as error:
        threads = torch.get_num_threads()
        return NetworkRow(
            name, size, present, threads=threads, device=device, failure=first_line(error)
        )


def _measured(
    name: str, options: dict | None, size: int, present: int, device: str, repeats: int
) -> NetworkRow:
    """A row of one of our networks, or of a peer's where ``options`` is None.

    Errors become the row's ``failure``: one of them must not end the table.
    """
    try:
        if options is None:
            return measure_peer(name, size, present, device, repeats)
        return measure_network(name, options, size, present, device, repeats)
    except MedMAPError as error:
        failure = error.cause
    except (MemoryError, RuntimeError, ValueError) as error:
        # PyTorch raises RuntimeError where memory does not suffice.
        failure = first_line(error)
    threads = torch.get_num_threads()
    return NetworkRow(name, size, present, threads=threads, device=device, failure=failure)


def _image(network: Backbone, size: int, device: torch.device) -> Tensor:
    """[1, M, *S] of noise, every side rounded up to a multiple of the stride."""
    side = _rounded(size, network.stride)
    dimensions = network.spatial_dims
    return torch.randn(1, network.modalities, *(side,) * dimensions, device=device)


def _rounded(size: int, stride: int) -> int:
    return math.ceil(size / stride) * stride


def _encode(network: Backbone, image: Tensor, present: int) -> list[Features | None]:
    """Features of the first ``present`` modalities, None for the others."""
    features: list[Features | None] = [None] * network.modalities
    for m in range(present):
        features[m] = network.encode(image[:, m : m + 1], m)
    return features


def _mask(network: Backbone, image: Tensor, present: int) -> Tensor:
    return (torch.arange(network.modalities, device=image.device) < present)[None]


@torch.inference_mode()
def _timed(network: Backbone, image: Tensor, present: int) -> tuple[float, float]:
    """Seconds of one pass as inference makes it, and those of encoding the present modalities."""
    mask = _mask(network, image, present)
    started = read_clock(image.device)
    features = _encode(network, image, present)
    encoded = read_clock(image.device)
    network.decode(features, mask)
    return read_clock(image.device) - started, encoded - started
