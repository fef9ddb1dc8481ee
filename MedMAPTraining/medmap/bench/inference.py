"""What segmenting one patient costs, from files to files: by number of scans, by scheme, for all subsets, for a peer.

Schemes:

* ``ours``: what ``medmap segment`` does with the bundle: one pass over the box around the head where it fits.
* ``windows``: the same bundle in windows of 128 voxels with half of them in common, absent encoders skipped.
* ``published``: mmFormer the way it is released: windows of 128 voxels, half in common, all four encoders for every
  window whatever is present, plain mean of the softmax. Our own mmFormer (``networks.mmformer``) with random weights:
  its time does not depend on them.
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
from medmap.inference import segment, segment_subsets, window_boxes
from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.networks import build_network
from medmap.phantom import generate
from medmap.postprocess import labels_on_reference
from medmap.preprocess import Prepared, PreprocessSpec, prepare
from medmap.task import BRATS, Task
from medmap.volume import Grid, Volume

SCHEMES = ("ours", "windows", "published")
WINDOW, OVERLAP = 128, 0.5
Progress = Callable[[str], None]


def write_patient(folder: Path, *, spacing: float = 1.0, seed: int = 2030) -> dict[str, Path]:
    """A synthetic patient as files, by modality: a head in 240 x 240 x 155 mm, as BraTS has it."""
    shape = tuple(round(mm / spacing) for mm in (240, 240, 155))
    made = generate(seed, shape=shape, spacing=spacing)
    paths = {}
    for name, image in made.images.items():
        paths[name] = folder / f"{name}.nii.gz"
        write_volume(paths[name], image.numpy().round().astype(np.int16), made.affine)
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
    """Segment one patient from files to a file, in every scheme, with the first scans of a fixed order.

    Args:
        scans: files by modality; None makes a synthetic patient.
        bundle: what ``ours`` and ``windows`` run.
        present: numbers of scans. FLAIR comes first, then T1ce, T1, T2, the order in which readers miss them most.
        schemes: of ``SCHEMES``. ``published`` costs the same whatever is present, so it is measured once.
        against: a peer's model (``load_peer``): ``callable(scans, affine)`` gets arrays [I, J, K] by modality and
            returns labels of that shape.
        device: torch device, or ``auto``.
        repeats: timed runs a row, after a warm-up; ``published`` runs once, without.
        spacing: of the synthetic patient, in mm.
        progress: called with a line before each row.

    Raises:
        UsageError: an unknown scheme, or more scans than there are.
    """
    unknown = [s for s in schemes if s not in SCHEMES]
    if unknown:
        raise UsageError(
            f"The scheme '{unknown[0]}' is unknown.", f"Use some of {', '.join(SCHEMES)}."
        )
    place = str(resolve_device(device))
    with tempfile.TemporaryDirectory() as folder:
        files = dict(scans) if scans else write_patient(Path(folder), spacing=spacing)
        order = [n for n in ("flair", "t1ce", "t1", "t2") if n in files] or sorted(files)
        if max(present) > len(order):
            raise UsageError(
                f"There are {len(order)} scans, not {max(present)}.",
                "Ask for no more than there are.",
            )
        costs = []
        for scheme in schemes:
            for count in present if scheme != "published" else present[:1]:
                name = f"{scheme}, {count} scan{'s' * (count > 1)}"
                progress(name)
                chosen = {n: files[n] for n in order[:count]}
                runs = 1 if scheme == "published" else repeats
                costs.append(isolated(name, _from_files, name, scheme, chosen, bundle, place, runs))
        for count in present if against else ():
            name = f"{against}, {count} scan{'s' * (count > 1)}"
            progress(name)
            chosen = {n: files[n] for n in order[:count]}
            costs.append(isolated(name, _peer, name, against, chosen, place, repeats))
        return costs


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
    """All subsets of one patient's scans against one segmentation of all of them, from scans in memory to labels.

    A peer's model (``against``, as in ``bench_infer``) is called once for every subset.
    """
    place = str(resolve_device(device))
    with tempfile.TemporaryDirectory() as folder:
        files = dict(scans) if scans else write_patient(Path(folder), spacing=spacing)
        costs = []
        for name, work in (
            ("one segmentation of all scans", _one),
            ("every subset of the scans", _all),
        ):
            progress(name)
            costs.append(isolated(name, work, name, files, bundle, place, repeats))
        if against:
            name = f"{against}, every subset of the scans"
            progress(name)
            costs.append(isolated(name, _peer_all, name, against, files, bundle, place, repeats))
        return costs


def published_way(
    volumes: Mapping[str, Volume], task: Task, device: str = "cpu", network=None
) -> np.ndarray:
    """Labels of one patient by mmFormer as it is released: see the module's docstring.

    Args:
        volumes: scans by modality.
        task: of four modalities.
        device: a torch device.
        network: instead of mmFormer at 128 voxels with random weights.
    """
    place = torch.device(device)
    network = (network or build_network("mmFormer", {"window": WINDOW})).to(place).eval()
    prepared = _at_least(prepare(volumes, task, PreprocessSpec()), WINDOW)
    window = (WINDOW,) * 3
    total = torch.zeros((task.num_classes, *prepared.grid.shape))
    count = torch.zeros(prepared.grid.shape)
    with torch.inference_mode():
        for box in window_boxes(prepared.grid.shape, window, OVERLAP, 1):
            image = prepared.image[(slice(None), *box)][None].to(place)
            logits = network(image, prepared.present[None].to(place)).logits  # runs every encoder
            total[(slice(None), *box)] += torch.softmax(logits[0], 0).cpu()
            count[box] += 1
    return labels_on_reference(total / count, prepared, task)


def _at_least(prepared: Prepared, size: int) -> Prepared:
    """Padded at the end of every axis to at least ``size`` voxels, as the published preprocessing does."""
    missing = [max(0, size - n) for n in prepared.grid.shape]
    pad = [0, missing[2], 0, missing[1], 0, missing[0]]
    image, brain = (torch.nn.functional.pad(t, pad) for t in (prepared.image, prepared.brain))
    return replace(
        prepared, image=image, brain=brain, grid=Grid(tuple(brain.shape), prepared.grid.affine)
    )


def _from_files(
    name: str, scheme: str, files: dict[str, Path], bundle: Path, device: str, repeats: int
) -> Cost:
    loaded = load_bundle(bundle) if scheme != "published" else None
    if scheme == "windows":
        loaded = replace(loaded, inference=InferenceSpec((WINDOW,) * 3, OVERLAP))
    network = build_network("mmFormer", {"window": WINDOW}) if scheme == "published" else None

    def work() -> str:
        volumes = {
            modality: read_nifti(path, modality=modality) for modality, path in files.items()
        }
        if scheme == "published":
            grid = next(iter(volumes.values())).grid
            labels, note = (
                published_way(volumes, BRATS, device, network),
                "all four encoders, whatever is present",
            )
        else:
            result = segment(volumes, loaded, device=device)
            labels, grid = result.labels, result.grid
            note = f"window {' x '.join(map(str, result.provenance['run']['window']))}"
        with tempfile.TemporaryDirectory() as folder:
            write_labels(Path(folder) / "labels.nii.gz", labels, grid)
        return note

    return timed(name, work, device, repeats, warm_up=scheme != "published")


def _peer(name: str, target: str, files: dict[str, Path], device: str, repeats: int) -> Cost:
    peer = load_peer(target)

    def work() -> str:
        volumes = {
            modality: read_nifti(path, modality=modality) for modality, path in files.items()
        }
        labels = _ask(peer, volumes)
        with tempfile.TemporaryDirectory() as folder:
            grid = next(iter(volumes.values())).grid
            write_labels(Path(folder) / "labels.nii.gz", labels.astype(np.uint8), grid)
        return "a peer's model"

    return timed(name, work, device, repeats)


def _peer_all(
    name: str, target: str, files: dict[str, Path], bundle: Path, device: str, repeats: int
) -> Cost:
    peer, (volumes, loaded) = load_peer(target), _read(files, bundle)
    subsets = [s for s in loaded.task.subsets() if set(s) <= set(volumes)]

    def work() -> str:
        for subset in subsets:
            _ask(peer, {modality: volumes[modality] for modality in subset})
        return f"a peer's model, {len(subsets)} label maps"

    return timed(name, work, device, repeats, warm_up=repeats > 1)


def _ask(peer: Callable, volumes: Mapping[str, Volume]) -> np.ndarray:
    """A peer's labels of one patient. Raises ValueError for another shape than the scans'."""
    grid = next(iter(volumes.values())).grid
    labels = np.asarray(
        peer({modality: volume.array for modality, volume in volumes.items()}, grid.affine)
    )
    if labels.shape != grid.shape:
        raise ValueError(f"the peer returned {labels.shape}, not {grid.shape}")
    return labels


def _read(files: Mapping[str, Path], bundle: Path) -> tuple[dict[str, Volume], Bundle]:
    loaded = load_bundle(bundle)
    names = [n for n in loaded.task.modality_names if n in files]
    return {n: read_nifti(files[n], modality=n) for n in names}, loaded


def _one(name: str, files: dict[str, Path], bundle: Path, device: str, repeats: int) -> Cost:
    volumes, loaded = _read(files, bundle)
    return timed(
        name, lambda: segment(volumes, loaded, device=device), device, repeats, warm_up=repeats > 1
    )


def _all(name: str, files: dict[str, Path], bundle: Path, device: str, repeats: int) -> Cost:
    volumes, loaded = _read(files, bundle)
    subsets = [s for s in loaded.task.subsets() if set(s) <= set(volumes) and loaded.find_entry(s)]

    def work() -> str:
        return f"{len(segment_subsets(volumes, loaded, subsets, device=device))} label maps"

    return timed(name, work, device, repeats, warm_up=repeats > 1)
