"""A bundle: everything inference needs, in one folder, verified before a single weight is used.

``metadata.json`` (MONAI's key names, ours under ``medmap``), ``model.safetensors`` (half precision), ``README.md``
(the card, for people) and ``SHA256SUMS``. Nothing in it is code: no pickle, no expression, no import path.

A bundle holds one network (format 1), or several that are made for one set of scans each (format 2: the weights of
each under its set's name in the same file). ``Bundle.entry_for`` alone decides which of them some scans get.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from medmap.bundle.card import card_text, monai_metadata
from medmap.confidence import NO_DOUBT, DoubtSpec
from medmap.errors import BundleError, MissingInputError
from medmap.io.atomic import atomic_folder
from medmap.networks import Backbone, build_network
from medmap.postprocess import PostprocessSpec
from medmap.preprocess import PreprocessSpec
from medmap.task import Task, choose_set

FORMATS = (1, 2)
ANY = "any"
"""Name of an entry whose network takes whatever there is."""
NO_POSTPROCESSING = PostprocessSpec()
METADATA, WEIGHTS, CARD, SUMS = "metadata.json", "model.safetensors", "README.md", "SHA256SUMS"
_REQUIRED = (METADATA, WEIGHTS)
_LARGEST_METADATA = 4 * 2**20


@dataclass(frozen=True)
class InferenceSpec:
    """How a bundle wants to be run.

    Attributes:
        window: largest size, in working voxels, that goes through the network in one pass.
        overlap: share of a window that neighbors have in common when one pass does not suffice.
        bytes_per_voxel: peak memory for every voxel of a window (``medmap.bundle.memory_estimate.bytes_per_voxel``); 0 if unknown.
    """

    window: tuple[int, int, int] = (192, 224, 192)
    overlap: float = 0.25
    bytes_per_voxel: int = 0


@dataclass(frozen=True)
class NetworkSpec:
    """Name of a backbone and its options, as plain data."""

    name: str
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One network of a bundle, and the scans that it takes.

    Attributes:
        name: the set of scans it is made for, as ``Task.subset_key`` writes it, or ``any``.
        modalities: names in task order. Of ``Bundle.entries`` what it can take; of ``entry_for`` what it takes of the
            scans that there are.
        network: in evaluation mode, on the CPU, float32.
    """

    name: str
    modalities: tuple[str, ...]
    network_spec: NetworkSpec
    network: Backbone


@dataclass(frozen=True)
class Bundle:
    """A verified, loaded bundle.

    Attributes:
        id: name and version, ``medmap-phantom-1.0.0``.
        sha256: hash of ``SHA256SUMS``, hence of every byte of the bundle.
        card: what people should know: data, training, the validated Dice per subset (``card["dice"]``).
        network_spec, network: of the first entry, which is the only one of most bundles.
        others: further networks, each made for one set of scans; see ``entries``.
        doubt: which pieces it is too unsure of to show them.
    """

    id: str
    sha256: str
    task: Task
    network_spec: NetworkSpec
    preprocess: PreprocessSpec
    inference: InferenceSpec
    card: dict
    network: Backbone
    postprocess: PostprocessSpec = NO_POSTPROCESSING
    others: tuple[tuple[NetworkSpec, Backbone], ...] = ()
    doubt: DoubtSpec = NO_DOUBT

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every network with the scans it can take, in the bundle's order."""
        networks = ((self.network_spec, self.network), *self.others)
        return tuple(_entry(self.task, spec, network) for spec, network in networks)

    @property
    def stride(self) -> int:
        """Spatial sizes must be divisible by it, whichever entry runs."""
        return math.lcm(*(entry.network.stride for entry in self.entries))

    def find_entry(self, names: Iterable[str]) -> Entry | None:
        """The entry that makes use of the most of these scans, the first among equals; None if they satisfy none.

        A network made for one set of scans needs them all and sees no other.
        """
        given = set(names)
        chosen = choose_set(
            [None if entry.name == ANY else entry.modalities for entry in self.entries], given
        )
        if chosen is None:
            return None
        entry = self.entries[chosen]
        return replace(entry, modalities=tuple(m for m in entry.modalities if m in given))

    def entry_for(self, names: Iterable[str]) -> Entry:
        """As ``find_entry``. Raises BundleError, saying what the bundle is made for, if the scans satisfy no entry."""
        given = set(names)
        found = self.find_entry(given)
        if found is not None:
            return found
        made = [entry.modalities for entry in self.entries]
        if len(made) == 1:
            missing = self.task.titles(name for name in made[0] if name not in given)
            raise BundleError(
                f"The bundle {self.id} is made for {self.task.titles(made[0])}, and {missing} is missing.",
                "Add it, or use a bundle for any set of scans.",
            )
        there = self.task.titles(name for name in self.task.modality_names if name in given)
        raise BundleError(
            f"The bundle {self.id} has no network for {there}: it is made for "
            f"{'; '.join(self.task.titles(m) for m in made)}.",
            "Add the scans of one of these, or use a bundle for any set of scans.",
        )


