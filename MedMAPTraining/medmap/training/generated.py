"""Cases generated while training: a sampler with the interface of ``PatchSampler``.

Cases are numbered; case n is a pure function of the seed and n. At step s the cases from s // reuse
on, ``pool`` of them, are alive, and a sample takes one: so a sample is still a pure function of
seed, step and its number, and no case serves for longer than pool * reuse steps. On a GPU cases are
made and held there. On a CPU a background process makes them ahead of need into a folder; what it
does not make in time, the training process makes itself.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import multiprocessing.sharedctypes
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmap.io.atomic import atomic_folder
from medmap.phantom import Style, generate
from medmap.phantom.fields import Draw
from medmap.preprocess import PreprocessSpec
from medmap.task import Task
from medmap.training.batch import Batch
from medmap.training.dataset import MOST_TUMOR_VOXELS, Augmentation
from medmap.training.distributed import without_interrupts
from medmap.training.missingness import Missingness

FIELD_OF_VIEW_MM = (160, 192, 160)

MOST_IN_MEMORY = 16
"""Cases held in memory where they also lie on disk."""

CASES_AHEAD = 8
"""Cases that the background process makes beyond those that are alive."""


def case_name(number: int | str) -> str:
    """Name of a generated case. Part of random streams: another name would draw other subsets."""
    return f"head-{number}"


@dataclass(frozen=True)
class Generation:
    """Which cases are generated for a training; part of a recipe.

    Attributes:
        first_seed: seed of case 0; case n has ``first_seed + n``.
        pool: cases alive at a time.
        reuse: steps after which the oldest case gives way to a new one.
        healthy: share of tumor-free cases.
        procedural: share of procedural cases, where label maps are given.
        style: how widely cases vary.
    """

    first_seed: int = 1_000_000
    pool: int = 64
    reuse: int = 5
    healthy: float = 0.06
    procedural: float = 0.25
    style: Style = field(default_factory=Style)

    def seeds(self, steps: int) -> tuple[int, int]:
        """Seeds of the first and the last case that a training of so many steps may see."""
        last = self.first_seed + (steps - 1) // self.reuse + self.pool - 1
        return self.first_seed, last

    @staticmethod
    def from_dict(style: dict | None = None, **numbers: Any) -> Generation:
        """From the plain data of a recipe. Raises TypeError for an unknown key."""
        ranges: dict[str, Any] = {}
        for key, value in (style or {}).items():
            # JSON has no tuples.
            if isinstance(value, list):
                value = tuple(value)
            ranges[key] = value
        return Generation(**numbers, style=Style(**ranges))


@dataclass(frozen=True)
class GeneratedCase:
    """A generated case, ready for patches.

    Attributes:
        image: [M, D, H, W] float16, normalized; axes RAS.
        label: [D, H, W] uint8 class indices.
        brain: [D, H, W] bool.
        tumor: [N, 3] int64 on the CPU: some tumor voxels.
    """

    image: torch.Tensor
    label: torch.Tensor
    brain: torch.Tensor
    tumor: torch.Tensor


MakeCase = Callable[
    [int, Generation, PreprocessSpec, Sequence[Path], torch.device | str], GeneratedCase
]
"""Makes a case of a plan: its number, the plan, the preprocessing, label maps, and the device."""


def make_case(
    number: int,
    plan: Generation,
    spec: PreprocessSpec,
    anatomy: Sequence[Path] = (),
    device: torch.device | str = "cpu",
) -> GeneratedCase:
    """A case of a plan, normalized and cropped as inference does it (``medmap.preprocess``)."""
    seed = plan.first_seed + number
    draw = Draw(seed, "kind")
    has_tumor = not draw.chance(plan.healthy)
    is_procedural = draw.chance(plan.procedural)
    i, j, k = (round(mm / spec.spacing) for mm in FIELD_OF_VIEW_MM)
    if is_procedural:
        anatomy = ()
    patient = generate(
        seed,
        shape=(i, j, k),
        spacing=spec.spacing,
        device=device,
        tumor=has_tumor,
        style=plan.style,
        anatomy=anatomy,
    )
    margin = int(spec.margin / spec.spacing)
    box = _box_around(patient.brain, margin)
    brain = patient.brain[box]
    scans = [_normalize(scan[box], brain, spec) for scan in patient.images.values()]
    image = torch.stack(scans).half()
    label = patient.label[box]
    voxels = label.nonzero().cpu()
    # Enough places for patches; a large tumor has a hundred thousand voxels.
    every = max(1, len(voxels) // MOST_TUMOR_VOXELS)
    return GeneratedCase(image, label, brain, voxels[::every])


def _box_around(brain: torch.Tensor, margin: int) -> tuple[slice, ...]:
    """The box around a mask with a margin of so many voxels, within the volume."""
    voxels = brain.nonzero()
    low = voxels.amin(0).tolist()
    high = (voxels.amax(0) + 1).tolist()
    box = []
    for start, stop in zip(low, high, strict=True):
        # A negative start would count from the end; a stop beyond it is harmless.
        first = max(start - margin, 0)
        box.append(slice(first, stop + margin))
    return tuple(box)


def _normalize(scan: torch.Tensor, brain: torch.Tensor, spec: PreprocessSpec) -> torch.Tensor:
    """What ``medmap.preprocess.normalize`` does, on the device."""
    values = scan[brain].double()
    ordered = values.sort().values
    low, high = (_percentile(ordered, percent) for percent in spec.percentiles)
    if spec.scaling == "minmax":
        value_range = (high - low).clamp(min=1e-9)
        scaled = 2 * (values - low) / value_range - 1
        scores = scaled.clamp(-1, 1)
    else:
        # Mean and deviation without the tails, in which vessels and artifacts lie.
        is_inner = (values >= low) & (values <= high)
        inner = values[is_inner]
        deviation = inner.std(correction=0).clamp(min=1e-9)
        z = (values - inner.mean()) / deviation
        scores = z.clamp(*spec.clip)
    result = torch.zeros_like(scan)
    result[brain] = scores.to(result.dtype)
    return result


def _percentile(ordered: torch.Tensor, percent: float) -> torch.Tensor:
    """Percentile of sorted values with linear interpolation, as numpy defines it."""
    last = len(ordered) - 1
    position = percent / 100.0 * last
    below = int(position)
    above = min(below + 1, last)
    fraction = position - below
    return torch.lerp(ordered[below], ordered[above], fraction)


def _save(case: GeneratedCase, folder: Path) -> None:
    with atomic_folder(folder, overwrite=True) as out:
        for name in ("image", "label", "brain", "tumor"):
            tensor = getattr(case, name)
            np.save(out / f"{name}.npy", tensor.cpu().numpy())


def _load(folder: Path) -> GeneratedCase:
    arrays = {}
    for name in ("image", "label", "brain", "tumor"):
        array = np.load(folder / f"{name}.npy")
        arrays[name] = torch.from_numpy(array)
    return GeneratedCase(**arrays)


class GeneratedSampler:
    """Patches of cases that are generated while the training runs.

    Args:
        plan: which cases.
        task: names and order of the modalities.
        spec: the bundle's preprocessing.
        missingness: which modalities a sample shows.
        seed: of patches and missingness.
        augmentation: of patches; only ``flip`` and ``foreground`` are used, the
            generator does the rest.
        anatomy: label maps; none gives procedural cases only.
        device: where cases are made and held.
        folder: hold cases here instead of in memory, and let a background
            process make them ahead (CPU).
        make: what makes a case; None makes brains with tumors (``make_case``).

    Attributes:
        seconds: time that training has waited for cases.
    """

    def __init__(
        self,
        plan: Generation,
        task: Task,
        spec: PreprocessSpec,
        missingness: Missingness,
        seed: int,
        augmentation: Augmentation | None = None,
        *,
        anatomy: Sequence[Path] = (),
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        make: MakeCase | None = None,
    ):
        self.plan = plan
        self.task = task
        self.spec = spec
        self.missingness = missingness
        self.seed = seed
        self.augmentation = augmentation or Augmentation()
        self.anatomy = tuple(anatomy)
        self.device = torch.device(device)
        self.folder = folder
        self.make = make or make_case
        self.case_ids = tuple(case_name(number) for number in range(plan.pool))
        self.seconds = 0.0
        self._cases: dict[int, GeneratedCase] = {}
        self._ahead: _Ahead | None = None

    def available(self, case_id: str) -> np.ndarray:
        """[M] bool: every modality."""
        return np.ones(len(self.task.modalities), bool)

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """Patches ``first`` to ``first + size - 1`` of a step, on the sampler's device."""
        oldest = step // self.plan.reuse
        self._forget(oldest)
        singles = []
        for number in range(first, first + size):
            rng = np.random.default_rng([self.seed, step, number])
            singles.append(self._sample(oldest, step, rng, patch))
        image = torch.stack([single.image for single in singles])
        present = np.stack([single.present for single in singles])
        label = torch.stack([single.label for single in singles])
        brain = torch.stack([single.brain for single in singles])
        return Batch(
            image=image,
            present=torch.from_numpy(present).to(self.device),
            label=label,
            brain=brain,
            case_id=tuple(single.case_id for single in singles),
        )

    def start_ahead(self, step: int) -> None:
        """Start the background process that makes cases ahead of need; it ends with this one."""
        if self.folder is None or self._ahead is not None:
            return
        context = multiprocessing.get_context("spawn")
        oldest = context.Value("q", step // self.plan.reuse)
        arguments = (
            oldest,
            self.make,
            self.plan,
            self.spec,
            self.anatomy,
            self.folder,
            os.getpid(),
        )
        process = context.Process(target=_make_ahead, args=arguments, daemon=True)
        with without_interrupts():
            process.start()
        self._ahead = _Ahead(process, oldest)

    def close(self) -> None:
        """End the background process."""
        if self._ahead is not None:
            self._ahead.process.terminate()
            self._ahead.process.join()
            self._ahead = None

    def _sample(
        self, oldest: int, step: int, rng: np.random.Generator, patch: Sequence[int]
    ) -> _Sample:
        number = oldest + int(rng.integers(self.plan.pool))
        name = case_name(number)
        case = self._case(number)
        mask = self.missingness(name, step, rng)
        present = np.asarray(mask, bool)
        corner = self._corner(case, rng, patch)
        image = torch.zeros((len(present), *patch), device=self.device)
        for m in np.flatnonzero(present):
            _paste(image[m], case.image[m], corner)
        label = torch.zeros(tuple(patch), dtype=torch.int64, device=self.device)
        brain = torch.zeros(tuple(patch), dtype=torch.bool, device=self.device)
        _paste(label, case.label, corner)
        _paste(brain, case.brain, corner)
        # Axes are RAS, so the first spatial one is left to right: the only symmetry of a head.
        if rng.random() < self.augmentation.flip:
            image = image.flip(-3)
            label = label.flip(-3)
            brain = brain.flip(-3)
        return _Sample(image, present, label, brain, name)

    def _corner(
        self, case: GeneratedCase, rng: np.random.Generator, patch: Sequence[int]
    ) -> list[int]:
        """Lower corner of a patch: near a tumor voxel or anywhere.

        Negative where the patch is larger than the case.
        """
        center = None
        if len(case.tumor) and rng.random() < self.augmentation.foreground:
            row = int(rng.integers(len(case.tumor)))
            center = case.tumor[row].tolist()
        corner = []
        for axis, (size, width) in enumerate(zip(case.label.shape, patch, strict=True)):
            middle = None
            if center is not None:
                middle = center[axis]
            corner.append(_patch_start(size, width, middle, rng))
        return corner

    def _case(self, number: int) -> GeneratedCase:
        if number in self._cases:
            return self._cases[number]
        started = time.monotonic()
        folder = None
        if self.folder is not None:
            folder = self.folder / case_name(number)
        if folder is not None and folder.is_dir():
            case = _load(folder)
        else:
            case = self.make(number, self.plan, self.spec, self.anatomy, self.device)
            if folder is not None:
                _save(case, folder)
        self._cases[number] = case
        if folder is not None and len(self._cases) > MOST_IN_MEMORY:
            oldest_loaded = next(iter(self._cases))
            self._cases.pop(oldest_loaded)
        self.seconds += time.monotonic() - started
        return case

    def _forget(self, oldest: int) -> None:
        """Drop cases whose time is over."""
        for number in list(self._cases):
            if number < oldest:
                del self._cases[number]
        if self._ahead is not None:
            self._ahead.oldest.value = oldest


@dataclass(frozen=True)
class _Sample:
    """One patch: [M, *S] image, [M] bool, [*S] label and brain, name of its case."""

    image: torch.Tensor
    present: np.ndarray
    label: torch.Tensor
    brain: torch.Tensor
    case_id: str


@dataclass(frozen=True)
class _Ahead:
    """The background process, and the number of the oldest case that is alive, shared with it."""

    process: multiprocessing.process.BaseProcess
    oldest: multiprocessing.sharedctypes.Synchronized


def _patch_start(size: int, width: int, middle: int | None, rng: np.random.Generator) -> int:
    """Where a patch begins along an axis: around ``middle``, or anywhere without one."""
    if width >= size:
        return -((width - size) // 2)
    if middle is None:
        return int(rng.integers(size - width + 1))
    # A quarter of the patch: the tumor is not always in its middle.
    jitter = int(rng.integers(-width // 4, width // 4 + 1))
    start = middle - width // 2 + jitter
    return min(max(start, 0), size - width)


def _paste(target: torch.Tensor, source: torch.Tensor, corner: Sequence[int]) -> None:
    """Copy the part of ``source`` from ``corner`` that ``target`` covers, in place."""
    source_box = []
    target_box = []
    for start, width, size in zip(corner, target.shape, source.shape, strict=True):
        low = max(start, 0)
        high = min(start + width, size)
        source_box.append(slice(low, high))
        target_box.append(slice(low - start, high - start))
    part = source[tuple(source_box)]
    target[tuple(target_box)] = part.to(target.dtype)


def _make_ahead(
    oldest: Any,
    make: MakeCase,
    plan: Generation,
    spec: PreprocessSpec,
    anatomy: Sequence[Path],
    folder: Path,
    parent: int,
) -> None:
    """In a process of its own: make the cases that are needed now or soon, delete others.

    It gives way to other programs, but not to everything: starved it would leave its work to the
    training process.
    """
    os.nice(5)
    torch.set_num_threads(1)
    while os.getppid() == parent:
        first = oldest.value
        _delete_before(first, folder)
        end = first + plan.pool + CASES_AHEAD
        number = _first_missing(first, end, folder)
        if number is None:
            time.sleep(2.0)
            continue
        case = make(number, plan, spec, anatomy, "cpu")
        _save(case, folder / case_name(number))


def _delete_before(first: int, folder: Path) -> None:
    for path in folder.glob(case_name("*")):
        number = path.name.removeprefix(case_name(""))
        if number.isdigit() and int(number) < first:
            shutil.rmtree(path, ignore_errors=True)


def _first_missing(start: int, stop: int, folder: Path) -> int | None:
    for number in range(start, stop):
        if not (folder / case_name(number)).is_dir():
            return number
    return None
