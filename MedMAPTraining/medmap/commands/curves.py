"""``medmap curves``: the log of a training as one picture."""

from __future__ import annotations

from pathlib import Path

from medmap.errors import MissingInputError, UsageError
from medmap.io.atomic import check_output, write_bytes
from medmap.report.curves import modality_curves, read_log, training_curves
from medmap.training.log import LOG
from medmap.training.run_task import logged_networks, task_of_run


def draw_curves(run: Path, output: Path, *, losses: bool = False, overwrite: bool = False) -> Path:
    """Draw what a training logged of each modality over its steps, such as relative preference.

    Args:
        run: folder of a training, with ``recipe.json`` and ``log.jsonl``.
        output: the PNG file.
        losses: draw losses, validation and learning rate instead, as happens where no figures of
            modalities are logged.
        overwrite: replace it.

    Raises:
        MissingInputError: the folder holds no training.
        UsageError: it holds several, of folds or modality subsets.
        OutputError: the picture exists.
    """
    check_output(output, overwrite=overwrite)
    _check_run(run)
    task = task_of_run(run)
    log = read_log(run / LOG, task.modality_names)
    picture = None
    if not losses:
        titles = {modality.name: modality.title for modality in task.modalities}
        picture = modality_curves(log, titles)
    write_bytes(output, picture or training_curves(log, run.name))
    return output


def _check_run(run: Path) -> None:
    networks = logged_networks(run)
    if not networks:
        raise MissingInputError(
            f"{run} holds no training that has logged a step.",
            "Give the run folder of a training.",
        )
    if "" not in networks:
        names = ", ".join(networks)
        raise UsageError(
            f"{run.name} holds several trainings: {names}.",
            f"Give the folder of one of them, such as {run / next(iter(networks))}.",
        )
    if not (run / "recipe.json").is_file():
        raise MissingInputError(
            f"{run} holds no recipe.json.", "Give the run folder of a training."
        )
