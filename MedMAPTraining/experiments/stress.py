"""Robustness to image degradation: Dice of a bundle against the severity of six faults.

    python MedMAPTraining/experiments/stress.py OUT [--cases 2] [--data FOLDER] [--bundle BUNDLE]
        [--document]

Synthetic patients that no training has seen are generated in OUT unless ``--data`` names a folder
of labeled cases. Each fault is applied to every modality, except that misregistration leaves the
first one of a subset in place (a single one cannot be misregistered), and that with swapped
modality labels the modalities of a subset stand in for each other. Results are kept in
OUT/stress.csv: run the same command again to resume. ``--document`` renews the page in
``docs/experiments`` and its picture.
"""

from __future__ import annotations

import argparse
import csv
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from shared import REGIONS, script_parser, synthetic_cohort, table_head, table_row

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle, load_bundle
from medmap.errors import MedMAPError
from medmap.foreground import foreground
from medmap.inference import segment_subsets
from medmap.io.cohorts import Case, find_cases
from medmap.io.labels import read_case_labels
from medmap.metrics import dice, region_masks
from medmap.phantom.artifacts import axis_operator
from medmap.phantom.fields import apply_along
from medmap.task import BRATS
from medmap.volume import Grid, Volume

ROOT = Path(__file__).resolve().parents[2]
FIRST_SEED = 80000
SUBSETS = ("t1", "t1ce", "t2", "flair", "t1ce+flair", "t1+t1ce+t2+flair")
SIMILAR = {"t1": "t1ce", "t1ce": "t1", "t2": "flair", "flair": "t2"}
OTHER = {"t1": "t2", "t2": "t1", "t1ce": "flair", "flair": "t1ce"}


def inside(volume: Volume) -> tuple[np.ndarray, np.ndarray, float]:
    """The scan with its background at 0, its brain mask, and the brain's mean intensity."""
    brain, background = foreground(volume.array)
    array = np.where(brain, volume.array - background, 0.0)
    mean = np.abs(array[brain]).mean()
    return array, brain, float(mean)


def noise(volume: Volume, fraction: float, rng: np.random.Generator) -> Volume:
    """Rician noise; its standard deviation is a fraction of the brain's mean."""
    array, brain, mean = inside(volume)
    deviation = fraction * mean
    real = rng.normal(0, deviation, array.shape)
    imaginary = rng.normal(0, deviation, array.shape)
    magnitude = np.hypot(array + real, imaginary)
    return _masked(volume, magnitude, brain, mean)


def _masked(volume: Volume, array: np.ndarray, brain: np.ndarray, mean: float) -> Volume:
    """The array within the brain, where it stays positive, and 0 outside."""
    positive = np.maximum(array, 1e-3 * mean)
    return replace(volume, array=np.where(brain, positive, 0).astype(np.float32))


def bias(volume: Volume, deviation: float, rng: np.random.Generator) -> Volume:
    """A smooth bias field; ``deviation`` is that of its logarithm within the brain."""
    array, brain, _ = inside(volume)
    ranges = [np.linspace(-1, 1, size) for size in array.shape]
    axes = np.meshgrid(*ranges, indexing="ij", sparse=True)
    polynomials = []
    for axis in axes:
        linear = rng.normal()
        quadratic = rng.normal()
        polynomials.append(linear * axis + quadratic * axis**2)
    field = sum(polynomials) + rng.normal() * axes[0] * axes[1]
    field = (field - field[brain].mean()) / field[brain].std()
    # Of the logarithm, so that the field is positive.
    biased = array * np.exp(deviation * field)
    return replace(volume, array=biased.astype(np.float32))


def along_axes(volume: Volume, operators: Sequence[tuple[int, float, float]]) -> Volume:
    """Blur (sigma in mm) or slices (thickness in mm) along axes; the border of the brain stays."""
    array, brain, mean = inside(volume)
    image = torch.from_numpy(array.astype(np.float32))[None]
    weight = torch.from_numpy(brain.astype(np.float32))[None]
    for axis, sigma, thickness in operators:
        spacing = float(volume.grid.spacing[axis])
        operator = axis_operator(array.shape[axis], spacing, sigma, 0.0, thickness)
        image = apply_along(image, axis + 1, operator)
        weight = apply_along(weight, axis + 1, operator)
    # Divided by the blurred mask: background would darken the rim.
    smooth = (image / weight.clamp(min=1e-3))[0].numpy()
    return _masked(volume, smooth, brain, mean)


