"""Do the chosen volumes fit together: grids, fields of view, skull-stripping. Nothing is changed.

Everything is compared in world space, parent transforms included. Grids come from the nodes
alone; checks of voxels look at every second or third one, so that they take well under a second
and can run whenever a slot changes. The checks with all voxels on Apply (``medmap.checks``) have
the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from medmap import checks
from medmap.checks import Check, Finding, describe_grid
from medmap.errors import MedMAPError
from medmap.preparation.plan import PreparationPlan
from medmap.task import Task
from medmap.volume import Grid, Volume, apply_affine, choose_reference

from .sampling import gridOf, sampledVolume

MIN_COVERAGE = 0.80
"""Less than this fraction of the reference's brain within another field of view is a warning."""
MAX_BRAIN_SAMPLES = 20_000
"""Coverage is measured at about this many voxels of the brain."""
LEVELS = ("error", "warning", "info")
"""Most severe first."""
SIGNS = {"info": "", "warning": "\u26a0 ", "error": "\u26d4 "}
"""Signs before a finding, by level."""

SKULL_STRIPPERS = {
    "HDBrainExtractionTool": "HD Brain Extraction",
    "HDBrainExtraction": "HD Brain Extraction",
    "NeuroStrip": "NeuroStrip",
    "SwissSkullStripper": "Swiss Skull Stripper",
}
"""Slicer modules that remove the skull, by module name, in order of preference."""


@dataclass(frozen=True)
class GeometryReport:
    """Result of the checks.

    Attributes:
        reference: modality whose grid the others are compared with; None without a usable volume.
        findings: errors first, then warnings, then information; empty if all is well.
        resampled: modalities that lie on another grid than the reference.
        notStripped: modalities that do not look skull-stripped.
        skullStrippers: (module name, title) of installed modules that can help; filled only if some
            volume needs it.
    """

    reference: str | None
    findings: tuple[Finding, ...]
    resampled: tuple[str, ...] = ()
    notStripped: tuple[str, ...] = ()
    skullStrippers: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """All findings, one line each; empty if there are none."""
        lines = []
        for finding in self.findings:
            lines.append(f"{SIGNS[finding.level]}{finding.message} {finding.remedy}".rstrip())
        return "\n".join(lines)