def _entry(task: Task, spec: NetworkSpec, network: Backbone) -> Entry:
    if network.needs is None:
        return Entry(ANY, task.modality_names, spec, network)
    names = tuple(task.modality_names[m] for m in sorted(network.needs))
    return Entry(task.subset_key(names), names, spec, network)


def default_bundle_path() -> Path:
    """Where the bundle that ships with MedMAP lies: ``$MEDMAP_BUNDLE``, the checkout's, or the installed extension's.

    Raises:
        MissingInputError: none of these exists.
    """
    package = Path(__file__).resolve().parents[1]
    named = os.environ.get("MEDMAP_BUNDLE")
    places = [Path(named)] if named else []
    places += [
        package.parents[1] / "Resources/bundles/default",
        package.parent / "Resources/MedMAPBundles/default",
    ]
    for place in places:
        if (place / METADATA).is_file():
            return place
    raise MissingInputError(
        "The default bundle was not found beside this MedMAP.",
        "Name a bundle with --bundle or set MEDMAP_BUNDLE.",
    )


def verify_bundle(path: str | os.PathLike) -> dict[str, str]:
    """Compare every file of a bundle with ``SHA256SUMS``.

    Returns:
        SHA-256 by file name, with that of ``SHA256SUMS`` itself under its own name.

    Raises:
        MissingInputError: there is no such folder.
        BundleError: a file is missing, added or altered.
    """
    contents = _read_verified(Path(path))
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def load_bundle(path: str | os.PathLike) -> Bundle:
    """Verify, build and strictly load a bundle.

    Raises:
        MissingInputError: there is no such folder.
        BundleError: not a bundle, altered, of an unknown format, or weights that do not fit the network.
    """
    folder = Path(path)
    contents = _read_verified(folder)
    metadata = _parse_metadata(contents[METADATA])
    own = metadata["medmap"]
    try:
        several = own["networks"] if own["format"] == 2 else [own["network"]]
        specs = [NetworkSpec(str(stated["name"]), dict(stated["options"])) for stated in several]
        window = own["inference"]
        inference = InferenceSpec(
            tuple(int(n) for n in window["window"]),
            float(window["overlap"]),
            int(window.get("bytes_per_voxel", 0)),
        )
        task, preprocess = Task.from_dict(own["task"]), PreprocessSpec.from_dict(own["preprocess"])
        postprocess = PostprocessSpec.from_dict(own["postprocess"])
        doubt = DoubtSpec.from_dict(own.get("doubt", {}))
        card, identity = dict(own["card"]), f"{metadata['name']}-{metadata['version']}"
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"The bundle {folder.name} lacks or garbles {error} in {METADATA}.", "Export it again."
        ) from error
    networks = [(spec, build_network(spec.name, spec.options).eval()) for spec in specs]
    if not networks:
        raise BundleError(f"The bundle {folder.name} holds no network.", "Export it again.")
    digest = hashlib.sha256(contents[SUMS]).hexdigest()
    first, *others = networks
    bundle = Bundle(
        identity,
        digest,
        task,
        first[0],
        preprocess,
        inference,
        card,
        first[1],
        postprocess,
        tuple(others),
        doubt,
    )
    _load_weights(bundle, contents[WEIGHTS], folder.name)
    return bundle


