"""nnU-Net's raw data sets: ``dataset.json``, ``imagesTr`` with numbered channels, ``labelsTr``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from medmap.errors import InputDataError
from medmap.io.cases import LABEL, CaseFiles, Cohort, ignored_files, image_files
from medmap.task import Task
from medmap.task.conventions import LabelConvention
from medmap.task.nnunet import DATASET, channel_titles, label_classes

_CHANNEL_NAME = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})\.nii(\.gz)?", re.IGNORECASE)


def nnunet(folder: Path, task: Task) -> Cohort | None:
    """Cases of ``imagesTr`` (or of the image folder that is given), as ``dataset.json`` says.

    Raises InputDataError where a channel is no modality of the task.
    """
    root = _root(folder)
    if root is None:
        return None
    images = folder if folder != root else root / "imagesTr"
    labels = images.with_name(images.name.replace("images", "labels"))
    content = _dataset(root / DATASET)
    modalities = _modalities(content, task, root.name)
    files = {images: image_files(images).get(images, [])}
    label_files = {path.name.split(".nii")[0]: path for path in _label_files(labels)}
    groups: dict[str, CaseFiles] = {}
    for path in files[images]:
        match = _CHANNEL_NAME.fullmatch(path.name)
        modality = modalities.get(int(match["channel"])) if match else None
        if match is not None and modality is not None:
            groups.setdefault(match["case"], CaseFiles(match["case"])).add(modality, path)
    if not groups:
        raise InputDataError(
            f"{images.name} of {root.name} holds no files <case>_0000.nii.gz and so on.",
            "Store each channel in a file of its own, as nnU-Net version 2 does.",
        )
    convention = _convention(content, task)
    cases = []
    case_paths = []
    for name, group in groups.items():
        if name in label_files:
            group.add(LABEL, label_files[name])
        cases.append(group.case(task, convention))
        case_paths += group.paths
    return Cohort(cases, ignored_files(files, case_paths))


def _root(folder: Path) -> Path | None:
    """Folder of the data set that is given, or that the given folder of images belongs to."""
    for root in (folder, folder.parent):
        is_image_folder = root == folder or folder.name.startswith("images")
        if is_image_folder and (root / DATASET).is_file() and (root / "imagesTr").is_dir():
            return root
    return None


def _label_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return image_files(folder).get(folder, [])


def _dataset(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        channel_titles(content)
        return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputDataError(
            f"{path.name} of {path.parent.name} is no description of nnU-Net ({error}).",
            "Correct it, or list the cases in a CSV table.",
        ) from error


def _modalities(content: Mapping, task: Task, name: str) -> dict[int, str]:
    """Modality by number of the channel."""
    modalities = {}
    for number, title in channel_titles(content).items():
        modality = task.match(title)
        if modality is None:
            raise InputDataError(
                f"The channel {number} of {name} is '{title}', which the task {task.name} does not "
                "have.",
                f"Name the channels {', '.join(task.modality_names)}, or use a task with it.",
                option="task",
            )
        modalities[number] = modality
    return modalities


def _convention(content: Mapping, task: Task) -> LabelConvention | None:
    """What ``dataset.json`` says about the labels; None where the task knows other classes."""
    classes = label_classes(content, task)
    if not classes:
        return None
    return LabelConvention(
        DATASET, f"the data set {content.get('name', '')}".rstrip(), classes, source=f"by {DATASET}"
    )
