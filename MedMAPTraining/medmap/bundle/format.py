"""The bundle format: file names, limits, hashes and metadata. No torch in here.

A bundle is one folder: ``metadata.json`` (MONAI's key names, ours under ``medmap``),
``model.safetensors`` (half precision), ``README.md`` (the model card) and ``SHA256SUMS``. Nothing
in it is code: no pickle, no expression, no import path.

Format 1 holds one network. Format 2 holds several, each made for one modality subset; the weights
of each stand under its subset's key in the same file.

This is the only parser of the format. ``medmap.bundle.loading`` builds networks from what it
returns; the 3D Slicer panel lists models with it before PyTorch is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from medmap.bundle.training_cases import TrainingCases
from medmap.errors import BundleError, MissingInputError
from medmap.task import Task

FORMATS = (1, 2)
METADATA = "metadata.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
SUMS = "SHA256SUMS"
ANY = "any"
"""Name of an entry whose network takes every modality subset."""
WEIGHTINGS = ("gaussian", "uniform")
"""How overlapping windows may be averaged."""
EARLIER_CONFIDENCE = "doubt"
"""Earlier name of the section ``confidence``."""
LARGEST_TEXT = 4 * 2**20
"""Largest size in bytes of every file but the weights."""

_REQUIRED = (METADATA, WEIGHTS)
_BLOCK = 1 << 20
_HEXADECIMAL = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class InferenceSpec:
    """How the networks of a bundle are applied.

    Attributes:
        window: largest size, in working voxels, that goes through the network in one pass.
        overlap: fraction of a window that neighbors share when one pass does not suffice.
        weighting: how overlapping windows are averaged: ``gaussian``, or ``uniform`` for the plain
            mean of the RFNet lineage.
        bytes_per_voxel: peak memory per voxel of a window
            (``medmap.bundle.memory_estimate.bytes_per_voxel``); 0 if unknown.
    """

    window: tuple[int, ...] = (192, 224, 192)
    overlap: float = 0.25
    bytes_per_voxel: int = 0
    weighting: str = "gaussian"

    def to_dict(self) -> dict:
        """Plain JSON-ready form; Gaussian weighting is not named, as in earlier bundles."""
        content = {
            "window": list(self.window),
            "overlap": self.overlap,
            "bytes_per_voxel": self.bytes_per_voxel,
        }
        if self.weighting != "gaussian":
            content["weighting"] = self.weighting
        return content

    @staticmethod
    def from_dict(data: Mapping) -> InferenceSpec:
        """Rebuild; raises KeyError, TypeError or ValueError for invalid data."""
        window = tuple(int(size) for size in data["window"])
        weighting = str(data.get("weighting", "gaussian"))
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting {weighting}")
        overlap = float(data["overlap"])
        # 0 where a bundle of an earlier version does not say.
        bytes_per_voxel = int(data.get("bytes_per_voxel", 0))
        return InferenceSpec(window, overlap, bytes_per_voxel, weighting)


@dataclass(frozen=True)
class NetworkSpec:
    """Name of a backbone and its options, as plain data."""

    name: str
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """Content of ``metadata.json``.

    Attributes:
        id: name and version, ``medmap-phantom-1.0.0``.
        format: 1 or 2, see the module's docstring.
        task: modalities, labels and regions.
        networks: one in format 1, at least one in format 2.
        preprocess, postprocess, confidence, offsets: sections as written; the classes that
            interpret them need torch. Empty where the bundle has no such section.
        inference: how the networks are applied.
        card: data, training and the measured Dice per subset (``card["dice"]``).
        raw: the whole file as plain data, for rewriting it.
        training_cases: what the networks were trained on; None where the bundle does not say.
        plugins: plug-in of each network that is none of MedMAP's own, by the network's name.
    """

    id: str
    format: int
    task: Task
    networks: tuple[NetworkSpec, ...]
    preprocess: dict
    postprocess: dict
    confidence: dict
    offsets: dict
    inference: InferenceSpec
    card: dict
    raw: dict
    training_cases: TrainingCases | None = None
    plugins: Mapping[str, str] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that training has shown, in the task's order."""
        if self.training_cases is None:
            return self.task.modality_names
        trained = self.training_cases.modalities
        return tuple(name for name in self.task.modality_names if name in trained)

    @property
    def subsets(self) -> tuple[tuple[str, ...] | None, ...]:
        """Modality subsets that the networks are made for; None for one that takes every subset.

        A network for any subset that has never seen some modality stands for every subset of the
        others.

        Raises:
            BundleError: the option ``inputs`` of a network does not name modalities of the task.
        """
        subsets: list[tuple[str, ...] | None] = []
        for network in self.networks:
            required = required_modalities(self.task, network.options)
            if required is None and self.modalities != self.task.modality_names:
                subsets += subsets_of(self.modalities)
            else:
                subsets.append(required)
        return tuple(subsets)


