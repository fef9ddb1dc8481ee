"""``medmap segment``: scans of one patient from files to a folder, all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle, load_bundle
from medmap.errors import Cancelled, InputDataError, UsageError
from medmap.foreground import foreground
from medmap.inference import Segmentation, segment
from medmap.io.atomic import Transaction, check_output, make_folder
from medmap.io.nifti import read_nifti, write_labels
from medmap.metrics import RegionScore, compare
from medmap.report.overlay import save_overlay
from medmap.resampling import resample_linear, resample_nearest
from medmap.task import Task
from medmap.volume import Volume

Report = Callable[[float, str], None]

NAMES = {"label map": "segmentation.nii.gz", "picture": "overlay.png", "report": "report.json"}


@dataclass(frozen=True)
class Options:
    """Options of ``medmap segment`` besides the scans; see its help."""

    reference: str | None = None
    device: str = "auto"
    truth: Path | None = None
    affine: str | None = None
    assume_orientation: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Result:
    """What ``medmap segment`` made: the segmentation, scores if there was a truth, and the files by what they are."""

    segmentation: Segmentation
    scores: dict[str, RegionScore] | None
    files: dict[str, Path]


def segment_files(
    scans: Mapping[str, Path] | Sequence[tuple[str, Path]],
    output: Path,
    bundle: Path | Bundle | None,
    options: Options,
    *,
    progress: Report,
    cancel: Callable[[], bool],
    names: Mapping[str, str] = NAMES,
    further: Callable[[Segmentation], Mapping] = lambda result: {},
) -> Result:
    """Segment one patient from files into a folder; see ``medmap segment``. Nothing is left behind on any error.

    Args:
        scans: files by name, title or alias of the modality, as the bundle's task has them.
        bundle: its folder, or a loaded one; None takes the one that ships.
        names: of the files written.
        further: more for the report.
    """
    made = not os.path.exists(output)
    make_folder(output)
    files = {what: output / name for what, name in names.items()}
    try:
        loaded = (
            bundle if isinstance(bundle, Bundle) else load_bundle(bundle or default_bundle_path())
        )
        scans = by_modality(scans, loaded.task)
        given = [*scans.values(), *([options.truth] if options.truth else [])]
        for path in files.values():
            check_output(path, inputs=given, overwrite=options.overwrite)
        progress(0.0, "reading")
        volumes = {
            name: read_nifti(
                path,
                modality=name,
                affine=options.affine,
                assume_orientation=options.assume_orientation,
            )
            for name, path in scans.items()
        }
        truth = read_nifti(options.truth, modality="truth") if options.truth else None
        result = segment(
            volumes,
            loaded,
            reference=options.reference,
            device=options.device,
            progress=lambda fraction, text: progress(0.05 + 0.85 * fraction, text),
            cancel=cancel,
        )
        reference_labels = truth_on_grid(truth, result, loaded.task) if truth else None
        scores = (
            None
            if truth is None
            else compare(result.labels, reference_labels, loaded.task, result.grid)
        )
        progress(0.92, "writing")
        more = {**result.provenance, **further(result)}
        _publish(
            files, scans, volumes, result, more, reference_labels, scores, options.overwrite, cancel
        )
    except BaseException:
        if made and not any(output.iterdir()):
            output.rmdir()
        raise
    progress(1.0, "done")
    return Result(result, scores, files)


def by_modality(
    scans: Mapping[str, Path] | Sequence[tuple[str, Path]], task: Task
) -> dict[str, Path]:
    """Files by canonical modality name. Raises UsageError for a name that the task does not have, or has twice."""
    found: dict[str, Path] = {}
    for word, path in scans.items() if isinstance(scans, Mapping) else scans:
        name = task.find(word)
        if name in found:
            raise UsageError(
                f"{task.modality(name).title} is given twice.", "Give one file for each modality."
            )
        found[name] = path
    return found


def _publish(
    files,
    scans,
    volumes,
    result: Segmentation,
    more: Mapping,
    truth,
    scores,
    overwrite: bool,
    cancel,
) -> None:
    arrays = {
        name: volume.array if volume.grid.distance(result.grid) < 1e-3 else _on_grid(volume, result)
        for name, volume in volumes.items()
    }
    with Transaction(overwrite=overwrite) as out:
        write_labels(
            out.path(files["label map"]), result.labels, result.grid, like=scans[result.reference]
        )
        save_overlay(
            out.path(files["picture"]),
            arrays,
            result.labels,
            result.grid,
            result.task,
            reference_labels=truth,
            title=" + ".join(result.task.modality(name).title for name in arrays),
            scores=scores,
        )
        report = {
            "volumes_ml": {name: round(ml, 3) for name, ml in result.volumes_ml.items()},
            **(
                {"scores": {name: _plain(asdict(score)) for name, score in scores.items()}}
                if scores
                else {}
            ),
            **more,
            "input_sha256": {name: sha256(path) for name, path in scans.items()},
            "label_map_sha256": sha256(out.path(files["label map"])),
        }
        out.path(files["report"]).write_text(
            json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if cancel():
            raise Cancelled()


def sha256(path: Path) -> str:
    """Hash of a file's bytes, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a score that is not defined becomes null."""
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in scores.items()}


def _on_grid(volume: Volume, result: Segmentation) -> np.ndarray:
    """A scan on the result's grid, for the picture; its own background outside."""
    _, background = foreground(volume.array)
    shifted = torch.from_numpy(np.ascontiguousarray(volume.array - background))[None]
    return resample_linear(shifted, volume.grid, result.grid)[0].numpy() + background


def truth_on_grid(truth: Volume, result: Segmentation, task: Task) -> np.ndarray:
    """Reference labels on the result's grid (nearest voxel), as integers. Raises InputDataError for fractions."""
    if not np.array_equal(truth.array, np.round(truth.array)):
        raise InputDataError(f"{truth.name} holds fractions, not labels.", "Give a label map.")
    labels = truth.array.astype(np.int16)
    if truth.grid.distance(result.grid) < 0.5:
        return labels
    return resample_nearest(labels, truth.grid, result.grid)
