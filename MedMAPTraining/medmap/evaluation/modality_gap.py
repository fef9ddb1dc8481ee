"""The gap between modalities in a network's latent space: distances, a two-sample test, and a map.

Latents of different networks have different scales and widths, so all measures are relative: they
compare modalities with the spread inside a modality, or with chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import interpolate

from medmap.bundle.loading import Bundle
from medmap.errors import InputDataError
from medmap.io.cohorts import Case
from medmap.io.nifti import read_nifti
from medmap.networks import Backbone
from medmap.networks.base import Features
from medmap.preprocess import Prepared, prepare
from medmap.resampling import to_grid
from medmap.task import Task
from medmap.training.alignment import foreground

MOST_FOR_MMD = 500


@dataclass(frozen=True)
class Latents:
    """Latent vectors of sampled voxels, the same ones in every modality.

    Attributes:
        values: [N, C] float64 by modality name; row n is the same sampled voxel in all.
        case: [N] number of the case that a voxel is of.
        tumor: [N] bool, whether at least a quarter of the voxel is whole tumor of the reference
            labels (False without labels).
    """

    values: dict[str, np.ndarray]
    case: np.ndarray
    tumor: np.ndarray


def default_tap(network: Backbone) -> str:
    """The latents that an anchor aligns.

    T*'s or ``mod_bottleneck``; the network's bottleneck where there is no anchor.
    """
    if getattr(network, "location", "") == "input":
        return "stem"
    for tap in ("mod_bottleneck", "stem", "bottleneck"):
        if tap in network.provides:
            return tap
    return "stem"


@torch.inference_mode()
def collect_latents(
    bundle: Bundle,
    cases: Sequence[Case],
    *,
    tap: str | None = None,
    places: int = 200,
    seed: int = 0,
) -> Latents:
    """Encode every modality of every case by itself, and sample voxels of the brain.

    Args:
        bundle: its preprocessing and its network that takes every modality.
        cases: those that lack a modality of the task are left out.
        tap: ``stem`` or ``mod_bottleneck``, latents of one modality; or any other tap of the
            network, such as ``bottleneck`` or ``decoder``, of a pass that is given that modality
            alone. None: ``default_tap``.
        places: at most so many voxels of the latents per case.
        seed: of the sampling.

    Raises:
        InputDataError: no case has every modality.
        UsageError: the network has no such tap.
    """
    task = bundle.task
    network = bundle.entry_for(task.modality_names).network.eval()
    tap = tap or default_tap(network)
    rng = np.random.default_rng(seed)
    complete = [case for case in cases if set(task.modality_names) <= set(case.scans)]
    if not complete:
        raise InputDataError(
            "No case has every modality of the task.",
            "Use cases with all modalities: latents are compared at the same voxels.",
        )
    values: dict[str, list[np.ndarray]] = {name: [] for name in task.modality_names}
    case_numbers = []
    tumor = []
    for number, case in enumerate(complete):
        scans = case.read(task.modality_names)
        prepared = prepare(scans, task, bundle.preprocess, multiple=bundle.stride)
        latents = _latents_of(network, prepared, task, tap)
        example = latents[task.modality_names[-1]]
        size = example.shape[2:]
        # The same voxels in every modality: their latents are compared in pairs.
        inside = foreground(prepared.brain[None], example)[0]
        indices = inside.flatten().nonzero()
        inside_indices = indices.flatten().numpy()
        sampled = rng.permutation(inside_indices)[:places]
        for name, latent in latents.items():
            values[name].append(_vectors(latent)[sampled])
        case_numbers.append(np.full(len(sampled), number))
        is_tumor = _tumor(case, prepared, size).flatten()
        tumor.append(is_tumor[sampled])
    return Latents(
        {name: np.concatenate(parts) for name, parts in values.items()},
        np.concatenate(case_numbers),
        np.concatenate(tumor),
    )


def _vectors(latent: torch.Tensor) -> np.ndarray:
    """[1, C, *S] -> [N, C] float64: one vector per voxel."""
    return latent[0].flatten(1).T.double().numpy()


def _latents_of(
    network: Backbone, prepared: Prepared, task: Task, tap: str
) -> dict[str, torch.Tensor]:
    """[1, C, *S] of each modality encoded by itself."""
    latents = {}
    # Before the fusion a latent is of one modality; taps behind it need a decoding.
    is_of_one_modality = tap in ("stem", "mod_bottleneck") or tap not in network.provides
    for m, name in enumerate(task.modality_names):
        image = prepared.image[None, m : m + 1]
        features = network.encode(image, m)
        if is_of_one_modality:
            latents[name] = network.latent(features, tap)
        else:
            latents[name] = _tap_alone(network, features, m, len(task.modalities), tap)
    return latents


def _tap_alone(
    network: Backbone, features: Features, modality: int, count: int, tap: str
) -> torch.Tensor:
    """A tap behind the fusion where the network is given one modality and nothing else."""
    present = torch.zeros(1, count, dtype=torch.bool)
    present[0, modality] = True
    single_features: list[Features | None] = [None] * count
    single_features[modality] = features
    output = network.decode(single_features, present, (tap,))
    value = output.taps[tap]
    if isinstance(value, list):
        return next(tensor for tensor in value if tensor is not None)
    return value


def _tumor(case: Case, prepared: Prepared, size: Sequence[int]) -> np.ndarray:
    """[*size] bool: where at least a quarter of a latent's voxel is labeled."""
    if case.label is None:
        return np.zeros(size, bool)
    label = read_nifti(case.label, modality="seg")
    mask = (label.array > 0).astype(np.float32)
    fraction = to_grid(mask, label.grid, prepared.grid)
    averaged = interpolate(fraction[None, None], size=tuple(size), mode="area")
    coarse = averaged[0, 0]
    # Half would miss tumors that are thinner than a latent's voxel.
    return (coarse >= 0.25).numpy()