@dataclass(frozen=True)
class VerifiedFiles:
    """Texts of a bundle whose files all have the published hashes.

    Attributes:
        metadata: content of ``metadata.json``.
        sha256: hash of ``SHA256SUMS``, hence of every byte of the bundle.
        card_text: the model card as Markdown; empty if there is none.
    """

    metadata: Metadata
    sha256: str
    card_text: str


def default_bundle_path() -> Path:
    """Folder of the default model.

    ``$MEDMAP_BUNDLE``, else the checkout's, else the installed package's (wheels contain it), else
    the one of the installed extension.

    Raises:
        MissingInputError: none of these exists.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = [
        package.parents[1] / "Resources/bundles/default",
        package / "bundles/default",
        package.parent / "Resources/MedMAPBundles/default",
    ]
    environment = os.environ.get("MEDMAP_BUNDLE")
    if environment:
        candidates.insert(0, Path(environment))
    for candidate in candidates:
        if (candidate / METADATA).is_file():
            return candidate
    raise MissingInputError(
        "The default model was not found.",
        "Name a bundle folder, or set the environment variable MEDMAP_BUNDLE.",
        option="bundle",
    )


def verify_bundle(path: str | os.PathLike) -> dict[str, str]:
    """Compare every file with ``SHA256SUMS``, without loading weights into memory.

    Returns:
        File name -> SHA-256, with that of ``SHA256SUMS`` itself under its own name.

    Raises:
        MissingInputError: there is no such folder.
        BundleError: a file is missing, added or altered.
    """
    folder = Path(path)
    files, sums = _listed_files(folder)
    digests = {}
    for name, (file, digest) in files.items():
        try:
            _require_digest(_file_digest(file), digest, name, folder.name)
        except OSError as error:
            raise _unreadable(folder, error) from error
        digests[name] = digest
    digests[SUMS] = hashlib.sha256(sums).hexdigest()
    return digests


def read_bundle_texts(path: str | os.PathLike) -> VerifiedFiles:
    """Verify all files and parse the texts; errors as in ``verify_bundle``."""
    folder = Path(path)
    digests = verify_bundle(folder)
    card_text = ""
    if CARD in digests:
        card = _read_text(folder / CARD)
        card_text = card.decode("utf-8", "replace")
    metadata = parse_metadata(_read_text(folder / METADATA))
    return VerifiedFiles(metadata, digests[SUMS], card_text)


def read_verified(path: str | os.PathLike) -> dict[str, bytes]:
    """Read all files of a bundle into memory and verify these very bytes.

    Returns:
        File name -> content, ``SHA256SUMS`` included. Raises as ``verify_bundle``.
    """
    folder = Path(path)
    files, sums = _listed_files(folder)
    contents = {}
    for name, (file, digest) in files.items():
        try:
            content = file.read_bytes()
        except OSError as error:
            raise _unreadable(folder, error) from error
        _require_digest(hashlib.sha256(content).hexdigest(), digest, name, folder.name)
        contents[name] = content
    contents[SUMS] = sums
    return contents


def parse_metadata(data: bytes) -> Metadata:
    """Parse ``metadata.json``.

    Raises:
        BundleError: no JSON, another format, or a field is missing or invalid.
    """
    raw, format_number = _parse_json(data)
    try:
        metadata = _metadata_from(raw, format_number)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{METADATA} has a missing or invalid field ({error}).",
            "Choose another bundle, or export this one again.",
        ) from error
    if not metadata.networks:
        raise BundleError(f"{METADATA} names no network.", "Export the bundle again.")
    return metadata


def _metadata_from(raw: dict, format_number: int) -> Metadata:
    """Metadata of parsed JSON; raises what a missing or invalid field raises."""
    section = raw["medmap"]
    # Format 1 holds one network, format 2 a list of them.
    network_sections = section["networks"] if format_number == 2 else [section["network"]]
    networks = []
    for network in network_sections:
        networks.append(NetworkSpec(str(network["name"]), dict(network["options"])))
    confidence = section.get("confidence", section.get(EARLIER_CONFIDENCE, {}))
    training_cases = None
    if "training_cases" in section:
        training_cases = TrainingCases.from_dict(section["training_cases"])
    return Metadata(
        id=f"{raw['name']}-{raw['version']}",
        format=format_number,
        task=Task.from_dict(section["task"]),
        networks=tuple(networks),
        preprocess=dict(section["preprocess"]),
        postprocess=dict(section["postprocess"]),
        confidence=dict(confidence),
        offsets=dict(section.get("logit_offsets", {})),
        inference=InferenceSpec.from_dict(section["inference"]),
        card=dict(section["card"]),
        raw=raw,
        training_cases=training_cases,
        plugins={entry["part"]: entry["name"] for entry in section.get("plugins", ())},
    )


def required_modalities(task: Task, options: Mapping) -> tuple[str, ...] | None:
    """Modalities that a network with these options requires, in task order; None for any subset.

    Raises:
        BundleError: the option ``inputs`` is no list of positions of the task's modalities.
    """
    inputs = options.get("inputs")
    if inputs is None:
        return None
    try:
        return tuple(task.modality_names[position] for position in sorted(inputs))
    except (TypeError, IndexError) as error:
        raise BundleError(
            f"{METADATA} has a missing or invalid field: inputs of a network ({error}).",
            "Choose another bundle, or export this one again.",
        ) from error


def subsets_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset of some modalities, in their order."""
    subsets: list[tuple[str, ...]] = []
    for size in range(1, len(names) + 1):
        subsets += combinations(names, size)
    return subsets


