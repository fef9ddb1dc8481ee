"""``medmap cohort describe``: a cohort in numbers, from files to files."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError
from medmap.evaluation.cohort_description import CohortDescription, describe_cohort
from medmap.io.atomic import Transaction, make_folder
from medmap.io.cohorts import find_cases
from medmap.progress import Cancel, Progress
from medmap.report.upset import upset_plot
from medmap.task import Task


@dataclass(frozen=True)
class DescribeOptions:
    """Options of ``medmap cohort describe``; see its help."""

    output: Path | None = None
    sites: Path | None = None
    with_intensities: bool = True
    overwrite: bool = False


def describe(
    source: Path, task: Task, options: DescribeOptions, progress: Progress, cancel: Cancel
) -> CohortDescription:
    """Describe a cohort; writes ``cohort.json`` and ``modalities.png`` where a folder is given.

    Raises:
        MissingInputError: no cohort, or no table of sites.
        InputDataError: a case has no site.
        OutputError: the files exist or cannot be written.
    """
    sites = None
    if options.sites:
        sites = read_sites(options.sites)
    description = describe_cohort(
        find_cases(source, task),
        task,
        sites,
        with_intensities=options.with_intensities,
        progress=progress,
        cancel=cancel,
    )
    if options.output:
        make_folder(options.output)
        with Transaction(overwrite=options.overwrite) as out:
            text = json.dumps(description.to_dict(), indent=1) + "\n"
            out.path(options.output / "cohort.json").write_text(text, encoding="utf-8")
            picture = upset_plot(description.subsets, task)
            out.path(options.output / "modalities.png").write_bytes(picture)
    return description


def read_sites(path: Path) -> dict[str, str]:
    """Site by case, from a CSV table with the columns ``case`` and ``site``.

    Raises:
        MissingInputError: the table cannot be read.
        InputDataError: it lacks the columns.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(
            f"The table {path.name} cannot be read ({error}).", "Check the path."
        ) from error
    dialect = csv.Sniffer().sniff(text, ",;\t") if text.strip() else csv.excel
    rows = list(csv.DictReader(text.splitlines(), dialect=dialect))
    sites = {}
    for row in rows:
        cells = {(key or "").strip().lower(): (value or "").strip() for key, value in row.items()}
        if not cells.get("case") or not cells.get("site"):
            break
        sites[cells["case"]] = cells["site"]
    if not rows or len(sites) < len(rows):
        raise InputDataError(
            f"The table {path.name} lacks cases or sites.",
            "Write the columns case and site, one row for each case.",
        )
    return sites
