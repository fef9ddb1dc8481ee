"""A recipe: everything that determines a training besides the data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from medmap.bundle.format import WEIGHTINGS
from medmap.errors import BundleError, MissingInputError, UsageError
from medmap.option_names import check_names, misfit
from medmap.phantom.cohorts import require_cohort
from medmap.phantom.tumor_kinds import require_probabilities
from medmap.postprocess.spec import PostprocessSpec, current_postprocess, earlier_postprocess
from medmap.preprocess import SCALINGS, PreprocessSpec
from medmap.training.dataset import Augmentation
from medmap.training.generated import Generation

SMALL_COMPONENT_REMOVAL = PostprocessSpec(
    min_component_ml=1.0, min_component_fraction=0.1, min_region_multiple=0.4
)
"""Small components are removed: of 123 BraTS tumors, 95 % have at most two components of more than
1 ml, and a smaller one beside a large tumor is mostly skull base or vessel. Less than 200 mm³ of
enhancement is mostly a vessel, too."""


@dataclass(frozen=True)
class WindowedInference:
    """Inference as the compared papers do it: windows of the training patch, averaged.

    Source: RFNet (Ding et al., ICCV 2021) and the lineage that PASSION and MedMAP train in: half
    overlap and a plain mean.

    Attributes:
        overlap: fraction of a window that neighbors share.
        weighting: ``uniform``, or ``gaussian``.
    """

    overlap: float = 0.5
    weighting: str = "uniform"


EARLIER_FIELDS = {"optimiser": "optimizer", "optimiser_options": "optimizer_options"}
"""Fields that were spelled otherwise in recipes of before version 0.2; both are read."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training besides the data.

    Attributes:
        about: for people: what it is, where its numbers come from, what is known of its results.
        task: of the data, as in ``medmap.task.TASKS``.
        network, network_options: backbone by name, as in ``medmap.networks.NETWORKS``.
        objective, objective_options: as in ``medmap.training.objectives.OBJECTIVES``.
        alignment: anchor, tap, alpha and the anchor's options
            (``medmap.training.objectives.WithAnchor``); empty aligns nothing. T* is a part of the
            network: its option ``stem`` (``medmap.networks.stem.with_stem``).
        missingness, missingness_options: as in ``medmap.training.missingness.PROTOCOLS``.
        subsets: modality subsets (``t1ce+flair``) that get a network each, from methods that make
            one per subset; empty: every subset, or one network for any.
        split: file, or name of a file in ``recipes/splits``, whose part ``train`` is trained on; ""
            trains on all.
        held_out_cases: cases kept out of training for objectives that learn on two levels: their
            names, or how many (drawn by the seed).
        steps: batches in all; an objective may take several optimizer steps on each.
        epoch_steps: batches per epoch (objectives update slow state at its end); 0 takes
            one pass over the cases.
        batch: patches per step, over all processes.
        accumulate: gradient accumulation: a step's patches go through the network in so many equal
            micro-batches, whose mean gradient is stepped. For batches that do not fit into memory;
            losses over a batch are then losses over a micro-batch.
        patch: voxels of a patch, multiples of the network's stride; two numbers where the
            preprocessing is in slices.
        large_patch, large_share: this share of the steps, spread evenly, uses patches this large:
            instance normalization takes its statistics over the patch, and inference passes whole
            brain volumes through in one.
        optimizer, optimizer_options: as in ``medmap.training.optimizers.OPTIMIZERS``, with keyword
            arguments of torch's class.
        learning_rate, weight_decay, schedule: of every optimizer group that states no others
            (``objectives.Group``); schedules as in ``SCHEDULES``.
        ema: decay of the exponential moving average of the weights, which is what is exported; 0
            exports the last.
        clip: largest norm of the gradient; 0 does not clip.
        seed: of weights, patches, augmentation and missingness.
        augmentation, preprocess, postprocess: how patches are augmented, and what the bundle does
            before and after.
        inference: windows of the bundle; None takes whole brain volumes or slices where memory
            suffices. Networks with instance normalization depend on the size of the window.
        generation: which cases are generated, for a training without cases on disk; None with cases
            alone.
        sources: weight of each source of samples by name (``medmap.training.sources.SOURCES``):
            ``cases``, ``tumor_free``, ``pseudo_healthy``, ``transplanted`` and ``generated``; empty
            takes every case alike, or generated ones where no cases are given.
    """

    about: str = ""
    task: str = "BraTS"
    network: str = "SubsetUNet"
    network_options: dict = field(default_factory=dict)
    objective: str = "plain"
    objective_options: dict = field(default_factory=dict)
    alignment: dict = field(default_factory=dict)
    missingness: str = "random-subset"
    missingness_options: dict = field(default_factory=dict)
    subsets: tuple[str, ...] = ()
    split: str = ""
    held_out_cases: int | tuple[str, ...] = 0
    steps: int = 6000
    epoch_steps: int = 0
    batch: int = 1
    accumulate: int = 1
    patch: tuple[int, ...] = (80, 80, 80)
    large_patch: tuple[int, ...] = (128, 144, 128)
    large_share: float = 0.2
    optimizer: str = "adamw"
    optimizer_options: dict = field(default_factory=dict)
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    ema: float = 0.998
    clip: float = 5.0
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    postprocess: PostprocessSpec = SMALL_COMPONENT_REMOVAL
    inference: WindowedInference | None = None
    generation: Generation | None = None
    sources: dict[str, float] = field(default_factory=dict)

    def digest(self) -> str:
        """Hash of what determines the training: a resumed run knows by it that it is the same."""
        content = {key: value for key, value in asdict(self).items() if key != "about"}
        # Under the names of the first version, so that runs begun with it go on.
        for earlier, field_name in EARLIER_FIELDS.items():
            content[earlier] = content.pop(field_name)
        content["postprocess"] = earlier_postprocess(self.postprocess.to_dict())
        # Fields that came later count only where they are used: older runs can be resumed.
        if not self.sources:
            del content["sources"]
        if self.preprocess.scaling == "zscore":
            del content["preprocess"]["scaling"]
        # Windows choose the validated network, hence what is exported.
        if self.inference is None:
            del content["inference"]
        if self.augmentation.standard is None:
            del content["augmentation"]["standard"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def patch_at(self, step: int) -> tuple[int, ...]:
        """Size of the patches of a step: every 1 / large_share-th is a large one."""
        large = int((step + 1) * self.large_share) > int(step * self.large_share)
        return self.large_patch if large else self.patch

    def micro_batch_size(self) -> int:
        """Patches of one micro-batch, over all processes.

        Raises UsageError if they do not come out even.
        """
        if self.batch % self.accumulate:
            raise UsageError(
                f"A batch of {self.batch} cannot be divided into {self.accumulate} equal "
                "micro-batches.",
                "Choose a batch that is a multiple of accumulate.",
            )
        return self.batch // self.accumulate

    def hold_out(self, case_ids: Sequence[str]) -> frozenset[str]:
        """Names of the cases that are kept out of training.

        Raises:
            UsageError: a name is not among the cases, or no case remains to train on.
        """
        if isinstance(self.held_out_cases, int):
            rng = np.random.default_rng([self.seed, len(case_ids)])
            order = rng.permutation(len(case_ids))[: self.held_out_cases]
            ordered = sorted(case_ids)
            names = tuple(ordered[n] for n in order)
        else:
            names = self.held_out_cases
        unknown = set(names) - set(case_ids)
        if unknown or len(names) >= len(case_ids):
            listed = ", ".join(sorted(unknown)) or str(len(names))
            raise UsageError(
                f"The recipe keeps {listed} of {len(case_ids)} cases out of training.",
                "Name cases of the data, and leave some to train on (held_out_cases).",
            )
        return frozenset(names)

    @staticmethod
    def from_dict(data: Mapping) -> Recipe:
        """A recipe from plain data.

        Raises:
            BundleError: it has no such field.
            TypeError: a value is of another type.
        """
        if not isinstance(data, Mapping):
            raise TypeError("it is no table of fields")
        names = [entry.name for entry in fields(Recipe)]
        stated = [EARLIER_FIELDS.get(key, key) for key in data]
        check_names("A recipe", "field", stated, names)
        nested: dict[str, Callable[..., object]] = {
            "augmentation": Augmentation.from_dict,
            "preprocess": PreprocessSpec,
            "postprocess": _postprocess,
            "inference": WindowedInference,
            "generation": Generation.from_dict,
        }
        values = {}
        for key, value in data.items():
            field_name = EARLIER_FIELDS.get(key, key)
            if field_name in nested and value is not None:
                values[field_name] = _built(field_name, nested[field_name], value)
            else:
                values[field_name] = value
        return Recipe(**_tuples(values))

    @staticmethod
    def read(path: str | Path) -> Recipe:
        """A recipe from a JSON file with these fields. Raises MissingInputError or BundleError."""
        try:
            return Recipe.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise MissingInputError(
                f"There is no recipe {Path(path).name}.", "Check the path of the recipe."
            ) from None
        except (ValueError, TypeError) as error:
            raise BundleError(
                f"The recipe {Path(path).name} cannot be read: {error}.",
                "Write a JSON object of fields, such as a recipe of medmap recipes.",
            ) from error


def _built(name: str, build: Callable[..., object], data: object) -> object:
    """A part of a recipe from plain data. Raises BundleError or TypeError."""
    if not isinstance(data, dict):
        raise TypeError(f"{name} is {data!r}, which is no table of fields")
    try:
        return build(**_tuples(data))
    except TypeError as error:
        raise misfit(f"The recipe's {name}", build, data, error) from error


def _postprocess(**data: float) -> PostprocessSpec:
    """Post-processing under today's or earlier names; numbers as written, for the digest."""
    return PostprocessSpec(**current_postprocess(data))