def blur(volume: Volume, sigma: float, rng: np.random.Generator) -> Volume:
    """Gaussian blur; ``sigma`` in mm."""
    return along_axes(volume, [(axis, sigma, 0.0) for axis in range(3)])


def thick(volume: Volume, slice_mm: float, rng: np.random.Generator) -> Volume:
    """Thick axial slices, interpolated back."""
    axis = int(np.abs(volume.affine[2, :3]).argmax())
    return along_axes(volume, [(axis, 0.0, slice_mm)])


def moved(volume: Volume, mm: float, rng: np.random.Generator) -> Volume:
    """The scan shifted by so many mm in a random direction."""
    direction = rng.normal(size=3)
    shift_mm = mm * direction / np.linalg.norm(direction)
    affine = volume.affine.copy()
    affine[:3, 3] += shift_mm
    return replace(volume, affine=affine)


@dataclass(frozen=True)
class Fault:
    """One kind of degradation.

    Attributes:
        title: for the table.
        severities: in the fault's unit.
        apply: to one scan.
    """

    title: str
    severities: tuple[float, ...]
    apply: Callable[[Volume, float, np.random.Generator], Volume]


def _swapped(volume: Volume, severity: float, rng: np.random.Generator) -> Volume:
    """Swapping takes two scans, so ``damaged`` does it; a single scan stays as it is."""
    return volume


FAULTS = {
    "noise": Fault("Rician noise, sigma / mean of the brain", (0.1, 0.2), noise),
    "bias": Fault("bias field, standard deviation of its logarithm", (0.2, 0.4), bias),
    "blur": Fault("blur, sigma in mm", (1.5, 3.0), blur),
    "thick": Fault("axial slices, mm", (4.0, 7.0), thick),
    "moved": Fault("misregistration, mm", (1.0, 2.0, 5.0), moved),
    "wrong": Fault(
        "Swapped modality labels: 1 similar (T1/T1ce, T2/FLAIR), 2 other (T1/T2, T1ce/FLAIR)",
        (1, 2),
        _swapped,
    ),
}


def damaged(volumes: dict[str, Volume], kind: str, severity: float, seed: int) -> dict[str, Volume]:
    """The scans of a patient with a fault.

    For misregistration T1ce, or the first scan, stays in place.
    """
    if kind == "clean":
        return volumes
    if kind == "wrong":
        partner = OTHER
        if severity == 1:
            partner = SIMILAR
        return {name: volumes[partner[name]] for name in volumes if partner[name] in volumes}
    fixed = next(iter(volumes))
    if "t1ce" in volumes:
        fixed = "t1ce"
    apply = FAULTS[kind].apply
    result = {}
    for name, volume in volumes.items():
        if kind == "moved" and name == fixed:
            result[name] = volume
        else:
            # A stream for every scan and fault: another subset must not change the others.
            stream = zlib.crc32(f"{name} {kind}".encode())
            rng = np.random.default_rng([seed, stream])
            result[name] = apply(volume, severity, rng)
    return result


def measure(
    case: Case, bundle: Bundle, kind: str, severity: float, subsets: Sequence[str], device: str
) -> list[dict]:
    """Dice of every modality subset of one case with one fault."""
    seed = zlib.crc32(case.case_id.encode())
    volumes = damaged(case.read(BRATS.modality_names), kind, severity, seed)
    reference = read_case_labels(case, BRATS)
    names_of = {}
    for subset in subsets:
        names = subset.split("+")
        if set(names) <= set(volumes) and (kind != "moved" or len(names) > 1):
            names_of[subset] = names
    if not names_of:
        return []
    grid_modality = _modality_on_grid(volumes, reference.grid)
    predictions = segment_subsets(
        volumes, bundle, list(names_of.values()), reference=grid_modality, device=device
    )
    reference_masks = region_masks(reference.array, bundle.task)
    rows = []
    for subset, names in names_of.items():
        masks = region_masks(predictions[bundle.task.subset_key(names)], bundle.task)
        scores = {}
        for region in REGIONS:
            scores[region] = round(dice(masks[region], reference_masks[region]), 4)
        rows.append(
            {"case": case.case_id, "fault": kind, "severity": severity, "scans": subset, **scores}
        )
    return rows


