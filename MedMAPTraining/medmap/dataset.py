"""Cases on disk -> prepared arrays, once -> patches. Sampling is stateless: seed and step determine everything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medmap.errors import InputDataError, MissingInputError
from medmap.files import atomic_folder
from medmap.metrics import label_masks
from medmap.missingness import Missingness
from medmap.nifti import read_nifti
from medmap.preprocess import Prepared, PreprocessSpec, prepare, to_grid
from medmap.task import Task
from medmap.volume import Volume


@dataclass(frozen=True)
class Batch:
    """What a network trains on.

    Attributes:
        image: [B, M, *S] float32; absent channels are zero.
        present: [B, M] bool, True = present.
        label: [B, *S] int64 class indices.
        brain: [B, *S] bool.
        case_id: B names.
    """

    image: Tensor
    present: Tensor
    label: Tensor
    brain: Tensor
    case_id: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = (t.to(device, non_blocking=True) for t in (self.image, self.present, self.label, self.brain))
        return Batch(*moved, self.case_id)


@dataclass(frozen=True)
class Case:
    """One patient on disk: files by modality name, and the reference label map if there is one."""

    case_id: str
    scans: dict[str, Path]
    label: Path | None

    def read(self, names: Sequence[str] | None = None) -> dict[str, Volume]:
        """The scans (or those named) as volumes."""
        return {
            name: read_nifti(path, modality=name) for name, path in self.scans.items() if not names or name in names
        }


def find_cases(folder: str | Path, task: Task) -> list[Case]:
    """Cases of a folder, in one of two layouts; names of modalities and their aliases count, in any case of letters.

    BraTS: one sub-folder a case, files named ``<case>_<modality>.nii.gz``, ``_seg``, with ``_`` or ``-``. MyoPS: the
    files of all cases side by side in a folder (``train25``), labels ``<case>_gd.nii.gz`` there or in the folder whose
    name says more (``train25_myops_gd``). Given all of the challenge, the cases that have labels are found.

    Raises:
        MissingInputError: no such folder, or no case in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingInputError(f"There is no folder {folder}.", "Check the path given with --data.")
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if any(_named(path, _MYOPS_LABELS) for sub in inner for path in sub.iterdir()):
        cases = [case for case in _side_by_side([folder, *inner], task) if case.label]
    else:
        cases = [case for case in (_case(path, task) for path in inner) if case.scans]
        cases = cases or _side_by_side([folder, *sorted(folder.parent.glob(f"{folder.name}_*"))], task)
    if not cases:
        raise MissingInputError(
            f"{folder.name} holds no case in {task.name} layout.",
            f"Expected <case>/<case>_{task.modality_names[-1]}.nii.gz and so on.",
        )
    return cases


_MYOPS_LABELS = {"gd": "label"}


def _named(path: Path, endings: Mapping[str, str]) -> tuple[str, str] | None:
    """Case and meaning of a file ``<case>_<ending>.nii.gz``, or None."""
    match = re.fullmatch(r"(.+)[_-]([a-z0-9]+)\.nii(\.gz)?", path.name, re.IGNORECASE)
    return (match[1], endings[match[2].lower()]) if match and match[2].lower() in endings else None


def _side_by_side(folders: Sequence[Path], task: Task) -> list[Case]:
    """Cases whose files lie side by side; a case is what stands in front of the modality's name."""
    endings = _MYOPS_LABELS | {alias: m.name for m in task.modalities for alias in (m.name, *m.aliases)}
    found: dict[str, dict[str, Path]] = {}
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())):
        named = _named(path, endings)
        if named:
            found.setdefault(named[0], {}).setdefault(named[1], path)
    cases = [
        Case(name, {m: files[m] for m in task.modality_names if m in files}, files.get("label"))
        for name, files in sorted(found.items())
    ]
    return [case for case in cases if case.scans]


def _case(folder: Path, task: Task) -> Case:
    endings = {alias: m.name for m in task.modalities for alias in (m.name, *m.aliases)}
    scans, label = {}, None
    for path in sorted(folder.iterdir()):
        match = re.search(r"[_-]([a-z0-9]+)\.nii(\.gz)?$", path.name.lower())
        if match and match[1] == "seg":
            label = path
        elif match and match[1] in endings:
            scans.setdefault(endings[match[1]], path)
    return Case(folder.name, scans, label)


def read_label(path: Path, task: Task, shape: Sequence[int]) -> np.ndarray:
    """[I, J, K] class indices of a label file. Raises InputDataError for unknown values or another shape."""
    array = read_nifti(path, modality="seg").array
    if array.shape != tuple(shape):
        raise InputDataError(
            f"{path.name} has {array.shape} voxels, its scan {tuple(shape)}.", "Use the labels drawn on that scan."
        )
    classes = np.zeros(array.shape, np.uint8)
    for index, mask in enumerate(label_masks(array, task).values(), 1):
        classes[mask] = index
    return classes


