"""What the commands do, without printing: files in, files out, all or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medmap.bundle import default_bundle_path, load_bundle, update_card
from medmap.errors import Cancelled, InputDataError, MissingInputError
from medmap.files import Transaction, check_output, make_folder
from medmap.geometry import sample_labels
from medmap.inference import Segmentation, resolve_device, segment
from medmap.metrics import RegionScore, compare
from medmap.nifti import read_nifti, write_labels, write_volume
from medmap.task import BRATS, Task
from medmap.volume import Volume

Report = Callable[[float, str], None]


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
    """What ``medmap segment`` made: the segmentation, its scores if there was a truth, and the files by what they are."""

    segmentation: Segmentation
    scores: dict[str, RegionScore] | None
    files: dict[str, Path]


def segment_files(
    scans: Mapping[str, Path],
    output: Path,
    bundle: Path | None,
    options: Options,
    *,
    progress: Report,
    cancel: Callable[[], bool],
) -> Result:
    """Segment one patient from files into a folder; see ``medmap segment``. Nothing is left behind on any error."""
    names = {"label map": "segmentation.nii.gz", "picture": "overlay.png", "report": "report.json"}
    made = not output.exists()
    make_folder(output)
    files = {what: output / name for what, name in names.items()}
    try:
        given = [*scans.values(), *([options.truth] if options.truth else [])]
        for path in files.values():
            check_output(path, inputs=given, overwrite=options.overwrite)
        progress(0.0, "reading")
        volumes = {
            name: read_nifti(path, modality=name, affine=options.affine, assume_orientation=options.assume_orientation)
            for name, path in scans.items()
        }
        truth = read_nifti(options.truth, modality="truth") if options.truth else None
        loaded = load_bundle(bundle or default_bundle_path())
        result = segment(
            volumes,
            loaded,
            reference=options.reference,
            device=options.device,
            progress=lambda fraction, text: progress(0.05 + 0.85 * fraction, text),
            cancel=cancel,
        )
        reference_labels = truth_on_grid(truth, result, loaded.task) if truth else None
        scores = None if truth is None else compare(result.labels, reference_labels, loaded.task, result.grid)
        progress(0.92, "writing")
        _publish(files, scans, volumes, result, reference_labels, scores, options.overwrite, cancel)
    except BaseException:
        if made and not any(output.iterdir()):
            output.rmdir()
        raise
    progress(1.0, "done")
    return Result(result, scores, files)


def _publish(files, scans, volumes, result: Segmentation, truth, scores, overwrite: bool, cancel) -> None:
    from medmap.report.overlay import save_overlay

    arrays = {
        name: volume.array if volume.grid.distance(result.grid) < 1e-3 else _on_grid(volume, result)
        for name, volume in volumes.items()
    }
    with Transaction(overwrite=overwrite) as out:
        write_labels(out.path(files["label map"]), result.labels, result.grid, like=scans[result.reference])
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
            **({"scores": {name: _plain(asdict(score)) for name, score in scores.items()}} if scores else {}),
            **result.provenance,
            "input_sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in scans.items()},
        }
        out.path(files["report"]).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if cancel():
            raise Cancelled()


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a score that is not defined becomes null."""
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in scores.items()}


def _on_grid(volume: Volume, result: Segmentation) -> np.ndarray:
    """A scan on the result's grid, for the picture; its own background outside."""
    from medmap.checks import foreground
    from medmap.geometry import sample

    _, background = foreground(volume.array)
    shifted = torch.from_numpy(np.ascontiguousarray(volume.array - background))[None]
    return sample(shifted, volume.grid, result.grid)[0].numpy() + background


def truth_on_grid(truth: Volume, result: Segmentation, task: Task) -> np.ndarray:
    """Reference labels on the result's grid (nearest voxel), as integers. Raises InputDataError for fractions."""
    if not np.array_equal(truth.array, np.round(truth.array)):
        raise InputDataError(f"{truth.name} holds fractions, not labels.", "Give a label map.")
    labels = truth.array.astype(np.int16)
    if truth.grid.distance(result.grid) < 0.5:
        return labels
    return sample_labels(labels, truth.grid, result.grid)


