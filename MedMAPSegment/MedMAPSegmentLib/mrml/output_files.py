"""Names of files to write: with their ending, and never those of scans that are in the scene."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmap.errors import OutputError
from medmap.io.atomic import check_output

SIDECAR_KEY = "notice"
"""Field of every JSON file that this module writes beside an image."""


def outputFile(path: str | Path, endings: Sequence[str], inputs: Sequence[Path] = ()) -> Path:
    """The file to write for a name that was chosen in a dialog; nothing is written yet.

    Args:
        path: as chosen. The dialog has asked before an existing file of this very name is replaced.
        endings: that the file may have; the first is added to a name without any of them.
        inputs: files that are never replaced.

    Raises:
        OutputError: the folder is missing or cannot be written, the file is an input, or a file
            exists whose name the user did not choose.
    """
    chosen = Path(path)
    if chosen.name.lower().endswith(tuple(endings)):
        check_output(chosen, inputs=inputs, overwrite=True)
        return chosen
    named = chosen.with_name(chosen.name + endings[0])
    check_output(named, inputs=inputs)
    return named


def sidecarOf(image: Path) -> Path:
    """The JSON file beside an image.

    Raises OutputError for one that somebody else wrote, such as that of a scan in a BIDS folder.
    """
    sidecar = image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if sidecar.exists() and not _isOurs(sidecar):
        raise OutputError(
            f"{sidecar.name} lies in this folder already and was not written by MedMAP.",
            "Choose another name.",
        )
    return sidecar


def _isOurs(sidecar: Path) -> bool:
    try:
        return SIDECAR_KEY in json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def filesOfVolumes(scene: Any) -> list[Path]:
    """Files that volumes of the scene were read from."""
    files = []
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLVolumeNode")):
        storage = scene.GetNthNodeByClass(number, "vtkMRMLVolumeNode").GetStorageNode()
        name = storage.GetFullNameFromFileName() if storage is not None else None
        if name:
            files.append(Path(name))
    return files
