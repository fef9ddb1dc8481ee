"""How far apart the modalities lie in a network's latent space: distances, a two-sample test, and a map to look at.

Latents of different networks have different scales and widths, so all measures are relative: they compare modalities
with the spread inside a modality, or with chance.
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
from medmap.preprocess import prepare
from medmap.resampling import to_grid
from medmap.training.alignment import foreground

MOST_FOR_MMD = 500


@dataclass(frozen=True)
class Latents:
    """Latent vectors of the same places in every modality.

    Attributes:
        values: [N, C] float64 by modality name; row n is the same place everywhere.
        case: [N] which case a place is of.
        tumor: [N] bool, where at least a quarter is whole tumor of the reference labels (False without labels).
    """

    values: dict[str, np.ndarray]
    case: np.ndarray
    tumor: np.ndarray


def default_tap(network: Backbone) -> str:
    """Where T* stands, or ``mod_bottleneck``, or ``stem``: the latents that an anchor aligns."""
    if getattr(network, "place", "") == "input" or "mod_bottleneck" not in network.provides:
        return "stem"
    return "mod_bottleneck"


@torch.inference_mode()
def collect_latents(
    bundle: Bundle,
    cases: Sequence[Case],
    *,
    tap: str | None = None,
    places: int = 200,
    seed: int = 0,
) -> Latents:
    """Encode every modality of every case by itself, and keep some of the brain's voxels.

    Args:
        bundle: its preprocessing and its network that takes every modality.
        cases: those that lack a modality of the task are left out.
        tap: ``stem`` or ``mod_bottleneck``; None: ``default_tap``.
        places: at most so many voxels of the latents per case.
        seed: which voxels.

    Raises:
        InputDataError: no case has every modality.
        UsageError: the network has no such tap a modality.
    """
    network, task = bundle.entry_for(bundle.task.modality_names).network.eval(), bundle.task
    tap, rng = tap or default_tap(network), np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in task.modality_names}
    owner, tumor = [], []
    for number, case in enumerate(c for c in cases if set(task.modality_names) <= set(c.scans)):
        prepared = prepare(
            case.read(task.modality_names), task, bundle.preprocess, multiple=bundle.stride
        )
        flat = {}
        for m, name in enumerate(task.modality_names):
            z = network.latent(network.encode(prepared.image[None, m : m + 1], m), tap)
            inside = foreground(prepared.brain[None], z)[0].flatten().nonzero().flatten().numpy()
            flat[name] = z[0].flatten(1).T.double().numpy()
        chosen = rng.permutation(inside)[:places]
        for name, values in flat.items():
            rows[name].append(values[chosen])
        owner.append(np.full(len(chosen), number))
        tumor.append(_tumor(case, prepared, z.shape[2:]).flatten()[chosen])
    if not owner:
        raise InputDataError(
            "No case has every modality of the task.", "Latents are compared at the same places."
        )
    values = {name: np.concatenate(parts) for name, parts in rows.items()}
    return Latents(values, np.concatenate(owner), np.concatenate(tumor))


def _tumor(case: Case, prepared, size: Sequence[int]) -> np.ndarray:
    """[*size] bool: where at least a quarter of a latent's voxel is labeled."""
    if case.label is None:
        return np.zeros(size, bool)
    label = read_nifti(case.label, modality="seg")
    share = to_grid((label.array > 0).astype(np.float32), label.grid, prepared.grid)
    return (interpolate(share[None, None], size=tuple(size), mode="area")[0, 0] >= 0.25).numpy()