def write_phantoms(
    output: Path, count: int, seed: int, spacing: float, healthy: bool, device: str, overwrite: bool, report: Report
) -> list[Path]:
    """Write ``count`` synthetic patients in BraTS layout; returns their folders."""
    from medmap.files import atomic_folder
    from medmap.phantom import generate

    make_folder(output)
    folders = []
    for n in range(count):
        report(n / count, f"patient {n + 1} of {count}")
        name = f"Phantom_{seed + n:05d}"
        made = generate(seed + n, spacing=spacing, device=str(resolve_device(device)), tumour=not healthy)
        with atomic_folder(output / name, overwrite=overwrite) as folder:
            for modality, image in made.images.items():
                write_volume(
                    folder / f"{name}_{modality}.nii.gz", image.cpu().numpy().round().astype(np.int16), made.affine
                )
            values = np.array(BRATS.label_values(), np.uint8)
            labels = Volume(values[made.label.cpu().numpy()], made.affine)
            write_labels(folder / f"{name}_seg.nii.gz", labels.array, labels.grid)
            (folder / "facts.json").write_text(json.dumps({"seed": made.seed, **made.facts}, indent=1) + "\n")
        folders.append(output / name)
    return folders


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``medmap train`` besides the folders; see its help."""

    recipe: Path | None = None
    steps: int | None = None
    seed: int | None = None
    minutes: float | None = None
    precision: str = "bf16"
    device: str = "auto"
    name: str = "medmap-custom"
    version: str = "1.0.0"
    data_statement: str = "not stated"
    overwrite: bool = False


def train_bundle(run: Path, data: Path, bundle: Path, options: TrainOptions, report: Report) -> tuple[int, int]:
    """Cache, train (or go on) and, when the steps are done, export; returns steps done and steps wanted."""
    from medmap.dataset import cache_case, find_cases
    from medmap.train import export, train

    recipe = load_recipe(options)
    check_output_folder(bundle, options.overwrite)
    cases = find_cases(data, BRATS)
    cache = make_folder(make_folder(run) / "cache")
    folders = []
    for n, case in enumerate(cases):
        report(0.0, f"preparing case {n + 1} of {len(cases)}")
        folders.append(cache_case(case, BRATS, recipe.preprocess, cache))
    log = (run / "log.jsonl").open("a", encoding="utf-8")

    def tell(step: int, figures: dict) -> None:
        log.write(json.dumps({"step": step, **{k: round(v, 5) for k, v in figures.items()}}) + "\n")
        report(step / recipe.steps, f"step {step} of {recipe.steps}, loss {figures['loss']:.3f}")

    with log:
        done = train(
            recipe,
            BRATS,
            folders,
            run,
            device=options.device,
            precision=options.precision,
            minutes=options.minutes,
            report=tell,
        )
    if done == recipe.steps:
        place = (
            "CUDA GPU" if resolve_device(options.device).type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        )
        card = {
            "description": "Glioma segmentation (WT, TC, ET) from any subset of T1, T1ce, T2, FLAIR.",
            "data": options.data_statement,
            "training": f"{recipe.steps} steps on {len(cases)} cases, {options.precision}, {place}, seed {recipe.seed}.",
        }
        export(
            run,
            recipe,
            BRATS,
            bundle,
            name=options.name,
            version=options.version,
            card=card,
            overwrite=options.overwrite,
        )
    return done, recipe.steps


def check_output_folder(path: Path, overwrite: bool) -> None:
    """Refuse a bundle folder that is there, before hours of work rather than after."""
    from medmap.errors import OutputError

    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists.", "Choose another name or add --overwrite.")


def load_recipe(options: TrainOptions):
    """The recipe of a JSON file (``medmap.train.Recipe``'s fields) with the options' changes. Raises BundleError."""
    from medmap.train import Recipe

    recipe = Recipe() if options.recipe is None else Recipe.read(options.recipe)
    changes = {key: value for key in ("steps", "seed") if (value := getattr(options, key)) is not None}
    return replace(recipe, **changes)


def evaluate_bundle(
    data: Path, bundle: Path | None, table: Path | None, statement: str, update: bool, device: str, report: Report
) -> dict:
    """Score a bundle on a cohort; writes CSV and card where asked; returns the summary table."""
    from medmap.dataset import find_cases
    from medmap.evaluate import evaluate, summarise, write_rows

    path = bundle or default_bundle_path()
    loaded = load_bundle(path)
    cases = find_cases(data, loaded.task)
    if not any(case.label for case in cases):
        raise MissingInputError(f"No case in {data.name} has reference labels.", "Add <case>_seg.nii.gz.")
    place = str(resolve_device(device))
    rows = evaluate(cases, loaded, device=place, report=lambda n, of, name: report(n / of, f"{name} ({n + 1} of {of})"))
    summary = summarise(rows, loaded, statement)
    if table:
        write_rows(table, rows)
    if update:
        update_card(path, {"dice": summary})
    return summary
