"""Brain extraction with MedMAP's own network: a bundle of the task ``brain``, for any contrast.

It needs nothing besides PyTorch. The bundle is made by ``medmap train brain_extraction_cpu``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from medmap.bundle.loading import Bundle, load_bundle
from medmap.mask_parts import largest_parts
from medmap.preparation.availability import brain_bundle_path
from medmap.preprocess import prepare
from medmap.resampling import resample_linear
from medmap.sliding_window import SlidingWindow
from medmap.tensors import from_array, to_array
from medmap.volume import Volume


def extract(volume: Volume) -> np.ndarray:
    """[I, J, K] bool: the brain.

    Raises:
        ValueError: there is no model.
        BundleError: the model is damaged.
    """
    path = brain_bundle_path()
    if path is None:
        raise ValueError("There is no brain extraction model.")
    return extract_with(_bundle(path), volume)


@lru_cache(maxsize=1)
def _bundle(path: Path) -> Bundle:
    return load_bundle(path)


def extract_with(bundle: Bundle, volume: Volume) -> np.ndarray:
    """[I, J, K] bool: the brain, by a loaded bundle of the task ``brain``."""
    task = bundle.task
    name = task.modality_names[0]
    prepared = prepare({name: volume}, task, bundle.preprocess, multiple=bundle.stride)
    windows = SlidingWindow(task, bundle.inference, bundle.stride, torch.device("cpu"))
    logits = next(windows.logits(bundle.network, prepared, [(name,)]))
    class_probabilities = torch.softmax(logits, 0)
    # Everything but class 0, the background.
    probability = class_probabilities[1:].sum(0)
    # Parts and cavities are decided on the coarse grid, where that is fast; the surface is
    # interpolated from probabilities, so that it is finer than the grid.
    is_brain = to_array(probability) > 0.5
    largest = largest_parts(is_brain, prepared.grid.spacing.tolist(), LEAST_PART)
    body = from_array(filled(largest))
    probability = torch.where(body, probability.clamp(min=CAVITY), probability)
    is_separate_part = ~body & (probability > 0.5)
    probability = torch.where(is_separate_part, 0.0, probability)
    on_scan = resample_linear(probability[None], prepared.grid, volume.grid)[0]
    return to_array(on_scan > 0.5)


LEAST_PART = 0.3
"""Share of the largest part that others must have. A slab may show two hemispheres or a cerebellum
apart; what looks like brain in the throat was 7 % of the brain."""

CAVITY = 0.51
"""Probability that cavities in the brain are raised to: just brain."""


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask and what it encloses: all that no path outside the mask connects with the faces."""
    outside = np.zeros(mask.shape, bool)
    for axis in range(3):
        for end in (slice(0, 1), slice(-1, None)):
            side = [slice(None)] * 3
            side[axis] = end
            face = tuple(side)
            outside[face] |= ~mask[face]
    # Flooding from the faces: what the flood does not reach is enclosed.
    free = from_array(~mask)[None, None].float()
    reached = from_array(outside)[None, None].float()
    count = -1.0
    while float(reached.sum()) > count:
        count = float(reached.sum())
        # Several steps between counts: counting costs as much as a step.
        for _ in range(FLOOD_STEPS):
            spread = torch.nn.functional.max_pool3d(reached, 3, 1, 1)
            reached = spread * free
    return to_array(reached[0, 0]) == 0


FLOOD_STEPS = 16
"""Voxels by which the outside grows between two checks of whether it still does."""
