"""Cases on disk -> prepared arrays, once; memory-mapped from then on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medmap.errors import InputDataError
from medmap.io.atomic import atomic_folder
from medmap.io.cohorts import Case
from medmap.io.nifti import read_nifti
from medmap.metrics import label_masks
from medmap.preprocess import Prepared, PreprocessSpec, prepare, to_grid
from medmap.task import Task


def read_label(path: Path, task: Task, shape: Sequence[int]) -> np.ndarray:
    """[I, J, K] class indices of a label file. Raises InputDataError for unknown values or another shape."""
    array = read_nifti(path, modality="seg").array
    if array.shape != tuple(shape):
        raise InputDataError(
            f"{path.name} has {array.shape} voxels, its scan {tuple(shape)}.",
            "Use the labels drawn on that scan.",
        )
    classes = np.zeros(array.shape, np.uint8)
    for index, mask in enumerate(label_masks(array, task).values(), 1):
        classes[mask] = index
    return classes


def cache_case(
    case: Case, task: Task, spec: PreprocessSpec, folder: Path, shown: Sequence[bool] | None = None
) -> Path:
    """Prepare one case and store it for training: <modality>.npy [D, H, W] float16 each, label.npy and brain.npy uint8.

    Does nothing when it was done before with the same preprocessing and the same modalities. Where the
    preprocessing is in slices, D runs across them.

    Args:
        case: with reference labels.
        task: names the modalities.
        spec: the preprocessing.
        folder: of all cached cases.
        shown: [M], what training may ever see of the case (``Missingness.ever``), None = all. Nothing else is opened,
            and crop and normalization come from these scans alone.

    Raises:
        InputDataError: no reference labels, or none of the scans that training may see.
    """
    allowed = (
        [n for n, may in zip(task.modality_names, shown, strict=True) if may]
        if shown is not None
        else case.scans
    )
    names = [name for name in task.modality_names if name in case.scans and name in allowed]
    target = folder / case.case_id
    stamp = json.dumps({"spec": spec.to_dict(), "modalities": task.modality_names, "shown": names})
    if target.is_dir() and (target / "spec.json").read_text() == stamp:
        return target
    if case.label is None:
        raise InputDataError(
            f"The case {case.case_id} has no reference labels.", "Add <case>_seg.nii.gz."
        )
    if not names:
        raise InputDataError(
            f"The case {case.case_id} has none of the scans that training may see ({', '.join(allowed)}).",
            "Add one, leave the case out, or change the missingness.",
        )
    prepared, label = prepare_case(case, task, spec, names)
    with atomic_folder(target, overwrite=True) as out:
        for name in names:
            np.save(
                out / f"{name}.npy",
                slices_first(prepared.image[task.index(name)], prepared).numpy().astype(np.float16),
            )
        np.save(out / "label.npy", slices_first(label, prepared).numpy())
        np.save(out / "brain.npy", slices_first(prepared.brain, prepared).numpy().astype(np.uint8))
        (out / "spec.json").write_text(stamp)
    return target


def prepare_case(
    case: Case, task: Task, spec: PreprocessSpec, names: Sequence[str]
) -> tuple[Prepared, Tensor]:
    """A case from its files: the named scans as a network takes them, and [D, H, W] uint8 class indices beside them.

    Raises InputDataError for scans or labels that cannot be used.
    """
    prepared = prepare(case.read(names), task, spec)
    classes = read_label(case.label, task, prepared.reference_grid.shape)
    one_hot = [
        to_grid(
            (classes == c).astype(np.float32), prepared.reference_grid, prepared.grid, spec.slices
        )
        for c in range(1, task.num_classes)
    ]
    stacked = torch.stack(one_hot)
    return prepared, torch.where(stacked.sum(0) > 0.5, stacked.argmax(0) + 1, 0).to(torch.uint8)


@dataclass(frozen=True)
class CachedCase:
    """A cached case in memory.

    Attributes:
        image: [M, D, H, W] float32; absent modalities 0.
        present: [M] bool.
        label: [D, H, W] uint8 class indices.
        brain: [D, H, W] bool.
    """

    image: np.ndarray
    present: np.ndarray
    label: np.ndarray
    brain: np.ndarray


def load_case(folder: Path) -> CachedCase:
    """Read all of a case that ``cache_case`` has stored."""
    stored = json.loads((folder / "spec.json").read_text())
    present = np.array([name in stored["shown"] for name in stored["modalities"]])
    label, brain = np.load(folder / "label.npy"), np.load(folder / "brain.npy").astype(bool)
    image = np.zeros((len(present), *label.shape), np.float32)
    for m in np.flatnonzero(present):
        image[m] = np.load(folder / f"{stored['modalities'][m]}.npy")
    return CachedCase(image, present, label, brain)


def slices_first(x: Tensor, prepared: Prepared) -> Tensor:
    """[..., D, H, W] on the working grid, with the axis across slices (if there is one) in front of the other two."""
    return x if prepared.slice_axis is None else x.movedim(prepared.slice_axis - 3, -3)
