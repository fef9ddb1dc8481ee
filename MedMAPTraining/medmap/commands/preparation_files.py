"""Brain masks that were made elsewhere, and the files that a preparation leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medmap.checks import SAME_GRID_VOXELS
from medmap.errors import UsageError
from medmap.io.atomic import Transaction, write_text
from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.preparation.registration import transform_text
from medmap.preparation.workflow import Preparation
from medmap.report.preparation_picture import save_preparation
from medmap.task import Task
from medmap.volume import Volume, choose_reference

PICTURE = "preparation.png"
"""Name of the picture of masks and alignments in an output folder."""


def kept_file(kind: str, name: str) -> str:
    """Name of an intermediate file: ``prepared`` scan, ``brain_mask``, or ``transform``."""
    if kind == "transform":
        return f"transform_{name}.tfm"
    return f"{kind}_{name}.nii.gz"


KEPT = ("prepared", "brain_mask", "transform")
"""What is written of each scan where intermediate scans are kept."""

NameOf = Callable[[str, str], str]
"""Kind of an intermediate file and modality -> name of the file, as ``kept_file`` gives it."""


def read_brain_masks(
    masks: Sequence[tuple[str | None, Path]], volumes: Mapping[str, Volume], task: Task
) -> dict[str, Volume]:
    """Brain masks by modality.

    A mask without a modality belongs to the scans on whose grid it lies, else to the reference
    scan.

    Args:
        masks: name of a modality or None, and the file.
        volumes: scans by modality.
        task: names of the modalities.

    Raises:
        UsageError: a mask is for a modality that was not given.
        MissingInputError, InputDataError: a mask cannot be read.
    """
    result: dict[str, Volume] = {}
    for word, path in masks:
        mask = read_nifti(path, modality="brain mask")
        if word is not None:
            name = task.find(word)
            if name not in volumes:
                raise UsageError(
                    f"There is a brain mask for {task.modality(name).title}, but no such scan.",
                    "Give the scan as well, or leave the mask out.",
                )
            result[name] = mask
            continue
        names = [name for name, volume in volumes.items() if _share_grid(mask, volume)]
        if not names:
            names = [choose_reference({name: volume.grid for name, volume in volumes.items()})]
        for name in names:
            result.setdefault(name, mask)
    return result


def _share_grid(mask: Volume, volume: Volume) -> bool:
    return mask.grid.distance(volume.grid) <= SAME_GRID_VOXELS * float(volume.grid.spacing.min())


def write_preparation(
    transaction: Transaction,
    preparation: Preparation,
    scans: Mapping[str, Volume],
    files: Mapping[str, Path],
    task: Task,
) -> None:
    """Write the picture, and the intermediate scans where their files are named.

    Args:
        transaction: of the run.
        preparation: what was done.
        scans: before it.
        files: ``preparation picture``, and ``prepared t1``, ``brain_mask t1``, ``transform t1`` and
            so on.
        task: titles.
    """
    if "preparation picture" in files:
        picture = transaction.path(files["preparation picture"])
        save_preparation(picture, preparation, scans, task)
    for name, volume in preparation.volumes.items():
        if f"prepared {name}" in files:
            path = transaction.path(files[f"prepared {name}"])
            write_volume(path, volume.array, volume.affine)
        if f"brain_mask {name}" in files:
            path = transaction.path(files[f"brain_mask {name}"])
            mask = preparation.masks[name]
            write_labels(path, mask.astype(np.uint8), volume.grid)
        if f"transform {name}" in files:
            path = transaction.path(files[f"transform {name}"])
            write_text(path, transform_text(preparation.movements[name]))


def preparation_files(
    folder: Path, picture: str, preparation: Preparation, *, keeps_scans: bool, name_of: NameOf
) -> dict[str, Path]:
    """Files that ``write_preparation`` writes, by what they are; none without any step."""
    if not preparation.steps:
        return {}
    files = {"preparation picture": folder / picture}
    if not keeps_scans:
        return files
    for name in preparation.volumes:
        files[f"prepared {name}"] = folder / name_of("prepared", name)
        if name in preparation.masks:
            files[f"brain_mask {name}"] = folder / name_of("brain_mask", name)
        if name in preparation.movements:
            files[f"transform {name}"] = folder / name_of("transform", name)
    return files


def possible_files(
    folder: Path, picture: str, names: Sequence[str], *, keeps_scans: bool, name_of: NameOf
) -> list[Path]:
    """Files that a preparation may write: none of them may be overwritten unasked."""
    files = [folder / picture]
    if keeps_scans:
        for name in names:
            files += [folder / name_of(kind, name) for kind in KEPT]
    return files
