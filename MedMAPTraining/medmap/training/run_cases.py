"""The cases of a run, written into its folder.

By them a resumed run notices that its cases changed, and a bundle knows what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medmap.bundle.training_cases import TrainingCases
from medmap.errors import BundleError
from medmap.io.atomic import write_json
from medmap.task import Task
from medmap.training.batch import Sampler
from medmap.training.cache import read_case_record
from medmap.training.dataset import PatchSampler
from medmap.training.generated import GeneratedSampler
from medmap.training.sources import MixedSampler

CASES = "cases.json"


@dataclass(frozen=True)
class RunCases:
    """Cases that a run trains on.

    Attributes:
        scans: hash (``scan_hash``) by modality of each case on disk, by the case's name.
        labels: hash of the prepared labels, by the case's name.
        generated: names of the modalities of generated cases, by the case's name.
        earlier: training cases of the bundle that the run starts from, and of the teacher.
    """

    scans: Mapping[str, Mapping[str, str]]
    labels: Mapping[str, str]
    generated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    earlier: tuple[TrainingCases, ...] = ()

    def write(self, run: Path) -> None:
        """Write ``cases.json``."""
        content = {
            "scans": {name: dict(hashes) for name, hashes in self.scans.items()},
            "labels": dict(self.labels),
            "generated": {name: list(names) for name, names in self.generated.items()},
            "earlier": [cases.to_dict() for cases in self.earlier],
        }
        write_json(run / CASES, content)

    @staticmethod
    def read(run: Path) -> RunCases | None:
        """What ``write`` wrote; None for a run of an earlier version.

        Raises:
            BundleError: the file is damaged.
        """
        path = run / CASES
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            earlier = tuple(TrainingCases.from_dict(entry) for entry in content["earlier"])
            return RunCases(
                dict(content["scans"]), dict(content["labels"]), dict(content["generated"]), earlier
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"{CASES} of the run {run.name} is damaged.", "Start the run again in a new folder."
            ) from error


def cases_of_sampler(
    sampler: Sampler, task: Task, held_out: Sequence[Path] = (), earlier: tuple = ()
) -> RunCases:
    """The cases behind a sampler.

    Args:
        sampler: of prepared cases, of generated ones, or of both.
        task: names the modalities.
        held_out: folders of prepared cases that an objective also learns from.
        earlier: training cases of bundles that the training starts from.
    """
    folders = list(held_out)
    for source in _sources(sampler):
        if isinstance(source, PatchSampler):
            folders += source.folders
    scans = {}
    labels = {}
    for folder in folders:
        record = read_case_record(folder)
        hashes = record.get("scans", {})
        scans[folder.name] = {name: hashes.get(name, "") for name in record["available"]}
        labels[folder.name] = record.get("label", "")
    generated = {}
    for source in _sources(sampler):
        if not isinstance(source, GeneratedSampler):
            continue
        for case_id in source.case_ids:
            pairs = zip(task.modality_names, source.missingness.available(case_id), strict=True)
            generated[case_id] = [name for name, is_shown in pairs if is_shown]
    return RunCases(scans, labels, generated, earlier)


def _sources(sampler: Sampler) -> list[Sampler]:
    """A sampler, or those that it mixes."""
    if isinstance(sampler, MixedSampler):
        return list(sampler.samplers.values())
    return [sampler]


def record_cases(run: Path, cases: RunCases) -> None:
    """Write the cases of a new run; compare them with those of a run that is resumed.

    Raises:
        BundleError: the run was started with other cases.
    """
    earlier = RunCases.read(run)
    if earlier is None:
        cases.write(run)
        return
    changes = _changes(earlier, cases)
    if changes:
        raise BundleError(
            f"The run {run.name} was started with other cases: {changes}.",
            "Train on the same cases, or start another run; it can begin with this one's weights.",
            option="run",
        )


def _changes(before: RunCases, now: RunCases) -> str:
    present = set(now.scans)
    earlier = set(before.scans)
    added = sorted(present - earlier)
    removed = sorted(earlier - present)
    changed = []
    for name in sorted(present & earlier):
        same_scans = dict(now.scans[name]) == dict(before.scans[name])
        same_label = now.labels[name] == before.labels[name]
        if not (same_scans and same_label):
            changed.append(name)
    texts = []
    for names, verb in ((added, "added"), (removed, "removed"), (changed, "changed")):
        if names:
            texts.append(f"{len(names)} {verb}, such as {names[0]}")
    return "; ".join(texts)


def training_cases(folds: Sequence[Sequence[RunCases]], task: Task) -> TrainingCases:
    """What a bundle of the networks of these runs remembers; each case counts once.

    Args:
        folds: per fold, the runs of its networks; one entry where there are no folds.
        task: orders the modalities.
    """
    all_runs: list[RunCases] = []
    for runs in folds:
        all_runs.extend(runs)
    cases = _joined(all_runs, task)
    if len(folds) == 1:
        return cases
    unseen = []
    for runs in folds:
        trained = _joined(runs, task).hashes
        unseen.append(cases.hashes - trained)
    return replace(cases, unseen=tuple(unseen))


def _joined(runs: Sequence[RunCases], task: Task) -> TrainingCases:
    modalities_of_case: dict[str, set[str]] = {}
    hashes: set[str] = set()
    earlier_modalities: set[str] = set()
    for run in runs:
        for case_id, scans in run.scans.items():
            modalities = modalities_of_case.setdefault(case_id, set())
            modalities.update(scans)
            hashes.update(text for text in scans.values() if text)
        for case_id, names in run.generated.items():
            modalities = modalities_of_case.setdefault(case_id, set())
            modalities.update(names)
        for cases in run.earlier:
            hashes |= cases.hashes
            earlier_modalities.update(cases.modalities)
    counts = {}
    for name in task.modality_names:
        counts[name] = sum(name in names for names in modalities_of_case.values())
    trained = []
    for name in task.modality_names:
        if counts[name] or name in earlier_modalities:
            trained.append(name)
    case_count = len(modalities_of_case)
    return TrainingCases(case_count, counts, tuple(trained), frozenset(hashes))
