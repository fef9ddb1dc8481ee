"""Options of ``medmap train`` besides the folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medmap.training.options import RuntimeOptions


@dataclass(frozen=True)
class BundleOptions:
    """What a bundle says of itself.

    Attributes:
        name: of the bundle; empty names it after its row or run, and its weights.
        version: of the bundle.
        data_statement: description of the training data, for the model card.
        author: who trained it.
        license: under which it may be used.
        overwrite: replace an existing bundle.
    """

    name: str = ""
    version: str = "1.0.0"
    data_statement: str = "not stated"
    author: str = ""
    license: str = ""
    overwrite: bool = False


@dataclass(frozen=True)
class CacheOptions:
    """Where prepared cases lie.

    Attributes:
        folder: of the cache; None takes ``$MEDMAP_CACHE``, or the user's folder for caches.
        budget_gb: largest size in gigabytes; None takes ``$MEDMAP_CACHE_GB``, or 200.
        processes: that prepare cases; None takes one per core.
    """

    folder: Path | None = None
    budget_gb: float | None = None
    processes: int | None = None


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``medmap train`` besides the folders; see its help.

    Attributes:
        runtime: how the training is run (device, precision, workers and so on).
        bundle: what the bundle says of itself.
        cache: where prepared cases lie.
        fold: number of the split's fold, or ``all`` for one network per fold; None for a split
            without folds.
        labels: convention of the label files' values; empty decides by the cohort.
        affine, assume_orientation: how the files are read, as for ``read_nifti``.
        task: name or file of the task; None takes the one of the bundle, the run or the recipe.
    """

    recipe: str | Path | None = None
    split: str | None = None
    fold: str | None = None
    teacher: Path | None = None
    subsets: tuple[str, ...] = ()
    start: Path | None = None
    anatomy: Path | None = None
    steps: int | None = None
    seed: int | None = None
    labels: str = ""
    affine: str | None = None
    assume_orientation: bool = False
    task: str | None = None
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    bundle: BundleOptions = field(default_factory=BundleOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