def save_bundle(
    path: str | os.PathLike,
    *,
    name: str,
    version: str,
    task: Task,
    network: Backbone,
    network_spec: NetworkSpec,
    preprocess: PreprocessSpec,
    inference: InferenceSpec,
    card: Mapping,
    postprocess: PostprocessSpec = NO_POSTPROCESSING,
    others: Sequence[tuple[NetworkSpec, Backbone]] = (),
    doubt: DoubtSpec = NO_DOUBT,
    overwrite: bool = False,
) -> Path:
    """Write a bundle, all or nothing; weights are stored in half precision.

    Args:
        others: further networks, each made for one set of scans.

    Raises:
        BundleError: two of the networks are made for the same set.
        OutputError: the folder exists (and ``overwrite`` is False) or cannot be written.
    """
    networks = [(network_spec, network), *others]
    weights = {}
    for spec, one in networks:
        prefix = _prefix(_entry(task, spec, one)) if others else ""
        found = {
            prefix + name: _stored(name, value) for name, value in sorted(one.state_dict().items())
        }
        if weights.keys() & found.keys():
            raise BundleError(
                f"Two networks are made for {prefix[:-1]}.", "Give one network a set of scans."
            )
        weights |= found
    stated = [{"name": spec.name, "options": spec.options} for spec, _ in networks]
    own = {
        "format": 2 if others else 1,
        "task": task.to_dict(),
        **({"networks": stated} if others else {"network": stated[0]}),
        "preprocess": preprocess.to_dict(),
        "postprocess": postprocess.to_dict(),
        **({"doubt": doubt.to_dict()} if doubt != NO_DOUBT else {}),
        "inference": {
            "window": list(inference.window),
            "overlap": inference.overlap,
            "bytes_per_voxel": inference.bytes_per_voxel,
        },
        "card": dict(card),
    }
    metadata = {**monai_metadata(name, version, task, card), "medmap": own}
    return _write(Path(path), metadata, save_tensors(weights), overwrite)


def update_card(path: str | os.PathLike, changes: Mapping) -> Path:
    """Replace entries of a bundle's card (its Dice table, say) and renew the hashes; weights stay byte for byte."""
    contents = _read_verified(Path(path))
    metadata = _parse_metadata(contents[METADATA])
    metadata["medmap"]["card"] = {**metadata["medmap"]["card"], **changes}
    return _write(Path(path), metadata, contents[WEIGHTS], overwrite=True)


def update_doubt(path: str | os.PathLike, doubt: DoubtSpec, *, version: str, change: str) -> Path:
    """Replace how a bundle treats doubt, as a new version of it; weights stay byte for byte.

    Args:
        version: the new version; results differ from the old one's.
        change: what is new, a line of the bundle's changelog.
    """
    contents = _read_verified(Path(path))
    metadata = _parse_metadata(contents[METADATA])
    metadata["medmap"]["doubt"] = doubt.to_dict()
    metadata["version"] = version
    metadata["changelog"] = {version: change, **metadata["changelog"]}
    return _write(Path(path), metadata, contents[WEIGHTS], overwrite=True)


def _stored(name: str, value: torch.Tensor) -> torch.Tensor:
    """Half precision for weights; running statistics and counters keep theirs, which half might not hold."""
    value = value.detach().cpu().contiguous()
    return value if "running_" in name or not value.is_floating_point() else value.half()


