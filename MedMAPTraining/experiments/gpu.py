"""Everything about one GPU, in at most six minutes: speed, memory, training, drills, tests.

    make gpu [PYTHON=python3]
    PYTHONPATH=MedMAPTraining python MedMAPTraining/experiments/gpu.py --output gpu.md
    PYTHONPATH=MedMAPTraining python MedMAPTraining/experiments/gpu.py pack CACHE cases.pt

Needs PyTorch 2.10 or newer and NumPy, nothing else: no network, no file outside the checkout, no
NIfTI reader. Weights are random, since time does not depend on them. ``pack`` writes cases that a
training prepared (``RUN/cache``) into one file of at most 30 MiB; without ``--cases``, the training
uses cases that the generator makes on the device. ``--rehearse`` runs every line with tiny sizes on
the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medmap.bench.published_passion import decode_in_turn
from medmap.devices import resolve_device
from medmap.errors import UnavailableError
from medmap.networks import Backbone, build_network
from medmap.phantom import generate
from medmap.sliding_window import window_boxes
from medmap.task import BRATS
from medmap.training.acceleration import as_channels_last, channels_last, compile_backbone
from medmap.training.augmentation import StandardAugmentation, acquired, deformed
from medmap.training.batch import Batch
from medmap.training.missingness import random_subset
from medmap.training.objectives import Context, Objective, build_objective, passion

ROOT = Path(__file__).resolve().parents[2]
MODALITIES = range(len(BRATS.modalities))
PACK_BYTES = 30 << 20
MIB = 2**20


@dataclass(frozen=True)
class Sizes:
    """What is run.

    Attributes:
        box: working voxels of a brain at 1.5 mm.
        volume, window: voxels of a brain at 1 mm and side of the published windows.
        patch: side of the patches on which methods are compared.
        default_patch: patches of the default model's training.
        widths: channels of the default network.
        spacing: voxels of generated cases, in mm.
        repeats, steps: timed passes and training steps, after a warm-up.
        batches: of our training steps.
        training_seconds: how long the default training runs.
        total_seconds: no further part starts after it.
        backend: of ``torch.compile``.
    """

    box: tuple[int, int, int] = (96, 128, 112)
    volume: tuple[int, int, int] = (144, 176, 144)
    window: int = 128
    patch: int = 80
    default_patch: tuple[int, int, int] = (96, 112, 96)
    widths: tuple[int, ...] = (32, 48, 64, 96)
    spacing: float = 1.5
    repeats: int = 10
    steps: int = 10
    batches: tuple[int, ...] = (1, 4)
    training_seconds: float = 120.0
    total_seconds: float = 330.0
    backend: str = "inductor"


REHEARSAL = Sizes(
    box=(32, 32, 32),
    volume=(40, 32, 32),
    window=32,
    patch=32,
    default_patch=(32, 32, 32),
    widths=(4, 8),
    spacing=6.0,
    repeats=1,
    steps=1,
    batches=(1, 2),
    training_seconds=2.0,
    backend="eager",
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    name: str
    figure: str
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """Where and how large everything is run."""

    device: torch.device
    sizes: Sizes

    @property
    def has_bf16(self) -> bool:
        """CPUs compute bf16, too, if slowly."""
        return self.device.type == "cpu" or torch.cuda.is_bf16_supported(False)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    packing = commands.add_parser("pack")
    packing.add_argument("cache", type=Path)
    packing.add_argument("out", type=Path)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--cases", type=Path, help="what pack wrote")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.cache, options.out)
        return
    device = "cpu" if options.rehearse else options.device
    try:
        setup = Setup(resolve_device(device), REHEARSAL if options.rehearse else Sizes())
    except UnavailableError as error:
        sys.exit(f"{error.cause} {error.remedy}")
    rows = run(setup, options.cases)
    text = table(rows, setup)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
    if any(row.figure == "FAILED" for row in rows):
        sys.exit(1)


def run(setup: Setup, cases: Path | None) -> list[Row]:
    """All parts; one that fails is reported and the next one runs."""
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "inference": lambda: inference_rows(setup),
        "training methods": lambda: method_rows(setup),
        "default training step": lambda: default_step_rows(setup),
        "generator": lambda: generator_rows(setup),
        "default training": lambda: training_rows(setup, cases),
        "drills": lambda: drill_rows(setup),
        "tests": lambda: test_rows(setup),
    }
    started = time.monotonic()
    rows: list[Row] = []
    for name, part in parts.items():
        seconds = time.monotonic() - started
        if seconds > setup.sizes.total_seconds:
            rows.append(Row(name, "", "not run", f"{seconds:.0f} s had passed"))
            continue
        print(f"{seconds:5.0f} s  {name}", file=sys.stderr, flush=True)
        try:
            for row in part():
                rows.append(row)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            rows.append(Row(name, "", "FAILED", f"{type(error).__name__}: {lines[0][:120]}"))
        release(setup.device)
    rows.append(Row("all parts", "", f"{time.monotonic() - started:.0f} s"))
    return rows


def table(rows: Sequence[Row], setup: Setup) -> str:
    """Markdown."""
    name = "CPU (a rehearsal: tiny sizes)"
    if setup.device.type == "cuda":
        memory = torch.cuda.get_device_properties(setup.device).total_memory / 2**30
        name = f"{torch.cuda.get_device_name(setup.device)}, {memory:.0f} GiB"
    lines = [f"{name}; PyTorch {torch.__version__}", "", "| | | | |", "|---|---|--:|---|"]
    for row in rows:
        lines.append(f"| {row.part} | {row.name} | {row.figure} | {row.note} |")
    return "\n".join(lines) + "\n"


def release(device: torch.device) -> None:
    """Give cached memory back, so that each part has all of it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_note(device: torch.device) -> str:
    """Largest memory of tensors since ``release``."""
    if device.type != "cuda":
        return ""
    return f"peak {torch.cuda.max_memory_allocated(device) / MIB:.0f} MiB"


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after up to two to warm up: the first ones choose kernels."""
    warm_up = min(2, repeats)
    seconds = []
    for number in range(warm_up + repeats):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= warm_up:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Half precision for ``bf16``, nothing for ``fp32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def default_network(setup: Setup) -> Backbone:
    """The default model's network with random weights."""
    torch.manual_seed(0)
    options = {
        "modalities": len(MODALITIES),
        "classes": BRATS.num_classes,
        "widths": list(setup.sizes.widths),
    }
    return build_network("SubsetUNet", options).to(setup.device)