def _modality_on_grid(volumes: dict[str, Volume], grid: Grid) -> str:
    """T1ce, or another modality whose voxels are the grid's."""
    for name in ("t1ce", *volumes):
        if volumes[name].grid.distance(grid) < 0.01:
            return name
    raise ValueError("the labels lie on the grid of no modality")


COLUMNS = ["bundle", "case", "fault", "severity", "scans", *REGIONS]


def run(options: argparse.Namespace) -> list[dict]:
    """Measure what is not in OUT/stress.csv yet; returns all rows."""
    options.out.mkdir(exist_ok=True)
    bundle = load_bundle(options.bundle)
    if options.working:
        preprocess = replace(bundle.preprocess, spacing=options.working)
        bundle = replace(bundle, preprocess=preprocess)
    identity = f"{bundle.id} {bundle.sha256[:12]} {bundle.preprocess.spacing:g} mm"
    if options.data is None:
        options.data = synthetic_cohort(
            options.out / "phantoms", options.cases, options.seed, options.spacing
        )
    path = options.out / "stress.csv"
    rows = _finished_rows(path, identity)
    finished = {(row["case"], row["fault"], float(row["severity"])) for row in rows}
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not path.stat().st_size:
            writer.writeheader()
        for case in find_cases(options.data, BRATS)[: options.cases]:
            for kind, severity in _plan():
                if (case.case_id, kind, severity) in finished:
                    continue
                title = f"{case.case_id}, {kind} {severity:g}"
                try:
                    scores = measure(case, bundle, kind, severity, options.subsets, options.device)
                except MedMAPError as error:
                    print(f"{title}: refused: {error.cause}")
                    continue
                new_rows = [{"bundle": identity, **row} for row in scores]
                writer.writerows(new_rows)
                file.flush()
                rows += new_rows
                print(title)
    return rows


def _finished_rows(path: Path, identity: str) -> list[dict]:
    """The rows of a bundle that a CSV holds."""
    if not path.exists():
        return []
    with path.open() as file:
        return [row for row in csv.DictReader(file) if row["bundle"] == identity]


def _plan() -> list[tuple[str, float]]:
    """Every fault with every severity, after none at all."""
    plan = [("clean", 0.0)]
    for kind, fault in FAULTS.items():
        for severity in fault.severities:
            plan.append((kind, severity))
    return plan


Means = dict[tuple[str, float, str], list[float]]
"""(fault, severity, subset) -> mean Dice of each region."""


def means(rows: list[dict]) -> Means:
    """Mean Dice of the regions by fault, severity and modality subset."""
    groups: dict[tuple[str, float, str], list[list[float]]] = {}
    for row in rows:
        key = (row["fault"], float(row["severity"]), row["scans"])
        scores = [float(row[region]) for region in REGIONS]
        groups.setdefault(key, []).append(scores)
    return {key: np.mean(scores, axis=0).tolist() for key, scores in groups.items()}


def document(rows: list[dict], options: argparse.Namespace) -> str:
    """The page, in Markdown."""
    mean = means(rows)
    cases = sorted({row["case"] for row in rows})
    about = (
        f"Bundle {rows[0]['bundle']} (working voxels); Dice WT / TC / ET, mean of\n"
        f"{len(cases)} case(s): {', '.join(cases)}.\n"
        f"Made by `python MedMAPTraining/experiments/stress.py OUT{options.call}`.\n"
        "With so few cases, only large differences are meaningful.\n"
        "A region that a case lacks counts 1 if it is not predicted, else 0."
    )
    lines = [
        "# Robustness to image degradation",
        "",
        about,
        "",
        "![Dice against severity](../../Resources/stress.png)",
    ]
    for kind, fault in FAULTS.items():
        title = f"{fault.title[0].upper()}{fault.title[1:]}"
        lines += ["", f"**{title}**", ""]
        lines += table_head(["Modalities", "none", *(f"{value:g}" for value in fault.severities)])
        for subset in options.subsets:
            keys = _keys(kind, subset)
            if any(key in mean for key in keys[1:]):
                cells = [_scores_text(mean.get(key, [])) for key in keys]
                lines.append(table_row([BRATS.subset_title(subset), *cells]))
    return "\n".join(lines) + "\n"


