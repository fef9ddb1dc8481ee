"""What made a result: enough to repeat it, and nothing that names a patient beyond the names of the inputs."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from medmap import NOTICE, __version__
from medmap.bundle.loading import Bundle, Entry
from medmap.volume import Volume


def provenance(
    bundle: Bundle,
    volumes: Mapping[str, Volume],
    entry: Entry,
    findings: Sequence,
    reference: str,
    run: Mapping,
) -> dict:
    """JSON-ready record of one segmentation.

    Args:
        bundle: what was run.
        volumes: the scans given, by modality.
        entry: which of the bundle's networks, and with which of the scans.
        findings: what the checks said.
        reference: modality whose grid carries the result.
        run: device, seconds, window and whatever else the run decided.
    """
    return {
        "notice": NOTICE,
        "bundle": {"id": bundle.id, "sha256": bundle.sha256, "entry": entry.name},
        "modalities": {
            "used": {
                name: volume.name for name, volume in volumes.items() if name in entry.modalities
            },
            "not_used": {
                name: volume.name
                for name, volume in volumes.items()
                if name not in entry.modalities
            },
            "missing": [name for name in bundle.task.modality_names if name not in volumes],
            "reference": reference,
        },
        "findings": [
            {"level": f.level, "check": f.check, "message": f.message, "remedy": f.remedy}
            for f in findings
        ],
        "run": dict(run),
        "versions": {
            "medmap": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