def inference_rows(setup: Setup) -> Iterator[Row]:
    """The default model's ways, and mmFormer as published, whose ratio counts."""
    published = published_seconds(setup)
    note = f"eager fp32, all encoders, windows of {setup.sizes.window}³ that overlap by half"
    yield Row("inference", "mmFormer as published", f"{1000 * published:.0f} ms", note)
    ways = ["fp32", "bf16", "bf16 channels-last", "bf16 compiled"]
    for way in ways if setup.has_bf16 else ways[:1]:
        release(setup.device)
        network = default_network(setup).eval()
        image = torch.randn(1, 1, *setup.sizes.box, device=setup.device)
        if way.endswith("channels-last"):
            channels_last(network)
            image = as_channels_last(image)
        if way.endswith("compiled"):
            compile_backbone(network, backend=setup.sizes.backend)
        for count in (1, 4):
            seconds = seconds_of(
                lambda n=network, x=image, c=count, w=way: segment_once(n, x, c, w, setup),
                setup.device,
                setup.sizes.repeats,
            )
            ratio = f"published / this: {published / seconds:.0f}"
            title = f"default model, {count} of 4 modalities, {way}"
            yield Row("inference", title, f"{1000 * seconds:.1f} ms", ratio)
        if way.endswith("compiled"):
            # Each subset has a graph of its own: fifteen take minutes to compile.
            continue
        seconds = seconds_of(
            lambda n=network, x=image, w=way: segment_all(n, x, w, setup),
            setup.device,
            setup.sizes.repeats,
        )
        title = f"default model, all 15 subsets, {way}"
        yield Row("inference", title, f"{1000 * seconds:.1f} ms", peak_note(setup.device))


@torch.inference_mode()
def segment_once(network: Backbone, image: Tensor, count: int, way: str, setup: Setup) -> Tensor:
    """Encode so many modalities and decode once."""
    with autocast(setup.device, way.split()[0]):
        features = [network.encode(image, m) if m < count else None for m in MODALITIES]
        present = torch.arange(len(MODALITIES), device=setup.device)[None] < count
        return network.decode(features, present).logits


@torch.inference_mode()
def segment_all(network: Backbone, image: Tensor, way: str, setup: Setup) -> None:
    """Encode every modality once and decode every subset."""
    with autocast(setup.device, way.split()[0]):
        features = [network.encode(image, m) for m in MODALITIES]
        for subset in BRATS.subsets():
            mask = BRATS.presence(subset)
            chosen = [features[m] if mask[m] else None for m in MODALITIES]
            network.decode(chosen, torch.tensor([mask], device=setup.device))


def published_seconds(setup: Setup) -> float:
    """mmFormer as released: every encoder, float32, windows that overlap by half."""
    sizes = setup.sizes
    network = build_network("mmFormer", {"window": sizes.window}).to(setup.device).eval()
    image = torch.randn(1, len(MODALITIES), *sizes.volume, device=setup.device)
    present = torch.ones(1, len(MODALITIES), dtype=torch.bool, device=setup.device)
    boxes = window_boxes(sizes.volume, (sizes.window,) * 3, 0.5, 1)

    @torch.inference_mode()
    def slide() -> None:
        total = torch.zeros((BRATS.num_classes, *sizes.volume), device=setup.device)
        for box in boxes:
            part = image[(slice(None), slice(None), *box)]
            logits = network(part, present).logits
            total[(slice(None), *box)] += torch.softmax(logits[0], 0)

    return seconds_of(slide, setup.device, max(1, sizes.repeats // 5))


def random_batch(setup: Setup, size: int, patch: Sequence[int], *, every: bool) -> Batch:
    """Noise with nested boxes for a tumor; half of the modalities present on average.

    ``every`` states all modalities, so that every encoder runs, as in released code.
    """
    draw = torch.Generator().manual_seed(1)
    present = torch.rand(size, len(MODALITIES), generator=draw) < 0.5
    present[:, 1] = True
    image = torch.randn(size, len(MODALITIES), *patch, generator=draw)
    image[~present] = 0
    label = torch.zeros(size, *patch, dtype=torch.int64)
    for index, divisor in enumerate((3, 4, 6), 1):
        box = [slice(side // 2 - side // divisor, side // 2 + side // divisor) for side in patch]
        label[(slice(None), *box)] = index
    present_modalities = present.any(0).nonzero().flatten().tolist()
    batch = Batch(
        image=image,
        present=present,
        label=label,
        brain=torch.ones(size, *patch, dtype=torch.bool),
        case_id=tuple(f"case-{n}" for n in range(size)),
        modalities=tuple(MODALITIES) if every else tuple(present_modalities),
    )
    return batch.to(setup.device)


class Trainer:
    """Objective and optimizers; one call is one training step."""

    def __init__(self, objective: Objective, precision: str, device: torch.device):
        self.objective = objective.to(device).train()
        self.precision = precision
        self.device = device
        self.optimizers = {}
        for name, group in objective.groups().items():
            self.optimizers[name] = torch.optim.AdamW(group.parameters, lr=6e-4)

    def step(self, batch: Batch) -> Tensor:
        """Every optimizer step of a batch; returns the last loss, on the device."""
        steps = self.objective.steps(batch, 0.5)
        loss = torch.zeros((), device=self.device)
        while True:
            with autocast(self.device, self.precision):
                group, losses = next(steps, (None, {}))
            if group is None:
                return loss
            optimizer = self.optimizers[group]
            optimizer.zero_grad(set_to_none=True)
            loss = torch.stack([value.float() for value in losses.values()]).sum()
            loss.backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 5.0)
            optimizer.step()
            loss = loss.detach()


METHODS = {"plain": {}, "passion": {"variant": "released"}}


def method_rows(setup: Setup) -> Iterator[Row]:
    """Training steps of mmFormer: the published way beside ours, in samples per second."""
    patch = (setup.sizes.patch,) * 3
    for method, method_options in METHODS.items():
        published = 0.0
        for way, precision, size in training_ways(setup):
            release(setup.device)
            torch.manual_seed(0)
            network = build_network("mmFormer", {"window": setup.sizes.patch})
            context = Context(task=BRATS, backbone=network, cases=4, epoch_steps=10, steps=100)
            trainer = Trainer(
                build_objective(method, context, method_options), precision, setup.device
            )
            batch = random_batch(setup, size, patch, every=way == "published")
            with students_in_turn(way == "published"):
                seconds = seconds_of(
                    lambda t=trainer, b=batch: t.step(b), setup.device, setup.sizes.steps
                )
            samples = size / seconds
            published = published or samples
            note = f"{samples / published:.1f} times published; {peak_note(setup.device)}"
            title = f"mmFormer {setup.sizes.patch}³, {method}, {way}, {precision}, batch {size}"
            yield Row("training", title, f"{samples:.2f} samples/s", note)


def training_ways(setup: Setup) -> list[tuple[str, str, int]]:
    """(way, precision, batch size), the published one first."""
    precision = "bf16" if setup.has_bf16 else "fp32"
    ways = [("published", "fp32", 1)]
    for size in setup.sizes.batches:
        ways.append(("ours", precision, size))
    return ways


@contextlib.contextmanager
def students_in_turn(enabled: bool) -> Iterator[None]:
    """PASSION's students one after the other, as its released code decodes them."""
    together = passion.decode_together
    if enabled:
        passion.decode_together = decode_in_turn
    try:
        yield
    finally:
        passion.decode_together = together


def default_step_rows(setup: Setup) -> Iterator[Row]:
    """The default model's own training step, without data."""
    precision = "bf16" if setup.has_bf16 else "fp32"
    for compiled in (False, True):
        # Compiling takes half a minute for each batch size.
        sizes = setup.sizes.batches[-1:] if compiled else setup.sizes.batches
        for size in sizes:
            release(setup.device)
            trainer = default_trainer(setup, precision, compiled=compiled)
            batch = random_batch(setup, size, setup.sizes.default_patch, every=False)
            seconds = seconds_of(
                lambda t=trainer, b=batch: t.step(b), setup.device, setup.sizes.steps
            )
            way = "compiled" if compiled else "eager"
            title = f"default network, {way}, {precision}, batch {size}"
            figure = f"{size / seconds:.1f} patches/s"
            yield Row("default training step", title, figure, peak_note(setup.device))


def default_trainer(setup: Setup, precision: str, *, compiled: bool) -> Trainer:
    """The default network with the loss of its recipe on real cases."""
    network = default_network(setup)
    if compiled:
        compile_backbone(network, backend=setup.sizes.backend)
    options = {"smooth": 100, "regions": True, "within": 0.5}
    objective = build_objective("plain", Context(task=BRATS, backbone=network), options)
    return Trainer(objective, precision, setup.device)


def generator_rows(setup: Setup) -> Iterator[Row]:
    """Seconds of one generated case."""
    spacing = setup.sizes.spacing
    shape = tuple(round(mm / spacing) for mm in (160, 192, 160))
    seeds = iter(range(7000, 8000))
    seconds = seconds_of(
        lambda: generate(next(seeds), shape=shape, spacing=spacing, device=setup.device),
        setup.device,
        max(1, setup.sizes.repeats // 3),
    )
    yield Row("generator", f"one case at {spacing:g} mm", f"{seconds:.2f} s")


@dataclass(frozen=True)
class PackedCase:
    """One prepared case: half-precision scans by position, None if absent; classes; brain."""

    images: list[np.ndarray | None]
    label: np.ndarray
    brain: np.ndarray


def pack(cache: Path, out: Path) -> None:
    """Write prepared cases into one file, as many as fit into ``PACK_BYTES``."""
    cases = []
    total = 0
    for folder in sorted(path for path in cache.iterdir() if (path / "label.npy").exists()):
        arrays = {"label": np.load(folder / "label.npy"), "brain": np.load(folder / "brain.npy")}
        for name in BRATS.modality_names:
            if (folder / f"{name}.npy").exists():
                arrays[name] = np.load(folder / f"{name}.npy").astype(np.float16)
        size = sum(array.nbytes for array in arrays.values())
        if total + size > PACK_BYTES:
            break
        total += size
        cases.append({name: torch.from_numpy(array) for name, array in arrays.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(cases, out)
    print(f"{len(cases)} cases, {total / MIB:.0f} MiB: {out}")


def packed_cases(path: Path) -> list[PackedCase]:
    """What ``pack`` wrote."""
    cases = []
    for arrays in torch.load(path, weights_only=True):
        images = []
        for name in BRATS.modality_names:
            images.append(arrays[name].numpy() if name in arrays else None)
        cases.append(PackedCase(images, arrays["label"].numpy(), arrays["brain"].numpy()))
    return cases


def generated_cases(setup: Setup, count: int = 3) -> list[PackedCase]:
    """Cases of the generator, z-scored within the brain."""
    spacing = setup.sizes.spacing
    shape = tuple(round(mm / spacing) for mm in (160, 192, 160))
    cases = []
    for seed in range(count):
        patient = generate(6000 + seed, shape=shape, spacing=spacing, device=setup.device)
        brain = patient.brain
        images: list[np.ndarray | None] = []
        for scan in patient.images.values():
            values = scan[brain]
            z = (scan - values.mean()) / values.std()
            images.append(torch.where(brain, z, 0).half().cpu().numpy())
        cases.append(PackedCase(images, patient.label.cpu().numpy(), brain.cpu().numpy()))
    return cases


def patch_of(case: PackedCase, patch: Sequence[int], step: int) -> Batch:
    """One augmented patch, a function of the step alone."""
    rng = np.random.default_rng([48, step])
    available = np.array([image is not None for image in case.images])
    present = available & random_subset(BRATS)("case", step, rng)
    if not present.any():
        present = available
    scans = []
    for image, is_present in zip(case.images, present, strict=True):
        scans.append(image if is_present else None)
    corner = []
    for size, width in zip(case.label.shape, patch, strict=True):
        corner.append(int(rng.integers(size - width + 1)) if size > width else (size - width) // 2)
    # Every patch is deformed, so that each costs what the costliest does.
    spec = StandardAugmentation(geometry=1.0)
    image, label, brain = deformed(scans, case.label, case.brain, corner, patch, spec, rng)
    acquired(image, present, spec, rng)
    return Batch(
        image=image[None],
        present=torch.from_numpy(present)[None],
        label=label[None],
        brain=brain[None],
        case_id=("case",),
        modalities=tuple(np.flatnonzero(present).tolist()),
    )


class Patches(torch.utils.data.Dataset):
    """Patches by number, for worker processes."""

    def __init__(self, cases: Sequence[PackedCase], patch: Sequence[int], count: int):
        self.cases = cases
        self.patch = patch
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Batch:
        return patch_of(self.cases[number % len(self.cases)], self.patch, number)


def training_rows(setup: Setup, path: Path | None) -> Iterator[Row]:
    """The default training with augmentation by worker processes: what a minute of it holds."""
    cases = packed_cases(path) if path else generated_cases(setup)
    precision = "bf16" if setup.has_bf16 else "fp32"
    trainer = default_trainer(setup, precision, compiled=False)
    workers = 0 if setup.sizes is REHEARSAL else 12
    loader = torch.utils.data.DataLoader(
        Patches(cases, setup.sizes.default_patch, 100_000), batch_size=None, num_workers=workers
    )
    losses = []
    waiting = 0.0
    started = time.perf_counter()
    asked = started
    for batch in loader:
        waiting += time.perf_counter() - asked
        losses.append(float(trainer.step(batch.to(setup.device))))
        asked = time.perf_counter()
        if asked - started > setup.sizes.training_seconds:
            break
    seconds = asked - started
    source = f"{len(cases)} packed real cases" if path else f"{len(cases)} generated cases"
    tenth = max(1, len(losses) // 10)
    first = statistics.mean(losses[:tenth])
    last = statistics.mean(losses[-tenth:])
    note = f"{source}; loss {first:.2f} to {last:.2f}; waiting {waiting / seconds:.0%} of the time"
    title = f"{len(losses)} steps, batch 1, {precision}, {workers} workers"
    yield Row("default training", title, f"{len(losses) / seconds:.2f} steps/s", note)


def drill_rows(setup: Setup) -> Iterator[Row]:
    """Out of memory, and a device that fails: what happens is what the documentation states."""
    yield fallback_row()
    if setup.device.type == "cuda":
        yield out_of_memory_row(setup)


def fallback_row() -> Row:
    """``auto`` takes the CPU where a card lists itself and computes nothing."""
    conv3d = nn.functional.conv3d
    is_available = torch.cuda.is_available

    def fail(*arguments: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    from medmap import devices

    devices._tested_device.cache_clear()
    nn.functional.conv3d = fail
    torch.cuda.is_available = lambda: True
    try:
        device = resolve_device("auto")
    finally:
        nn.functional.conv3d = conv3d
        torch.cuda.is_available = is_available
        devices._tested_device.cache_clear()
    if device.type != "cpu":
        raise RuntimeError("a failing device was chosen")
    return Row("drills", "a card that computes nothing", "CPU is used")


def out_of_memory_row(setup: Setup) -> Row:
    """Too little memory for one pass: smaller windows, and the same classes."""
    from medmap.bundle.format import InferenceSpec
    from medmap.preprocess import Prepared
    from medmap.resampling import lattice_offset, orientation_of
    from medmap.sliding_window import SlidingWindow
    from medmap.volume import Grid

    shape = tuple(2 * side for side in setup.sizes.box)
    grid = Grid(shape, np.diag([1.5, 1.5, 1.5, 1.0]))
    orientation = orientation_of(grid)
    prepared = Prepared(
        image=torch.randn(len(MODALITIES), *shape, generator=torch.Generator().manual_seed(0)),
        present=torch.ones(len(MODALITIES), dtype=torch.bool),
        brain=torch.ones(shape, dtype=torch.bool),
        grid=grid,
        reference="t1",
        reference_grid=grid,
        orientation=orientation,
        offset=lattice_offset(orientation.canonical, grid),
    )
    network = default_network(setup).eval()
    windows = SlidingWindow(
        BRATS, InferenceSpec(window=shape), network.stride, setup.device, precision="fp32"
    )
    release(setup.device)
    next(windows.logits(network, prepared, [BRATS.modality_names]))
    peak_bytes = torch.cuda.max_memory_allocated(setup.device)
    total = torch.cuda.get_device_properties(setup.device).total_memory
    release(setup.device)
    torch.cuda.set_per_process_memory_fraction(0.5 * peak_bytes / total)
    try:
        next(windows.logits(network, prepared, [BRATS.modality_names]))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    if windows.window == shape:
        raise RuntimeError("half of the memory sufficed: nothing was tried")
    size = " x ".join(map(str, windows.window))
    return Row("drills", "half of the memory that one pass needs", f"windows of {size}")


def test_rows(setup: Setup) -> Iterator[Row]:
    """The tests that need a GPU, where pytest is there."""
    needed = ("pytest", "nibabel", "hypothesis")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        yield Row("tests", "marker gpu", "not run", f"{', '.join(missing)} is not installed")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    folders = ["Testing/medmap", "Testing/segment"]
    if setup.sizes is REHEARSAL:
        folders = ["Testing/medmap/bench"]
    finished = subprocess.run(
        [*command, *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    summary = finished.stdout.strip().splitlines()[-1:]
    figure = "passed" if finished.returncode == 0 else "FAILED"
    yield Row("tests", "marker gpu", figure, json.dumps("".join(summary)))


if __name__ == "__main__":
    main()
