"""``medmap segment``: scans of one patient from files to a folder, all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle, load_bundle
from medmap.commands.preparation_files import (
    PICTURE,
    NameOf,
    kept_file,
    possible_files,
    preparation_files,
    read_brain_masks,
    write_preparation,
)
from medmap.commands.result_names import probability_name
from medmap.errors import Cancelled, UsageError
from medmap.foreground import foreground
from medmap.inference import Segmentation, segment
from medmap.io.atomic import (
    Transaction,
    check_output,
    encoded,
    make_folder,
    translate_os_errors,
)
from medmap.io.bids import sidecar
from medmap.io.content import sha256_of
from medmap.io.labels import recognize_file
from medmap.io.nifti import read_nifti, read_scans, write_labels, write_volume
from medmap.metrics import RegionScore, compare
from medmap.preparation.plan import Mode
from medmap.preparation.workflow import prepare_case
from medmap.progress import Cancel, Progress
from medmap.report.overlay import save_overlay
from medmap.resampling import resample_linear, resample_nearest
from medmap.task import Task
from medmap.volume import Volume

ScanType = TypeVar("ScanType", bound=str | os.PathLike | Volume)
"""A scan as a caller has it: a file or a volume."""

SAME_GRID_MM = 1e-3
"""Scans this close to the result's grid are drawn as they are."""

SAME_LABELS_MM = 0.5
"""Reference labels this close to the result's grid are compared voxel by voxel."""


@dataclass(frozen=True)
class Addition:
    """A file that is written beside the label map.

    Attributes:
        content: what it is, for display.
        name: in the output folder.
        write: writes it to a path.
    """

    content: str
    name: str
    write: Callable[[Path, Segmentation], None]


@dataclass(frozen=True)
class OutputLayout:
    """Names of the files that are written, and the data set that they belong to.

    Attributes:
        label_map, picture, report: names in the output folder.
        preparation: name of the picture of masks and alignments, where scans were prepared.
        intermediate_file: names of extracted and aligned scans, masks, and transforms.
        dataset: root of a BIDS data set, whose fields then stand in the report; None outside of
            one.
        additions: further files.
        fields: further fields of the report.
    """

    label_map: str = "segmentation.nii.gz"
    picture: str = "overlay.png"
    report: str = "report.json"
    preparation: str = PICTURE
    intermediate_file: NameOf = kept_file
    dataset: Path | None = None
    additions: tuple[Addition, ...] = ()
    fields: Mapping[str, object] = field(default_factory=dict)

    def files(self, folder: Path) -> dict[str, Path]:
        """Path of each file by what it is."""
        files = {
            "label map": folder / self.label_map,
            "picture": folder / self.picture,
            "report": folder / self.report,
        }
        for entry in self.additions:
            files[entry.content] = folder / entry.name
        return files


@dataclass(frozen=True)
class Options:
    """Options of ``medmap segment`` besides the scans; see its help."""

    reference: str | None = None
    device: str = "auto"
    truth: Path | None = None
    affine: str | None = None
    assume_orientation: bool = False
    overwrite: bool = False
    precision: str = "auto"
    labels: str = ""
    prepare: Mode = "auto"
    brain_masks: tuple[tuple[str | None, Path], ...] = ()
    keep_prepared: bool = False
    probabilities: bool = False


@dataclass(frozen=True)
class Result:
    """What ``medmap segment`` wrote.

    Attributes:
        segmentation: the result.
        scores: by region, where there is a reference segmentation.
        files: by what they are.
        labels: how the values of the reference segmentation were read, and why.
    """

    segmentation: Segmentation
    scores: dict[str, RegionScore] | None
    files: dict[str, Path]
    labels: str = ""


def segment_files(
    scans: Mapping[str, Path] | Sequence[tuple[str, Path]],
    output: Path,
    bundle: Path | Bundle | None,
    options: Options,
    *,
    progress: Progress,
    cancel: Cancel,
    layout: OutputLayout | None = None,
) -> Result:
    """Segment one patient from files into a folder; nothing is left behind on any error.

    Args:
        scans: files by name, title or alias of the modality, as the bundle's task has them.
        output: folder; made if it does not exist.
        bundle: its folder, or a loaded one; None takes the default bundle.
        options: see ``medmap segment --help``.
        progress: called with the completed fraction and a text.
        cancel: asked now and then; True stops the run.
        layout: names of the files.
    """
    is_new_folder = not os.path.exists(output)
    make_folder(output)
    layout = layout or OutputLayout()
    files = layout.files(output)
    try:
        result = _segment_into(files, scans, bundle, options, progress, cancel, layout)
    except BaseException:
        if is_new_folder and not any(output.iterdir()):
            output.rmdir()
        raise
    progress(1.0, "done")
    return result


