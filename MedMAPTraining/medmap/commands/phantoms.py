"""``medmap phantom``: synthetic cases as files, in the layout of BraTS or of MyoPS 2020."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmap.devices import resolve_device
from medmap.errors import UsageError
from medmap.io.atomic import Transaction, atomic_folder, make_folder
from medmap.io.nifti import write_labels, write_volume
from medmap.phantom import Heart, Phantom, generate, generate_heart
from medmap.phantom.labelmap import find_label_maps
from medmap.progress import Progress
from medmap.task import BRATS, MYOPS
from medmap.volume import Grid

FIELD_OF_VIEW_MM = (160, 192, 160)


@dataclass(frozen=True)
class Layout:
    """How a release of BraTS names folders and files.

    Attributes:
        case: template of the name of a case; its number is filled in.
        parents: folders above the cases; consecutive cases take turns.
        separator: between the name of a case and that of a modality.
        modality_names: modality -> its name in files, where that is not MedMAP's.
        enhancing: label value of enhancing tumor.
    """

    case: str
    parents: tuple[str, ...] = ("",)
    separator: str = "_"
    modality_names: Mapping[str, str] = field(default_factory=dict)
    enhancing: int = 4

    def case_name(self, number: int) -> str:
        """Name of a case."""
        return self.case.format(number)

    def parent(self, output: Path, number: int) -> Path:
        """Folder that contains the folder of a case."""
        return output / self.parents[number % len(self.parents)]

    def file_name(self, case: str, image: str) -> str:
        """Name of the file of a modality, or of ``seg``, the reference segmentation."""
        image_name = self.modality_names.get(image, image)
        return f"{case}{self.separator}{image_name}.nii.gz"


LAYOUTS = {
    "plain": Layout("Phantom_{:05d}"),
    "brats2018": Layout(
        "Brats18_Phantom_{:05d}_1",
        parents=(
            "MICCAI_BraTS_2018_Data_Training/HGG",
            "MICCAI_BraTS_2018_Data_Training/LGG",
        ),
    ),
    "brats2019": Layout(
        "BraTS19_Phantom_{:05d}_1",
        parents=(
            "MICCAI_BraTS_2019_Data_Training/HGG",
            "MICCAI_BraTS_2019_Data_Training/LGG",
        ),
    ),
    "brats2020": Layout("BraTS20_Training_{:03d}", parents=("MICCAI_BraTS2020_TrainingData",)),
    "brats2021": Layout("BraTS2021_{:05d}", parents=("BraTS2021_Training_Data",)),
    "brats2023": Layout(
        "BraTS-GLI-{:05d}-000",
        parents=("ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData",),
        separator="-",
        modality_names={"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"},
        enhancing=3,
    ),
}
"""Folders and names as each release is downloaded; ``plain`` has one folder per case."""


def write_phantoms(
    output: Path,
    count: int,
    seed: int,
    spacing: float,
    healthy: bool,
    device: str,
    overwrite: bool,
    report: Progress,
    anatomy: Path | None = None,
    layout: str = "plain",
) -> list[Path]:
    """Write synthetic brain-tumor cases in a layout of BraTS.

    Args:
        output: folder of the cohort.
        count: number of cases.
        seed: of the first case; the following cases have the following seeds.
        spacing: voxel size in mm.
        healthy: write tumor-free cases.
        device: as for ``medmap.inference.resolve_device``.
        overwrite: replace folders that exist.
        report: receives the progress.
        anatomy: label map with FreeSurfer's ids, or a folder of them; None for procedural anatomy.
        layout: one of ``LAYOUTS``.

    Returns:
        the folder of each case.

    Raises:
        UsageError: the layout is unknown.
        MissingInputError: there is no label map.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"The layout '{layout}' is unknown.", f"Use one of {', '.join(LAYOUTS)}.")
    label_maps: tuple[Path, ...] = ()
    if anatomy:
        label_maps = find_label_maps(anatomy)
    make_folder(output)
    names = LAYOUTS[layout]
    size_i, size_j, size_k = (round(mm / spacing) for mm in FIELD_OF_VIEW_MM)
    resolved_device = resolve_device(device)
    folders = []
    for index in range(count):
        report(index / count, f"case {index + 1} of {count}")
        number = seed + index
        folder = names.parent(output, number) / names.case_name(number)
        folder.parent.mkdir(parents=True, exist_ok=True)
        phantom = generate(
            number,
            shape=(size_i, size_j, size_k),
            spacing=spacing,
            device=resolved_device,
            tumor=not healthy,
            anatomy=label_maps,
        )
        with atomic_folder(folder, overwrite=overwrite) as part:
            _write_case(part, folder.name, phantom, names)
        folders.append(folder)
    return folders