def cache_case(case: Case, task: Task, spec: PreprocessSpec, folder: Path, shown: Sequence[bool] | None = None) -> Path:
    """Prepare one case and store it for training: <modality>.npy [D, H, W] float16 each, label.npy and brain.npy uint8.

    Does nothing when it was done before with the same preprocessing and the same modalities. Where the
    preprocessing is in slices, D runs across them.

    Args:
        case: with reference labels.
        task: names the modalities.
        spec: the preprocessing.
        folder: of all cached cases.
        shown: [M], what training may ever see of the case (``Missingness.ever``), None = all. Nothing else is opened,
            and crop and normalisation come from these scans alone.

    Raises:
        InputDataError: no reference labels, or none of the scans that training may see.
    """
    allowed = [n for n, may in zip(task.modality_names, shown, strict=True) if may] if shown is not None else case.scans
    names = [name for name in task.modality_names if name in case.scans and name in allowed]
    target = folder / case.case_id
    stamp = json.dumps({"spec": spec.to_dict(), "modalities": task.modality_names, "shown": names})
    if target.is_dir() and (target / "spec.json").read_text() == stamp:
        return target
    if case.label is None:
        raise InputDataError(f"The case {case.case_id} has no reference labels.", "Add <case>_seg.nii.gz.")
    if not names:
        raise InputDataError(
            f"The case {case.case_id} has none of the scans that training may see ({', '.join(allowed)}).",
            "Add one, leave the case out, or change the missingness.",
        )
    volumes = case.read(names)
    prepared = prepare(volumes, task, spec)
    classes = read_label(case.label, task, prepared.reference_grid.shape)
    one_hot = [
        to_grid((classes == c).astype(np.float32), prepared.reference_grid, prepared.grid, spec.slices)
        for c in range(1, task.num_classes)
    ]
    stacked = torch.stack(one_hot)
    label = torch.where(stacked.sum(0) > 0.5, stacked.argmax(0) + 1, 0)
    with atomic_folder(target, overwrite=True) as out:
        for name in names:
            np.save(
                out / f"{name}.npy", slices_first(prepared.image[task.index(name)], prepared).numpy().astype(np.float16)
            )
        np.save(out / "label.npy", slices_first(label, prepared).numpy().astype(np.uint8))
        np.save(out / "brain.npy", slices_first(prepared.brain, prepared).numpy().astype(np.uint8))
        (out / "spec.json").write_text(stamp)
    return target


def slices_first(x: Tensor, prepared: Prepared) -> Tensor:
    """[..., D, H, W] on the working grid, with the axis across slices (if there is one) in front of the other two."""
    return x if prepared.slice_axis is None else x.movedim(prepared.slice_axis - 3, -3)


class Sampler(Protocol):
    """Where a training takes its batches from: cases on disk, generated ones, slices."""

    case_ids: tuple[str, ...]

    def shows(self, case_id: str) -> np.ndarray:
        """[M] bool: the modalities that training may ever show of a case."""

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """Samples ``first`` to ``first + size - 1`` of a step.

        Each sample is a pure function of the sampler's seed, the step and its own number, so that several processes,
        each with its part of the step, see together what one process would see.
        """


@dataclass(frozen=True)
class Augmentation:
    """How much a training patch is varied, drawn per patch (and per modality for intensities).

    Attributes:
        flip: probability of mirroring left and right.
        rotate: largest rotation of a slice in degrees; patches of three dimensions are not rotated.
        gain: largest relative change of the contrast.
        shift: largest change of the brightness, in z-scores.
        noise: largest standard deviation of added noise, in z-scores.
        foreground: share of patches centred on a labelled voxel.
    """

    flip: float = 0.5
    gain: float = 0.25
    shift: float = 0.25
    noise: float = 0.15
    foreground: float = 0.6
    rotate: float = 0.0


