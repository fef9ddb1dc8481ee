"""What bad scans cost: Dice of a bundle against the severity of six faults, per set of scans.

    python MedMAPTraining/experiments/stress.py OUT [--cases 2] [--data FOLDER] [--bundle BUNDLE] [--document]

Synthetic patients that no training has seen are made in OUT unless ``--data`` names a folder of labeled cases. Each
fault is applied to every scan, except that misregistration leaves the first scan of a set in place (one scan alone
cannot be misregistered), and that in ``wrong modality`` the scans of a set stand in each other's slots. What is done is
kept in OUT/stress.csv: call again to go on. ``--document`` renews the page in ``docs/experiments`` and its picture.
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

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle, load_bundle
from medmap.commands.phantoms import write_phantoms
from medmap.errors import MedMAPError
from medmap.foreground import foreground
from medmap.inference import segment_subsets
from medmap.io.cohorts import Case, find_cases
from medmap.io.nifti import read_nifti
from medmap.metrics import dice, region_masks
from medmap.phantom.artifacts import axis_operator
from medmap.phantom.fields import apply_along
from medmap.task import BRATS
from medmap.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
FIRST_SEED = 80000
SUBSETS = ("t1", "t1ce", "t2", "flair", "t1ce+flair", "t1+t1ce+t2+flair")
REGIONS = ("WT", "TC", "ET")
SIMILAR = {"t1": "t1ce", "t1ce": "t1", "t2": "flair", "flair": "t2"}
OTHER = {"t1": "t2", "t2": "t1", "t1ce": "flair", "flair": "t1ce"}


def inside(volume: Volume) -> tuple[np.ndarray, np.ndarray, float]:
    """The scan with its background at 0, its brain, and the brain's mean."""
    brain, background = foreground(volume.array)
    array = np.where(brain, volume.array - background, 0.0)
    return array, brain, float(np.abs(array[brain]).mean())


def noise(volume: Volume, share: float, rng: np.random.Generator) -> Volume:
    """Rician noise of a standard deviation of so large a share of the brain's mean."""
    array, brain, mean = inside(volume)
    real, imaginary = (rng.normal(0, share * mean, array.shape) for _ in range(2))
    noisy = np.hypot(array + real, imaginary)
    return replace(
        volume, array=np.where(brain, np.maximum(noisy, 1e-3 * mean), 0).astype(np.float32)
    )


def bias(volume: Volume, deviation: float, rng: np.random.Generator) -> Volume:
    """A smooth field of coils, the logarithm of which has so large a standard deviation within the brain."""
    array, brain, _ = inside(volume)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in array.shape), indexing="ij", sparse=True)
    field = (
        sum(rng.normal() * a + rng.normal() * a**2 for a in axes) + rng.normal() * axes[0] * axes[1]
    )
    field = (field - field[brain].mean()) / field[brain].std()
    return replace(volume, array=(array * np.exp(deviation * field)).astype(np.float32))


def along_axes(volume: Volume, operators: Sequence[tuple[int, float, float]]) -> Volume:
    """Blur (sigma in mm) or slices (thickness in mm) along axes, with the border of the brain kept."""
    array, brain, mean = inside(volume)
    image = torch.from_numpy(array.astype(np.float32))[None]
    weight = torch.from_numpy(brain.astype(np.float32))[None]
    for axis, sigma, thickness in operators:
        operator = axis_operator(
            array.shape[axis], float(volume.grid.spacing[axis]), sigma, 0.0, thickness
        )
        image, weight = (
            apply_along(image, axis + 1, operator),
            apply_along(weight, axis + 1, operator),
        )
    smooth = (image / weight.clamp(min=1e-3))[0].numpy()  # background would darken the rim
    return replace(
        volume, array=np.where(brain, np.maximum(smooth, 1e-3 * mean), 0).astype(np.float32)
    )


def blur(volume: Volume, sigma: float, rng: np.random.Generator) -> Volume:
    """A Gaussian of so many mm standard deviation."""
    return along_axes(volume, [(axis, sigma, 0.0) for axis in range(3)])


def thick(volume: Volume, slice_mm: float, rng: np.random.Generator) -> Volume:
    """Axial slices of that thickness, interpolated back."""
    axis = int(np.abs(volume.affine[2, :3]).argmax())
    return along_axes(volume, [(axis, 0.0, slice_mm)])