def _keys(kind: str, subset: str) -> list[tuple[str, float, str]]:
    """Keys of ``means`` of one curve: without the fault, then by severity."""
    keys = [("clean", 0.0, subset)]
    for severity in FAULTS[kind].severities:
        keys.append((kind, float(severity), subset))
    return keys


def _scores_text(scores: list[float]) -> str:
    return " / ".join(f"{score:.2f}" for score in scores)


def draw(rows: list[dict], subsets: Sequence[str], path: Path) -> None:
    """Curves: a row for each fault, a column for each region, a line for each modality subset."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mean = means(rows)
    size = (9, 2.1 * len(FAULTS))
    figure, grid = pyplot.subplots(len(FAULTS), 3, figsize=size, sharey=True, squeeze=False)
    for row, (kind, fault) in zip(grid, FAULTS.items(), strict=True):
        for number, axes in enumerate(row):
            _draw_curves(axes, mean, kind, subsets, number)
            axes.set_xticks([0, *fault.severities])
            axes.set_ylim(0, 1)
            axes.grid(alpha=0.3)
            axes.set_xlabel(fault.title.split(":")[0], fontsize=8)
            axes.tick_params(labelsize=8)
        row[0].set_ylabel("Dice", fontsize=8)
    for axes, region in zip(grid[0], REGIONS, strict=True):
        axes.set_title(region, fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110)


def _draw_curves(axes: Axes, mean: Means, kind: str, subsets: Sequence[str], region: int) -> None:
    """A line for each subset that has two points or more; ``region`` is its number."""
    for number, subset in enumerate(subsets):
        severities = []
        scores = []
        for key in _keys(kind, subset):
            if key not in mean:
                continue
            _, severity, _ = key
            severities.append(severity)
            scores.append(mean[key][region])
        if len(scores) > 1:
            label = BRATS.subset_title(subset)
            axes.plot(severities, scores, f"C{number}o-", markersize=3, label=label)


def main() -> None:
    """The command line."""
    parser = script_parser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--data", type=Path, help="Labeled cases in BraTS layout [default: synthetic patients]."
    )
    parser.add_argument("--bundle", type=Path, default=default_bundle_path())
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument(
        "--seed", type=int, default=FIRST_SEED, help="Of the first synthetic patient."
    )
    parser.add_argument("--spacing", type=float, default=2.0, help="Of the synthetic patients, mm.")
    parser.add_argument(
        "--working", type=float, help="Edge of the network's voxels in mm [default: the bundle's]."
    )
    parser.add_argument("--subsets", nargs="+", default=list(SUBSETS), metavar="T1CE+FLAIR")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--document",
        action="store_true",
        help="Write the page in docs/experiments and its picture.",
    )
    options = parser.parse_args()
    options.subsets = [_subset_key(text) for text in options.subsets]
    options.call = _call(options)
    rows = run(options)
    text = document(rows, options)
    (options.out / "stress.md").write_text(text)
    draw(rows, options.subsets, options.out / "stress.png")
    if options.document:
        (ROOT / "docs/experiments/image_degradation.md").write_text(text)
        picture = (options.out / "stress.png").read_bytes()
        (ROOT / "Resources/stress.png").write_bytes(picture)
    print(text)


def _subset_key(text: str) -> str:
    """A subset's key from modalities as people write them."""
    return BRATS.subset_key([BRATS.find(word) for word in text.split("+")])


def _call(options: argparse.Namespace) -> str:
    """The options that the results depend on, as the command line takes them."""
    call = ""
    for name in ("cases", "seed", "spacing", "working"):
        value = getattr(options, name)
        if value:
            call += f" --{name} {value}"
    return call


if __name__ == "__main__":
    main()
