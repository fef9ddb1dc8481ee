"""What data cost a training, against the step that they feed: from the files, from prepared arrays, from the cache.

The same patches, drawn and varied by the same sampler, made in three ways:

* ``NIfTI files``: every scan of the case is read, cropped and normalized again for each patch.
* ``prepared arrays``: that was done once, and whole arrays are read for each patch.
* ``memory-mapped cache``: what ``medmap train`` does; only the patch's own voxels are read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medmap.bench.measure import Cost, isolated, timed
from medmap.bench.peer import load_peer
from medmap.commands.phantoms import write_phantoms
from medmap.devices import resolve_device
from medmap.io.atomic import make_folder
from medmap.io.cohorts import Case, find_cases
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import PreparedArrays, cache_case, open_case, prepare_case, slices_first
from medmap.training.dataset import Augmentation, PatchSampler, sparse_voxels
from medmap.training.missingness import full
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective

SPEC = PreprocessSpec()
MODEL = "training step of the model"


class FromArrays(PatchSampler):
    """Reads all of a case's prepared arrays for every patch."""

    def _case(self, folder: Path) -> PreparedArrays:
        mapped = open_case(folder)
        label = np.array(mapped.label)
        self._tumor_voxels[folder] = sparse_voxels(label)
        image = tuple(mapped.dense_image())
        return replace(mapped, image=image, label=label, brain=np.array(mapped.brain))


class FromFiles(PatchSampler):
    """Reads and prepares all of a case's files for every patch.

    Args:
        cases: by name, beside what ``PatchSampler`` takes.
        spec: how they are prepared.
    """

    def __init__(self, cases: Mapping[str, Case], spec: PreprocessSpec, *arguments):
        super().__init__(*arguments)
        self.cases, self.spec = cases, spec

    def _case(self, folder: Path) -> PreparedArrays:
        case = self.cases[folder.name]
        names = [name for name in BRATS.modality_names if name in case.scans]
        prepared, label = prepare_case(case, BRATS, self.spec, names)
        classes = slices_first(label, prepared).numpy()
        brain = slices_first(prepared.brain, prepared).numpy().astype(np.uint8)
        self._tumor_voxels[folder] = sparse_voxels(classes)
        return PreparedArrays(
            case_id=folder.name,
            image=tuple(slices_first(prepared.image, prepared).numpy()),
            available=prepared.present.numpy(),
            label=classes,
            brain=brain,
        )


def bench_data(
    data: Path | None = None,
    *,
    network: str = "mmFormer",
    network_options: dict | None = None,
    patch: int = 80,
    batch: int = 1,
    device: str = "cpu",
    repeats: int = 5,
    spacing: float = 1.0,
    against: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Cost]:
    """Time batches of one process made in each way, a peer's if one is named, and the model's training step.

    Args:
        data: a folder of cases with labels, in BraTS layout; None makes two synthetic patients.
        network, network_options: the model of the step; plain segmentation loss.
        patch: side of the cubic patches, in voxels.
        batch: patches a batch.
        device: where the step runs; data are made on the processor.
        repeats: timed batches a row, of which the median counts.
        spacing: of the synthetic patients, in mm.
        against: a peer's loader (``load_peer``): ``callable({modality: path}, label path, patch)`` makes one patch of
            one case; what it returns is not looked at.
        progress: called with a line before each row.

    Returns:
        A cost a row. The notes of the data say which share of the step they take.
    """
    place, rows = str(resolve_device(device)), []
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            case
            for case in find_cases(data or _made(Path(folder), spacing, progress), BRATS)
            if case.label
        ]
        progress("preparing the cases")
        folders = [
            cache_case(case, BRATS, SPEC, make_folder(Path(folder) / "cache")) for case in cases
        ]
        for name in WAYS:
            progress(name)
            rows.append(isolated(name, _batches, name, cases, folders, patch, batch, repeats))
        if against:
            progress(against)
            rows.append(isolated(against, _peer, against, cases, patch, batch, repeats))
        progress(MODEL)
        step = isolated(
            MODEL,
            _step,
            network,
            network_options or {},
            folders,
            patch,
            batch,
            place,
            min(repeats, 3),
        )
    return [
        *(_beside(row, step) for row in rows),
        replace(step, note=f"{network}, patches of {patch}³, batch {batch}"),
    ]


def sampler_of(
    way: str, cases: Sequence[Case], folders: Sequence[Path], spec: PreprocessSpec = SPEC
) -> PatchSampler:
    """The sampler of one of ``WAYS``; all draw the same patches of cases that were prepared as ``spec`` says."""
    arguments = (folders, full(BRATS), 0, Augmentation())
    if WAYS[way] is FromFiles:
        return FromFiles({case.case_id: case for case in cases}, spec, *arguments)
    return WAYS[way](*arguments)


WAYS: dict[str, type[PatchSampler]] = {
    "memory-mapped cache": PatchSampler,
    "prepared arrays": FromArrays,
    "NIfTI files": FromFiles,
}


def _made(folder: Path, spacing: float, progress: Callable[[str], None]) -> Path:
    progress("making two synthetic patients")
    options = {
        "healthy": False,
        "device": "cpu",
        "overwrite": False,
        "report": lambda fraction, text: None,
    }
    write_phantoms(folder / "data", 2, 2030, spacing, **options)
    return folder / "data"


def _beside(row: Cost, step: Cost) -> Cost:
    """The row with its share of the step. On a GPU both are wall-clock time."""
    here, there = (
        (row.seconds, step.seconds) if step.device != "cpu" else (row.cpu_seconds, step.cpu_seconds)
    )
    return (
        replace(row, note=f"{100 * here / there:.1f} % of the step")
        if here is not None and there
        else row
    )


def _batches(
    way: str, cases, folders, patch: int, batch: int, repeats: int, spec: PreprocessSpec = SPEC
) -> Cost:
    sampler, numbers = sampler_of(way, cases, folders, spec), iter(range(1_000_000))
    return timed(way, lambda: sampler.batch(next(numbers), batch, (patch,) * 3), "cpu", repeats)


def _peer(target: str, cases: Sequence[Case], patch: int, batch: int, repeats: int) -> Cost:
    peer, number = load_peer(target), iter(range(1_000_000))

    def work() -> None:
        for _ in range(batch):
            case = cases[next(number) % len(cases)]
            peer(dict(case.scans), case.label, patch)

    return timed(target, work, "cpu", repeats)


def _step(
    network: str,
    options: dict,
    folders: Sequence[Path],
    patch: int,
    batch: int,
    device: str,
    repeats,
) -> Cost:
    place, recipe = torch.device(device), Recipe(network=network, network_options=options)
    sampler = sampler_of("memory-mapped cache", (), folders)
    objective = make_objective(recipe, BRATS, sampler).to(place).train()
    made = sampler.batch(0, batch, (patch,) * 3).to(place)

    def work() -> None:
        for _, losses in objective.steps(made, 0.0):
            objective.zero_grad(set_to_none=True)
            sum(losses.values()).backward()

    return timed(MODEL, work, device, repeats)