def gap_measures(latents: Latents, seed: int = 0) -> dict:
    """All measures, JSON-ready.

    Returns:
        ``centroid_distance``, ``mmd``, ``two_sample_accuracy`` and ``paired_distance``, each
        ``{"mean", "pairs": {"t1-t2": ...}}`` (see the functions), and the numbers of ``places``
        (sampled voxels) and ``cases``.
    """
    pairs: dict[str, dict[str, float]] = {
        "centroid_distance": {},
        "mmd": {},
        "two_sample_accuracy": {},
        "paired_distance": {},
    }
    for first, second in combinations(latents.values, 2):
        a = latents.values[first]
        b = latents.values[second]
        key = f"{first}-{second}"
        pairs["centroid_distance"][key] = centroid_distance(a, b)
        pairs["mmd"][key] = mmd(a, b, seed)
        pairs["two_sample_accuracy"][key] = two_sample_accuracy(a, b, latents.case)
        pairs["paired_distance"][key] = paired_distance(a, b)
    measures: dict = {}
    for name, values in pairs.items():
        mean = np.mean(list(values.values()))
        measures[name] = {"mean": float(mean), "pairs": values}
    measures["places"] = len(latents.case)
    measures["cases"] = len(np.unique(latents.case))
    return measures


def centroid_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of the means of [N, C] a and b, over the root of the mean variance inside them.

    Root mean square over channels. 0: same mean; 1: means as far apart as a modality is wide.
    """
    spread = (a.var(0) + b.var(0)).mean() / 2
    return float(np.sqrt(((a.mean(0) - b.mean(0)) ** 2).mean() / max(spread, 1e-12)))


def mmd(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Square of the maximum mean discrepancy of [N, C] a and b, with standardized channels.

    Unbiased (Gretton et al., JMLR 2012, Eq. 3), Gaussian kernel with the median of all distances as
    its width. About 0 for equal distributions, at most about 1.
    """
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([a, b])
    a = _standardized(a, pooled)
    b = _standardized(b, pooled)
    # Memory and time grow with the square of the number.
    chosen_a = rng.permutation(len(a))[:MOST_FOR_MMD]
    chosen_b = rng.permutation(len(b))[:MOST_FOR_MMD]
    n = len(chosen_a)
    m = len(chosen_b)
    kernel = _gaussian_kernel(np.concatenate([a[chosen_a], b[chosen_b]]))
    # Unbiased: without the diagonal, which is 1.
    within_a = (kernel[:n, :n].sum() - n) / (n * (n - 1))
    within_b = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    between = kernel[:n, n:].mean()
    return float(within_a + within_b - 2 * between)


