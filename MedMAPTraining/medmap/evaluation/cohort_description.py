"""What a cohort consists of, in numbers: who has which modalities, and how sites differ.

Nothing here identifies a patient: results hold counts and percentiles of sites, no names of cases,
no paths, and no voxel. A description may leave the hospital that the images may not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medmap.errors import InputDataError, MedMAPError
from medmap.io.cohorts import Case
from medmap.progress import Cancel, Progress, ignore_progress, never_cancel
from medmap.task import Task

FEWEST_CASES = 3
"""Sites with fewer cases of a modality get no intensities: those would be of single patients."""

PERCENTILES = (1, 50, 99)

ALL_CASES = "all"
"""The site of every case where no sites are known."""


@dataclass(frozen=True)
class IntensityRange:
    """Intensities of one modality at one site.

    Attributes:
        cases: number of cases.
        percentiles: medians over cases of the 1st, 50th and 99th percentile within the brain.
        spacing_mm: [3] median voxel size along i, j, k.
    """

    cases: int
    percentiles: tuple[float, ...]
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class CohortDescription:
    """A cohort in numbers.

    Attributes:
        task: its modalities.
        cases: number of cases.
        labeled: number of cases with reference labels.
        unusable: number of cases that cannot be used as they lie there.
        subsets: number of cases by modality subset (``Task.subset_key``), most frequent first.
        sites: number of cases by site, largest first.
        available: number of cases that have a modality, by site and modality.
        intensities: by site and modality; without modalities of fewer than ``FEWEST_CASES`` cases.
        unreadable: number of scans that could not be read.
    """

    task: Task
    cases: int
    labeled: int
    unusable: int
    subsets: dict[str, int]
    sites: dict[str, int]
    available: dict[str, dict[str, int]]
    intensities: dict[str, dict[str, IntensityRange]] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def missing_rates(self) -> dict[str, float]:
        """Share of the cases that lack a modality, by modality: ``rates`` of the protocol fixed."""
        rates = {}
        for name in self.task.modality_names:
            available = sum(site[name] for site in self.available.values())
            missing_rate = 1 - available / self.cases
            rates[name] = round(missing_rate, 4)
        return rates

    @property
    def missingness(self) -> dict:
        """The part of a recipe that gives a complete cohort the missing rates of this one."""
        return {
            "missingness": "fixed",
            "missingness_options": {"rates": self.missing_rates, "seed": 0},
        }

    def to_dict(self) -> dict:
        """JSON-ready form."""
        intensities = {}
        for site, modalities in self.intensities.items():
            entries = {}
            for name, values in modalities.items():
                entries[name] = {
                    "cases": values.cases,
                    "percentiles": list(values.percentiles),
                    "spacing_mm": list(values.spacing_mm),
                }
            intensities[site] = entries
        return {
            "task": self.task.name,
            "cases": self.cases,
            "labeled": self.labeled,
            "unusable": self.unusable,
            "subsets": self.subsets,
            "sites": self.sites,
            "available": self.available,
            "missing_rates": self.missing_rates,
            "recipe": self.missingness,
            "percentiles": list(PERCENTILES),
            "intensities": intensities,
            "unreadable": self.unreadable,
        }


def describe_cohort(
    cases: Sequence[Case],
    task: Task,
    sites: Mapping[str, str] | None = None,
    *,
    with_intensities: bool = True,
    progress: Progress = ignore_progress,
    cancel: Cancel = never_cancel,
) -> CohortDescription:
    """Count modalities, and measure intensities, of a cohort.

    Args:
        cases: of one cohort.
        task: names the modalities.
        sites: site by case; None for one site.
        with_intensities: also read every scan.
        progress: called with the completed fraction and a text, which names no case.
        cancel: asked before every case; True stops the reading.

    Raises:
        InputDataError: there is no case, or a case has no site.
    """
    if not cases:
        raise InputDataError("The cohort has no case.", "Check the folder.")
    site_of = _sites_of(cases, sites)
    counted_sites = Counter(site_of.values())
    subsets = Counter(task.subset_key(case.scans) for case in cases)
    available = _availability(cases, task, site_of, counted_sites)
    intensities: dict[str, dict[str, IntensityRange]] = {}
    unreadable = 0
    if with_intensities:
        measured, unreadable = _measure(cases, site_of, progress, cancel)
        intensities = _ranges(measured, available)
    return CohortDescription(
        task=task,
        cases=len(cases),
        labeled=sum(case.label is not None for case in cases),
        unusable=sum(bool(case.fault) for case in cases),
        subsets=dict(subsets.most_common()),
        sites=dict(counted_sites.most_common()),
        available=available,
        intensities=intensities,
        unreadable=unreadable,
    )


def _availability(
    cases: Sequence[Case], task: Task, site_of: Mapping[str, str], counted_sites: Counter[str]
) -> dict[str, dict[str, int]]:
    """Number of cases with each modality, by site; the largest site first."""
    available: dict[str, dict[str, int]] = {}
    for site, _ in counted_sites.most_common():
        available[site] = dict.fromkeys(task.modality_names, 0)
    for case in cases:
        counts = available[site_of[case.case_id]]
        for name in case.scans:
            counts[name] += 1
    return available


def _sites_of(cases: Sequence[Case], sites: Mapping[str, str] | None) -> dict[str, str]:
    if sites is None:
        return {case.case_id: ALL_CASES for case in cases}
    absent = [case for case in cases if case.case_id not in sites]
    if absent:
        raise InputDataError(
            f"{len(absent)} of {len(cases)} cases have no site in the table.",
            "Add them to the table of sites.",
        )
    # The table may name more cases than the cohort has.
    return {case.case_id: sites[case.case_id] for case in cases}


@dataclass(frozen=True)
class _Measurement:
    """One scan: [3] percentiles within the brain, and [3] voxel size in mm."""

    percentiles: np.ndarray
    spacing_mm: np.ndarray


Measurements = dict[tuple[str, str], list[_Measurement]]
"""By site and modality."""


def _measure(
    cases: Sequence[Case], site_of: Mapping[str, str], progress: Progress, cancel: Cancel
) -> tuple[Measurements, int]:
    """Read every scan, one at a time; also returns the number of those that cannot be read."""
    measured: Measurements = {}
    unreadable = 0
    for number, case in enumerate(cases):
        if cancel():
            break
        progress(number / len(cases), f"reading case {number + 1} of {len(cases)}")
        for name in case.scans:
            try:
                volume = case.read([name])[name]
            except MedMAPError:
                unreadable += 1
                continue
            inside = volume.array[volume.foreground]
            if not inside.size:
                unreadable += 1
                continue
            entry = _Measurement(np.percentile(inside, PERCENTILES), volume.grid.spacing)
            measured.setdefault((site_of[case.case_id], name), []).append(entry)
    return measured, unreadable


def _ranges(
    measured: Measurements, available: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, IntensityRange]]:
    """Medians over the cases of each site that has enough of them."""
    ranges: dict[str, dict[str, IntensityRange]] = {}
    for site, modalities in available.items():
        for name in modalities:
            entries = measured.get((site, name), [])
            # A range of a few cases says more about these cases than about the site.
            if len(entries) >= FEWEST_CASES:
                site_ranges = ranges.setdefault(site, {})
                site_ranges[name] = _range(entries)
    return ranges


def _range(entries: Sequence[_Measurement]) -> IntensityRange:
    """Medians over the cases of one site and modality."""
    percentiles = np.median([entry.percentiles for entry in entries], axis=0)
    spacing = np.median([entry.spacing_mm for entry in entries], axis=0)
    return IntensityRange(
        cases=len(entries),
        percentiles=tuple(float(f"{value:.4g}") for value in percentiles),
        spacing_mm=tuple(round(float(value), 3) for value in spacing),
    )