def _write(path: Path, metadata: dict, weights: bytes, overwrite: bool) -> Path:
    files = {
        METADATA: (json.dumps(metadata, indent=1, ensure_ascii=False) + "\n").encode(),
        WEIGHTS: weights,
        CARD: card_text(metadata).encode(),
    }
    sums = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())
    )
    files[SUMS] = sums.encode()
    with atomic_folder(path, overwrite=overwrite) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
    return path


def _read_verified(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise MissingInputError(
            f"There is no bundle folder {folder.name}.", "Check the path given with --bundle."
        )
    try:
        present = {p.name: p for p in folder.iterdir() if not p.name.startswith(".")}
        sums = present[SUMS].read_bytes() if SUMS in present else b""
        listed = _parse_sums(sums, folder.name)
        if set(present) != {*listed, SUMS}:
            odd = sorted(set(present) ^ {*listed, SUMS})
            raise BundleError(
                f"The bundle {folder.name} has files missing or added: {', '.join(odd)}.",
                "Copy the bundle again.",
            )
        contents = {name: present[name].read_bytes() for name in listed}
    except OSError as error:
        raise BundleError(
            f"The bundle {folder.name} cannot be read: {error.strerror}.", "Check its permissions."
        ) from error
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != listed[name]:
            raise BundleError(
                f"{name} of the bundle {folder.name} is not the file that was published (SHA-256 differs).",
                "Copy the bundle again from its source.",
            )
    return {**contents, SUMS: sums}


def _parse_sums(data: bytes, folder: str) -> dict[str, str]:
    listed = {}
    for line in data.decode("ascii", "replace").removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        if (
            len(digest) != 64
            or set(digest) - set("0123456789abcdef")
            or not name
            or "/" in name
            or "\\" in name
        ):
            raise BundleError(
                f"{SUMS} of the bundle {folder} is damaged.",
                "Copy the bundle again from its source.",
            )
        listed[name] = digest
    if not set(_REQUIRED) <= set(listed) or SUMS in listed:
        raise BundleError(
            f"{folder} is not a MedMAP bundle: {SUMS} does not list its files.",
            "Choose another folder.",
        )
    return listed


def _parse_metadata(data: bytes) -> dict:
    try:
        if len(data) > _LARGEST_METADATA:
            raise ValueError("too large")
        metadata = json.loads(data)
        found = metadata["medmap"]["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{METADATA} is not a bundle description ({error}).", "Export the bundle again."
        ) from error
    if found not in FORMATS:
        raise BundleError(
            f"The bundle has format {found}, this MedMAP reads {' and '.join(map(str, FORMATS))}.",
            "Use the MedMAP that it was made for.",
        )
    return metadata


def _prefix(entry: Entry) -> str:
    """What the names of an entry's weights begin with in a file of several networks."""
    return f"{entry.name}/"


def _load_weights(bundle: Bundle, data: bytes, folder: str) -> None:
    """Strictly: every network gets all of its weights, and none is left over."""
    try:
        weights = {
            k: v.float() if v.is_floating_point() else v for k, v in load_tensors(data).items()
        }
        for entry in bundle.entries:
            own = _prefix(entry) if bundle.others else ""
            chosen = {
                name.removeprefix(own): weights.pop(name)
                for name in list(weights)
                if name.startswith(own)
            }
            entry.network.load_state_dict(chosen, strict=True)
        if weights:
            raise ValueError(f"{next(iter(weights))} belongs to none")
    except (SafetensorError, RuntimeError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise BundleError(
            f"The weights of {folder} do not fit its network ({cause}).", "Export it again."
        ) from error
    if not all(
        torch.isfinite(p).all()
        for entry in bundle.entries
        for p in entry.network.state_dict().values()
    ):
        raise BundleError(
            f"The weights of {folder} are not all finite.", "Train and export the bundle again."
        )
