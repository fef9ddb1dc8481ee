"""Bundles for tests that need no torch: metadata, a card, and weights that no network takes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from medmap.task import BRATS

CARD = {
    "description": "A model of tests.",
    "dice": {
        "data": "phantoms",
        "cases": 3,
        "subsets": {"flair": {r: {"mean": 0.5, "sd": 0.1, "n": 3} for r in ("WT", "TC", "ET")}},
    },
}
SECTIONS = {
    "preprocess": {},
    "postprocess": {},
    "inference": {"window": [32, 32, 32], "overlap": 0.25},
}


def metadataOf(name="tiny", version="1.0.0", **changes):
    network = {"name": "SubsetUNet", "options": {}}
    own = {
        "format": 1,
        "task": BRATS.to_dict(),
        **SECTIONS,
        "network": network,
        "card": CARD,
        **changes,
    }
    return json.dumps({"name": name, "version": version, "medmap": own}).encode()


def seal(folder: Path) -> Path:
    """Write the hashes of what a folder holds."""
    names = sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")
    lines = (f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text("".join(lines), newline="\n")
    return folder


def makeBundle(folder: Path, weights=b"weights" * 100, **options) -> Path:
    """A bundle whose weights no network would take: enough for what needs no torch."""
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_bytes(metadataOf(**options))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("# tiny 1.0.0\nThe card.", encoding="utf-8")
    return seal(folder)