def _write_case(folder: Path, case: str, phantom: Phantom, layout: Layout) -> None:
    """Write the volumes, the reference segmentation and the facts of a case."""
    for modality, image in phantom.images.items():
        path = folder / layout.file_name(case, modality)
        write_volume(path, _as_stored(image), phantom.affine)
    # Enhancing tumor is the last class; releases give it 3 or 4.
    values = np.array([*BRATS.label_values()[:-1], layout.enhancing], np.uint8)
    classes = phantom.label.cpu().numpy()
    labels = values[classes]
    grid = Grid(labels.shape, phantom.affine)
    label_path = folder / layout.file_name(case, "seg")
    write_labels(label_path, labels, grid)
    facts = {"seed": phantom.seed, **phantom.facts}
    _write_facts(folder / "facts.json", facts)


def _as_stored(image: torch.Tensor) -> np.ndarray:
    """Intensities as BraTS stores them: 16-bit integers."""
    return image.cpu().numpy().round().astype(np.int16)


def _write_facts(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


CHALLENGE_NAMES = {"bssfp": "C0", "lge": "DE", "t2": "T2"}
"""Modality -> its name in the files of MyoPS 2020."""


def write_hearts(
    output: Path,
    count: int,
    seed: int,
    spacing: float,
    device: str,
    overwrite: bool,
    report: Progress,
) -> list[Path]:
    """Write synthetic hearts in the layout of the training data of MyoPS 2020.

    ``train25/myops_training_101_C0.nii.gz`` (bSSFP), ``_DE`` (LGE), ``_T2``, and
    ``train25_myops_gd/myops_training_101_gd.nii.gz``; the facts of a case are in ``facts/``.

    Args:
        output: folder of the cohort.
        count: number of cases.
        seed: of the first case; the following cases have the following seeds.
        spacing: pixel size within slices, in mm.
        device: as for ``medmap.inference.resolve_device``.
        overwrite: replace files that exist.
        report: receives the progress.

    Returns:
        the label map of each case.
    """
    make_folder(output)
    for name in ("train25", "train25_myops_gd", "facts"):
        make_folder(output / name)
    resolved_device = resolve_device(device)
    label_paths = []
    for index in range(count):
        report(index / count, f"case {index + 1} of {count}")
        heart = generate_heart(seed + index, spacing=spacing, device=resolved_device)
        # Training cases of the challenge are numbered from 101 on.
        case = f"myops_training_{101 + index}"
        with Transaction(overwrite=overwrite) as transaction:
            _write_heart(transaction, output, case, heart)
        label_paths.append(_heart_label_path(output, case))
    return label_paths


def _write_heart(transaction: Transaction, output: Path, case: str, heart: Heart) -> None:
    """Write the volumes, the reference segmentation and the facts of a case."""
    for modality, image in heart.images.items():
        path = output / "train25" / f"{case}_{CHALLENGE_NAMES[modality]}.nii.gz"
        write_volume(transaction.path(path), _as_stored(image), heart.affine)
    values = np.array(MYOPS.label_values(), MYOPS.label_dtype)
    classes = heart.label.cpu().numpy()
    labels = values[classes]
    grid = Grid(labels.shape, heart.affine)
    label_path = transaction.path(_heart_label_path(output, case))
    write_labels(label_path, labels, grid)
    facts_path = transaction.path(output / "facts" / f"{case}.json")
    _write_facts(facts_path, heart.facts)


def _heart_label_path(output: Path, case: str) -> Path:
    return output / "train25_myops_gd" / f"{case}_gd.nii.gz"
