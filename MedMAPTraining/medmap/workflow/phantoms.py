"""``medmap phantom``: synthetic patients as files in BraTS layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medmap.files import atomic_folder, make_folder
from medmap.inference import resolve_device
from medmap.nifti import write_labels, write_volume
from medmap.phantom import generate
from medmap.task import BRATS
from medmap.volume import Grid

Report = Callable[[float, str], None]

FIELD_OF_VIEW_MM = (160, 192, 160)


def write_phantoms(
    output: Path, count: int, seed: int, spacing: float, healthy: bool, device: str, overwrite: bool, report: Report
) -> list[Path]:
    """Write ``count`` synthetic patients in BraTS layout; returns their folders."""
    make_folder(output)
    place, shape = str(resolve_device(device)), tuple(round(mm / spacing) for mm in FIELD_OF_VIEW_MM)
    folders = []
    for n in range(count):
        report(n / count, f"patient {n + 1} of {count}")
        name = f"Phantom_{seed + n:05d}"
        made = generate(seed + n, shape=shape, spacing=spacing, device=place, tumour=not healthy)
        with atomic_folder(output / name, overwrite=overwrite) as folder:
            for modality, image in made.images.items():
                voxels = image.cpu().numpy().round().astype(np.int16)
                write_volume(folder / f"{name}_{modality}.nii.gz", voxels, made.affine)
            labels = np.array(BRATS.label_values(), np.uint8)[made.label.cpu().numpy()]
            write_labels(folder / f"{name}_seg.nii.gz", labels, Grid(labels.shape, made.affine))
            (folder / "facts.json").write_text(json.dumps({"seed": made.seed, **made.facts}, indent=1) + "\n")
        folders.append(output / name)
    return folders
