"""``medmap phantom``: synthetic patients as files, in BraTS layout or in MyoPS2020's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medmap.devices import resolve_device
from medmap.errors import UsageError
from medmap.io.atomic import Transaction, atomic_folder, make_folder
from medmap.io.nifti import write_labels, write_volume
from medmap.phantom import generate, generate_heart
from medmap.phantom.labelmap import find_label_maps
from medmap.task import BRATS, MYOPS
from medmap.volume import Grid

Report = Callable[[float, str], None]

FIELD_OF_VIEW_MM = (160, 192, 160)


@dataclass(frozen=True)
class Layout:
    """How a release of BraTS names folders and files.

    Attributes:
        case: name of the n-th case.
        parent: folder of the n-th case below the output.
        mark: between the case's name and the scan's.
        endings: names of the scans that differ from MedMAP's.
        enhancing: label value of enhancing tumor.
    """

    case: Callable[[int], str]
    parent: Callable[[int], str] = lambda n: ""
    mark: str = "_"
    endings: Mapping[str, str] = field(default_factory=dict)
    enhancing: int = 4


LAYOUTS = {
    "plain": Layout(lambda n: f"Phantom_{n:05d}"),
    "brats2018": Layout(
        lambda n: f"Brats18_Phantom_{n:05d}_1",
        lambda n: f"MICCAI_BraTS_2018_Data_Training/{('HGG', 'LGG')[n % 2]}",
    ),
    "brats2019": Layout(
        lambda n: f"BraTS19_Phantom_{n:05d}_1",
        lambda n: f"MICCAI_BraTS_2019_Data_Training/{('HGG', 'LGG')[n % 2]}",
    ),
    "brats2020": Layout(
        lambda n: f"BraTS20_Training_{n:03d}", lambda n: "MICCAI_BraTS2020_TrainingData"
    ),
    "brats2021": Layout(lambda n: f"BraTS2021_{n:05d}", lambda n: "BraTS2021_Training_Data"),
    "brats2023": Layout(
        lambda n: f"BraTS-GLI-{n:05d}-000",
        lambda n: "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData",
        "-",
        {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"},
        3,
    ),
}
"""Folders and names as each release is downloaded; ``plain`` has one folder a case and nothing above it."""


def write_phantoms(
    output: Path,
    count: int,
    seed: int,
    spacing: float,
    healthy: bool,
    device: str,
    overwrite: bool,
    report: Report,
    anatomy: Path | None = None,
    layout: str = "plain",
) -> list[Path]:
    """Write ``count`` synthetic patients in a layout of BraTS; returns their folders.

    ``anatomy`` is a label map with FreeSurfer's ids, or a folder of them, to take the heads from.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"The layout '{layout}' is unknown.", f"Use one of {', '.join(LAYOUTS)}.")
    names = LAYOUTS[layout]
    values = np.array([*BRATS.label_values()[:-1], names.enhancing], np.uint8)
    heads = find_label_maps(anatomy) if anatomy else ()
    make_folder(output)
    place, shape = (
        str(resolve_device(device)),
        tuple(round(mm / spacing) for mm in FIELD_OF_VIEW_MM),
    )
    folders = []
    for n in range(count):
        report(n / count, f"patient {n + 1} of {count}")
        name, parent = names.case(seed + n), output / names.parent(seed + n)
        parent.mkdir(parents=True, exist_ok=True)
        made = generate(
            seed + n, shape=shape, spacing=spacing, device=place, tumor=not healthy, anatomy=heads
        )
        with atomic_folder(parent / name, overwrite=overwrite) as folder:
            for modality, image in made.images.items():
                voxels = image.cpu().numpy().round().astype(np.int16)
                ending = names.endings.get(modality, modality)
                write_volume(folder / f"{name}{names.mark}{ending}.nii.gz", voxels, made.affine)
            labels = values[made.label.cpu().numpy()]
            write_labels(
                folder / f"{name}{names.mark}seg.nii.gz", labels, Grid(labels.shape, made.affine)
            )
            (folder / "facts.json").write_text(
                json.dumps({"seed": made.seed, **made.facts}, indent=1) + "\n"
            )
        folders.append(parent / name)
    return folders


CHALLENGE_NAMES = {"bssfp": "C0", "lge": "DE", "t2": "T2"}


def write_hearts(
    output: Path,
    count: int,
    seed: int,
    spacing: float,
    device: str,
    overwrite: bool,
    report: Report,
) -> list[Path]:
    """Write ``count`` synthetic hearts in the layout and naming of MyoPS2020's training data; returns the label files.

    ``train25/myops_training_101_C0.nii.gz`` (bSSFP), ``_DE`` (LGE), ``_T2``, and
    ``train25_myops_gd/myops_training_101_gd.nii.gz``; what made a case is in ``facts/``.
    """
    make_folder(output)
    scans, labels, facts = (
        make_folder(output / name) for name in ("train25", "train25_myops_gd", "facts")
    )
    place, written = str(resolve_device(device)), []
    for n in range(count):
        report(n / count, f"heart {n + 1} of {count}")
        name, made = (
            f"myops_training_{101 + n}",
            generate_heart(seed + n, spacing=spacing, device=place),
        )
        values = np.array(MYOPS.label_values(), MYOPS.label_dtype)[made.label.cpu().numpy()]
        with Transaction(overwrite=overwrite) as out:
            for modality, image in made.images.items():
                path = out.path(scans / f"{name}_{CHALLENGE_NAMES[modality]}.nii.gz")
                write_volume(path, image.cpu().numpy().round().astype(np.int16), made.affine)
            write_labels(
                out.path(labels / f"{name}_gd.nii.gz"), values, Grid(values.shape, made.affine)
            )
            out.path(facts / f"{name}.json").write_text(
                json.dumps(made.facts, indent=1) + "\n", encoding="utf-8"
            )
        written.append(labels / f"{name}_gd.nii.gz")
    return written
