"""How well scans with a skull are distinguished from stripped ones, limited views included.

    python experiments/skull_detection.py --heads FILE... --stripped FILE...

Every file is judged as a whole and as three slabs of 30 % of its height.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medmap.io.nifti import read_nifti
from medmap.preparation.skull import has_skull, skull_evidence
from medmap.volume import Volume

SLAB_SHARE = 0.3
SLAB_STARTS = {"low": 0.15, "middle": 0.4, "high": 0.68}
"""Where slabs begin, as a share of the height of the foreground."""


def main() -> None:
    """Parse the command line, judge every file, and print errors and the range of evidence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=Path, nargs="*", default=[])
    parser.add_argument("--stripped", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    evidence: dict[tuple[str, str], list[float]] = defaultdict(list)
    wrong: dict[tuple[str, str], int] = defaultdict(int)
    for kind, paths in (("head", arguments.heads), ("stripped", arguments.stripped)):
        for path in paths:
            for field, volume in fields_of_view(read_nifti(path)):
                key = (kind, field)
                evidence[key].append(skull_evidence(volume))
                is_head = kind == "head"
                if has_skull(volume) != is_head:
                    wrong[key] += 1
                    print(f"wrong: {path.parent.name}/{path.name} {field}", flush=True)
    for key, values in evidence.items():
        spread = f"evidence {min(values):.3f} to {max(values):.3f}"
        print(f"{key[0]:9} {key[1]:7} {wrong[key]} of {len(values)} wrong, {spread}")


def fields_of_view(volume: Volume) -> Iterator[tuple[str, Volume]]:
    """The volume, and its slabs."""
    yield "whole", volume
    # The axis closest to inferior-superior, across which clinical slabs are cut.
    axis = int(np.argmax(np.abs(volume.affine[2, :3])))
    other_axes = tuple(other for other in range(3) if other != axis)
    has_brain = volume.foreground.any(axis=other_axes)
    occupied = np.flatnonzero(has_brain)
    first = int(occupied[0])
    height = int(occupied[-1] - occupied[0]) + 1
    thickness = max(6, round(SLAB_SHARE * height))
    for name, start_share in SLAB_STARTS.items():
        start = first + int(start_share * height)
        box = [slice(None)] * 3
        box[axis] = slice(start, start + thickness)
        slab = np.ascontiguousarray(volume.array[tuple(box)])
        yield name, Volume(slab, volume.affine, name)


if __name__ == "__main__":
    main()
