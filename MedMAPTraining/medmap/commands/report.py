"""``medmap report``: evaluations, bundles, runs and pictures to one HTML page and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from medmap import __version__
from medmap.bundle.format import METADATA
from medmap.bundle.loading import load_bundle
from medmap.commands.report_sections import SECTIONS
from medmap.commands.report_sources import Figures, Sources
from medmap.errors import InputDataError, MissingInputError, UsageError
from medmap.evaluation import Evaluation
from medmap.evaluation.store import ABOUT
from medmap.evaluation.tables import counted
from medmap.io.atomic import Transaction, check_output, make_folder
from medmap.report import html
from medmap.report.curves import read_log
from medmap.training.log import LOG
from medmap.training.run_task import has_task, logged_networks, task_of_run

Report = Callable[[float, str], None]


def read_sources(paths: Sequence[Path]) -> Sources:
    """Sort paths into evaluation folders, bundles, training runs and pictures.

    A run may also be its ``log.jsonl``, and may have several networks, for folds or modality
    subsets; pictures are PNG files or folders of PNG files.

    Raises:
        UsageError: a path is none of these.
        MissingInputError: there is no such file or folder.
    """
    sources = Sources()
    logs: list[tuple[str, Path]] = []
    for path in paths:
        networks = _logs_of_run(path)
        if (path / ABOUT).is_file():
            sources.evaluations.append(Evaluation.read(path))
        elif (path / METADATA).is_file():
            sources.bundles.append(load_bundle(path))
        elif networks:
            logs += networks
            if has_task(path):
                sources.run_tasks.append(task_of_run(path))
        elif path.suffix == ".jsonl":
            logs.append((path.absolute().parent.name, path))
        elif path.suffix.lower() == ".png" and path.is_file():
            sources.pictures.append(path)
        elif path.is_dir() and any(path.glob("*.png")):
            sources.pictures += sorted(path.glob("*.png"))
        else:
            _refuse(path)
    for name, path in logs:
        log = read_log(path, sources.task.modality_names)
        sources.logs.append(replace(log, name=name))
    return sources


def _refuse(path: Path) -> None:
    """Raises MissingInputError or UsageError for what is nothing to report on."""
    if not path.exists():
        raise MissingInputError(f"There is no {path}.", "Check its path.")
    raise UsageError(
        f"{path.name} is no evaluation, bundle, run or picture.",
        "Give folders that medmap evaluate wrote, bundles, training runs, or PNG files.",
    )


def _logs_of_run(run: Path) -> list[tuple[str, Path]]:
    """Name and log of each network of a run: ``run``, or ``run/fold_0`` and so on."""
    logs = []
    for name, folder in logged_networks(run).items():
        title = f"{run.absolute().name}/{name}".removesuffix("/")
        logs.append((title, folder / LOG))
    return logs


def write_report(
    paths: Sequence[Path],
    output: Path,
    *,
    title: str,
    figures: Path | None,
    overwrite: bool,
    report: Report,
    example_cases: Sequence[str] = (),
    example_subsets: Sequence[str] = (),
) -> Path:
    """Write the page, and every figure as a PNG where a folder is given, all or nothing.

    Args:
        paths: what to report on; see ``read_sources``.
        output: the page.
        title: of the page.
        figures: folder for every figure; None writes none.
        overwrite: replace files.
        report: called with the fraction done and a text.
        example_cases: names of the cases that are drawn; empty draws some, from the best to the
            worst.
        example_subsets: modality subsets that are drawn (``t1ce+flair``); empty draws all.

    Raises:
        UsageError: a path is nothing to report on, or a case or subset has no picture.
        InputDataError: the sources are of different tasks.
        OutputError: a file exists already or cannot be written.
    """
    check_output(output, overwrite=overwrite)
    sources = replace(
        read_sources(paths),
        example_cases=tuple(example_cases),
        example_subsets=tuple(example_subsets),
    )
    _check_task(sources)
    drawn = Figures()
    text = _page(sources, drawn, title, report)
    if figures:
        make_folder(figures)
    with Transaction(overwrite=overwrite) as out:
        out.path(output).write_text(text, encoding="utf-8")
        if figures:
            for name, data in drawn.pictures.items():
                out.path(figures / f"{name}.png").write_bytes(data)
    return output


def _check_task(sources: Sources) -> None:
    tasks = [evaluation.task for evaluation in sources.evaluations]
    tasks += [bundle.task for bundle in sources.bundles]
    for task in tasks:
        if task.modality_names != sources.task.modality_names:
            raise InputDataError("The report mixes tasks.", "Report on one task at a time.")


def _page(sources: Sources, figures: Figures, title: str, report: Report) -> str:
    sections = []
    for number, (heading, write) in enumerate(SECTIONS):
        report(number / len(SECTIONS), heading.lower())
        sections.append((heading, write(sources, figures)))
    evaluations = counted(len(sources.evaluations), "evaluation")
    lead = f"{evaluations}, written {datetime.now():%d %B %Y} by MedMAP {__version__}"
    foot = f"MedMAP {__version__}. This page holds everything it shows."
    return html.page(title, lead, sections, foot)
