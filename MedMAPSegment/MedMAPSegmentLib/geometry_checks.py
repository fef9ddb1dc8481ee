"""Do the chosen scans fit together: grids, fields of view, skull-stripping. Looks, says, changes nothing.

Everything is compared in world space, parent transforms included. Grids come from the nodes alone; what needs voxels
looks at every second or third one, so that the checks take well under a second and can run whenever a slot changes.
The checks that are made with all voxels when Apply is pressed (``medmap.checks``) have the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import slicer.util

from medmap import checks
from medmap.errors import InputDataError, MedMAPError
from medmap.foreground import foreground
from medmap.task import Task
from medmap.volume import Grid, Volume, choose_reference

from . import scene as mrml
from .mrml.geometry import ijkToRAS, parentToWorld

FEW_VOXELS = 400_000
"""Voxels to look at of each scan."""
COVERED = 0.80
"""Less than this share of the reference's brain within another scan's field of view is worth a warning."""

SKULL_STRIPPERS = {
    "HDBrainExtractionTool": "HD Brain Extraction",
    "HDBrainExtraction": "HD Brain Extraction",
    "NeuroStrip": "NeuroStrip",
    "SwissSkullStripper": "Swiss Skull Stripper",
}
"""Slicer modules that remove the skull, by module name, in order of preference."""


@dataclass(frozen=True)
class Notice:
    """One thing to say.

    Attributes:
        level: ``info``, ``warning``, or ``error`` for what Apply will refuse.
        check: ``grid``, ``field-of-view``, ``overlap``, ``skull-strip``, ``modality``, ``same-image``, ``unreadable``.
        text: what was seen, one sentence.
        remedy: what the user can do; empty if nothing needs doing.
        modalities: which slots it is about.
    """

    level: Literal["info", "warning", "error"]
    check: str
    text: str
    remedy: str = ""
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class GeometryReport:
    """What the checks found.

    Attributes:
        reference: modality whose grid the others are compared with; None without any usable scan.
        notices: errors first, then warnings, then information; empty if all is well.
        resampled: modalities that lie on another grid than the reference.
        notStripped: modalities that do not look skull-stripped.
        skullStrippers: (module name, title) of installed modules that can help; filled only if some scan needs it.
    """

    reference: str | None
    notices: tuple[Notice, ...]
    resampled: tuple[str, ...] = ()
    notStripped: tuple[str, ...] = ()
    skullStrippers: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """All notices, one line each; empty if there is nothing to say."""
        sign = {"info": "", "warning": "\u26a0 ", "error": "\u26d4 "}
        return "\n".join(f"{sign[n.level]}{n.text} {n.remedy}".rstrip() for n in self.notices)


def installedSkullStrippers(moduleNames: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(module name, title) of the installed modules that remove the skull, the preferred one first."""
    names = set(moduleNames)
    return tuple((name, title) for name, title in SKULL_STRIPPERS.items() if name in names)


def gridOf(node) -> Grid:
    """Where a volume node's voxels lie in the world, without copying them.

    Raises:
        InputDataError: no voxels, or a non-linear transform.
    """
    shape = mrml.shapeOf(node)
    if shape is None:
        raise InputDataError(
            f"The volume '{node.GetName()}' has no voxels.", "Choose another volume."
        )
    return Grid(shape, parentToWorld(node) @ ijkToRAS(node))


def checkGeometry(
    nodes: Mapping[str, Any],
    task: Task,
    reference: str | None = None,
    moduleNames: Iterable[str] = (),
) -> GeometryReport:
    """Check the scans that are used against each other.

    Args:
        nodes: modality name -> volume node (``Inputs.used``).
        task: gives titles and order.
        reference: modality on whose grid the result is wanted; None takes the finest scan.
        moduleNames: names of all installed Slicer modules, to offer skull-stripping.
    """
    notices: list[Notice] = []
    volumes: dict[str, Volume] = {}
    grids: dict[str, Grid] = {}
    for name in (name for name in task.modality_names if nodes.get(name) is not None):
        try:
            grids[name] = gridOf(nodes[name])
            volumes[name] = _thinned(nodes[name], grids[name])
        except MedMAPError as error:
            grids.pop(name, None)
            notices.append(Notice("error", "unreadable", error.cause, error.remedy, (name,)))
    if not grids:
        return GeometryReport(None, tuple(notices))
    reference = reference if reference in grids else choose_reference(grids)
    moved = [n for n in grids if n != reference and not _sameGrid(grids[reference], grids[n])]
    notices += [_gridNotice(task, reference, name, grids) for name in moved]
    notices += _coverage(task, reference, moved, volumes, grids)
    notices += _byVoxels(task, volumes)
    bare = tuple(
        n for notice in notices if notice.check == "skull-strip" for n in notice.modalities
    )
    offers = installedSkullStrippers(moduleNames) if bare else ()
    ordered = sorted(notices, key=lambda notice: ("error", "warning", "info").index(notice.level))
    return GeometryReport(reference, tuple(ordered), tuple(moved), bare, offers)


