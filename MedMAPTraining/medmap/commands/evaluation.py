"""``medmap evaluate`` and ``medmap compare``: scores, tables, tests and the bundle's card."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from medmap import __version__
from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle, load_bundle, update_card
from medmap.commands.comparison import ScoredCohort, comparison_record, scores_of, write_tests
from medmap.commands.evaluation_cases import (
    Assignment,
    assigned_cases,
    training_cases_among,
    training_warning,
)
from medmap.commands.exchanged_images import fed
from medmap.devices import resolve_device
from medmap.errors import Cancelled, InputDataError, MedMAPError, MissingInputError, UsageError
from medmap.evaluation import (
    PairedTest,
    ScoredCase,
    Store,
    Summary,
    compare,
    identity,
    score_case,
    summarize,
    write_rows,
)
from medmap.evaluation.scoring import (
    NO_FURTHER_SCORES,
    FurtherScores,
    check_same_labels,
    labels_hash,
    settings_text,
)
from medmap.evaluation.store import COMPARISON
from medmap.io.atomic import check_output
from medmap.io.cohorts import Case, find_cohort
from medmap.io.labels import LabelReading, with_conventions
from medmap.progress import Cancel, Progress, never_cancel
from medmap.report.slices import Slice, take_slice
from medmap.task import Task
from medmap.training.published import find_split
from medmap.training.splits import earlier_scorings, ledger, note_scored

DEFAULT_PART = "val"
"""Part of a split that is scored unless another one is asked for."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``medmap evaluate`` besides data and bundle; see its help.

    Attributes:
        feed: modality -> the one whose image is given in its place.
        part: of the split; empty stands for ``val``.
        fold: number of the split's fold; None for a split without folds.
        cross_validate: score each fold's validation part with the ensemble's member that was not
            trained on it.
    """

    output: Path | None = None
    table: Path | None = None
    split: Path | None = None
    part: str | None = None
    feed: Mapping[str, str] = field(default_factory=dict)
    fold: int | None = None
    cross_validate: bool = False
    against: Path | None = None
    data_statement: str = "not stated"
    update_card: bool = False
    limits: str = ""
    pictures: bool = True
    overwrite: bool = False
    device: str = "auto"
    further: FurtherScores = NO_FURTHER_SCORES
    labels: str = ""
    affine: str | None = None
    assume_orientation: bool = False

    @property
    def scored_part(self) -> str:
        """The part of the split that is scored; empty where all cases are."""
        if self.split is None:
            return ""
        return self.part or DEFAULT_PART


@dataclass(frozen=True)
class Evaluated:
    """Result of ``medmap evaluate``.

    Attributes:
        task: of the bundle.
        summary: the tables.
        tests: paired tests against another evaluation, if there is one.
        warnings: what a user has to know.
        scoring: how many times the test split has been scored with these weights; empty for other
            parts.
        labels: how the values of the reference labels were read, and why.
    """

    task: Task
    summary: Summary
    tests: list[PairedTest]
    warnings: list[str]
    scoring: str = ""
    labels: str = ""


def evaluate_bundle(
    data: Path,
    bundle: Path | None,
    options: EvaluateOptions,
    report: Progress,
    cancel: Cancel = never_cancel,
) -> Evaluated:
    """Score a bundle on a cohort; writes folder, CSV and card where asked.

    Raises:
        InputDataError: cases cannot be scored (the others are, and stay in the output folder), or
            the split names cases that do not exist.
        OutputError: folder or CSV cannot be written, or the folder holds another evaluation.
        Cancelled: ``cancel`` returned True; scored cases stay in the output folder.
    """
    _check_part(options)
    if options.table:
        check_output(options.table, overwrite=True)
    if options.split is not None:
        options = replace(options, split=find_split(options.split))
    path = bundle or default_bundle_path()
    loaded = load_bundle(path)
    weights = identity(path)
    assignments, reading, notice = _assignments(data, loaded, options)
    # Read before hours of scoring: a file that is no evaluation is refused now.
    other = None
    if options.against:
        other = scores_of(options.against)
    store = _open_store(options, weights)
    count = len(assignments)
    warnings = _note_test_scoring(options, loaded.id, weights, count, store)
    if notice:
        warnings.append(notice)
    trained = training_cases_among(assignments, report)
    if trained:
        warnings.append(training_warning(trained, count))
        statement = f"{options.data_statement}; {len(trained)} of {count} are training cases"
        options = replace(options, data_statement=statement)
    scoring = _scoring(options, weights)
    scores = _score_all(assignments, options, store, report, cancel)
    if store and store.changed:
        warnings.append(_changed_warning(store.changed))
    summary = replace(
        summarize(scores.rows, loaded.task, options.data_statement),
        part=options.scored_part,
        borrowed=borrowed_networks(loaded),
    )
    tests = []
    if other is not None:
        check_same_labels(scores.labels, other.labels)
        tests = compare(scores.rows, other.rows, loaded.task)
    result = Evaluated(loaded.task, summary, tests, warnings, scoring, reading.statement)
    _write(result, scores, loaded, weights, path, options, store)
    return result


def _open_store(options: EvaluateOptions, weights: str) -> Store | None:
    """The output folder, where one was asked for."""
    if options.output is None:
        return None
    settings = settings_text(options.further)
    if options.cross_validate:
        settings += " by fold"
    return Store(options.output, weights, overwrite=options.overwrite, settings=settings)


def _assignments(
    data: Path, bundle: Bundle, options: EvaluateOptions
) -> tuple[list[Assignment], LabelReading, str]:
    """What is scored with what, how its labels are read, and what was left out of the cohort."""
    cohort = find_cohort(
        data,
        bundle.task,
        affine=options.affine,
        assume_orientation=options.assume_orientation,
    )
    chosen = assigned_cases(
        cohort.cases,
        data.name,
        bundle,
        options.split,
        part=options.scored_part,
        fold=options.fold,
        cross_validate=options.cross_validate,
    )
    chosen_cases = [case for case, _ in chosen]
    if options.feed:
        chosen_cases = [fed(case, options.feed, bundle.task) for case in chosen_cases]
    cases, reading = with_conventions(chosen_cases, bundle.task, options.labels)
    bundles = [member for _, member in chosen]
    return list(zip(cases, bundles, strict=True)), reading, cohort.warning


def _check_part(options: EvaluateOptions) -> None:
    """A part without a split would be ignored, and all cases scored as if they were that part."""
    if options.part and options.split is None:
        raise UsageError(
            f"The part {options.part} was asked for, but no split was given.",
            "Give the split file, or leave the part out to score all cases.",
            option="split",
        )
    if options.cross_validate and (options.part or options.fold is not None):
        raise UsageError(
            "A cross-validation scores the validation parts of all folds.",
            "Leave part and fold out.",
        )


def _changed_warning(cases: Sequence[str]) -> str:
    examples = ", ".join(cases[:3])
    return (
        f"Files had changed since they were scored, so {len(cases)} case(s) were scored again: "
        f"{examples}."
    )


def borrowed_networks(bundle: Bundle) -> dict[str, str]:
    """Subsets without a network of their own -> the subset whose network segments them."""
    borrowed = {}
    for subset in bundle.task.table_order():
        entry = bundle.find_entry(subset)
        if entry is not None and set(entry.modalities) != set(subset):
            key = bundle.task.subset_key(subset)
            borrowed[key] = bundle.task.subset_key(entry.modalities)
    return borrowed


def _note_test_scoring(
    options: EvaluateOptions, bundle: str, weights: str, cases: int, store: Store | None
) -> list[str]:
    """Record that the test split is scored, and warn where it was scored before.

    Resuming a stopped evaluation does not count as another scoring.
    """
    if options.split is None or options.scored_part != "test":
        return []
    if store is not None and store.resumed:
        return []
    earlier = earlier_scorings(options.split, weights)
    warnings = []
    if earlier:
        warnings.append(
            f"Test was scored {len(earlier)} time(s) before with these weights, first on "
            f"{earlier[0]['when']}. "
            "Choose between models on the validation part; report the first scoring of test."
        )
    try:
        note_scored(options.split, bundle=bundle, identity=weights, cases=cases)
    except OSError:
        warnings.append(
            "The scoring of test could not be recorded beside the split: its folder is read-only."
        )
    return warnings


def _scoring(options: EvaluateOptions, weights: str) -> str:
    """How many times test has been scored with these weights, now included; empty otherwise."""
    if options.split is None or options.scored_part != "test":
        return ""
    count = len(earlier_scorings(options.split, weights))
    if not count:
        return "Scoring of test, not recorded: the split's folder is read-only."
    return f"Scoring {count} of test with these weights, by {ledger(options.split).name}."


def _score_all(
    chosen: Sequence[Assignment],
    options: EvaluateOptions,
    store: Store | None,
    report: Progress,
    cancel: Cancel,
) -> ScoredCohort:
    """Scores of every case; those that were stored before are not computed again."""
    device = str(resolve_device(options.device))
    scores = ScoredCohort([], {})
    failures: list[tuple[str, MedMAPError]] = []
    cases = [case for case, _ in chosen]
    for n, (case, bundle) in enumerate(chosen):
        if cancel():
            remedy = "Nothing was written."
            if store:
                remedy = "Run the same command again to resume."
            raise Cancelled(f"Stopped after {n} of {len(cases)} cases.", remedy)
        report(n / len(cases), f"{case.case_id} ({n + 1} of {len(cases)})")
        stored = store.done(case) if store else None
        if stored is not None:
            scores.rows.extend(stored.rows)
            scores.labels[case.case_id] = stored.labels
            continue
        try:
            scored = score_case(case, bundle, device, options.further)
        except (InputDataError, MissingInputError, UsageError) as error:
            failures.append((case.case_id, error))
            continue
        labels = labels_hash(scored.reference.array)
        if store:
            store.add(case, scored.rows, _picture(case, scored, options), labels)
        scores.rows.extend(scored.rows)
        scores.labels[case.case_id] = labels
    if failures:
        raise _failure(failures, len(cases), store is not None)
    return scores


def _picture(case: Case, scored: ScoredCase, options: EvaluateOptions) -> Slice | None:
    """The slice for the report, unless pictures are not wanted."""
    if not options.pictures:
        return None
    return take_slice(case.case_id, scored.volumes, scored.reference, scored.predictions)


def _failure(failures: list[tuple[str, MedMAPError]], cases: int, stored: bool) -> MedMAPError:
    """A table over fewer cases than were asked for would be a different one: none is written."""
    examples = " ".join(f"{case}: {error.cause}" for case, error in failures[:3])
    if len(failures) > 3:
        examples += " ..."
    remedies = {(error.remedy, error.option) for _, error in failures}
    option = None
    remedy = "Correct or remove them and run again"
    if len(remedies) == 1:
        common, option = remedies.pop()
        remedy = common.removesuffix(".")
    if stored:
        remedy += "; the other cases are kept and not scored again"
    return InputDataError(
        f"{len(failures)} of {cases} cases could not be scored. {examples}", f"{remedy}.", option
    )


def _write(
    result: Evaluated,
    scores: ScoredCohort,
    bundle: Bundle,
    weights: str,
    path: Path,
    options: EvaluateOptions,
    store: Store | None,
) -> None:
    """Write what was asked for: the folder's tables, the CSV of scores, the bundle's card."""
    comparison = comparison_record(result.tests, options.against)
    if store:
        about = _about(result, bundle, weights, options)
        about["labels"] = scores.labels
        about.update(comparison)
        store.finish(about, bundle.task, scores.rows, result.summary)
        if result.tests:
            write_tests(store.folder / COMPARISON, result.tests)
    if options.table:
        write_rows(options.table, scores.rows)
    if options.update_card:
        card = {"dice": result.summary.to_dict(), **comparison}
        if options.limits:
            card["limits"] = options.limits
        update_card(path, card)


def _about(
    result: Evaluated, bundle: Bundle, weights: str, options: EvaluateOptions
) -> dict[str, object]:
    """What was evaluated, when and with what."""
    networks = dict.fromkeys(entry.network_spec.name for entry in bundle.entries)
    return {
        "bundle": bundle.id,
        "weights": weights,
        "network": ", ".join(networks),
        "data": options.data_statement,
        "part": options.scored_part,
        "feed": dict(options.feed),
        "scoring": result.scoring,
        "label_convention": result.labels,
        "device": options.device,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "medmap": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