def moved(volume: Volume, mm: float, rng: np.random.Generator) -> Volume:
    """The scan so many mm away in a random direction."""
    direction = rng.normal(size=3)
    affine = volume.affine.copy()
    affine[:3, 3] += mm * direction / np.linalg.norm(direction)
    return replace(volume, affine=affine)


@dataclass(frozen=True)
class Fault:
    """One way in which scans are bad.

    Attributes:
        title: for the table.
        severities: in the fault's own unit.
        apply: to one scan; None for scans in each other's slots.
    """

    title: str
    severities: tuple[float, ...]
    apply: Callable[[Volume, float, np.random.Generator], Volume] | None


FAULTS = {
    "noise": Fault("Rician noise, sigma / mean of the brain", (0.1, 0.2), noise),
    "bias": Fault("bias field, standard deviation of its logarithm", (0.2, 0.4), bias),
    "blur": Fault("blur, sigma in mm", (1.5, 3.0), blur),
    "thick": Fault("axial slices, mm", (4.0, 7.0), thick),
    "moved": Fault("misregistration, mm", (1.0, 2.0, 5.0), moved),
    "wrong": Fault(
        "Swapped modality labels: 1 similar (T1/T1ce, T2/FLAIR), 2 other (T1/T2, T1ce/FLAIR)",
        (1, 2),
        None,
    ),
}


def damaged(volumes: dict[str, Volume], kind: str, severity: float, seed: int) -> dict[str, Volume]:
    """The scans of a patient with a fault; for misregistration T1ce, or the first scan, stays in place."""
    if kind == "clean":
        return volumes
    if kind == "wrong":
        places = SIMILAR if severity == 1 else OTHER
        return {slot: volumes[places[slot]] for slot in volumes if places[slot] in volumes}
    fixed = "t1ce" if "t1ce" in volumes else next(iter(volumes))
    result = {}
    for name, volume in volumes.items():
        rng = np.random.default_rng([seed, zlib.crc32(f"{name} {kind}".encode())])
        stays = kind == "moved" and name == fixed
        result[name] = volume if stays else FAULTS[kind].apply(volume, severity, rng)
    return result


def measure(
    case: Case, bundle: Bundle, kind: str, severity: float, subsets: Sequence[str], device: str
) -> list[dict]:
    """Dice of every set of scans of one case with one fault."""
    seed = zlib.crc32(case.case_id.encode())
    volumes = damaged(case.read(BRATS.modality_names), kind, severity, seed)
    truth = read_nifti(case.label, modality="seg")
    wanted = [s for s in subsets if set(s.split("+")) <= set(volumes)]
    if kind == "moved":
        wanted = [s for s in wanted if "+" in s]
    if not wanted:
        return []
    reference = next(n for n in ("t1ce", *volumes) if volumes[n].grid.distance(truth.grid) < 0.01)
    found = segment_subsets(
        volumes, bundle, [s.split("+") for s in wanted], reference=reference, device=device
    )
    right = region_masks(truth.array, bundle.task)
    rows = []
    for subset in wanted:
        masks = region_masks(found[bundle.task.subset_key(subset.split("+"))], bundle.task)
        scores = {region: round(dice(masks[region], right[region]), 4) for region in REGIONS}
        rows.append(
            {"case": case.case_id, "fault": kind, "severity": severity, "scans": subset, **scores}
        )
    return rows


COLUMNS = ["bundle", "case", "fault", "severity", "scans", *REGIONS]


def run(given: argparse.Namespace) -> list[dict]:
    """All that is not in OUT/stress.csv yet, and what is."""
    given.out.mkdir(exist_ok=True)
    bundle = load_bundle(given.bundle)
    if given.working:
        bundle = replace(bundle, preprocess=replace(bundle.preprocess, spacing=given.working))
    mark = f"{bundle.id} {bundle.sha256[:12]} {bundle.preprocess.spacing:g} mm"
    if given.data is None:
        given.data = given.out / "phantoms"
        if not given.data.is_dir():
            write_phantoms(
                given.data,
                given.cases,
                given.seed,
                given.spacing,
                False,
                "cpu",
                False,
                lambda f, t: None,
            )
    path = given.out / "stress.csv"
    rows = (
        [row for row in csv.DictReader(path.open()) if row["bundle"] == mark]
        if path.exists()
        else []
    )
    done = {(row["case"], row["fault"], float(row["severity"])) for row in rows}
    plan = [("clean", 0.0), *((k, s) for k, fault in FAULTS.items() for s in fault.severities)]
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not path.stat().st_size:
            writer.writeheader()
        for case in find_cases(given.data, BRATS)[: given.cases]:
            for kind, severity in plan:
                if (case.case_id, kind, severity) in done:
                    continue
                try:
                    fresh = measure(case, bundle, kind, severity, given.subsets, given.device)
                except MedMAPError as error:
                    print(f"{case.case_id}, {kind} {severity:g}: refused: {error.cause}")
                    continue
                fresh = [{"bundle": mark, **row} for row in fresh]
                writer.writerows(fresh)
                file.flush()
                rows += fresh
                print(f"{case.case_id}, {kind} {severity:g}")
    return rows