def choose_entry(
    requirements: Sequence[Sequence[str] | None], available: Collection[str]
) -> int | None:
    """Choose the network that uses the most of the available modalities, the first among equals.

    Args:
        requirements: per network, the modalities that it requires, all of them; None for a network
            that takes every subset.
        available: names of the available modalities.

    Returns:
        Position in ``requirements``; None if no network can run.
    """
    best = None
    best_count = 0
    for position, required in enumerate(requirements):
        if required is None:
            count = len(available)
        elif set(required) <= set(available):
            count = len(required)
        else:
            continue
        if count > best_count:
            best = position
            best_count = count
    return best


def sums_text(files: Mapping[str, bytes]) -> str:
    """Content of ``SHA256SUMS`` for these files, as ``sha256sum`` writes it."""
    lines = []
    for name, content in sorted(files.items()):
        digest = hashlib.sha256(content).hexdigest()
        lines.append(f"{digest}  {name}\n")
    return "".join(lines)


def _listed_files(folder: Path) -> tuple[dict[str, tuple[Path, str]], bytes]:
    """(name -> (file, published hash), content of SHA256SUMS), after comparing the names."""
    if not folder.is_dir():
        raise MissingInputError(f"There is no bundle folder {folder.name}.", "Check its path.")
    try:
        present = {file.name: file for file in folder.iterdir() if not file.name.startswith(".")}
        # Without published hashes nothing can be verified, whatever else the folder holds.
        if SUMS not in present:
            raise BundleError(
                f"{folder.name} is not a MedMAP bundle: it has no {SUMS}.", "Choose another folder."
            )
        sums = _read_text(present[SUMS])
    except OSError as error:
        raise _unreadable(folder, error) from error
    digests = parse_sums(sums, folder.name)
    # Added files are refused, too: a bundle is exactly what was published.
    differing = sorted(set(present) ^ {*digests, SUMS})
    if differing:
        raise BundleError(
            f"The bundle {folder.name} has files missing or added: {', '.join(differing)}.",
            "Copy the bundle again from its source.",
        )
    return {name: (present[name], digest) for name, digest in digests.items()}, sums


def parse_sums(data: bytes, folder_name: str) -> dict[str, str]:
    """Parse ``SHA256SUMS``: file name -> hash in hexadecimal.

    Args:
        data: content of the file.
        folder_name: the bundle's name in messages.

    Raises:
        BundleError: a line is no hash with a plain file name, or a required file is not listed.
    """
    digests = {}
    for line in data.decode("ascii", "replace").removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        is_digest = len(digest) == 64 and set(digest) <= _HEXADECIMAL
        # A path would lead out of the folder.
        is_plain_name = bool(name) and "/" not in name and "\\" not in name
        if not (is_digest and is_plain_name):
            raise BundleError(
                f"{SUMS} of the bundle {folder_name} is damaged.",
                "Copy the bundle again from its source.",
            )
        digests[name] = digest
    if not set(_REQUIRED) <= set(digests) or SUMS in digests:
        raise BundleError(
            f"{folder_name} is not a MedMAP bundle: {SUMS} does not list its files.",
            "Choose another folder.",
        )
    return digests


def _parse_json(data: bytes) -> tuple[dict, int]:
    """(plain data, format number)."""
    try:
        # Before parsing: hostile JSON costs many times its size in memory.
        if len(data) > LARGEST_TEXT:
            raise ValueError("too large")
        raw = json.loads(data)
        format_number = raw["medmap"]["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{METADATA} is not a bundle description ({error}).",
            "Choose another bundle, or export this one again.",
        ) from error
    if format_number not in FORMATS:
        formats = " and ".join(str(number) for number in FORMATS)
        raise BundleError(
            f"The bundle has format {format_number}, this MedMAP reads {formats}.",
            "Use the MedMAP version that it was made for.",
        )
    return raw, format_number


def _read_text(file: Path) -> bytes:
    if file.stat().st_size > LARGEST_TEXT:
        raise BundleError(
            f"{file.name} is too large to be part of a bundle.", "Choose another bundle."
        )
    return file.read_bytes()


def _file_digest(file: Path) -> str:
    """SHA-256 of a file, block by block: weights need not fit into memory."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _require_digest(actual: str, published: str, name: str, folder_name: str) -> None:
    if actual != published:
        raise BundleError(
            f"{name} of the bundle {folder_name} is not the file that was published "
            "(SHA-256 differs).",
            "Copy the bundle again from its source.",
        )


def _unreadable(folder: Path, error: OSError) -> BundleError:
    return BundleError(
        f"The bundle {folder.name} cannot be read: {error.strerror}.", "Check its permissions."
    )
