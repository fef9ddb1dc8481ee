"""Which of a NIfTI file's statements about space to believe.

numpy only, so that it also lives inside Slicer.

nibabel prefers the sform, ITK and with it Slicer the qform, and both have a fallback of their own
for files with neither; a file on which they disagree is refused until the user decides.
"""

from __future__ import annotations

import numpy as np

from medmap.checks import Finding, affine_problem
from medmap.errors import InputDataError, UsageError
from medmap.io.nifti_header import Header
from medmap.volume import Grid

MAX_DISAGREEMENT_MM = 0.5
"""Two statements about where voxels lie agree when no corner moves farther."""

_OTHER_UNITS = {1: "meters", 3: "micrometers"}


def choose_affine(
    header: Header, label: str, chosen: str | None = None, assume_orientation: bool = False
) -> tuple[np.ndarray, Finding]:
    """Where the voxels lie, if the header says so without contradicting itself.

    Args:
        header: of the file.
        label: how messages call it.
        chosen: None, or ``sform`` or ``qform`` when the user decided which of two
            contradicting statements holds; a file that has only the other one is judged as if
            nothing had been chosen.
        assume_orientation: take the standard's method 1 (i to the right, j to the front, k to the
            top) when the file says nothing at all.

    Returns:
        [4, 4] float64 voxel -> world RAS in mm, and a Finding that states which one it is.

    Raises:
        InputDataError: no orientation, an unusable one, or contradicting ones.
        UsageError: ``chosen`` is something else.
    """
    if header.units & 7 in _OTHER_UNITS:
        unit = _OTHER_UNITS[header.units & 7]
        raise InputDataError(f"{label} gives its lengths in {unit}.", "Convert it to millimeters.")
    forms = {}
    if header.sform is not None:
        forms["sform"] = header.sform
    if header.qform is not None:
        forms["qform"] = header.qform
    if chosen not in (None, "sform", "qform"):
        raise UsageError(
            f"'{chosen}' is not a way to place a scan in space.", "Use sform or qform."
        )
    if chosen in forms:
        return _usable(forms[chosen], chosen, label), _placed(label, f"{chosen}, as chosen")
    if not forms:
        return _without_orientation(header, label, assume_orientation)
    _check_pixdim(header, label, forms.get("sform"))
    for name, affine in forms.items():
        alternatives = [other for other in forms if other != name]
        _usable(affine, name, label, other=alternatives[0] if alternatives else "")
    if len(forms) == 2:
        sform_grid = Grid(header.shape, forms["sform"])
        distance_mm = sform_grid.distance(Grid(header.shape, forms["qform"]))
        if distance_mm > MAX_DISAGREEMENT_MM:
            raise InputDataError(
                f"{label}: sform and qform place it up to {distance_mm:.1f} mm apart.",
                "Find out which of the two is right and choose it.",
                option="affine sform or --affine qform",
            )
    # The sform where there is one, as nibabel; within the tolerance the two agree.
    name = next(iter(forms))
    return forms[name], _placed(label, name)


def _without_orientation(header: Header, label: str, assume: bool) -> tuple[np.ndarray, Finding]:
    if not assume:
        raise InputDataError(
            f"{label} does not say how it lies in space (no sform, no qform).",
            "Export it again from the DICOM files, or assume an orientation if mixing up left "
            "and right does no harm.",
            option="assume-orientation",
        )
    _check_pixdim(header, label, None)
    message = (
        f"{label} does not say how it lies in space; assumed: i to the right, j to the "
        "front, k to the top."
    )
    finding = Finding("warning", "orientation", message, "Check left and right on the result.")
    return _usable(header.unoriented, "voxel size", label), finding


def _placed(label: str, by: str) -> Finding:
    return Finding("info", "affine", f"{label} is placed in space by its {by}.")


def _usable(affine: np.ndarray, name: str, label: str, other: str = "") -> np.ndarray:
    problem = affine_problem(affine)
    if problem:
        cause = f"{label}: the {name} {problem}."
        if other:
            remedy = f"Export it again, or choose the {other} if you trust it."
            raise InputDataError(cause, remedy, option=f"affine {other}")
        raise InputDataError(cause, "Export it again.")
    return affine


def _check_pixdim(header: Header, label: str, sform: np.ndarray | None) -> None:
    sizes = header.pixdim[1:4]
    pixdim_text = _size_text(sizes)
    if not ((sizes > 0) & (sizes < 1e6)).all():
        cause = f"{label}: the voxel size in the header is {pixdim_text} mm."
        if sform is not None and not affine_problem(sform):
            raise InputDataError(
                cause, "Export it again, or choose the sform if you trust it.", "affine sform"
            )
        raise InputDataError(cause, "Export it again.")
    if sform is None or affine_problem(sform):
        return
    sform_sizes = np.linalg.norm(sform[:3, :3], axis=0)
    # What counts is how far the last voxel moves, so small deviations weigh more on long axes.
    shifts_mm = np.abs(sform_sizes - sizes) * (np.array(header.shape) - 1)
    if shifts_mm.max() > MAX_DISAGREEMENT_MM:
        raise InputDataError(
            f"{label}: the voxel size is {pixdim_text} mm by pixdim, "
            f"{_size_text(sform_sizes)} mm by the sform.",
            "Find out which of the two is right; if it is the sform, choose that.",
            option="affine sform",
        )


def _size_text(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
