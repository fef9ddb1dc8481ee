"""Which of a NIfTI file's statements about space to believe. numpy only, so that it also lives inside Slicer.

nibabel prefers the sform, ITK and with it Slicer the qform, and both have a fallback of their own for files with
neither; a file on which they disagree is refused until the user decides.
"""

from __future__ import annotations

import numpy as np

from medmap.checks import Finding, affine_problem
from medmap.errors import InputDataError, UsageError
from medmap.io.nifti_header import Header
from medmap.volume import Grid

SAME_PLACE_MM = 0.5
"""Two statements about where voxels lie agree when no corner moves farther."""

_OTHER_UNITS = {1: "meters", 3: "micrometers"}


def choose_affine(
    header: Header, label: str, chosen: str | None = None, assume_orientation: bool = False
) -> tuple[np.ndarray, Finding]:
    """Where the voxels lie, if the header says so without contradicting itself.

    Args:
        header: of the file.
        label: how messages call it.
        chosen: None, or ``sform`` or ``qform`` when the user decided which of two contradicting statements holds;
            a file that has only the other one is judged as if nothing had been chosen.
        assume_orientation: take the standard's method 1 (i to the right, j to the front, k to the top) when the file
            says nothing at all.

    Returns:
        [4, 4] float64 voxel -> world RAS in mm, and a Finding that states which one it is.

    Raises:
        InputDataError: no orientation, an unusable one, or contradicting ones.
        UsageError: ``chosen`` is something else.
    """
    if header.units & 7 in _OTHER_UNITS:
        unit = _OTHER_UNITS[header.units & 7]
        raise InputDataError(f"{label} gives its lengths in {unit}.", "Convert it to millimeters.")
    given = {
        name: form
        for name, form in (("sform", header.sform), ("qform", header.qform))
        if form is not None
    }
    if chosen not in (None, "sform", "qform"):
        raise UsageError(f"'{chosen}' is no way to place a scan.", "Use sform or qform.")
    if chosen in given:
        return _usable(given[chosen], chosen, label), _placed(label, f"{chosen}, as chosen")
    if not given:
        return _without_orientation(header, label, assume_orientation)
    _check_pixdim(header, label, given.get("sform"))
    for name, affine in given.items():
        _usable(affine, name, label, other=next((other for other in given if other != name), ""))
    if len(given) == 2:
        apart = Grid(header.shape, given["sform"]).distance(Grid(header.shape, given["qform"]))
        if apart > SAME_PLACE_MM:
            raise InputDataError(
                f"{label}: sform and qform place it up to {apart:.1f} mm apart.",
                "Find out which one is right and say so: --affine sform or --affine qform.",
            )
    name = next(iter(given))
    return given[name], _placed(label, name)


def _without_orientation(header: Header, label: str, assume: bool) -> tuple[np.ndarray, Finding]:
    if not assume:
        raise InputDataError(
            f"{label} does not say how it lies in space (no sform, no qform).",
            "Export it again from the DICOM files, or use --assume-orientation if a wrong side is no harm.",
        )
    _check_pixdim(header, label, None)
    message = f"{label} does not say how it lies in space; assumed: i to the right, j to the front, k to the top."
    finding = Finding("warning", "orientation", message, "Check left and right on the result.")
    return _usable(header.unoriented, "voxel size", label), finding


def _placed(label: str, by: str) -> Finding:
    return Finding("info", "affine", f"{label} is placed in space by its {by}.")


def _usable(affine: np.ndarray, name: str, label: str, other: str = "") -> np.ndarray:
    problem = affine_problem(affine)
    if problem:
        remedy = (
            f"Export it again, or use --affine {other} if you trust that one."
            if other
            else "Export it again."
        )
        raise InputDataError(f"{label}: the {name} {problem}.", remedy)
    return affine


def _check_pixdim(header: Header, label: str, sform: np.ndarray | None) -> None:
    sizes = header.pixdim[1:4]
    shown = _shown(sizes)
    if not ((sizes > 0) & (sizes < 1e6)).all():
        raise InputDataError(
            f"{label}: the voxel size in the header is {shown} mm.", "Export it again."
        )
    if sform is None or affine_problem(sform):
        return
    by_sform = np.linalg.norm(sform[:3, :3], axis=0)
    if (np.abs(by_sform - sizes) * (np.array(header.shape) - 1)).max() > SAME_PLACE_MM:
        raise InputDataError(
            f"{label}: the voxel size is {shown} mm by pixdim, {_shown(by_sform)} mm by the sform.",
            "Find out which one is right; --affine sform uses the sform.",
        )


def _shown(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
