"""Cases for the training: prepared ones in one file, or generated ones; and their patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gpu.setup import MIB, Row, Setup, seconds_of
from medmap.phantom import Phantom, generate
from medmap.task import BRATS
from medmap.training.augmentation import StandardAugmentation, acquired, deformed
from medmap.training.batch import Batch
from medmap.training.missingness import random_subset

PACK_BYTES = 30 << 20


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
    folders = sorted(path for path in cache.iterdir() if (path / "label.npy").exists())
    for folder in folders:
        arrays = {
            "label": np.load(folder / "label.npy"),
            "brain": np.load(folder / "brain.npy"),
        }
        for name in BRATS.modality_names:
            path = folder / f"{name}.npy"
            if path.exists():
                arrays[name] = np.load(path).astype(np.float16)
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
            image = None
            if name in arrays:
                image = arrays[name].numpy()
            images.append(image)
        label = arrays["label"].numpy()
        brain = arrays["brain"].numpy()
        cases.append(PackedCase(images, label, brain))
    return cases


def generated(setup: Setup, seed: int) -> Phantom:
    """One case of the generator, computed on the device."""
    return generate(
        seed,
        shape=setup.generated_shape,
        spacing=setup.sizes.spacing,
        device=setup.device,
    )


def generator_rows(setup: Setup) -> Iterator[Row]:
    """Seconds of one generated case."""
    spacing = setup.sizes.spacing
    seeds = iter(range(7000, 8000))
    repeats = max(1, setup.sizes.repeats // 3)
    seconds = seconds_of(lambda: generated(setup, next(seeds)), setup.device, repeats)
    yield Row("generator", f"one case at {spacing:g} mm", f"{seconds:.2f} s")


def generated_cases(setup: Setup, count: int = 3) -> list[PackedCase]:
    """Cases of the generator, z-scored within the brain."""
    cases = []
    for seed in range(count):
        patient = generated(setup, 6000 + seed)
        brain = patient.brain
        images: list[np.ndarray | None] = []
        for scan in patient.images.values():
            values = scan[brain]
            z = (scan - values.mean()) / values.std()
            stripped = torch.where(brain, z, 0)
            images.append(stripped.half().cpu().numpy())
        label = patient.label.cpu().numpy()
        cases.append(PackedCase(images, label, brain.cpu().numpy()))
    return cases


def patch_of(case: PackedCase, patch: Sequence[int], step: int) -> Batch:
    """One augmented patch, a function of the step alone."""
    rng = np.random.default_rng([48, step])
    available = np.array([image is not None for image in case.images])
    present = available & random_subset(BRATS)("case", step, rng)
    if not present.any():
        present = available
    scans = []
    for scan, is_present in zip(case.images, present, strict=True):
        scans.append(scan if is_present else None)
    corner = []
    for size, width in zip(case.label.shape, patch, strict=True):
        if size > width:
            corner.append(int(rng.integers(size - width + 1)))
        else:
            corner.append((size - width) // 2)
    # Every patch is deformed, so that each costs what the costliest does.
    spec = StandardAugmentation(geometry=1.0)
    result = deformed(scans, case.label, case.brain, corner, patch, spec, rng)
    if result is None:
        raise RuntimeError("the augmentation left a patch as it was")
    image, label, brain = result
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