def _gaussian_kernel(values: np.ndarray) -> np.ndarray:
    """[N, N] Gaussian kernel of [N, C] values; its width is the median of their distances."""
    squares = (values**2).sum(1)
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x y; rounding may leave it a little below 0.
    sums = squares[:, None] + squares[None]
    expanded = sums - 2 * values @ values.T
    distances = np.maximum(expanded, 0)
    pairs = np.triu_indices(len(values), 1)
    # Equal values have a width of zero: the kernel is 1 for them, not NaN.
    width = max(np.median(distances[pairs]), 1e-12)
    return np.exp(-distances / width)


def _standardized(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Values with the mean and deviation of the reference taken out, per channel."""
    return (values - reference.mean(0)) / (reference.std(0) + 1e-12)


def two_sample_accuracy(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> float:
    """Domain-classifier accuracy on held-out voxels of [N, C] a and b: 0.5 is chance, 1 separable.

    A classifier two-sample test (Lopez-Paz and Oquab, ICLR 2017) with logistic regression and up to
    five folds that keep ``groups`` (cases, [N]) together; with one group only, folds are contiguous
    parts of it.
    """
    x = np.concatenate([a, b])
    y = np.repeat([0, 1], [len(a), len(b)])
    owner = np.concatenate([groups, groups])
    if len(np.unique(owner)) < 2:
        # Neighboring voxels are nearly equal: at random, a voxel's twin would be trained on.
        owner = np.concatenate([_fifths(len(a)), _fifths(len(b))])
    fold_count = min(5, len(np.unique(owner)))
    folds = GroupKFold(fold_count)
    predicted = np.zeros(len(y), int)
    for train, test in folds.split(x, y, owner):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        model.fit(x[train], y[train])
        predicted[test] = model.predict(x[test])
    # Balanced: one modality may have more voxels than the other.
    return float(balanced_accuracy_score(y, predicted))


def paired_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean square between a and b [N, C] at the same voxels, each channel standardized.

    This is what L_A acts on. 0: alike everywhere; 2: unrelated.
    """
    difference = _standardized(a, a) - _standardized(b, b)
    return float((difference**2).mean())


def _fifths(count: int) -> np.ndarray:
    """[count] numbers 0 to 4: five contiguous parts."""
    return np.arange(count) * 5 // count


def tsne_map(
    latents: Latents, *, points: int = 300, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two dimensions by t-SNE of standardized latents of all modalities together.

    Source: van der Maaten and Hinton, JMLR 2008.

    Args:
        latents: see ``collect_latents``.
        points: at most so many voxels.
        seed: of the choice of voxels, and of t-SNE.

    Returns:
        [P, 2] by modality name, and [P] bool: inside the tumor.
    """
    rng = np.random.default_rng(seed)
    sampled = rng.permutation(len(latents.case))[:points]
    # One map of all modalities: maps of their own could not be compared.
    sampled_values = [values[sampled] for values in latents.values.values()]
    stacked = np.concatenate(sampled_values)
    standardized = StandardScaler().fit_transform(stacked)
    # It must stay below the number of points; 30 is scikit-learn's default.
    perplexity = min(30.0, (len(standardized) - 1) / 3)
    # Begun from principal components: a random start would turn the map with every seed.
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    positions = tsne.fit_transform(standardized)
    parts = np.split(positions, len(latents.values))
    by_modality = dict(zip(latents.values, parts, strict=True))
    return by_modality, latents.tumor[sampled]