def installedSkullStrippers(moduleNames: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(module name, title) of the installed skull-stripping modules, the preferred one first."""
    names = set(moduleNames)
    return tuple((name, title) for name, title in SKULL_STRIPPERS.items() if name in names)


def checkGeometry(
    nodes: Mapping[str, Any],
    task: Task,
    reference: str | None = None,
    moduleNames: Iterable[str] = (),
    plan: PreparationPlan | None = None,
) -> GeometryReport:
    """Check the chosen volumes against each other.

    Args:
        nodes: modality name -> volume node (``Inputs.used``).
        task: gives titles and order.
        reference: modality that gives the output geometry; None takes the finest grid.
        moduleNames: names of all installed Slicer modules, to offer skull-stripping.
        plan: what will be done to the volumes first; its steps mend what they are for.
    """
    volumes, findings = _readVolumes(nodes, task)
    grids = {name: gridOf(nodes[name]) for name in volumes}
    if not grids:
        return GeometryReport(None, tuple(findings))
    if reference not in grids:
        reference = choose_reference(grids)
    resampled = []
    for name, grid in grids.items():
        if name != reference and not _sameGrid(grids[reference], grid):
            resampled.append(name)
            findings.append(_gridFinding(task, reference, name, grids))
    findings += _coverageFindings(task, reference, resampled, volumes, grids)
    findings += _voxelFindings(task, volumes, plan)
    notStripped: list[str] = []
    for finding in findings:
        if finding.check == "skull-strip":
            notStripped.extend(finding.modalities)
    offers = installedSkullStrippers(moduleNames) if notStripped else ()
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return GeometryReport(reference, tuple(findings), tuple(resampled), tuple(notStripped), offers)


def _readVolumes(nodes: Mapping[str, Any], task: Task) -> tuple[dict[str, Volume], list[Finding]]:
    """Sampled volumes of the readable nodes, and an error for each of the others."""
    volumes: dict[str, Volume] = {}
    findings: list[Finding] = []
    for name in task.modality_names:
        node = nodes.get(name)
        if node is None:
            continue
        try:
            volumes[name] = sampledVolume(node)
        except MedMAPError as error:
            findings.append(Finding("error", "unreadable", error.cause, error.remedy, (name,)))
    return volumes, findings


def _sameGrid(grid: Grid, other: Grid) -> bool:
    voxel = float(min(grid.spacing.min(), other.spacing.min()))
    return grid.distance(other) <= checks.SAME_GRID_VOXELS * voxel


def _gridFinding(task: Task, reference: str, name: str, grids: Mapping[str, Grid]) -> Finding:
    grid = grids[name]
    referenceGrid = grids[reference]
    sameSpacing = np.allclose(grid.spacing, referenceGrid.spacing, rtol=0.01)
    if grid.shape == referenceGrid.shape and sameSpacing:
        difference = f"up to {grid.distance(referenceGrid):.1f} mm apart"
    else:
        difference = f"{describe_grid(grid)} instead of {describe_grid(referenceGrid)}"
    message = (
        f"{task.modality(name).title} lies on another grid than {task.modality(reference).title} "
        f"({difference}): it will be resampled."
    )
    return Finding("info", "grid", message, "", (name,))


def _coverageFindings(
    task: Task,
    reference: str,
    resampled: Sequence[str],
    volumes: Mapping[str, Volume],
    grids: Mapping[str, Grid],
) -> list[Finding]:
    """Volumes whose field of view leaves out much of the reference's brain.

    On one grid nothing can be left out.
    """
    voxels = np.argwhere(volumes[reference].foreground)
    if not len(voxels) or not resampled:
        return []
    voxels = voxels[:: max(1, len(voxels) // MAX_BRAIN_SAMPLES)]
    structure = task.organ if task.skull_stripped else "body"
    world = volumes[reference].grid.world(voxels)
    findings = []
    for name in resampled:
        fraction = _fractionInside(world, grids[name])
        if fraction < MIN_COVERAGE:
            message = (
                f"The field of view of {task.modality(name).title} covers {fraction:.0%} of the "
                f"{structure} in {task.modality(reference).title}."
            )
            remedy = "Outside it, the result rests on the other volumes alone."
            findings.append(Finding("warning", "field-of-view", message, remedy, (name,)))
    return findings


def _fractionInside(world: np.ndarray, grid: Grid) -> float:
    """Fraction of [N, 3] world points within a grid, half a voxel around the centers included."""
    ijk = apply_affine(np.linalg.inv(grid.affine), world)
    inside = (ijk >= -0.5) & (ijk <= np.array(grid.shape) - 0.5)
    return float(inside.all(axis=1).mean())


def _voxelFindings(
    task: Task, volumes: Mapping[str, Volume], plan: PreparationPlan | None
) -> list[Finding]:
    """Findings of the core's checks of voxels.

    What they refuse is an error here, and the others still run. Titles stand for names, because
    messages show them. Scans that will be prepared are checked again then, with all voxels: a head
    with its skull does not look like the brain that it will be.
    """
    titled = {task.modality(name).title: volume for name, volume in volumes.items()}
    names = {task.modality(name).title: name for name in volumes}
    extracted: set[str] = set()
    changed: set[str] = set()
    if plan is not None:
        extracted = set(plan.extract)
        changed = {*plan.extract, *plan.align}
    findings: list[Finding] = []
    for title, otherTitle in combinations(titled, 2):
        pair = {title: titled[title], otherTitle: titled[otherTitle]}
        pairNames = (names[title], names[otherTitle])
        duplicates = _run(checks.check_same_image, "same-image", pair, task, pairNames)
        findings += duplicates
        # Identical images overlap completely: one finding is enough.
        if not duplicates and not changed.intersection(pairNames):
            findings += _run(checks.check_overlap, "overlap", pair, task, pairNames)
    stripped = {title: v for title, v in titled.items() if names[title] not in extracted}
    for title, volume in stripped.items():
        single = {title: volume}
        findings += _run(checks.check_skull_strip, "skull-strip", single, task, (names[title],))
    brains = tuple(names[title] for title in stripped)
    findings += _run(checks.check_modality_appearance, "modality", stripped, task, brains)
    return findings


def _run(
    check: Check, kind: str, volumes: dict[str, Volume], task: Task, names: tuple[str, ...]
) -> list[Finding]:
    """Findings of one check about these modalities; a refusal becomes an error."""
    try:
        return [replace(finding, modalities=names) for finding in check(volumes, task)]
    except MedMAPError as error:
        return [Finding("error", kind, error.cause, error.remedy, names)]
