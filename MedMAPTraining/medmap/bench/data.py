"""Cost of making training data, against the step that they feed.

The same patches, drawn and augmented by the same sampler, made in three ways:

* ``NIfTI files``: all modalities of the case are read, cropped and normalized for each patch.
* ``prepared arrays``: that was done once, and complete arrays are read for each patch.
* ``memory-mapped cache``: what ``medmap train`` does; only the patch's voxels are read.
"""

from __future__ import annotations

import itertools
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
from medmap.training.missingness import Missingness, full
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

    def __init__(
        self,
        cases: Mapping[str, Case],
        spec: PreprocessSpec,
        folders: Sequence[Path],
        missingness: Missingness,
        seed: int,
        augmentation: Augmentation,
    ):
        super().__init__(folders, missingness, seed, augmentation)
        self.cases = cases
        self.spec = spec

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
    """Time batches of one process in each way, a peer's if one is named, and the training step.

    Args:
        data: a folder of cases with labels, in BraTS layout; None makes two synthetic patients.
        network, network_options: the model of the step; plain segmentation loss.
        patch: side of the cubic patches, in voxels.
        batch: patches per batch.
        device: where the step runs; data are made on the CPU.
        repeats: timed batches for each row, of which the median counts.
        spacing: of the synthetic patients, in mm.
        against: a peer's loader (``load_peer``): ``callable({modality: path}, label path, patch)``
            makes one patch of one case; what it returns is not used.
        progress: called with a line before each row.

    Returns:
        A cost for each row. The notes of the data state their share of the step.
    """
    resolved = str(resolve_device(device))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        if data is None:
            data = _synthetic_patients(Path(temporary), spacing, progress)
        cases = [case for case in find_cases(data, BRATS) if case.label]
        progress("preparing the cases")
        cache = make_folder(Path(temporary) / "cache")
        folders = [cache_case(case, BRATS, SPEC, cache) for case in cases]
        for name in WAYS:
            progress(name)
            rows.append(isolated(name, _batches, name, cases, folders, patch, batch, repeats))
        if against:
            progress(against)
            rows.append(isolated(against, _peer, against, cases, patch, batch, repeats))
        progress(MODEL)
        # A step takes longer than a batch: three repeats are enough.
        step_repeats = min(repeats, 3)
        options = network_options or {}
        step = isolated(
            MODEL, _step, network, options, folders, patch, batch, resolved, step_repeats
        )
    note = f"{network}, patches of {patch}³, batch {batch}"
    return [*(_with_share(row, step) for row in rows), replace(step, note=note)]


def sampler_of(
    way: str, cases: Sequence[Case], folders: Sequence[Path], spec: PreprocessSpec = SPEC
) -> PatchSampler:
    """The sampler of one of ``WAYS``; all draw the same patches of cases prepared by ``spec``."""
    arguments = (folders, full(BRATS), 0, Augmentation())
    if WAYS[way] is FromFiles:
        return FromFiles({case.case_id: case for case in cases}, spec, *arguments)
    return WAYS[way](*arguments)


WAYS: dict[str, type[PatchSampler]] = {
    "memory-mapped cache": PatchSampler,
    "prepared arrays": FromArrays,
    "NIfTI files": FromFiles,
}


def _synthetic_patients(folder: Path, spacing: float, progress: Callable[[str], None]) -> Path:
    progress("generating two synthetic patients")
    write_phantoms(
        folder / "data",
        2,
        2030,
        spacing,
        healthy=False,
        device="cpu",
        overwrite=False,
        report=lambda fraction, text: None,
    )
    return folder / "data"


def _with_share(row: Cost, step: Cost) -> Cost:
    """The row with its share of the step as its note: of wall-clock time on a GPU."""
    if step.device == "cpu":
        seconds = row.cpu_seconds
        step_seconds = step.cpu_seconds
    else:
        seconds = row.seconds
        step_seconds = step.seconds
    if seconds is None or not step_seconds:
        return row
    return replace(row, note=f"{100 * seconds / step_seconds:.1f} % of the step")


def _batches(
    way: str,
    cases: Sequence[Case],
    folders: Sequence[Path],
    patch: int,
    batch: int,
    repeats: int,
    spec: PreprocessSpec = SPEC,
) -> Cost:
    sampler = sampler_of(way, cases, folders, spec)
    steps = itertools.count()
    return timed(way, lambda: sampler.batch(next(steps), batch, (patch,) * 3), "cpu", repeats)


def _peer(target: str, cases: Sequence[Case], patch: int, batch: int, repeats: int) -> Cost:
    peer = load_peer(target)
    in_turn = itertools.cycle(cases)

    def work() -> None:
        for _ in range(batch):
            case = next(in_turn)
            peer(dict(case.scans), case.label, patch)

    return timed(target, work, "cpu", repeats)


def _step(
    network: str,
    options: dict,
    folders: Sequence[Path],
    patch: int,
    batch: int,
    device: str,
    repeats: int,
) -> Cost:
    recipe = Recipe(network=network, network_options=options)
    sampler = sampler_of("memory-mapped cache", (), folders)
    objective = make_objective(recipe, BRATS, sampler).to(torch.device(device)).train()
    data = sampler.batch(0, batch, (patch,) * 3).to(torch.device(device))

    def work() -> None:
        for _, losses in objective.steps(data, 0.0):
            objective.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()

    return timed(MODEL, work, device, repeats)
