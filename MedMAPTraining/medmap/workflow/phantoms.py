"""``medmap phantom``: synthetic patients as files, in BraTS layout or in MyoPS2020's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medmap.files import Transaction, atomic_folder, make_folder
from medmap.inference import resolve_device
from medmap.nifti import write_labels, write_volume
from medmap.phantom import generate, generate_heart
from medmap.phantom.labelmap import find_label_maps
from medmap.task import BRATS, MYOPS
from medmap.volume import Grid

Report = Callable[[float, str], None]

FIELD_OF_VIEW_MM = (160, 192, 160)


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
) -> list[Path]:
    """Write ``count`` synthetic patients in BraTS layout; returns their folders.

    ``anatomy`` is a label map with FreeSurfer's ids, or a folder of them, to take the heads from.
    """
    heads = find_label_maps(anatomy) if anatomy else ()
    make_folder(output)
    place, shape = str(resolve_device(device)), tuple(round(mm / spacing) for mm in FIELD_OF_VIEW_MM)
    folders = []
    for n in range(count):
        report(n / count, f"patient {n + 1} of {count}")
        name = f"Phantom_{seed + n:05d}"
        made = generate(seed + n, shape=shape, spacing=spacing, device=place, tumour=not healthy, anatomy=heads)
        with atomic_folder(output / name, overwrite=overwrite) as folder:
            for modality, image in made.images.items():
                voxels = image.cpu().numpy().round().astype(np.int16)
                write_volume(folder / f"{name}_{modality}.nii.gz", voxels, made.affine)
            labels = np.array(BRATS.label_values(), np.uint8)[made.label.cpu().numpy()]
            write_labels(folder / f"{name}_seg.nii.gz", labels, Grid(labels.shape, made.affine))
            (folder / "facts.json").write_text(json.dumps({"seed": made.seed, **made.facts}, indent=1) + "\n")
        folders.append(output / name)
    return folders


CHALLENGE_NAMES = {"bssfp": "C0", "lge": "DE", "t2": "T2"}


def write_hearts(
    output: Path, count: int, seed: int, spacing: float, device: str, overwrite: bool, report: Report
) -> list[Path]:
    """Write ``count`` synthetic hearts in the layout and naming of MyoPS2020's training data; returns the label files.

    ``train25/myops_training_101_C0.nii.gz`` (bSSFP), ``_DE`` (LGE), ``_T2``, and
    ``train25_myops_gd/myops_training_101_gd.nii.gz``; what made a case is in ``facts/``.
    """
    make_folder(output)
    scans, labels, facts = (make_folder(output / name) for name in ("train25", "train25_myops_gd", "facts"))
    place, written = str(resolve_device(device)), []
    for n in range(count):
        report(n / count, f"heart {n + 1} of {count}")
        name, made = f"myops_training_{101 + n}", generate_heart(seed + n, spacing=spacing, device=place)
        values = np.array(MYOPS.label_values(), MYOPS.label_dtype)[made.label.cpu().numpy()]
        with Transaction(overwrite=overwrite) as out:
            for modality, image in made.images.items():
                path = out.path(scans / f"{name}_{CHALLENGE_NAMES[modality]}.nii.gz")
                write_volume(path, image.cpu().numpy().round().astype(np.int16), made.affine)
            write_labels(out.path(labels / f"{name}_gd.nii.gz"), values, Grid(values.shape, made.affine))
            out.path(facts / f"{name}.json").write_text(json.dumps(made.facts, indent=1) + "\n", encoding="utf-8")
        written.append(labels / f"{name}_gd.nii.gz")
    return written
