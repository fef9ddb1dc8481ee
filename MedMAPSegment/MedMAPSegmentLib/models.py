"""The models that the panel offers: the default bundle and those that the user imported. No network, no torch.

A list entry is made from a bundle's ``metadata.json`` after every file was compared with ``SHA256SUMS``; torch is not
imported, so that card and slots are there before the first Apply. Loading a model (``loaderOf``) verifies it once more
with ``medmap.bundle.loading.load_bundle``, on the very bytes that are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import medmap
from medmap.errors import BundleError, MedMAPError, OutputError, UsageError
from medmap.task import Task

DEFAULT = ""
"""Key of the default bundle in the list, and in the panel's parameter node."""
FORMATS = (1, 2)
METADATA, WEIGHTS, README, SUMS = "metadata.json", "model.safetensors", "README.md", "SHA256SUMS"
LARGEST_TEXT = 4 * 2**20
ENVIRONMENT = "MEDMAP_MODEL_DIR"


@dataclass(frozen=True)
class ModelEntry:
    """One model in the list.

    Attributes:
        key: what to store about the choice: ``DEFAULT``, or the folder's name.
        path: the bundle's folder.
        id: name and version; the folder's name if the bundle is damaged.
        error: why it cannot be used, in words; empty if every byte is what was published.
        sha256: hash of ``SHA256SUMS``, as in the provenance of results.
        card: what people should know (``card["dice"]`` for ``subsetCard``); empty if damaged.
        task: modalities, labels and regions; None if damaged.
        sets: of each network the modalities that it is made for; None for one that takes any set of scans.
        readme: the card as Markdown, for people.
        bytes: size on disk.
    """

    key: str
    path: Path
    id: str
    error: str = ""
    sha256: str = ""
    card: Mapping = field(default_factory=dict)
    task: Task | None = None
    sets: tuple[tuple[str, ...] | None, ...] = (None,)
    readme: str = ""
    bytes: int = 0

    @property
    def isDefault(self) -> bool:
        """True for the bundle that came with MedMAP, which cannot be deleted."""
        return self.key == DEFAULT

    @property
    def verified(self) -> bool:
        """True when every file was compared with its published hash and matched."""
        return not self.error

    @property
    def title(self) -> str:
        """As shown in the list."""
        state = "" if self.verified else ", damaged"
        return (
            f"{self.id} (default{state})"
            if self.isDefault
            else f"{self.id}{state and ' (damaged)'}"
        )

    @property
    def text(self) -> str:
        """The card, or what is wrong."""
        return self.error or self.readme or str(self.card.get("description", ""))


