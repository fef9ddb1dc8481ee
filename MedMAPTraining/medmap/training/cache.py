"""Prepared cases on disk: arrays on the working grid, written once and memory-mapped from then on.

The cache is addressed by content: the folder of a case is named by a hash of everything its arrays
depend on, the bytes of scans and labels included. A corrected label, another data folder with the
same case names or another preprocessing therefore never meets stale arrays, and several runs share
one cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medmap.bundle.training_cases import scan_hash
from medmap.errors import InputDataError, OutputError
from medmap.io.atomic import atomic_folder
from medmap.io.cases import Case
from medmap.io.content import sha256_of
from medmap.io.labels import no_labels, read_case_labels
from medmap.metrics import label_masks
from medmap.preprocess import Prepared, PreprocessSpec, prepare
from medmap.resampling import canonical_grid, resample_nearest, to_grid
from medmap.task import Task
from medmap.task.conventions import own_convention
from medmap.volume import Grid, Volume

FORMAT = 3
"""Of the stored arrays; part of the hash, so that arrays of another format are prepared again."""

SAME_GRID_VOXELS = 0.1
"""Grids that agree this well at every corner count as one, as for the scans of a case."""

RECORD = "case.json"
"""What a prepared case consists of, written last: a folder that holds it is complete."""


def read_label(case: Case, task: Task, volumes: Mapping[str, Volume], target: Grid) -> np.ndarray:
    """Reference labels of a case as class indices on the grid of its reference scan.

    The labels are taken by their place in the world, never by array index alone: files that store
    the same voxels in another orientation (LPS beside RAS) are turned to match.

    Args:
        case: with reference labels.
        task: says which values mean what.
        volumes: the scans of the case by modality name; the labels lie on the grid of one of them.
        target: grid of the result.

    Returns:
        [I, J, K] uint8 class indices.

    Raises:
        InputDataError: unknown values, or a grid that none of the scans has.
    """
    labels = read_case_labels(case, task)
    on_a_scan = any(_same_voxels(labels.grid, volume.grid) for volume in volumes.values())
    if not on_a_scan:
        raise InputDataError(
            f"{labels.name} lies on the grid of none of the scans of its case.",
            "Use the labels drawn on one of the scans, with their original header.",
        )
    classes = np.zeros(labels.array.shape, np.uint8)
    masks = label_masks(labels.array, task)
    for index, mask in enumerate(masks.values(), 1):
        classes[mask] = index
    same_shape = labels.grid.shape == target.shape
    if same_shape and _apart(labels.grid, target) <= SAME_GRID_VOXELS:
        return classes
    return resample_nearest(classes, labels.grid, target)


def _same_voxels(a: Grid, b: Grid) -> bool:
    """Whether two grids hold the same voxels, in whatever order of axes they are stored."""
    first = canonical_grid(a)
    second = canonical_grid(b)
    return first.shape == second.shape and _apart(first, second) <= SAME_GRID_VOXELS


def _apart(a: Grid, b: Grid) -> float:
    """Largest distance between corners of two grids, in voxels."""
    return a.distance(b) / float(a.spacing.min())


def content_hash(
    case: Case, task: Task, spec: PreprocessSpec, names: Sequence[str], hashes: Mapping[Path, str]
) -> str:
    """Hash of everything that the prepared arrays of a case depend on.

    Args:
        case: with reference labels.
        task: names modalities and labels.
        spec: the preprocessing.
        names: modalities that are prepared.
        hashes: SHA-256 by file, of the scans and the labels.

    Returns:
        32 hexadecimal digits.
    """
    # Everything that a prepared case depends on: with another setting it is another folder.
    content = {
        "format": FORMAT,
        "task": task.to_dict(),
        "spec": spec.to_dict(),
        "scans": {name: hashes[case.scans[name]] for name in names},
        "label": hashes[label_of(case, task)],
        "convention": (case.convention or own_convention(task)).classes,
        "reading": [case.affine, case.assume_orientation],
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def label_of(case: Case, task: Task) -> Path:
    """The label file of a case. Raises InputDataError where there is none."""
    if case.label is None:
        raise no_labels(f"The case {case.case_id} has no reference labels.", task)
    return case.label


def modalities_of(case: Case, task: Task, available: Sequence[bool] | None) -> list[str]:
    """Modalities of a case that training may see, in the task's order.

    Args:
        case: a case on disk.
        task: names the modalities.
        available: [M], what training may ever see of the case
            (``Missingness.available``); None = all.

    Raises:
        InputDataError: no reference labels, or none of the scans that training may see.
    """
    label_of(case, task)
    if available is None:
        allowed = list(task.modality_names)
    else:
        pairs = zip(task.modality_names, available, strict=True)
        allowed = [name for name, is_available in pairs if is_available]
    names = [name for name in allowed if name in case.scans]
    if not names:
        raise InputDataError(
            f"The case {case.case_id} has none of the scans that training may see "
            f"({', '.join(allowed)}).",
            "Add one, leave the case out, or change the missingness.",
        )
    return names


def cache_case(
    case: Case,
    task: Task,
    spec: PreprocessSpec,
    cache: Path,
    available: Sequence[bool] | None = None,
    hashes: Mapping[Path, str] | None = None,
) -> Path:
    """Prepare one case and store it for training.

    Stored are <modality>.npy [D, H, W] float16 of each modality, label.npy and brain.npy uint8.
    Where the preprocessing is in slices, D runs across them. Nothing is done when the same content
    has been prepared before.

    Args:
        case: with reference labels.
        task: names the modalities.
        spec: the preprocessing.
        cache: folder of all prepared cases.
        available: [M], what training may ever see of the case; None = all. Nothing else is opened,
            and crop and normalization come from these scans alone.
        hashes: SHA-256 of the case's files, if they are known already.

    Returns:
        The case's folder, ``<cache>/<content hash>/<case id>``.

    Raises:
        InputDataError: no reference labels, or none of the scans that training may see.
    """
    names = modalities_of(case, task, available)
    if hashes is None:
        scan_files = [case.scans[name] for name in names]
        files = [label_of(case, task), *scan_files]
        hashes = {path: sha256_of(path) for path in files}
    content = content_hash(case, task, spec, names, hashes)
    target = cache / content / case.case_id
    if is_complete(target):
        return target
    volumes = case.read(names)
    prepared, label = prepare_volumes(case, volumes, task, spec)
    stored_label = slices_first(label, prepared).numpy()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Two runs may prepare one case at the same time: the first one's folder stays, for its arrays
    # may be in use already.
    with _unless_complete(target), atomic_folder(target, overwrite=target.exists()) as folder:
        for name in names:
            index = task.index(name)
            image = slices_first(prepared.image[index], prepared)
            np.save(folder / f"{name}.npy", image.numpy().astype(np.float16))
        np.save(folder / "label.npy", stored_label)
        brain = slices_first(prepared.brain, prepared).numpy()
        np.save(folder / "brain.npy", brain.astype(np.uint8))
        scan_hashes = {name: scan_hash(volumes[name]) for name in names}
        label_hash = hashlib.sha256(stored_label.tobytes()).hexdigest()
        write_case_record(folder, task.modality_names, names, scan_hashes, label_hash)
    return target


@contextlib.contextmanager
def _unless_complete(target: Path) -> Iterator[None]:
    """Let the failure to publish a folder pass where another program has published it."""
    try:
        yield
    except OutputError:
        if not is_complete(target):
            raise


def is_complete(folder: Path) -> bool:
    """Whether a case is stored there and every file still has the size that was written."""
    try:
        record = read_case_record(folder)
        for name, size in record["bytes"].items():
            if (folder / name).stat().st_size != size:
                return False
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    return True


def write_case_record(
    folder: Path,
    modalities: Sequence[str],
    available: Sequence[str],
    scan_hashes: Mapping[str, str] | None = None,
    label_hash: str = "",
) -> None:
    """Write ``case.json`` for the arrays of a folder.

    Args:
        folder: holds the arrays.
        modalities: of the task, in its order.
        available: those that the case has.
        scan_hashes: ``scan_hash`` by modality, by which the case is recognized later.
        label_hash: hash of the prepared labels.
    """
    sizes = {}
    for path in sorted(folder.glob("*.npy")):
        sizes[path.name] = path.stat().st_size
    record = {
        "modalities": list(modalities),
        "available": list(available),
        "scans": dict(scan_hashes or {}),
        "label": label_hash,
        "bytes": sizes,
    }
    (folder / RECORD).write_text(json.dumps(record))


def read_case_record(folder: Path) -> dict:
    """What ``write_case_record`` wrote. Raises OSError or ValueError."""
    return json.loads((folder / RECORD).read_text())


def prepare_case(
    case: Case, task: Task, spec: PreprocessSpec, names: Sequence[str]
) -> tuple[Prepared, Tensor]:
    """A case from its files: the named scans as a network takes them, and its labels beside them.

    Returns:
        The prepared scans, and [D, H, W] uint8 class indices on the same grid.

    Raises:
        InputDataError: scans or labels that cannot be used.
    """
    return prepare_volumes(case, case.read(names), task, spec)


def prepare_volumes(
    case: Case, volumes: Mapping[str, Volume], task: Task, spec: PreprocessSpec
) -> tuple[Prepared, Tensor]:
    """As ``prepare_case``, for scans that have been read."""
    prepared = prepare(volumes, task, spec)
    reference_grid = prepared.reference_grid
    classes = read_label(case, task, volumes, reference_grid)
    shares = []
    for index in range(1, task.num_classes):
        mask = (classes == index).astype(np.float32)
        share = to_grid(mask, reference_grid, prepared.grid, spec.slices)
        shares.append(share)
    # A voxel is labeled where the labels together fill more than half of
    # it, with the largest share.
    stacked = torch.stack(shares)
    is_labeled = stacked.sum(0) > 0.5
    largest = stacked.argmax(0) + 1
    label = torch.where(is_labeled, largest, 0).to(torch.uint8)
    return prepared, label


@dataclass(frozen=True)
class PreparedArrays:
    """The arrays of one prepared case, memory-mapped.

    Attributes:
        case_id: name of the case.
        image: M arrays [D, H, W] float16, None for modalities that the case lacks.
        available: [M] bool.
        label: [D, H, W] uint8 class indices.
        brain: [D, H, W] uint8, 1 inside the brain.
    """

    case_id: str
    image: tuple[np.ndarray | None, ...]
    available: np.ndarray
    label: np.ndarray
    brain: np.ndarray

    def scan(self, modality: int) -> np.ndarray:
        """[D, H, W] float16 of an available modality. Raises ValueError for one that is absent."""
        array = self.image[modality]
        if array is None:
            raise ValueError(f"{self.case_id} lacks the modality at position {modality}")
        return array

    def dense_image(self) -> np.ndarray:
        """[M, D, H, W] float32 in memory; absent modalities 0."""
        dense = np.zeros((len(self.image), *self.label.shape), np.float32)
        for m in np.flatnonzero(self.available).tolist():
            dense[m] = self.scan(m)
        return dense


def open_case(folder: Path) -> PreparedArrays:
    """The arrays that ``cache_case`` has stored in a folder."""
    record = read_case_record(folder)
    image = []
    for name in record["modalities"]:
        if name in record["available"]:
            image.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
        else:
            image.append(None)
    return PreparedArrays(
        case_id=folder.name,
        image=tuple(image),
        available=np.array([scan is not None for scan in image]),
        label=np.load(folder / "label.npy", mmap_mode="r"),
        brain=np.load(folder / "brain.npy", mmap_mode="r"),
    )


def slices_first(tensor: Tensor, prepared: Prepared) -> Tensor:
    """[..., D, H, W] on the working grid, with the axis across slices (if any) in front."""
    if prepared.slice_axis is None:
        return tensor
    return tensor.movedim(prepared.slice_axis - 3, -3)