def means(rows: list[dict]) -> dict[tuple[str, float, str], list[float]]:
    """Mean Dice of the regions by fault, severity and set of scans."""
    groups: dict[tuple[str, float, str], list[list[float]]] = {}
    for row in rows:
        key = (row["fault"], float(row["severity"]), row["scans"])
        groups.setdefault(key, []).append([float(row[region]) for region in REGIONS])
    return {key: np.mean(scores, axis=0).tolist() for key, scores in groups.items()}


def tables(rows: list[dict], given: argparse.Namespace) -> str:
    """The document."""
    mean = means(rows)
    cases = sorted({row["case"] for row in rows})
    about = (
        f"Bundle {rows[0]['bundle']} (working voxels); Dice WT / TC / ET, mean of\n"
        f"{len(cases)} case(s): {', '.join(cases)}.\n"
        f"Made by `python MedMAPTraining/experiments/stress.py OUT{given.call}`.\n"
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
        lines += ["", f"**{fault.title[0].upper()}{fault.title[1:]}**", ""]
        lines += ["| Modalities | none | " + " | ".join(f"{s:g}" for s in fault.severities) + " |"]
        lines += ["|---|" + "--:|" * (1 + len(fault.severities))]
        for subset in given.subsets:
            keys = [("clean", 0.0, subset), *((kind, float(s), subset) for s in fault.severities)]
            if any(key in mean for key in keys[1:]):
                cells = [
                    " / ".join(f"{x:.2f}" for x in mean[key]) if key in mean else "" for key in keys
                ]
                title = BRATS.subset_title(subset)
                lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], subsets: Sequence[str], path: Path) -> None:
    """Curves: a row a fault, a column a region, a line a set of scans."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mean = means(rows)
    figure, axes = pyplot.subplots(
        len(FAULTS), 3, figsize=(9, 2.1 * len(FAULTS)), sharey=True, squeeze=False
    )
    for number, (kind, fault) in enumerate(FAULTS.items()):
        line = axes[number]
        for n, (axis, region) in enumerate(zip(line, REGIONS, strict=True)):
            for color, subset in enumerate(subsets):
                points = [
                    (0.0, ("clean", 0.0, subset)),
                    *((float(s), (kind, float(s), subset)) for s in fault.severities),
                ]
                points = [(x, mean[key][n]) for x, key in points if key in mean]
                if len(points) > 1:
                    title = BRATS.subset_title(subset)
                    axis.plot(*zip(*points, strict=True), f"C{color}o-", markersize=3, label=title)
            axis.set_xticks([0, *fault.severities])
            axis.set_ylim(0, 1)
            axis.grid(alpha=0.3)
            axis.set_xlabel(fault.title.split(":")[0], fontsize=8)
            axis.tick_params(labelsize=8)
            if n == 0:
                axis.set_ylabel("Dice", fontsize=8)
            if number == 0:
                axis.set_title(region, fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    given = parser.parse_args()
    given.subsets = [
        BRATS.subset_key([BRATS.find(word) for word in s.split("+")]) for s in given.subsets
    ]
    given.call = "".join(
        f" --{k} {getattr(given, k)}"
        for k in ("cases", "seed", "spacing", "working")
        if getattr(given, k)
    )
    rows = run(given)
    text = tables(rows, given)
    (given.out / "stress.md").write_text(text)
    draw(rows, given.subsets, given.out / "stress.png")
    if given.document:
        (ROOT / "docs/experiments/image_degradation.md").write_text(text)
        (ROOT / "Resources/stress.png").write_bytes((given.out / "stress.png").read_bytes())
    print(text)


if __name__ == "__main__":
    main()
