"""Malformed files, many of them: every one is read or refused in words, within its time, and
nothing else happens.

``make fuzz`` runs it for an hour; ``python Testing/hardening/fuzz.py --count 24000`` for a number
of files. What goes wrong is written to ``fuzz-findings/`` with the seed that made it. Seeds are
numbered, so a run can be repeated.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from medmap.bundle.format import SUMS
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.checks import affine_problem
from medmap.errors import MedMAPError
from medmap.io.nifti import read_nifti
from medmap.training.recipe import Recipe
from medmap.training.splits import read_split

SLOWEST_SECONDS = 10.0
EXTREME = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xc0\x7f", b"\0\0\x80\xff")
"""-1, 0, the largest integer, not a number and minus infinity, as little-endian numbers of 4
bytes."""
SEEDS = {
    "float64 scaled": {"dtype": "f4", "fields": {"scl_slope": 0.5, "scl_inter": -3}},
    "int16": {"dtype": "i2", "fields": {}},
    "big endian": {"dtype": "u1", "fields": {}, "endian": ">"},
    "NIfTI-2": {"dtype": "i4", "fields": {}, "cls": nib.Nifti2Image},
}


def nifti_seed(dtype: str, fields: dict, endian: str = "<", cls=nib.Nifti1Image) -> bytes:
    """A sound file of 6 x 7 x 8 voxels."""
    array = np.random.default_rng(0).integers(1, 100, (6, 7, 8)).astype(dtype)
    header = cls.header_class(endianness=endian)
    header.set_data_dtype(array.dtype)
    image = cls(array, np.diag([-1, -1.2, 2, 1.0]), header)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    data, size = image.to_bytes(), len(header.binaryblock)
    block = np.frombuffer(data[:size], header.structarr.dtype).copy()
    for name, value in fields.items():
        block[name] = value
    return block.tobytes() + data[size:]


def changed(data: bytes, rng: np.random.Generator, span: int) -> bytes:
    """One to eight bytes set, swapped for an extreme value, cut out, doubled or cut off at the
    end."""
    result = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(min(span, len(result)) or 1))
        kind = rng.integers(10)
        if kind < 6:
            result[at : at + 1] = bytes([rng.integers(256)])
        elif kind < 8:
            extreme = rng.choice(
                [
                    b"\xff\xff\xff\xff",
                    b"\0\0\0\0",
                    b"\x7f\xff\xff\xff",
                    b"\0\0\xc0\x7f",
                    b"\0\0\x80\xff",
                ]
            )
            result[at : at + 4] = bytes(extreme)
        elif kind == 8:
            del result[at : at + int(rng.integers(1, 9))]
        else:
            del result[int(rng.integers(len(result) or 1)) :]
    return bytes(result)


class Nifti:
    """Headers and bodies, plain and compressed."""

    def __init__(self, folder: Path):
        self.folder, self.seeds = folder, [nifti_seed(**seed) for seed in SEEDS.values()]

    def make(self, rng: np.random.Generator) -> Path:
        """Write one malformed file."""
        data = self.seeds[rng.integers(len(self.seeds))]
        kind = rng.integers(4)
        if kind == 0:  # damage within the compressed stream
            return self._put("a.nii.gz", changed(gzip.compress(data, mtime=0), rng, 10**9))
        data = changed(data, rng, 540 if kind < 3 else 10**9)
        return (
            self._put("a.nii.gz", gzip.compress(data, 1, mtime=0))
            if kind == 1
            else self._put("a.nii", data)
        )

    def use(self, path: Path) -> None:
        """Read it; what is accepted has finite voxels at a possible place."""
        volume = read_nifti(path)
        assert volume.array.ndim == 3
        assert np.isfinite(volume.array).all()
        assert affine_problem(volume.affine) is None

    def _put(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


class BundleFlips:
    """One bit of a bundle changed: all must be refused."""

    def __init__(self, folder: Path):
        self.folder = tiny_bundle(folder / "flips")
        self.before = {path: path.read_bytes() for path in sorted(self.folder.iterdir())}

    def make(self, rng: np.random.Generator) -> Path:
        """Change one bit, with every byte of the bundle as likely as any other."""
        self._restore()
        sizes = np.array([len(data) for data in self.before.values()], float)
        path = list(self.before)[rng.choice(len(sizes), p=sizes / sizes.sum())]
        data = bytearray(self.before[path])
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        return self.folder

    def use(self, path: Path) -> None:
        """Load it; that must not succeed."""
        load_bundle(path)
        raise AssertionError("a bundle with a changed bit was loaded")

    def _restore(self) -> None:
        for path, data in self.before.items():
            path.write_bytes(data)


class BundleContents(BundleFlips):
    """Metadata and weights changed and the hashes made true again: whatever loads has finite
    weights."""

    def make(self, rng: np.random.Generator) -> Path:
        """Change description or weights and renew the hashes."""
        self._restore()
        path = self.folder / ("metadata.json" if rng.random() < 0.7 else "model.safetensors")
        path.write_bytes(changed(self.before[path], rng, 10**9))
        names = [p for p in self.before if p.name != SUMS]
        lines = (f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in names)
        (self.folder / SUMS).write_text("".join(lines))
        return self.folder

    def use(self, path: Path) -> None:
        """Load it."""
        bundle = load_bundle(path)
        assert all(np.isfinite(t.numpy()).all() for t in bundle.network.state_dict().values())


class Texts:
    """Recipes and lists of cases: text that is never evaluated."""

    RECIPE = json.dumps(
        {"network": "SubsetUNet", "steps": 5, "patch": [16, 16, 16], "preprocess": {"spacing": 2.0}}
    )
    SPLIT = json.dumps({"train": ["a", "b"], "val": ["c"]})

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self, rng: np.random.Generator) -> Path:
        """Write one malformed text."""
        name, text = [
            ("recipe.json", self.RECIPE),
            ("split.json", self.SPLIT),
            ("split.csv", "case,part\na,train\n"),
        ][rng.integers(3)]
        path = self.folder / name
        path.write_bytes(changed(text.encode(), rng, 10**9))
        return path

    def use(self, path: Path) -> None:
        """Read it."""
        Recipe.read(path) if path.name == "recipe.json" else read_split(path)


def tiny_bundle(folder: Path) -> Path:
    """A small, sound bundle."""
    import torch

    from medmap.bundle.format import InferenceSpec, NetworkSpec
    from medmap.networks import build_network
    from medmap.preprocess import PreprocessSpec
    from medmap.task import BRATS

    torch.manual_seed(0)
    options = {"modalities": 4, "classes": 4, "widths": [4, 4]}
    spec = NetworkSpec("SubsetUNet", options)
    parts = {"preprocess": PreprocessSpec(), "inference": InferenceSpec(), "card": {"data": "none"}}
    network = build_network("SubsetUNet", options)
    return save_bundle(
        folder, name="tiny", version="1", task=BRATS, network=network, network_spec=spec, **parts
    )


TARGETS: dict[str, tuple[Callable, float]] = {
    "NIfTI": (Nifti, 0.6),
    "bundle, one bit": (BundleFlips, 0.25),
    "bundle, contents": (BundleContents, 0.05),
    "recipes and splits": (Texts, 0.1),
}
"""By name: what makes and uses malformed files, and its share of them."""


def run(
    count: int | None = None,
    minutes: float | None = None,
    first: int = 0,
    findings: Path | None = None,
) -> dict:
    """Try files until there were ``count`` of them or the time is over.

    Returns:
        By target: how many were ``tried``, ``accepted``, refused by exit code, and what went
            ``wrong``.
    """
    table = {name: Counter() for name in TARGETS}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        for name, (build, share) in TARGETS.items():
            folder = Path(place) / name.replace(" ", "-")
            folder.mkdir()
            target, seed = build(folder), first
            until = None if minutes is None else share * 60 * minutes + time.monotonic()
            while (count is None or seed - first < share * count) and (
                until is None or time.monotonic() < until
            ):
                _try(target, np.random.default_rng([seed]), table[name], findings, f"{name}-{seed}")
                seed += 1
    table["seconds"] = Counter(all=round(time.monotonic() - started))
    return table


def _try(target, rng: np.random.Generator, row: Counter, findings: Path | None, label: str) -> None:
    path = target.make(rng)
    row["tried"] += 1
    started = time.monotonic()
    try:
        target.use(path)
        row["accepted"] += 1
    except MedMAPError as error:
        row[f"refused {error.exit_code}"] += 1
    except Exception as error:
        row["wrong"] += 1
        print(f"{label}: {type(error).__name__}: {error}", file=sys.stderr)
        if findings and path.is_file():
            findings.mkdir(exist_ok=True)
            (findings / f"{label.replace(' ', '-')}-{path.name}").write_bytes(path.read_bytes())
    if time.monotonic() - started > SLOWEST_SECONDS:
        row["wrong"] += 1
        print(f"{label}: took {time.monotonic() - started:.1f} s", file=sys.stderr)


def main() -> int:
    """The command line; exit code 1 when anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, help="how many files")
    parser.add_argument("--minutes", type=float, help="for how long")
    parser.add_argument("--seed", type=int, default=0, help="number of the first")
    given = parser.parse_args()
    table = run(given.count, given.minutes, given.seed, Path("fuzz-findings"))
    for name, row in table.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in sorted(row.items())))
    return int(any(row["wrong"] for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
