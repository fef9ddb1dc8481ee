"""Dice on cases kept out of training, from the cache: what chooses the network that is exported."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from medmap.metrics import dice, region_masks
from medmap.networks import Backbone
from medmap.postprocess.decoding import most_probable
from medmap.preprocess import Prepared, PreprocessSpec, prepared_on_own_grid
from medmap.sliding_window import SlidingWindow
from medmap.task import Task
from medmap.training.cache import open_case
from medmap.training.export import inference_spec
from medmap.training.recipe import Recipe


class Validation:
    """Scores whole cases on the working grid, each modality encoded once, under several subsets.

    Each case is scored with all its modalities and with ``others`` further subsets, which go round
    from case to case, so that a cohort sees every subset while a case costs little; always the same
    ones, so that steps can be compared.

    Args:
        folders: prepared cases (``medmap.training.cache.cache_case``) that training never sees.
        task: of the data.
        recipe: whose preprocessing the cache has, and whose windows inference has.
        others: number of subsets, besides the full one, that each case is scored under.

    Attributes:
        cases: how many there are.
    """

    def __init__(self, folders: Sequence[Path], task: Task, recipe: Recipe, others: int = 3):
        self.folders = list(folders)
        self.task = task
        self.recipe = recipe
        self.others = others
        self.cases = len(self.folders)

    def score(self, network: Backbone, device: torch.device, case: int) -> dict[str, float]:
        """Mean Dice of one case over its subsets.

        Returns:
            Of each region by name, and of all regions as ``dice``.
        """
        stored = open_case(self.folders[case])
        brain = np.asarray(stored.brain).astype(bool)
        prepared = _padded(
            stored.dense_image(), stored.available, brain, network.stride, self.recipe.preprocess
        )
        # The cache stores class indices, regions are defined by label values.
        label_values = [label.value for label in self.task.labels]
        values = np.array([0, *label_values])
        reference_labels = values[np.asarray(stored.label)]
        reference_masks = region_masks(reference_labels, self.task)
        # Without the padding to a multiple of the network's stride.
        inside = tuple(slice(size) for size in stored.label.shape)
        scores: dict[str, list[float]] = {region.name: [] for region in self.task.regions}
        spec = inference_spec(self.recipe, network)
        windows = SlidingWindow(self.task, spec, network.stride, device)
        subsets = self._subsets(network, stored.available, case)
        for logits in windows.logits(network, prepared, subsets):
            classes = most_probable(logits.float()).numpy()[inside]
            # As inference does: outside the brain there is no tumor.
            labels = values[np.where(brain, classes, 0)]
            for name, mask in region_masks(labels, self.task).items():
                scores[name].append(dice(mask, reference_masks[name]))
        means = {name: float(np.mean(dices)) for name, dices in scores.items()}
        return {"dice": float(np.mean(list(means.values()))), **means}

    def _subsets(
        self, network: Backbone, available: np.ndarray, case: int
    ) -> list[tuple[str, ...]]:
        """All modalities of a case, and some of their subsets that the network takes, in turn."""
        names = []
        for name, is_available in zip(self.task.modality_names, available, strict=True):
            if is_available:
                names.append(name)
        smaller: list[tuple[str, ...]] = []
        for size in range(len(names) - 1, 0, -1):
            for subset in combinations(names, size):
                if self._taken(network, subset) is not None:
                    smaller.append(subset)
        subsets = [tuple(names)]
        count = min(self.others, len(smaller))
        for number in range(count):
            # In turn over the cases, so that every subset is validated on some of them.
            position = (case * self.others + number) % len(smaller)
            subsets.append(smaller[position])
        return [self._taken(network, subset) or subset for subset in subsets]

    def _taken(self, network: Backbone, subset: Sequence[str]) -> tuple[str, ...] | None:
        """What the network takes of a subset; None if it needs a modality that the subset lacks.

        A network made for one subset needs all of it and sees no other modality.
        """
        if network.needs is None:
            return tuple(subset)
        needed = tuple(self.task.modality_names[m] for m in sorted(network.needs))
        if not set(needed) <= set(subset):
            return None
        return needed


def _padded(
    image: np.ndarray,
    present: np.ndarray,
    brain: np.ndarray,
    stride: int,
    preprocess: PreprocessSpec,
) -> Prepared:
    """A prepared case with zeros behind it, up to sizes that the network takes."""
    sides: list[int] = []
    for axis in reversed(range(brain.ndim)):
        # Across slices nothing is halved.
        multiple = 1 if preprocess.slices and axis == 0 else stride
        sides += [0, -brain.shape[axis] % multiple]
    padded = pad(torch.from_numpy(image), sides)
    return prepared_on_own_grid(
        padded,
        torch.from_numpy(present),
        pad(torch.from_numpy(brain), sides),
        preprocess.spacing,
        slice_axis=0 if preprocess.slices else None,
    )