def gap_measures(latents: Latents, seed: int = 0) -> dict:
    """All measures, JSON-ready.

    Returns:
        ``centroid_distance``, ``mmd`` and ``two_sample_accuracy``, each ``{"mean", "pairs": {"t1-t2": ...}}``, and
        ``paired_distance`` (mean), see the functions.
    """
    found: dict = {}
    for name, measure in (
        ("centroid_distance", lambda a, b: centroid_distance(a, b)),
        ("mmd", lambda a, b: mmd(a, b, seed)),
        ("two_sample_accuracy", lambda a, b: two_sample_accuracy(a, b, latents.case)),
        ("paired_distance", lambda a, b: paired_distance(a, b)),
    ):
        pairs = {
            f"{i}-{j}": measure(latents.values[i], latents.values[j])
            for i, j in combinations(latents.values, 2)
        }
        found[name] = {"mean": float(np.mean(list(pairs.values()))), "pairs": pairs}
    return {**found, "places": len(latents.case), "cases": len(np.unique(latents.case))}


def centroid_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Distance of the means over the root of the mean variance inside a and b, per channel root mean square.

    0: same mean; 1: means as far apart as a modality is wide.
    """
    spread = (a.var(0) + b.var(0)).mean() / 2
    return float(np.sqrt(((a.mean(0) - b.mean(0)) ** 2).mean() / max(spread, 1e-12)))


def mmd(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Square of the maximum mean discrepancy, unbiased (Gretton et al., JMLR 2012, Eq. 3), of standardized channels.

    Gaussian kernel with the median of all distances as its width. About 0 for equal distributions, at most about 1.
    """
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([a, b])
    a, b = ((x - pooled.mean(0)) / (pooled.std(0) + 1e-12) for x in (a, b))
    a, b = (x[rng.permutation(len(x))[:MOST_FOR_MMD]] for x in (a, b))
    both = np.concatenate([a, b])
    square = np.maximum((both**2).sum(1)[:, None] + (both**2).sum(1)[None] - 2 * both @ both.T, 0)
    width = np.median(square[np.triu_indices(len(both), 1)])
    kernel = np.exp(-square / max(width, 1e-12))
    n, m = len(a), len(b)
    within = (kernel[:n, :n].sum() - n) / (n * (n - 1)) + (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within - 2 * kernel[:n, n:].mean())


def two_sample_accuracy(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> float:
    """How well a linear classifier tells a from b on places it has not seen: 0.5 is chance, 1 is apart.

    A classifier two-sample test (Lopez-Paz and Oquab, ICLR 2017) with logistic regression and up to five folds that
    keep ``groups`` (cases, [N] each) together; with one group only, folds are contiguous parts of it.
    """
    x, y = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    owner = np.concatenate([groups, groups])
    if len(np.unique(owner)) < 2:
        owner = np.concatenate([np.arange(len(a)) * 5 // len(a), np.arange(len(b)) * 5 // len(b)])
    guess = np.zeros(len(y), int)
    for train, test in GroupKFold(min(5, len(np.unique(owner)))).split(x, y, owner):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        guess[test] = model.fit(x[train], y[train]).predict(x[test])
    return float(balanced_accuracy_score(y, guess))


def paired_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean square between the same places of a and b after each channel of each is standardized: what L_A acts on.

    0: alike everywhere; 2: unrelated.
    """
    a, b = ((x - x.mean(0)) / (x.std(0) + 1e-12) for x in (a, b))
    return float(((a - b) ** 2).mean())


def tsne_map(
    latents: Latents, *, points: int = 300, seed: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two dimensions by t-SNE (van der Maaten and Hinton, 2008) of standardized latents of all modalities together.

    Args:
        latents: see ``collect_latents``.
        points: at most so many places.
        seed: which places, and t-SNE's own.

    Returns:
        [P, 2] by modality name, and [P] bool: inside the tumor.
    """
    chosen = np.random.default_rng(seed).permutation(len(latents.case))[:points]
    stacked = np.concatenate([values[chosen] for values in latents.values.values()])
    stacked = StandardScaler().fit_transform(stacked)
    perplexity = min(30.0, (len(stacked) - 1) / 3)
    flat = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(stacked)
    parts = np.split(flat, len(latents.values))
    return dict(zip(latents.values, parts, strict=True)), latents.tumor[chosen]
