"""How generated cases differ from real ones: intensities, texture, sizes, and what a network sees.

python MedMAPTraining/experiments/generator_realism.py OUT --recipe RECIPE --cases FOLDER \\
    --anatomy LABELMAPS

OUT receives ``distributions.md`` (generated beside real, median and 10th to 90th percentile over
cases) and ``discriminator.json`` (how often a small network tells patches of unseen real cases from
patches of unseen generated ones; half of the cases of each kind train it, the others test it).
Cases need four modalities and a tumor. Everything is brain only, in z-scores, on 1.5 mm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from shared import script_parser, table_head, table_row
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, cross_entropy

from medmap.io.atomic import write_bytes, write_json
from medmap.io.cohorts import find_cases
from medmap.io.labels import with_conventions
from medmap.phantom.labelmap import find_label_maps
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import prepare_case
from medmap.training.generated import Generation, make_case
from medmap.training.recipe import Recipe

SPEC = PreprocessSpec(spacing=1.5)

FIRST_SEED = 9_100_000
"""No training uses these seeds."""

TISSUES = ("healthy", "NCR", "ED", "ET")
"""Names of the classes 0 to 3 within the brain."""

PATCH = 32
BATCH = 8
STEPS = 400
LEARNING_RATE = 1e-3
TEST_PATCHES = 10
"""Patches of each unseen case."""


@dataclass(frozen=True)
class Sample:
    """One case: [M, D, H, W] float32 z-scores, [D, H, W] classes, [D, H, W] bool."""

    image: Tensor
    label: Tensor
    brain: Tensor


def real_samples(folder: Path) -> list[Sample]:
    """The cases of a folder that have every modality and a tumor."""
    cases, _ = with_conventions(find_cases(folder, BRATS), BRATS)
    samples = []
    for case in cases:
        is_complete = set(case.scans) == set(BRATS.modality_names)
        if not is_complete or case.label is None:
            continue
        prepared, label = prepare_case(case, BRATS, SPEC, BRATS.modality_names)
        # Generated cases all have a tumor.
        if label.any():
            samples.append(Sample(prepared.image, label, prepared.brain))
    return samples


def generated_samples(count: int, plan: Generation, anatomy: Sequence[Path]) -> list[Sample]:
    """So many generated cases of a plan, with seeds of their own and a tumor in each."""
    plan = replace(plan, first_seed=FIRST_SEED, healthy=0.0)
    samples = []
    for number in range(count):
        case = make_case(number, plan, SPEC, anatomy)
        samples.append(Sample(case.image.float(), case.label, case.brain))
    return samples


def measures() -> dict[str, Callable[[Sample], float]]:
    """What is compared, by name; NaN where a case has none of the tissue."""
    functions: dict[str, Callable[[Sample], float]] = {}
    for m, modality in enumerate(BRATS.modalities):
        for index, tissue in enumerate(TISSUES):
            functions[f"{modality.title}, {tissue}: median z"] = _median_of(m, index)
        functions[f"{modality.title}, healthy: fine texture"] = _texture_of(m)
    for name, classes in (("WT", (1, 2, 3)), ("TC", (1, 3)), ("ET", (3,))):
        functions[f"{name}: ml"] = _volume_of(classes)
    functions["brain: ml"] = _brain_ml
    return functions


def _median_of(modality: int, label: int) -> Callable[[Sample], float]:
    def median(sample: Sample) -> float:
        is_tissue = sample.brain & (sample.label == label)
        values = sample.image[modality][is_tissue]
        if not len(values):
            return float("nan")
        return float(values.median())

    return median


def _texture_of(modality: int) -> Callable[[Sample], float]:
    """Standard deviation of what a mean over 3³ voxels takes away: noise and fine structure."""

    def texture(sample: Sample) -> float:
        scan = sample.image[modality][None, None]
        smooth = avg_pool3d(scan, 3, stride=1, padding=1)
        fine = (scan - smooth)[0, 0]
        is_healthy = sample.brain & (sample.label == 0)
        return float(fine[is_healthy].std())

    return texture


def _volume_of(classes: Sequence[int]) -> Callable[[Sample], float]:
    def volume_ml(sample: Sample) -> float:
        values = torch.tensor(classes, dtype=sample.label.dtype)
        voxels = torch.isin(sample.label, values).sum()
        return float(voxels) * SPEC.spacing**3 / 1000

    return volume_ml


def _brain_ml(sample: Sample) -> float:
    return float(sample.brain.sum()) * SPEC.spacing**3 / 1000


def distribution_table(real: Sequence[Sample], generated: Sequence[Sample]) -> list[str]:
    """Rows of a Markdown table: measure, real, generated, and the overlap of both.

    The overlap is the share of the generated cases that lie within the real 10th to 90th
    percentile; 80 % would be alike.
    """
    headings = ["", f"{len(real)} real", f"{len(generated)} generated", "generated within"]
    lines = table_head(headings)
    for name, function in measures().items():
        real_values = _finite([function(sample) for sample in real])
        generated_values = _finite([function(sample) for sample in generated])
        if not len(real_values) or not len(generated_values):
            continue
        low, high = np.percentile(real_values, (10, 90))
        is_within = (generated_values >= low) & (generated_values <= high)
        within = np.mean(is_within)
        cells = [
            name,
            _quantiles(real_values),
            _quantiles(generated_values),
            f"{within:.0%}",
        ]
        lines.append(table_row(cells))
    return lines


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.array(values)
    return array[np.isfinite(array)]


def _quantiles(values: np.ndarray) -> str:
    low, median, high = np.percentile(values, (10, 50, 90))
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def discriminator() -> nn.Module:
    """A small 3-D CNN that calls a patch real or generated."""
    layers: list[nn.Module] = []
    channels = len(BRATS.modalities)
    for width in (16, 32, 64):
        layers += [
            nn.Conv3d(channels, width, 3, stride=2, padding=1),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        ]
        channels = width
    layers += [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, 2)]
    return nn.Sequential(*layers)


def patch_of(sample: Sample, rng: np.random.Generator) -> Tensor:
    """[M, PATCH, PATCH, PATCH] around a random voxel of the brain."""
    voxels = sample.brain.nonzero()
    row = rng.integers(int(sample.brain.sum()))
    center = voxels[row].tolist()
    box = []
    for middle, size in zip(center, sample.brain.shape, strict=True):
        last_start = max(0, size - PATCH)
        start = int(np.clip(middle - PATCH // 2, 0, last_start))
        box.append(slice(start, start + PATCH))
    brain_image = sample.image * sample.brain
    part = brain_image[(slice(None), *box)]
    # A case may be smaller than the patch, which is filled up with background.
    _, depth, height, width = part.shape
    patch = torch.zeros(len(sample.image), PATCH, PATCH, PATCH)
    patch[:, :depth, :height, :width] = part
    return patch


def discriminate(
    real: Sequence[Sample], generated: Sequence[Sample], seed: int, steps: int = STEPS
) -> dict[str, float]:
    """Train on every other case and test on the rest.

    Returns:
        Share of the patches of unseen cases that are called right: real, generated, and their mean.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    kinds = (generated, real)
    network = discriminator()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        truth = torch.tensor([number % 2 for number in range(BATCH)])
        patches = []
        for kind in truth.tolist():
            training_cases = kinds[kind][0::2]
            number = int(rng.integers(len(training_cases)))
            sample = training_cases[number]
            patches.append(patch_of(sample, rng))
        loss = cross_entropy(network(torch.stack(patches)), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    accuracy = {}
    for kind, name in enumerate(("generated", "real")):
        # Every other case was trained on.
        accuracy[name] = _share_recognized(network, kinds[kind][1::2], kind, rng)
    accuracy["mean"] = (accuracy["generated"] + accuracy["real"]) / 2
    return accuracy


def _share_recognized(
    network: torch.nn.Module, samples: Sequence[Sample], kind: int, rng: np.random.Generator
) -> float:
    """Share of the patches of some samples that are taken for their kind."""
    shares = []
    for sample in samples:
        patches = [patch_of(sample, rng) for _ in range(TEST_PATCHES)]
        with torch.inference_mode():
            calls = network(torch.stack(patches)).argmax(1)
        is_right = calls == kind
        shares.append(float(is_right.float().mean()))
    return float(np.mean(shares))


def main() -> None:
    """Measure, write, print."""
    parser = script_parser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--anatomy", type=Path, default=None)
    parser.add_argument("--recipe", type=Path, required=True, help="whose generation is judged")
    parser.add_argument("--generated", type=int, default=100)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    arguments = parser.parse_args()
    anatomy = find_label_maps(arguments.anatomy) if arguments.anatomy else ()
    real = real_samples(arguments.cases)
    generation = Recipe.read(arguments.recipe).generation
    generated = generated_samples(arguments.generated, generation or Generation(), anatomy)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = "\n".join(distribution_table(real, generated))
    write_bytes(arguments.out / "distributions.md", table.encode())
    print(table, flush=True)
    results = {}
    for seed in arguments.seeds:
        results[seed] = discriminate(real, generated, seed, arguments.steps)
        print(seed, results[seed], flush=True)
    write_json(arguments.out / "discriminator.json", results)


if __name__ == "__main__":
    main()