def _tuples(data: dict) -> dict:
    values = {}
    for key, value in data.items():
        values[key] = tuple(value) if isinstance(value, list) else value
    return values


def check_numbers(recipe: Recipe) -> None:
    """Refuse numbers that no training can be made with. Raises UsageError, naming the field."""
    _check_counts(recipe)
    _check_patches(recipe)
    _check_magnitudes(recipe)
    _check_shares(recipe)
    _check_names(recipe)
    _check_inference(recipe)
    if recipe.generation is not None:
        require_cohort(recipe.generation.style.cohort)
        require_probabilities(recipe.generation.style)


def _check_counts(recipe: Recipe) -> None:
    counts = {
        "steps": recipe.steps,
        "batch": recipe.batch,
        "accumulate": recipe.accumulate,
    }
    for name, value in counts.items():
        # Python counts True and False among the integers.
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < 1:
            raise UsageError(
                f"The recipe's {name} is {value!r}.", f"Give {name} as a whole number from 1 on."
            )


def _check_patches(recipe: Recipe) -> None:
    patches = {"patch": recipe.patch, "large_patch": recipe.large_patch}
    for name, patch in patches.items():
        is_sized = isinstance(patch, tuple) and len(patch) in (2, 3)
        if not is_sized or any(not isinstance(side, int) or side < 1 for side in patch):
            raise UsageError(
                f"The recipe's {name} is {patch!r}.", f"Give {name} as two or three whole numbers."
            )


