"""What a bundle remembers of the cases that it was trained on.

It says which modalities training has shown, and recognizes a training case in an evaluation. Scans
are remembered by a hash of their voxels, from which no image and no name can be recovered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from medmap.volume import Volume

_HASH_CHARACTERS = 24
"""96 bits: two different scans share a hash with a probability of 1e-20 among 100,000 scans."""


def scan_hash(volume: Volume) -> str:
    """Hash of a scan's voxels: equal for copies, renamed files and recompressed files."""
    # Little-endian on every machine, so that hashes of one scan are equal everywhere.
    voxels = np.ascontiguousarray(volume.array, dtype="<f4")
    shape_text = repr(voxels.shape)
    digest = hashlib.sha256(shape_text.encode())
    digest.update(voxels.tobytes())
    return digest.hexdigest()[:_HASH_CHARACTERS]


@dataclass(frozen=True)
class TrainingCases:
    """Cases that the networks of a bundle have learned from.

    Attributes:
        count: number of cases, generated ones included.
        counts: number of cases in which training saw a modality, by its name.
        modalities: names of the modalities that training saw, also before fine-tuning.
        hashes: ``scan_hash`` of every scan that training saw, also before fine-tuning; generated
            cases have none.
        unseen: per member of an ensemble, those of the hashes that it did not see; empty for other
            networks.
    """

    count: int
    counts: Mapping[str, int]
    modalities: tuple[str, ...]
    hashes: frozenset[str] = field(default_factory=frozenset)
    unseen: tuple[frozenset[str], ...] = ()

    def includes(self, volumes: Iterable[Volume]) -> bool:
        """Whether one of these scans belongs to a training case."""
        return bool(self.hashes) and any(scan_hash(volume) in self.hashes for volume in volumes)

    def of_member(self, number: int) -> TrainingCases:
        """What one member of an ensemble has seen."""
        unseen = self.unseen[number] if self.unseen else frozenset()
        return replace(self, hashes=self.hashes - unseen, unseen=())

    def to_dict(self) -> dict:
        """Plain JSON-ready form."""
        content = {
            "count": self.count,
            "counts": dict(self.counts),
            "modalities": list(self.modalities),
            "scans": sorted(self.hashes),
        }
        if self.unseen:
            content["unseen"] = [sorted(hashes) for hashes in self.unseen]
        return content

    @staticmethod
    def from_dict(data: Mapping) -> TrainingCases:
        """Rebuild; raises KeyError, TypeError or ValueError for invalid data."""
        counts = {}
        for name, count in data["counts"].items():
            counts[str(name)] = int(count)
        unseen = tuple(frozenset(texts) for texts in data.get("unseen", ()))
        return TrainingCases(
            int(data["count"]),
            counts,
            modalities=tuple(str(name) for name in data["modalities"]),
            hashes=frozenset(str(text) for text in data["scans"]),
            unseen=unseen,
        )