class PatchSampler:
    """Random patches of cached cases, or of their slices where a patch has two sides.

    A sample is a pure function of seed, step and its number.

    Args:
        folders: cached cases (``cache_case``).
        missingness: which modalities a sample shows.
        seed: of everything drawn.
        augmentation: how patches are varied.
    """

    def __init__(self, folders: Sequence[Path], missingness: Missingness, seed: int, augmentation: Augmentation):
        self.folders, self.missingness, self.seed, self.augmentation = list(folders), missingness, seed, augmentation
        self.case_ids = tuple(folder.name for folder in self.folders)
        self._open: dict[Path, tuple] = {}
        self._tumour: dict[Path, np.ndarray] = {}

    def shows(self, case_id: str) -> np.ndarray:
        """[M] bool: the modalities that the case has on disk."""
        return self._arrays(self.folders[self.case_ids.index(case_id)])[3]

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """Patches ``first`` to ``first + size - 1``, of ``patch`` voxels, of one optimisation step."""
        numbers = range(first, first + size)
        samples = [self._sample(np.random.default_rng([self.seed, step, n]), step, patch) for n in numbers]
        image, present, label, brain, names = zip(*samples, strict=True)
        return Batch(
            torch.from_numpy(np.stack(image)),
            torch.from_numpy(np.stack(present)),
            torch.from_numpy(np.stack(label).astype(np.int64)),
            torch.from_numpy(np.stack(brain)),
            names,
        )

    def _sample(self, rng: np.random.Generator, step: int, patch: Sequence[int]) -> tuple:
        folder = self.folders[rng.integers(len(self.folders))]
        image, label, brain, available = self._arrays(folder)
        present = self._present(folder, step, available, rng)
        box = (*(1,) * (label.ndim - len(patch)), *patch)
        low = self._corner(folder, label, rng, box)
        sample = np.zeros((len(image), *box), np.float32)
        for m in np.flatnonzero(present):
            sample[m] = _cut(image[m], low, box)
        label, brain = _cut(label, low, box), _cut(brain, low, box).astype(bool)
        self._vary(sample, brain, present, rng)
        sample, label, brain = sample.reshape(-1, *patch), label.reshape(patch), brain.reshape(patch)
        if self.augmentation.rotate and len(patch) == 2:
            degrees = self.augmentation.rotate * rng.uniform(-1, 1)
            sample, label, brain = (rotated(a, degrees) for a in (sample, label, brain))
        if rng.random() < self.augmentation.flip:
            sample, label, brain = (np.ascontiguousarray(np.flip(a, -len(patch))) for a in (sample, label, brain))
        return sample, present, label, brain, folder.name

    def _present(self, folder: Path, step: int, available: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What a sample shows. Draws that miss what is on disk are repeated: alike stays alike among what is left."""
        for _ in range(1000):
            present = available & self.missingness(folder.name, step // len(self.folders), rng)
            if present.any():
                return present
        raise InputDataError(
            f"The case {folder.name} has none of the scans that the missingness shows.",
            "Leave it out, or change the missingness.",
        )

    def _arrays(self, folder: Path) -> tuple[list[np.ndarray | None], np.ndarray, np.ndarray, np.ndarray]:
        """Images by modality (None = not there), label, brain, and [M] bool: what is there."""
        if folder not in self._open:
            stored = json.loads((folder / "spec.json").read_text())
            names, shown = stored["modalities"], stored["shown"]
            image = [np.load(folder / f"{name}.npy", mmap_mode="r") if name in shown else None for name in names]
            label, brain = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("label", "brain"))
            self._open[folder] = (image, label, brain, np.array([name in shown for name in names]))
            found = np.flatnonzero(np.asarray(self._open[folder][1]))
            self._tumour[folder] = found[:: max(1, found.size // 4096)]
        return self._open[folder]

    def _corner(self, folder: Path, label: np.ndarray, rng: np.random.Generator, patch: Sequence[int]) -> list[int]:
        """Lower corner of a patch; may be negative where the patch is larger than the case (centred then)."""
        tumour = self._tumour[folder]
        centre = None
        if tumour.size and rng.random() < self.augmentation.foreground:
            centre = np.unravel_index(tumour[rng.integers(tumour.size)], label.shape)
        corner = []
        for axis, (size, width) in enumerate(zip(label.shape, patch, strict=True)):
            if width >= size:
                corner.append(-((width - size) // 2))
            elif centre is None:
                corner.append(int(rng.integers(size - width + 1)))
            else:
                jitter = rng.integers(-(width // 4), width // 4 + 1)
                corner.append(int(np.clip(centre[axis] - width // 2 + jitter, 0, size - width)))
        return corner

    def _vary(self, sample: np.ndarray, brain: np.ndarray, present: np.ndarray, rng: np.random.Generator) -> None:
        amount = self.augmentation
        for m in np.flatnonzero(present):
            gain = 1 + amount.gain * rng.uniform(-1, 1)
            shift = amount.shift * rng.uniform(-1, 1)
            noise = amount.noise * rng.random() * rng.standard_normal(sample.shape[1:], np.float32)
            inside = sample[m] != 0
            sample[m] = np.where(inside, sample[m] * gain + shift + noise, 0)


def rotated(array: np.ndarray, degrees: float) -> np.ndarray:
    """[..., H, W] about its middle, zeros from outside; linear for floats, the nearest pixel for labels and masks."""
    height, width = array.shape[-2:]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    theta = torch.tensor([[[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]], dtype=torch.float32)
    planes = torch.from_numpy(np.ascontiguousarray(array)).reshape(1, -1, height, width)
    grid = torch.nn.functional.affine_grid(theta, [1, 1, height, width], align_corners=False)
    mode = "bilinear" if array.dtype == np.float32 else "nearest"
    turned = torch.nn.functional.grid_sample(planes.float(), grid, mode=mode, align_corners=False)
    return turned.reshape(array.shape).numpy().astype(array.dtype)


def _cut(array: np.ndarray, low: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """A patch from ``low``; zeros where it sticks out."""
    source = tuple(slice(max(c, 0), min(c + w, n)) for c, w, n in zip(low, patch, array.shape, strict=True))
    target = tuple(slice(s.start - c, s.stop - c) for s, c in zip(source, low, strict=True))
    result = np.zeros(tuple(patch), array.dtype)
    result[target] = array[source]
    return result