def _thinned(node, grid: Grid) -> Volume:
    """Every n-th voxel of a node as a volume at the same place; NaN and infinite become 0."""
    kji = slicer.util.arrayFromVolume(node)
    if kji.ndim != 3:
        raise InputDataError(
            f"The volume '{node.GetName()}' has several values per voxel.", "Choose another one."
        )
    step = max(1, int(np.ceil((kji.size / FEW_VOXELS) ** (1 / 3))))
    steps = np.minimum(
        step, np.maximum(1, np.array(grid.shape) // 8)
    )  # few thick slices stay as they are
    ijk = kji.transpose(2, 1, 0)[tuple(slice(None, None, int(s)) for s in steps)]
    array = np.nan_to_num(np.array(ijk, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return Volume(array, grid.affine @ np.diag([*map(float, steps), 1.0]), node.GetName())


def _sameGrid(a: Grid, b: Grid) -> bool:
    return a.distance(b) <= checks.SAME_GRID_VOXELS * float(min(a.spacing.min(), b.spacing.min()))


def _gridNotice(task: Task, reference: str, name: str, grids: Mapping[str, Grid]) -> Notice:
    one, other = task.modality(name).title, task.modality(reference).title
    a, b = grids[name], grids[reference]
    if a.shape == b.shape and np.allclose(a.spacing, b.spacing, rtol=0.01):
        how = f"up to {a.distance(b):.1f} mm apart"
    else:
        how = f"{_described(a)} instead of {_described(b)}"
    return Notice(
        "info",
        "grid",
        f"{one} lies on another grid than {other} ({how}): it will be resampled.",
        "",
        (name,),
    )


def _coverage(task, reference: str, moved: Sequence[str], volumes, grids) -> list[Notice]:
    """Scans whose field of view leaves out much of the reference's brain. On one grid nothing can be left out."""
    brain, _ = foreground(volumes[reference].array)
    inside = np.argwhere(brain)
    if not len(inside) or not moved:
        return []
    inside = inside[:: max(1, len(inside) // 20000)]
    seen = task.organ if task.skull_stripped else "body"
    affine = volumes[reference].affine
    world = inside @ affine[:3, :3].T + affine[:3, 3]
    notices = []
    for name in moved:
        share = _inside(world, grids[name])
        if share < COVERED:
            text = (
                f"The field of view of {task.modality(name).title} holds {share:.0%} of the {seen} in "
                f"{task.modality(reference).title}."
            )
            remedy = "Results outside rest on the other scans alone."
            notices.append(Notice("warning", "field-of-view", text, remedy, (name,)))
    return notices


def _inside(world: np.ndarray, grid: Grid) -> float:
    """Share of [N, 3] world points that lie within a grid, up to half a voxel outside the outermost centers."""
    inverse = np.linalg.inv(grid.affine)
    ijk = world @ inverse[:3, :3].T + inverse[:3, 3]
    return float(((ijk >= -0.5) & (ijk <= np.array(grid.shape) - 0.5)).all(axis=1).mean())


def _byVoxels(task: Task, volumes: Mapping[str, Volume]) -> list[Notice]:
    """The checks of ``medmap`` that look at voxels; what they refuse is an error here, and the others still run."""
    titled = {task.modality(name).title: volume for name, volume in volumes.items()}
    names = {task.modality(name).title: name for name in volumes}
    notices = []
    for one, other in _pairs(list(titled)):
        pair = {one: titled[one], other: titled[other]}
        both = (names[one], names[other])
        same = _run(checks.same_image, "same-image", pair, task, both)
        notices += same or _run(checks.overlap, "overlap", pair, task, both)
    for title, volume in titled.items():
        notices += _run(checks.skull_strip, "skull-strip", {title: volume}, task, (names[title],))
    return notices + _run(checks.modality, "modality", titled, task, tuple(volumes))


def _run(
    check, kind: str, volumes: dict[str, Volume], task: Task, names: tuple[str, ...]
) -> list[Notice]:
    try:
        return [Notice(f.level, kind, f.message, f.remedy, names) for f in check(volumes, task)]
    except MedMAPError as error:
        return [Notice("error", kind, error.cause, error.remedy, names)]


def _pairs(titles: list[str]) -> list[tuple[str, str]]:
    return [(one, other) for n, one in enumerate(titles) for other in titles[n + 1 :]]


def _described(grid: Grid) -> str:
    shape = " x ".join(str(n) for n in grid.shape)
    return f"{shape} at {' x '.join(f'{size:.3g}' for size in grid.spacing)} mm"
