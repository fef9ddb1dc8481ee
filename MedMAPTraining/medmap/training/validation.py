"""Dice on cases kept out of training, from the cache: what chooses the network that is exported."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from medmap.bundle.format import NetworkSpec
from medmap.bundle.loading import Bundle
from medmap.inference import Run
from medmap.metrics import dice, region_masks
from medmap.networks import Backbone
from medmap.postprocess import most_probable
from medmap.preprocess import Prepared, PreprocessSpec
from medmap.progress import ignore_progress, never_cancel
from medmap.task import Task
from medmap.training.cache import open_case
from medmap.training.export import inference_spec
from medmap.volume import Grid


class Validation:
    """Scores whole cases on the working grid, each scan encoded once, under several subsets of the scans.

    Each case is scored with all its scans and with ``others`` further subsets, which go round from case to case, so
    that a cohort sees every subset while a case costs little; always the same ones, so that steps can be compared.

    Args:
        folders: cached cases (``medmap.training.cache.cache_case``) that training never sees.
        task: of the data.
        preprocess: of the cache.
        others: how many subsets besides the full one a case is scored under.

    Attributes:
        cases: how many there are.
    """

    def __init__(
        self, folders: Sequence[Path], task: Task, preprocess: PreprocessSpec, others: int = 3
    ):
        self.folders, self.task, self.preprocess, self.others = (
            list(folders),
            task,
            preprocess,
            others,
        )
        self.cases = len(self.folders)

    def score(self, network: Backbone, device: torch.device, case: int) -> dict[str, float]:
        """Mean Dice of one case over its subsets: of each region by name, and of all regions as ``dice``."""
        stored = open_case(self.folders[case])
        brain = np.asarray(stored.brain).astype(bool)
        bundle = self._bundle(network)
        names = [
            name
            for name, here in zip(self.task.modality_names, stored.available, strict=True)
            if here
        ]
        subsets = self._subsets(names, case, bundle)
        prepared = _padded(
            stored.dense_image(), stored.available, brain, network.stride, self.preprocess
        )
        values = np.array([0, *(label.value for label in self.task.labels)])
        truth = region_masks(values[np.asarray(stored.label)], self.task)
        inside = tuple(slice(n) for n in stored.label.shape)
        scores: dict[str, list[float]] = {region.name: [] for region in self.task.regions}
        for logits in Run(bundle, device, ignore_progress, never_cancel).logits(prepared, subsets):
            classes = most_probable(logits.float()).numpy()[inside]
            for name, mask in region_masks(values[np.where(brain, classes, 0)], self.task).items():
                scores[name].append(dice(mask, truth[name]))
        means = {name: float(np.mean(found)) for name, found in scores.items()}
        return {"dice": float(np.mean(list(means.values()))), **means}

    def _bundle(self, network: Backbone) -> Bundle:
        spec, window = NetworkSpec(*network.built_from), inference_spec(self.preprocess, network)
        return Bundle("in-training", "", self.task, spec, self.preprocess, window, {}, network)

    def _subsets(self, names: Sequence[str], case: int, bundle: Bundle) -> list[tuple[str, ...]]:
        """All scans of a case, and some of their subsets that the network can do with, in turn."""
        smaller = [s for size in range(len(names) - 1, 0, -1) for s in combinations(names, size)]
        possible = [s for s in smaller if bundle.find_entry(s) is not None]
        turn = [
            possible[(case * self.others + n) % len(possible)]
            for n in range(min(self.others, len(possible)))
        ]
        return [tuple(names), *turn]


def _padded(
    image: np.ndarray,
    present: np.ndarray,
    brain: np.ndarray,
    stride: int,
    preprocess: PreprocessSpec,
) -> Prepared:
    """A cached case with zeros behind it up to sizes that the network takes."""
    slices = preprocess.slices
    behind = [-n % (1 if slices and axis == 0 else stride) for axis, n in enumerate(brain.shape)]
    sides = [side for n in reversed(behind) for side in (0, n)]
    padded = pad(torch.from_numpy(image), sides)
    grid = Grid(tuple(padded.shape[1:]), np.diag([*[preprocess.spacing] * 3, 1.0]))
    inside = pad(torch.from_numpy(brain), sides)
    return Prepared(
        padded, torch.from_numpy(present), inside, grid, "", grid, 0 if slices else None
    )
