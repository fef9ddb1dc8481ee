"""Factory of the sampler that generates synthetic cases while training."""

from __future__ import annotations

from pathlib import Path

from medmap.devices import resolve_device
from medmap.errors import UsageError
from medmap.io.atomic import make_folder
from medmap.phantom.labelmap import find_label_maps
from medmap.phantom.whole_head import require_label_maps
from medmap.task import BRATS, Task
from medmap.training.checkpoint import load_checkpoint
from medmap.training.generated import GeneratedSampler, Generation, make_case
from medmap.training.generated_heads import BRAIN_TASK, make_head_case
from medmap.training.missingness import build_missingness
from medmap.training.recipe import Recipe


def build_generated_sampler(
    recipe: Recipe, task: Task, run: Path, device: str, anatomy: Path | None, process: int = 0
) -> GeneratedSampler:
    """Sampler of synthetic cases: in the memory of a GPU, or ahead of need under ``run/heads``.

    Args:
        recipe: its ``generation`` says which cases.
        task: BraTS, or ``brain`` for whole heads.
        run: folder of the run; a checkpoint in it says where the training stands.
        device: as for ``medmap.devices.resolve_device``.
        anatomy: label map, or a folder of them; None makes procedural anatomy only.
        process: number of this process among those of the training.

    Raises:
        UsageError: another task, or whole heads without label maps.
        MissingInputError: there is no label map.
    """
    make = make_case
    if task.name == BRAIN_TASK:
        make = make_head_case
        # Said here and not by the process that makes cases ahead.
        require_label_maps(find_label_maps(anatomy) if anatomy else ())
    elif task.name != BRATS.name:
        raise UsageError(
            f"Cases of {task.name} cannot be generated while training.",
            "Give a folder of cases.",
            option="data",
        )
    plan = recipe.generation or Generation()
    torch_device = resolve_device(device)
    names = [f"head-{n}" for n in range(plan.pool)]
    missingness = build_missingness(recipe.missingness, task, recipe.missingness_options, names)
    folder = None
    if torch_device.type == "cpu":
        # One folder per process: two writers of one case would overwrite each other.
        folder = make_folder(run / f"heads{process or ''}")
    sampler = GeneratedSampler(
        plan,
        task,
        recipe.preprocess,
        missingness,
        recipe.seed,
        recipe.augmentation,
        anatomy=find_label_maps(anatomy) if anatomy else (),
        device=torch_device,
        folder=folder,
        make=make,
    )
    state = load_checkpoint(run)
    sampler.start_ahead(state["step"] if state else 0)
    return sampler
