"""Generated heads as training data, made while training: a sampler with the interface of ``PatchSampler``.

Heads are numbered; head n is a pure function of the seed and n. At step s the heads from s // reuse on, ``pool`` of
them, are alive, and a sample takes one: so a sample is still a pure function of seed, step and its number, and no head
serves for longer than pool * reuse steps. On a GPU heads are made and kept there. On a CPU a background process makes
them ahead of need into a folder; what it does not make in time, the training process makes itself.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from medmap.io.atomic import atomic_folder
from medmap.phantom import Style, generate
from medmap.phantom.fields import Draw
from medmap.preprocess import PreprocessSpec
from medmap.task import Task
from medmap.training.dataset import Augmentation, Batch
from medmap.training.distributed import without_interrupts
from medmap.training.missingness import Missingness

FIELD_OF_VIEW_MM = (160, 192, 160)


@dataclass(frozen=True)
class Generation:
    """What heads are made for a training; part of a recipe.

    Attributes:
        first_seed: seed of head 0; head n has ``first_seed + n``.
        pool: heads alive at a time.
        reuse: steps after which the oldest head gives way to a new one.
        healthy: share of heads without tumor.
        procedural: share of procedural heads, where label maps are given.
        style: how widely cases vary.
    """

    first_seed: int = 1_000_000
    pool: int = 64
    reuse: int = 5
    healthy: float = 0.06
    procedural: float = 0.25
    style: Style = field(default_factory=Style)

    def seeds(self, steps: int) -> tuple[int, int]:
        """Seeds of the first and the last head that a training of so many steps may see."""
        return self.first_seed, self.first_seed + (steps - 1) // self.reuse + self.pool - 1

    @staticmethod
    def from_dict(style: dict | None = None, **numbers) -> Generation:
        """From the plain data of a recipe. Raises TypeError for an unknown key."""
        ranges = {k: tuple(v) if isinstance(v, list) else v for k, v in (style or {}).items()}
        return Generation(**numbers, style=Style(**ranges))


@dataclass(frozen=True)
class Head:
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


def make_head(
    n: int,
    plan: Generation,
    spec: PreprocessSpec,
    anatomy: Sequence[Path] = (),
    device: torch.device | str = "cpu",
) -> Head:
    """Head n of a plan, normalized and cropped exactly as inference does it (``medmap.preprocess``)."""
    seed = plan.first_seed + n
    draw = Draw(seed, "kind")
    tumor, procedural = not draw.chance(plan.healthy), draw.chance(plan.procedural)
    shape = tuple(round(mm / spec.spacing) for mm in FIELD_OF_VIEW_MM)
    maps = () if procedural else anatomy
    made = generate(
        seed,
        shape=shape,
        spacing=spec.spacing,
        device=device,
        tumor=tumor,
        style=plan.style,
        anatomy=maps,
    )
    where = made.brain.nonzero()
    low, high = where.amin(0).tolist(), (where.amax(0) + 1).tolist()
    edge = int(spec.margin / spec.spacing)
    box = tuple(slice(max(a - edge, 0), b + edge) for a, b in zip(low, high, strict=True))
    brain = made.brain[box]
    image = torch.stack([_normalize(scan[box], brain, spec) for scan in made.images.values()])
    label = made.label[box]
    found = label.nonzero().cpu()
    return Head(image.half(), label, brain, found[:: max(1, len(found) // 4096)])


def _normalize(scan: torch.Tensor, brain: torch.Tensor, spec: PreprocessSpec) -> torch.Tensor:
    """``medmap.preprocess.normalize`` on the device."""
    values = scan[brain].double()
    ordered = values.sort().values
    at = [p / 100.0 * (len(ordered) - 1) for p in spec.percentiles]
    low, high = (
        torch.lerp(ordered[int(a)], ordered[min(int(a) + 1, len(ordered) - 1)], a - int(a))
        for a in at
    )
    inner = values[(values >= low) & (values <= high)]
    out = torch.zeros_like(scan)
    out[brain] = (
        ((values - inner.mean()) / inner.std(correction=0).clamp(min=1e-9))
        .clamp(*spec.clip)
        .to(out.dtype)
    )
    return out


def _save(head: Head, folder: Path) -> None:
    with atomic_folder(folder, overwrite=True) as out:
        for name in ("image", "label", "brain", "tumor"):
            np.save(out / f"{name}.npy", getattr(head, name).cpu().numpy())


def _load(folder: Path) -> Head:
    arrays = (np.load(folder / f"{name}.npy") for name in ("image", "label", "brain", "tumor"))
    return Head(*(torch.from_numpy(a) for a in arrays))


class GeneratedSampler:
    """Patches of heads that are generated while the training runs.

    Args:
        plan: which heads.
        task: names and order of the modalities.
        spec: the bundle's preprocessing.
        missingness: which modalities a sample shows.
        seed: of patches and missingness.
        augmentation: of patches; only ``flip`` and ``foreground`` are used, the rest is the generator's.
        anatomy: label maps; none gives procedural heads only.
        device: where heads are made and kept.
        folder: keep heads here instead of in memory, and let a background process make them ahead (CPU).

    Attributes:
        seconds: time that training has waited for heads.
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
    ):
        self.plan, self.task, self.spec, self.missingness, self.seed = (
            plan,
            task,
            spec,
            missingness,
            seed,
        )
        self.augmentation = augmentation or Augmentation()
        self.anatomy, self.device, self.folder = tuple(anatomy), torch.device(device), folder
        self.case_ids = tuple(f"head-{n}" for n in range(plan.pool))
        self.seconds = 0.0
        self._heads: dict[int, Head] = {}
        self._ahead: tuple | None = None

    def shows(self, case_id: str) -> np.ndarray:
        """[M] bool: every modality."""
        return np.ones(len(self.task.modalities), bool)

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """Patches ``first`` to ``first + size - 1`` of a step, on the sampler's device."""
        oldest = step // self.plan.reuse
        self._forget(oldest)
        rngs = [np.random.default_rng([self.seed, step, n]) for n in range(first, first + size)]
        samples = [self._sample(oldest, step, rng, patch) for rng in rngs]
        image, present, label, brain, names = zip(*samples, strict=True)
        present = torch.from_numpy(np.stack(present)).to(self.device)
        return Batch(torch.stack(image), present, torch.stack(label), torch.stack(brain), names)

    def start_ahead(self, step: int) -> None:
        """Start the background process that makes heads ahead of need; it ends with this one."""
        if self.folder is None or self._ahead is not None:
            return
        context = multiprocessing.get_context("spawn")
        oldest = context.Value("q", step // self.plan.reuse)
        arguments = (oldest, self.plan, self.spec, self.anatomy, self.folder, os.getpid())
        process = context.Process(target=_keep_ahead, args=arguments, daemon=True)
        with without_interrupts():
            process.start()
        self._ahead = (process, oldest)

    def close(self) -> None:
        """End the background process."""
        if self._ahead is not None:
            self._ahead[0].terminate()
            self._ahead[0].join()
            self._ahead = None

    def _sample(
        self, oldest: int, step: int, rng: np.random.Generator, patch: Sequence[int]
    ) -> tuple:
        n = oldest + int(rng.integers(self.plan.pool))
        head = self._head(n)
        present = np.asarray(self.missingness(f"head-{n}", step, rng), bool)
        low = self._corner(head, rng, patch)
        image = torch.zeros((len(present), *patch), device=self.device)
        for m in np.flatnonzero(present):
            _paste(image[m], head.image[m], low)
        label = torch.zeros(tuple(patch), dtype=torch.int64, device=self.device)
        brain = torch.zeros(tuple(patch), dtype=torch.bool, device=self.device)
        _paste(label, head.label, low)
        _paste(brain, head.brain, low)
        if rng.random() < self.augmentation.flip:
            image, label, brain = (t.flip(-3) for t in (image, label, brain))
        return image, present, label, brain, f"head-{n}"

    def _corner(self, head: Head, rng: np.random.Generator, patch: Sequence[int]) -> list[int]:
        """Lower corner of a patch: centered near a tumor voxel or anywhere; negative where the patch is larger."""
        center = None
        if len(head.tumor) and rng.random() < self.augmentation.foreground:
            center = head.tumor[int(rng.integers(len(head.tumor)))].tolist()
        corner = []
        for axis, (size, width) in enumerate(zip(head.label.shape, patch, strict=True)):
            if width >= size:
                corner.append(-((width - size) // 2))
            elif center is None:
                corner.append(int(rng.integers(size - width + 1)))
            else:
                jitter = int(rng.integers(-width // 4, width // 4 + 1))
                corner.append(min(max(center[axis] - width // 2 + jitter, 0), size - width))
        return corner

    def _head(self, n: int) -> Head:
        if n in self._heads:
            return self._heads[n]
        started = time.monotonic()
        kept = self.folder / f"head-{n}" if self.folder else None
        if kept is not None and kept.is_dir():
            head = _load(kept)
        else:
            head = make_head(n, self.plan, self.spec, self.anatomy, self.device)
            if kept is not None:
                _save(head, kept)
        self._heads[n] = head
        if self.folder is not None and len(self._heads) > 16:  # the rest waits on disk
            self._heads.pop(next(iter(self._heads)))
        self.seconds += time.monotonic() - started
        return head

    def _forget(self, oldest: int) -> None:
        for n in [n for n in self._heads if n < oldest]:
            del self._heads[n]
        if self._ahead is not None:
            self._ahead[1].value = oldest


def _paste(target: torch.Tensor, source: torch.Tensor, low: Sequence[int]) -> None:
    """Copy the part of ``source`` from ``low`` that ``target`` covers, in place."""
    take, put = [], []
    for c, w, n in zip(low, target.shape, source.shape, strict=True):
        take.append(slice(max(c, 0), min(c + w, n)))
        put.append(slice(max(c, 0) - c, min(c + w, n) - c))
    target[tuple(put)] = source[tuple(take)].to(target.dtype)


def _keep_ahead(
    oldest, plan: Generation, spec: PreprocessSpec, anatomy, folder: Path, parent: int
) -> None:
    """In a process of its own: make the heads that are wanted now or soon, delete others.

    It gives way, but not to everything: starved by other programs it would leave its work to the training process.
    """
    os.nice(5)
    torch.set_num_threads(1)
    while os.getppid() == parent:
        now = oldest.value
        for old in folder.glob("head-*"):
            number = old.name.removeprefix("head-")
            if number.isdigit() and int(number) < now:
                shutil.rmtree(old, ignore_errors=True)
        wanted = (n for n in range(now, now + plan.pool + 8) if not (folder / f"head-{n}").is_dir())
        n = next(wanted, None)
        if n is None:
            time.sleep(2.0)
        else:
            _save(make_head(n, plan, spec, anatomy), folder / f"head-{n}")
