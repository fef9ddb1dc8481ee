"""What ``import medmap`` offers: segment files or arrays, compare subsets, load bundles, NIfTI.

The functions take paths and volumes alike. Everything else of the package is documented, but not a
promise: it may change between versions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle
from medmap.bundle.loading import load_bundle as load_verified_bundle
from medmap.inference import Segmentation
from medmap.inference import segment as segment_volumes
from medmap.io.nifti import read_nifti, read_scans, write_labels
from medmap.preparation.plan import Mode
from medmap.preparation.workflow import prepare_case
from medmap.progress import Cancel, Progress, ignore_progress
from medmap.subset_comparison import WhatIf, what_if
from medmap.task import Task
from medmap.volume import Volume

__all__ = ["compare_subsets", "load_bundle", "read_nifti", "segment", "write_labels"]

Scan = str | os.PathLike | Volume
"""A NIfTI file, or a volume in memory."""


def load_bundle(path: str | os.PathLike | None = None) -> Bundle:
    """Load a model. Every byte is verified first.

    Args:
        path: folder of a bundle; None takes the default model.

    Raises:
        MissingInputError: there is no such folder.
        BundleError: not a bundle, altered, or of an unknown format.

    Examples:
        >>> import medmap
        >>> bundle = medmap.load_bundle()
        >>> bundle.task.modality_names
        ('t1', 't1ce', 't2', 'flair')
    """
    return load_verified_bundle(path or default_bundle_path())


def segment(
    scans: Mapping[str, Scan],
    bundle: Bundle | str | os.PathLike | None = None,
    *,
    reference: str | None = None,
    prepare: Mode = "auto",
    brain_masks: Mapping[str, Scan] | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Segmentation:
    """Segment one patient from any subset of the scans that a model knows.

    Args:
        scans: files or volumes by modality: ``t1``, ``t1ce``, ``t2``, ``flair`` or their aliases,
            any case of letters. They may show the skull and lie apart; grids may differ.
        bundle: a loaded model or its folder; None takes the default model.
        reference: modality whose grid carries the result; None takes the finest, T1ce among equals.
        prepare: ``auto`` extracts the brain from scans that show a skull and aligns scans that lie
            apart; ``always`` does both for every scan, ``never`` takes them as they are.
        brain_masks: masks made elsewhere, by modality; scans without one take them over.
        device: a torch device; ``auto`` takes a GPU that computes, else the CPU.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the device computes it.
        progress: called with the completed fraction and a text.
        cancel: asked now and then; True stops the run.

    Returns:
        The label map [I, J, K] on the reference scan's grid, volumes in ml by region, findings of
        the checks, provenance, and the steps of the preparation.

    Raises:
        UsageError, InputDataError: the scans cannot be used as they are.
        MissingInputError: a file does not exist.
        UnavailableError: the device does not exist, its memory does not suffice, or a step of the
            preparation needs what is not installed.
        Cancelled: ``cancel`` returned True.

    Examples:
        A synthetic patient of 3 mm voxels, of whom T1ce and FLAIR are given:

        >>> import medmap
        >>> from medmap.phantom import generate
        >>> patient = generate(20287, shape=(54, 64, 54), spacing=3.0)
        >>> scans = {}
        >>> for name in ("t1ce", "flair"):
        ...     scans[name] = medmap.Volume(patient.images[name].numpy(), patient.affine, name)
        >>> result = medmap.segment(scans, device="cpu")
        >>> result.labels.shape
        (54, 64, 54)
        >>> sorted(result.volumes_ml)
        ['ET', 'TC', 'WT']
        >>> result.provenance.missing
        ('t1', 't2')
    """
    bundle = _loaded(bundle)
    task = bundle.task
    report = progress or ignore_progress
    reference = _modality(reference, task)
    preparation = prepare_case(
        _volumes(scans, task),
        task,
        prepare,
        reference=reference,
        brain_masks=_volumes(brain_masks or {}, task),
        progress=lambda fraction, text: report(0.4 * fraction, text),
        cancel=cancel,
    )
    # Where nothing was prepared, the segmentation has the whole bar, and
    # chooses its reference itself.
    start = 0.0
    if preparation.steps:
        start = 0.4
        reference = preparation.plan.reference
    segmentation = segment_volumes(
        preparation.volumes,
        bundle,
        reference=reference,
        device=device,
        precision=precision,
        progress=lambda fraction, text: report(start + (1 - start) * fraction, text),
        cancel=cancel,
    )
    return replace(segmentation, preparation=preparation)


def compare_subsets(
    scans: Mapping[str, Scan],
    bundle: Bundle | str | os.PathLike | None = None,
    *,
    current: Sequence[str] | None = None,
    reference: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> WhatIf:
    """Segment one patient from every subset of the given scans, and compare the results.

    Each modality is encoded once, so that all 15 subsets of four scans cost
    about three segmentations.

    Args:
        scans: files or volumes by modality, as for ``segment``.
        bundle: a loaded model or its folder; None takes the default model.
        current: the subset that the others are compared with; None for all scans.
        reference, device, precision, progress, cancel: as for ``segment``.

    Returns:
        Volumes, changes and Dice of every subset, and maps of uncertainty.

    Raises:
        MedMAPError: as for ``segment``.
    """
    bundle = _loaded(bundle)
    task = bundle.task
    names = None
    if current is not None:
        names = [task.find(name) for name in current]
    return what_if(
        _volumes(scans, task),
        bundle,
        current=names,
        reference=_modality(reference, task),
        device=device,
        precision=precision,
        progress=progress,
        cancel=cancel,
    )


def _loaded(bundle: Bundle | str | os.PathLike | None) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    return load_bundle(bundle)


def _modality(name: str | None, task: Task) -> str | None:
    if name is None:
        return None
    return task.find(name)


def _volumes(scans: Mapping[str, Scan], task: Task) -> dict[str, Volume]:
    """Volumes by modality name; files are read.

    Raises UsageError for a modality that is given twice.
    """
    from medmap.commands.segment import by_modality

    volumes: dict[str, Volume] = {}
    files: dict[str, Path] = {}
    scans_by_name = by_modality(scans, task)
    for name, scan in scans_by_name.items():
        if isinstance(scan, Volume):
            volumes[name] = scan
        else:
            files[name] = Path(scan)
    volumes |= read_scans(files)
    return {name: volumes[name] for name in scans_by_name}
