"""Brain extraction with deepbet (Fisch et al., Computers in Biology and Medicine 2024, 179:108845).

MIT license; its weights lie in its wheel, and nothing is downloaded. It is trained on T1 of healthy
adults.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from medmap.resampling import orientation_of
from medmap.volume import Volume

THRESHOLD = 0.5
"""Probability from which a voxel is brain; deepbet's default."""


def extract(volume: Volume) -> np.ndarray:
    """[I, J, K] bool: the brain, on the CPU. Raises ValueError if there is none."""
    model = _model()
    orientation = orientation_of(volume.grid)
    array = np.array(orientation.reorient(volume.array), np.float32, order="C")
    try:
        probability = model.run_model(array)
        mask = model.postprocess(probability > THRESHOLD)
    except AssertionError as error:
        # deepbet asserts that its coarse pass has found something.
        raise ValueError(str(error)) from error
    return np.ascontiguousarray(orientation.restore(np.asarray(mask, bool)))


@lru_cache(maxsize=1)
def _model() -> Any:
    # Imported on first use: it brings pandas along.
    from deepbet.bet import BrainExtraction

    return BrainExtraction(no_gpu=True)
