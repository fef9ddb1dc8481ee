"""Training without cases on disk: where generated patches come from."""

from __future__ import annotations

from pathlib import Path

from medmap.devices import resolve_device
from medmap.errors import UsageError
from medmap.io.atomic import make_folder
from medmap.phantom.labelmap import find_label_maps
from medmap.task import BRATS, Task
from medmap.training.checkpoint import load_checkpoint
from medmap.training.generated import GeneratedSampler, Generation
from medmap.training.missingness import build_missingness
from medmap.training.recipe import Recipe


def generated_patches(
    recipe: Recipe, task: Task, run: Path, device: str, anatomy: Path | None, process: int = 0
) -> GeneratedSampler:
    """Heads generated while training: on a GPU in its memory, on a CPU ahead of need under ``run/heads``.

    Args:
        recipe: its ``generation`` says which heads.
        task: BraTS.
        run: folder of the run; a checkpoint in it says where the training stands.
        device: as for ``medmap.devices.resolve_device``.
        anatomy: label map, or a folder of them; None makes procedural heads only.
        process: number of this process among those of the training.

    Raises:
        UsageError: another task.
        MissingInputError: there is no label map.
    """
    if task is not BRATS:
        raise UsageError(
            f"Patients of {task.name} are not generated while training.", "Give --data."
        )
    plan, place = recipe.generation or Generation(), resolve_device(device)
    names = [f"head-{n}" for n in range(plan.pool)]
    sampler = GeneratedSampler(
        plan,
        task,
        recipe.preprocess,
        build_missingness(recipe.missingness, task, recipe.missingness_options, names),
        recipe.seed,
        recipe.augmentation,
        anatomy=find_label_maps(anatomy) if anatomy else (),
        device=place,
        # Each process makes its own: two writers of one head would be in each other's way.
        folder=make_folder(run / f"heads{process or ''}") if place.type == "cpu" else None,
    )
    state = load_checkpoint(run)
    sampler.start_ahead(state["step"] if state else 0)
    return sampler