def _segment_into(
    files: dict[str, Path],
    scans: Mapping[str, Path] | Sequence[tuple[str, Path]],
    bundle: Path | Bundle | None,
    options: Options,
    progress: Progress,
    cancel: Cancel,
    layout: OutputLayout,
) -> Result:
    if not isinstance(bundle, Bundle):
        bundle = load_bundle(bundle or default_bundle_path())
    task = bundle.task
    scan_files = by_modality(scans, task)
    folder = files["report"].parent
    if options.probabilities:
        files = files | _probability_files(folder, task)
    _check_outputs(files, folder, scan_files, options, layout)
    progress(0.0, "reading")
    volumes = read_scans(
        scan_files, affine=options.affine, assume_orientation=options.assume_orientation
    )
    reference_volume = None
    label_statement = ""
    if options.truth:
        reference_volume, label_statement = _read_truth(options.truth, task, options)
    preparation = prepare_case(
        volumes,
        task,
        options.prepare,
        reference=options.reference,
        brain_masks=read_brain_masks(options.brain_masks, volumes, task),
        progress=lambda fraction, text: progress(0.05 + 0.4 * fraction, text),
        cancel=cancel,
    )
    # Where nothing was prepared, the segmentation has the whole bar and chooses its reference.
    start = 0.05
    reference = options.reference
    if preparation.steps:
        start = 0.45
        reference = preparation.plan.reference
    segmentation = segment(
        preparation.volumes,
        bundle,
        reference=reference,
        device=options.device,
        precision=options.precision,
        with_probabilities=options.probabilities,
        progress=lambda fraction, text: progress(start + (0.9 - start) * fraction, text),
        cancel=cancel,
    )
    segmentation = replace(segmentation, preparation=preparation)
    reference_labels = None
    scores = None
    if reference_volume is not None:
        reference_labels = truth_on_grid(reference_volume, segmentation)
        scores = compare(segmentation.labels, reference_labels, task, segmentation.grid)
    progress(0.92, "writing")
    files = files | preparation_files(
        folder,
        layout.preparation,
        preparation,
        keeps_scans=options.keep_prepared,
        name_of=layout.intermediate_file,
    )
    result = Result(segmentation, scores, files, label_statement)
    with Transaction(overwrite=options.overwrite) as transaction:
        _write(transaction, result, scan_files, volumes, reference_labels, layout)
        if cancel():
            raise Cancelled()
    if options.overwrite:
        _remove_earlier(folder, result, scan_files, options, layout)
    return result


def _check_outputs(
    files: Mapping[str, Path],
    folder: Path,
    scan_files: Mapping[str, Path],
    options: Options,
    layout: OutputLayout,
) -> None:
    """Refuse outputs that exist or are inputs, before anything is computed. Raises OutputError."""
    inputs = list(scan_files.values())
    if options.truth:
        inputs.append(options.truth)
    inputs += [path for _, path in options.brain_masks]
    outputs = list(files.values())
    if options.prepare != "never":
        outputs += possible_files(
            folder,
            layout.preparation,
            list(scan_files),
            keeps_scans=options.keep_prepared,
            name_of=layout.intermediate_file,
        )
    for path in outputs:
        check_output(path, inputs=inputs, overwrite=options.overwrite)


def _remove_earlier(
    folder: Path,
    result: Result,
    scan_files: Mapping[str, Path],
    options: Options,
    layout: OutputLayout,
) -> None:
    """Remove pictures and probabilities of an earlier run that this one did not replace.

    They would pass for this run's: the picture for how its scans were prepared, and the
    probabilities for its own when the label map is evaluated.
    """
    mask_files = [path for _, path in options.brain_masks]
    inputs = [*scan_files.values(), *mask_files]
    if options.truth:
        inputs.append(options.truth)
    probability_files = _probability_files(folder, result.segmentation.task)
    candidates = [folder / layout.preparation, *probability_files.values()]
    for path in candidates:
        if path in result.files.values() or not path.is_file():
            continue
        if any(path.samefile(source) for source in inputs):
            continue
        with translate_os_errors(path):
            path.unlink()


def _probability_files(folder: Path, task: Task) -> dict[str, Path]:
    """Files of the regions' probabilities by what they are."""
    files = {}
    for region in task.regions:
        files[f"probability of {region.name}"] = folder / probability_name(region.name)
    return files