def modelFolder(fallback: str | Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Where imported models lie: ``$MEDMAP_MODEL_DIR``, else the application's data folder that is given."""
    named = environment.get(ENVIRONMENT, "").strip()
    return Path(named).expanduser() if named else Path(fallback)


def defaultPath(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the bundle lies that came with MedMAP, as ``medmap.bundle.loading.default_bundle_path`` finds it, or None."""
    package = Path(medmap.__file__).resolve().parent
    named = environment.get("MEDMAP_BUNDLE")
    places = [Path(named)] if named else []
    places += [
        package.parents[1] / "Resources/bundles/default",
        package.parent / "Resources/MedMAPBundles/default",
    ]
    return next((place for place in places if (place / METADATA).is_file()), None)


def listModels(userFolder: str | Path, default: str | Path | None = None) -> tuple[ModelEntry, ...]:
    """Every model there is, the default one first; damaged ones are listed with their error.

    Args:
        userFolder: see ``modelFolder``; need not exist.
        default: the default bundle's folder; None looks for it.
    """
    place = Path(default) if default is not None else defaultPath()
    if place is None:
        missing = "The default model was not found beside this MedMAP. Import a model, or install MedMAP again."
        entries = [ModelEntry(DEFAULT, Path(), "no model", missing)]
    else:
        entries = [readEntry(place, DEFAULT)]
    folder = Path(userFolder)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    for name in (name for name in names if not name.startswith(".")):
        if any((folder / name / part).exists() for part in (METADATA, SUMS)):
            entries.append(readEntry(folder / name, name))
    return tuple(entries)


def readEntry(path: Path, key: str) -> ModelEntry:
    """The entry of one bundle; never raises for a damaged one. Files are hashed again only when they changed."""
    try:
        size = sum(signature[1] for signature in _signature(path))
        metadata, digest, readme = _verified(path, _signature(path))
        identity, task, card = describe(metadata)
        sets = setsOf(metadata, task)
    except MedMAPError as error:
        return ModelEntry(key, path, path.name, str(error))
    except OSError as error:
        return ModelEntry(
            key,
            path,
            path.name,
            f"{path.name} cannot be read: {error.strerror}. Check its permissions.",
        )
    return ModelEntry(key, path, identity, "", digest, card, task, sets, readme, size)


def loaderOf(entry: ModelEntry) -> Callable[[], Any]:
    """Function that verifies and loads an entry's bundle: what ``SegmentationLogic`` takes as ``loadBundle``."""

    def load():
        from medmap.bundle.loading import load_bundle  # imports torch, so not before Apply

        return load_bundle(entry.path)

    return load


def deleteModel(entry: ModelEntry, userFolder: str | Path) -> None:
    """Delete an imported model. It disappears from the list in one step, even if removing its files takes a while.

    Raises:
        UsageError: it is the default model, or lies elsewhere.
        OutputError: the folder cannot be removed.
    """
    folder = Path(userFolder)
    if entry.isDefault:
        raise UsageError(
            "The default model belongs to MedMAP and cannot be deleted.",
            "Choose another model to use.",
        )
    if Path(os.path.abspath(entry.path)).parent != Path(
        os.path.abspath(folder)
    ) or entry.path.name.startswith("."):
        raise UsageError(
            f"{entry.id} does not lie in the folder of imported models.", "Delete it by hand."
        )
    aside = folder / f".tmp-deleted-{secrets.token_hex(6)}"
    try:
        os.rename(entry.path, aside)
        aside.unlink() if aside.is_symlink() else shutil.rmtree(aside)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{entry.id} could not be deleted: {reason}.", "Close programs that use it."
        ) from error


def verifyFiles(path: str | Path) -> tuple[dict, str, str]:
    """Compare every file of a bundle with ``SHA256SUMS``, as ``medmap.bundle.loading.verify_bundle`` does, without torch.

    Returns:
        The metadata, the hash of ``SHA256SUMS`` and the text of the card.

    Raises:
        BundleError: not a bundle, or a file is missing, added or altered.
    """
    folder = Path(path)
    present = (
        {p.name: p for p in folder.iterdir() if not p.name.startswith(".")}
        if folder.is_dir()
        else {}
    )
    if SUMS not in present:
        raise BundleError(
            f"{folder.name} is not a MedMAP model: it has no {SUMS}.", "Choose another folder."
        )
    sums = _text(present[SUMS])
    listed = _listed(sums, folder.name)
    odd = sorted(set(present) ^ {*listed, SUMS})
    if odd:
        raise BundleError(
            f"{folder.name} has files missing or added: {', '.join(odd)}.",
            "Import the model again.",
        )
    for name, digest in listed.items():
        if _digest(present[name]) != digest:
            raise BundleError(
                f"{name} of {folder.name} is not the file that was published (SHA-256 differs).",
                "Import the model again from its source.",
            )
    readme = _text(present[README]).decode("utf-8", "replace") if README in present else ""
    return parseMetadata(_text(present[METADATA])), hashlib.sha256(sums).hexdigest(), readme


def parseMetadata(data: bytes) -> dict:
    """The content of ``metadata.json``. Raises BundleError when it is none that this version reads."""
    try:
        metadata = json.loads(data)
        found = metadata["medmap"]["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{METADATA} is not a model description ({error}).", "Choose another model."
        ) from error
    if found not in FORMATS:
        raise BundleError(
            f"The model has format {found}, this MedMAP reads {' and '.join(map(str, FORMATS))}.",
            "Use the MedMAP that it was made for.",
        )
    return metadata


def describe(metadata: Mapping) -> tuple[str, Task, dict]:
    """(id, task, card) of a bundle's metadata. Raises BundleError when something is missing or garbled."""
    try:
        own = metadata["medmap"]
        identity = f"{metadata['name']}-{metadata['version']}"
        return identity, Task.from_dict(own["task"]), dict(own["card"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{METADATA} lacks or garbles {error}.", "Choose another model."
        ) from error


def setsOf(metadata: Mapping, task: Task) -> tuple[tuple[str, ...] | None, ...]:
    """Of each network the modalities that it is made for (option ``inputs``), None for any. Raises as ``describe``."""
    own = metadata["medmap"]
    try:
        options = [stated["options"] for stated in own.get("networks") or [own["network"]]]
        inputs = [one.get("inputs") for one in options]
        return tuple(
            None if i is None else tuple(task.modality_names[m] for m in sorted(i)) for i in inputs
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BundleError(
            f"{METADATA} lacks or garbles {error}.", "Choose another model."
        ) from error


@lru_cache(maxsize=64)
def _verified(path: Path, signature: tuple) -> tuple[dict, str, str]:
    return verifyFiles(path)


def _signature(path: Path) -> tuple:
    """(name, size, time) of every file: changes when a file does."""
    found = [(p.name, p.stat()) for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _listed(sums: bytes, folder: str) -> dict[str, str]:
    """File name -> hash of a ``SHA256SUMS`` file."""
    listed = {}
    for line in sums.decode("ascii", "replace").removesuffix("\n").split("\n"):
        digest, _, name = line.partition("  ")
        if (
            len(digest) != 64
            or set(digest) - set("0123456789abcdef")
            or not name
            or "/" in name
            or "\\" in name
        ):
            raise BundleError(
                f"{SUMS} of {folder} is damaged.", "Import the model again from its source."
            )
        listed[name] = digest
    if not {METADATA, WEIGHTS} <= set(listed) or SUMS in listed:
        raise BundleError(
            f"{folder} is not a MedMAP model: {SUMS} does not list its files.",
            "Choose another folder.",
        )
    return listed


def _text(path: Path) -> bytes:
    if path.stat().st_size > LARGEST_TEXT:
        raise BundleError(
            f"{path.name} is too large to be part of a model.", "Choose another model."
        )
    return path.read_bytes()


def _digest(path: Path) -> str:
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()