def _check_magnitudes(recipe: Recipe) -> None:
    numbers = {
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "ema": recipe.ema,
        "clip": recipe.clip,
        "preprocess.spacing": recipe.preprocess.spacing,
    }
    for name, number in numbers.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number) or number < 0:
            raise UsageError(
                f"The recipe's {name} is {number!r}.",
                f"Give {name} as a number that is not negative.",
            )
    if recipe.preprocess.spacing == 0:
        raise UsageError("The recipe's preprocess.spacing is 0.", "Give it in mm.")


def _check_shares(recipe: Recipe) -> None:
    for name in ("ema", "large_share"):
        share = getattr(recipe, name)
        is_number = isinstance(share, int | float)
        if not is_number or not 0 <= share <= 1:
            raise UsageError(
                f"The recipe's {name} is {share!r}.",
                f"Give {name} within 0 and 1.",
            )


def _check_names(recipe: Recipe) -> None:
    if recipe.preprocess.scaling not in SCALINGS:
        raise UsageError(
            f"The recipe's preprocess.scaling is {recipe.preprocess.scaling!r}.",
            f"Use {' or '.join(SCALINGS)}.",
        )
    if recipe.schedule not in SCHEDULES:
        raise UsageError(
            f"The schedule '{recipe.schedule}' is unknown.", f"Use one of {', '.join(SCHEDULES)}."
        )


def _check_inference(recipe: Recipe) -> None:
    windows = recipe.inference
    if windows and not (windows.weighting in WEIGHTINGS and 0 <= windows.overlap < 1):
        raise UsageError(
            f"Inference cannot average windows by '{windows.weighting}', {windows.overlap} shared.",
            f"Use weighting {' or '.join(WEIGHTINGS)}, and an overlap from 0 to below 1.",
        )


def cosine(step: int, steps: int) -> float:
    """Linear warm-up over the first 2 % of the steps, then a cosine to zero.

    Source: Loshchilov and Hutter, ICLR 2017.
    """
    warm_up = max(1, steps // 50)
    if step < warm_up:
        return (step + 1) / warm_up
    decay_steps = max(1, steps - warm_up)
    angle = math.pi * (step - warm_up) / decay_steps
    return 0.5 * (1 + math.cos(angle))


def poly(step: int, steps: int) -> float:
    """(1 - step / steps)^0.9, the schedule of DeepLab and of most methods compared here."""
    return max(0.0, 1 - step / steps) ** 0.9


def constant(step: int, steps: int) -> float:
    """No decay."""
    return 1.0


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "cosine": cosine,
    "poly": poly,
    "constant": constant,
}
"""Factor on the learning rate, by (step, steps)."""


def learning_rate(base: float, schedule: str, step: int, steps: int) -> float:
    """The rate of a step. Raises UsageError for an unknown schedule."""
    if schedule not in SCHEDULES:
        raise UsageError(
            f"The schedule '{schedule}' is unknown.", f"Use one of {', '.join(SCHEDULES)}."
        )
    return base * SCHEDULES[schedule](step, steps)
