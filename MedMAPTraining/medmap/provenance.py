"""How a result was made: enough to repeat it. Only the inputs' names could name a patient."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medmap import NOTICE, __version__
from medmap.bundle.loading import Bundle, Entry
from medmap.checks import Finding


@dataclass(frozen=True)
class RunRecord:
    """What a run of the network decided and took.

    Attributes:
        device: torch device.
        precision: ``fp32`` or ``bf16``.
        window: size of the windows in working voxels.
        working_shape, working_spacing_mm: grid that the network worked on.
        slices: whether it worked slice by slice.
        suppressed_ml: volume of the low-confidence components that were removed from the result.
        seconds: of the whole segmentation.
    """

    device: str
    precision: str
    window: tuple[int, ...]
    working_shape: tuple[int, int, int]
    working_spacing_mm: float
    slices: bool
    suppressed_ml: float
    seconds: float

    def to_dict(self) -> dict:
        """JSON-ready form."""
        grid: dict = {"shape": list(self.working_shape), "spacing_mm": self.working_spacing_mm}
        if self.slices:
            grid["slices"] = True
        return {
            "device": self.device,
            "precision": self.precision,
            "window": list(self.window),
            "working_grid": grid,
            "suppressed_ml": self.suppressed_ml,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Provenance:
    """How one segmentation was made.

    Attributes:
        bundle_id, bundle_sha256: the bundle.
        entry: name of its network (``Entry.name``).
        used, unused: names of the scans by modality: used by the network, and given but not used.
        missing: modalities that were not given.
        reference: modality whose grid carries the result.
        findings: what the checks and the run report.
        run: what the run decided and took.
        versions: of MedMAP, torch, numpy and Python.
    """

    bundle_id: str
    bundle_sha256: str
    entry: str
    used: dict[str, str]
    unused: dict[str, str]
    missing: tuple[str, ...]
    reference: str
    findings: tuple[Finding, ...]
    run: RunRecord
    versions: dict[str, str]

    def to_dict(self) -> dict:
        """JSON-ready form."""
        findings = []
        for finding in self.findings:
            findings.append(
                {
                    "level": finding.level,
                    "check": finding.check,
                    "message": finding.message,
                    "remedy": finding.remedy,
                }
            )
        return {
            "notice": NOTICE,
            "bundle": {
                "id": self.bundle_id,
                "sha256": self.bundle_sha256,
                "entry": self.entry,
            },
            "modalities": {
                "used": dict(self.used),
                "not_used": dict(self.unused),
                "missing": list(self.missing),
                "reference": self.reference,
            },
            "findings": findings,
            "run": self.run.to_dict(),
            "versions": dict(self.versions),
        }


def provenance_of(
    bundle: Bundle,
    scan_names: Mapping[str, str],
    entry: Entry,
    findings: Sequence[Finding],
    reference: str,
    run: RunRecord,
) -> Provenance:
    """The record of one segmentation.

    Args:
        bundle: what was run.
        scan_names: names of the scans given (``Volume.name``), by modality.
        entry: which of the bundle's networks, and with which of the scans.
        findings: what the checks and the run report.
        reference: modality whose grid carries the result.
        run: what the run decided and took.
    """
    used: dict[str, str] = {}
    unused: dict[str, str] = {}
    for modality, scan_name in scan_names.items():
        if modality in entry.modalities:
            used[modality] = scan_name
        else:
            unused[modality] = scan_name
    missing = [name for name in bundle.task.modality_names if name not in scan_names]
    return Provenance(
        bundle_id=bundle.id,
        bundle_sha256=bundle.sha256,
        entry=entry.name,
        used=used,
        unused=unused,
        missing=tuple(missing),
        reference=reference,
        findings=tuple(findings),
        run=run,
        versions={
            "medmap": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )
