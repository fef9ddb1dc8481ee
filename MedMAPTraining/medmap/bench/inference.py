"""Cost of segmenting one patient, from files to files.

Schemes:

* ``ours``: what ``medmap segment`` does with the bundle: one pass over the box around the head
  where it fits.
* ``windows``: the same bundle in windows of 128 voxels that overlap by half, absent encoders
  skipped.
* ``published``: mmFormer the way it is released: windows of 128 voxels that overlap by half, all
  four encoders for every window, plain mean of the softmax. Our mmFormer (``networks.mmformer``)
  with random weights: its time does not depend on them.
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
from medmap.bundle.format import InferenceSpec
from medmap.bundle.loading import Bundle, load_bundle
from medmap.devices import resolve_device
from medmap.errors import UsageError
from medmap.inference import segment, segment_subsets
from medmap.io.nifti import read_scans, write_labels, write_volume
from medmap.networks import Backbone, build_network
from medmap.phantom import generate
from medmap.postprocess.reference_labels import labels_on_reference
from medmap.preprocess import Prepared, PreprocessSpec, prepare
from medmap.sliding_window import window_boxes
from medmap.task import BRATS, Task
from medmap.volume import Grid, Volume

SCHEMES = ("ours", "windows", "published")
WINDOW = 128
OVERLAP = 0.5
READING_ORDER = ("flair", "t1ce", "t1", "t2")
"""Modalities in the order in which readers miss them most."""
Progress = Callable[[str], None]


def write_patient(folder: Path, *, spacing: float = 1.0, seed: int = 2030) -> dict[str, Path]:
    """A synthetic patient as files, by modality: a head in 240 x 240 x 155 mm, as BraTS has it."""
    in_plane = round(240 / spacing)
    slices = round(155 / spacing)
    phantom = generate(seed, shape=(in_plane, in_plane, slices), spacing=spacing)
    paths = {}
    for name, image in phantom.images.items():
        paths[name] = folder / f"{name}.nii.gz"
        write_volume(paths[name], image.numpy().round().astype(np.int16), phantom.affine)
    return paths


def bench_infer(
    scans: Mapping[str, Path] | None,
    bundle: Path,
    *,
    present: Sequence[int] = (1, 2, 4),
    schemes: Sequence[str] = SCHEMES,
    against: str | None = None,
    device: str = "cpu",
    repeats: int = 3,
    spacing: float = 1.0,
    progress: Progress = lambda text: None,
) -> list[Cost]:
    """Segment one patient from files to a file, in every scheme.

    Args:
        scans: files by modality; None makes a synthetic patient.
        bundle: what ``ours`` and ``windows`` run.
        present: numbers of modalities, taken in ``READING_ORDER``.
        schemes: of ``SCHEMES``. ``published`` costs the same for every subset, so it is measured
            once.
        against: a peer's model (``load_peer``): ``callable(scans, affine)`` gets arrays [I, J, K]
            by modality and returns labels of that shape.
        device: torch device, or ``auto``.
        repeats: timed runs for each row, after a warm-up; ``published`` runs once, without.
        spacing: of the synthetic patient, in mm.
        progress: called with a line before each row.

    Raises:
        UsageError: an unknown scheme, or more modalities than there are.
    """
    unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
    if unknown:
        raise UsageError(
            f"The scheme '{unknown[0]}' is unknown.", f"Use some of {', '.join(SCHEMES)}."
        )
    resolved = str(resolve_device(device))
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        files = _files(scans, Path(folder), spacing)
        order = [name for name in READING_ORDER if name in files] or sorted(files)
        if max(present) > len(order):
            raise UsageError(
                f"There are {len(order)} modalities, not {max(present)}.",
                f"Ask for at most {len(order)}.",
            )
        chosen = {}
        for count in present:
            chosen[count] = {name: files[name] for name in order[:count]}
        for scheme in schemes:
            published = scheme == "published"
            for count in present[:1] if published else present:
                name = f"{scheme}, {_modalities(count)}"
                progress(name)
                runs = 1 if published else repeats
                costs.append(
                    isolated(name, _from_files, name, scheme, chosen[count], bundle, resolved, runs)
                )
        if against:
            for count in present:
                name = f"{against}, {_modalities(count)}"
                progress(name)
                costs.append(isolated(name, _peer, name, against, chosen[count], resolved, repeats))
    return costs


def _files(scans: Mapping[str, Path] | None, folder: Path, spacing: float) -> dict[str, Path]:
    """The files by modality, or those of a synthetic patient."""
    if scans:
        return dict(scans)
    return write_patient(folder, spacing=spacing)


def _modalities(count: int) -> str:
    if count == 1:
        return "1 modality"
    return f"{count} modalities"


def bench_subsets(
    scans: Mapping[str, Path] | None,
    bundle: Path,
    *,
    against: str | None = None,
    device: str = "cpu",
    repeats: int = 1,
    spacing: float = 1.0,
    progress: Progress = lambda text: None,
) -> list[Cost]:
    """All modality subsets of one patient against one segmentation of all modalities.

    From scans in memory to labels. A peer's model (``against``, as in ``bench_infer``) is called
    once for every subset.
    """
    resolved = str(resolve_device(device))
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        files = _files(scans, Path(folder), spacing)
        measurements = (
            ("one segmentation of all modalities", _one),
            ("every modality subset", _all),
        )
        for name, work in measurements:
            progress(name)
            costs.append(isolated(name, work, name, files, bundle, resolved, repeats))
        if against:
            name = f"{against}, every modality subset"
            progress(name)
            arguments = (name, against, files, bundle, resolved, repeats)
            costs.append(isolated(name, _peer_all, *arguments))
    return costs


def published_way(
    volumes: Mapping[str, Volume],
    task: Task,
    device: str = "cpu",
    network: Backbone | None = None,
) -> np.ndarray:
    """Labels of one patient by mmFormer as it is released: see the module's docstring.

    Args:
        volumes: scans by modality.
        task: of four modalities.
        device: a torch device.
        network: instead of mmFormer at 128 voxels with random weights.
    """
    target_device = torch.device(device)
    network = (network or build_network("mmFormer", {"window": WINDOW})).to(target_device).eval()
    prepared = _at_least(prepare(volumes, task, PreprocessSpec()), WINDOW)
    window = (WINDOW,) * 3
    total = torch.zeros((task.num_classes, *prepared.grid.shape))
    count = torch.zeros(prepared.grid.shape)
    with torch.inference_mode():
        for box in window_boxes(prepared.grid.shape, window, OVERLAP, 1):
            image = prepared.image[(slice(None), *box)][None].to(target_device)
            # A call of the network, unlike encoding and decoding, runs every encoder.
            logits = network(image, prepared.present[None].to(target_device)).logits
            total[(slice(None), *box)] += torch.softmax(logits[0], 0).cpu()
            count[box] += 1
    return labels_on_reference(total / count, prepared, task)


def _at_least(prepared: Prepared, size: int) -> Prepared:
    """Padded at the end of every axis to at least ``size`` voxels, as published."""
    missing = [max(0, size - n) for n in prepared.grid.shape]
    # Pairs of front and back from the last axis to the first, as torch wants them.
    padding = [0, missing[2], 0, missing[1], 0, missing[0]]
    image = torch.nn.functional.pad(prepared.image, padding)
    brain = torch.nn.functional.pad(prepared.brain, padding)
    depth, height, width = brain.shape
    grid = Grid((depth, height, width), prepared.grid.affine)
    return replace(prepared, image=image, brain=brain, grid=grid)


def _from_files(
    name: str, scheme: str, files: dict[str, Path], bundle: Path, device: str, repeats: int
) -> Cost:
    if scheme == "published":
        return _published_from_files(name, files, device, repeats)
    loaded = load_bundle(bundle)
    if scheme == "windows":
        loaded = replace(loaded, inference=InferenceSpec((WINDOW,) * 3, OVERLAP))

    def work() -> str:
        result = segment(_volumes(files), loaded, device=device)
        _write(result.labels, result.grid)
        window = result.provenance.run.window
        return f"window {' x '.join(map(str, window))}"

    return timed(name, work, device, repeats)


def _published_from_files(name: str, files: dict[str, Path], device: str, repeats: int) -> Cost:
    network = build_network("mmFormer", {"window": WINDOW})

    def work() -> str:
        volumes = _volumes(files)
        grid = next(iter(volumes.values())).grid
        _write(published_way(volumes, BRATS, device, network), grid)
        return "all four encoders for every subset"

    return timed(name, work, device, repeats, warm_up=False)


def _volumes(files: Mapping[str, Path]) -> dict[str, Volume]:
    return read_scans(files)


def _write(labels: np.ndarray, grid: Grid) -> None:
    """Write labels to a file, which is part of the cost, and forget it."""
    with tempfile.TemporaryDirectory() as folder:
        write_labels(Path(folder) / "labels.nii.gz", labels, grid)


def _peer(name: str, target: str, files: dict[str, Path], device: str, repeats: int) -> Cost:
    peer = load_peer(target)

    def work() -> str:
        volumes = _volumes(files)
        labels = _ask(peer, volumes)
        _write(labels.astype(np.uint8), next(iter(volumes.values())).grid)
        return "a peer's model"

    return timed(name, work, device, repeats)


def _peer_all(
    name: str, target: str, files: dict[str, Path], bundle: Path, device: str, repeats: int
) -> Cost:
    peer = load_peer(target)
    volumes, loaded = _read(files, bundle)
    subsets = [s for s in loaded.task.subsets() if set(s) <= set(volumes)]

    def work() -> str:
        for subset in subsets:
            _ask(peer, {modality: volumes[modality] for modality in subset})
        return f"a peer's model, {len(subsets)} label maps"

    return timed(name, work, device, repeats, warm_up=repeats > 1)


def _ask(peer: Callable, volumes: Mapping[str, Volume]) -> np.ndarray:
    """A peer's labels of one patient. Raises ValueError for another shape than the scans'."""
    grid = next(iter(volumes.values())).grid
    arrays = {modality: volume.array for modality, volume in volumes.items()}
    labels = np.asarray(peer(arrays, grid.affine))
    if labels.shape != grid.shape:
        raise ValueError(f"the peer returned {labels.shape}, not {grid.shape}")
    return labels


def _read(files: Mapping[str, Path], bundle: Path) -> tuple[dict[str, Volume], Bundle]:
    loaded = load_bundle(bundle)
    names = [name for name in loaded.task.modality_names if name in files]
    return _volumes({name: files[name] for name in names}), loaded


def _one(name: str, files: dict[str, Path], bundle: Path, device: str, repeats: int) -> Cost:
    volumes, loaded = _read(files, bundle)

    def work() -> None:
        segment(volumes, loaded, device=device)

    return timed(name, work, device, repeats, warm_up=repeats > 1)


def _all(name: str, files: dict[str, Path], bundle: Path, device: str, repeats: int) -> Cost:
    volumes, loaded = _read(files, bundle)
    subsets = []
    for subset in loaded.task.subsets():
        if set(subset) <= set(volumes) and loaded.find_entry(subset):
            subsets.append(subset)

    def work() -> str:
        predictions = segment_subsets(volumes, loaded, subsets, device=device)
        return f"{len(predictions)} label maps"

    return timed(name, work, device, repeats, warm_up=repeats > 1)