def by_modality(
    scans: Mapping[str, ScanType] | Sequence[tuple[str, ScanType]], task: Task
) -> dict[str, ScanType]:
    """Files by modality name. Raises UsageError for a name that is unknown or there twice."""
    pairs = scans.items() if isinstance(scans, Mapping) else scans
    files: dict[str, ScanType] = {}
    for word, path in pairs:
        name = task.find(word)
        if name in files:
            title = task.modality(name).title
            raise UsageError(
                f"{title} is given twice: {_named(files[name])} and {_named(path)}.",
                "Give one file for each modality.",
            )
        files[name] = path
    return files


def _named(scan: str | os.PathLike | Volume) -> str:
    """How a message calls a scan."""
    if isinstance(scan, Volume):
        return scan.name or "a volume"
    return Path(scan).name


def _write(
    transaction: Transaction,
    result: Result,
    scan_files: Mapping[str, Path],
    volumes: Mapping[str, Volume],
    reference_labels: np.ndarray | None,
    layout: OutputLayout,
) -> None:
    """The label map, the picture and the report, under temporary names."""
    segmentation = result.segmentation
    label_map = transaction.path(result.files["label map"])
    reference_scan = scan_files[segmentation.reference]
    write_labels(label_map, segmentation.labels, segmentation.grid, like=reference_scan)
    preparation = segmentation.preparation
    prepared = volumes
    if preparation is not None:
        prepared = preparation.volumes
        write_preparation(transaction, preparation, volumes, result.files, segmentation.task)
    for region, probability in segmentation.probabilities.items():
        path = transaction.path(result.files[f"probability of {region}"])
        write_volume(path, probability, segmentation.grid.affine)
    arrays = {name: _on_result_grid(volume, segmentation) for name, volume in prepared.items()}
    titles = [segmentation.task.modality(name).title for name in arrays]
    save_overlay(
        transaction.path(result.files["picture"]),
        arrays,
        segmentation.labels,
        segmentation.grid,
        segmentation.task,
        reference_labels=reference_labels,
        title=" + ".join(titles),
        scores=result.scores,
    )
    for addition in layout.additions:
        addition.write(transaction.path(result.files[addition.content]), segmentation)
    report = _report(result) | dict(layout.fields)
    if layout.dataset is not None:
        report |= sidecar(scan_files, layout.dataset, segmentation.reference)
    report["input_sha256"] = {name: sha256_of(path) for name, path in scan_files.items()}
    report["label_map_sha256"] = sha256_of(label_map)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    transaction.path(result.files["report"]).write_bytes(encoded(text))


def _report(result: Result) -> dict:
    segmentation = result.segmentation
    report: dict = {}
    report["volumes_ml"] = {name: round(ml, 3) for name, ml in segmentation.volumes_ml.items()}
    if result.scores:
        report["scores"] = {name: _plain(asdict(score)) for name, score in result.scores.items()}
        report["labels"] = result.labels
    if segmentation.preparation is not None:
        report["preparation"] = segmentation.preparation.to_dict()
    return report | segmentation.provenance.to_dict()


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a score that is not defined becomes null."""
    plain: dict[str, float | None] = {}
    for name, value in scores.items():
        plain[name] = None
        if np.isfinite(value):
            plain[name] = round(value, 4)
    return plain


def _on_result_grid(volume: Volume, segmentation: Segmentation) -> np.ndarray:
    """A scan on the result's grid, for the picture; its own background outside."""
    if volume.grid.distance(segmentation.grid) < SAME_GRID_MM:
        return volume.array
    _, background = foreground(volume.array)
    # Outside the field of view interpolation gives 0, so the background has to be 0 meanwhile.
    shifted = torch.from_numpy(np.ascontiguousarray(volume.array - background))[None]
    resampled = resample_linear(shifted, volume.grid, segmentation.grid)
    return resampled[0].numpy() + background


def _read_truth(path: Path, task: Task, options: Options) -> tuple[Volume, str]:
    """Reference labels as values of the task, and how the values of the file were read.

    Raises:
        InputDataError: the file holds fractions, or values of several meanings.
    """
    volume = read_nifti(
        path,
        modality="truth",
        affine=options.affine,
        assume_orientation=options.assume_orientation,
    )
    convention, statement = recognize_file(path, task, volume, options.labels)
    labels = convention.to_task(volume.array, task, volume.name)
    return replace(volume, array=labels), statement


def truth_on_grid(truth: Volume, result: Segmentation) -> np.ndarray:
    """Reference labels on the result's grid (nearest voxel), as integers."""
    if truth.grid.distance(result.grid) < SAME_LABELS_MM:
        return truth.array
    return resample_nearest(truth.array, truth.grid, result.grid)
