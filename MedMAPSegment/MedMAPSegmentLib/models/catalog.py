"""The models that the panel offers: the default model and those that the user imported. No torch.

A list entry is made from a bundle's ``metadata.json`` after every file was compared with
``SHA256SUMS`` (``medmap.bundle.format``), so that card and slots are available before the first
Apply. Loading a model (``loaderOf``) verifies once more, on the very bytes that are used.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmap.bundle.format import (
    METADATA,
    SUMS,
    VerifiedFiles,
    default_bundle_path,
    read_bundle_texts,
)
from medmap.errors import MedMAPError, MissingInputError, OutputError, UsageError
from medmap.task import Task

from ..i18n import translator
from ..i18n.sentences import errorText

if TYPE_CHECKING:
    from medmap.bundle.loading import Bundle


_ = translator(__file__)

DEFAULT = ""
"""Key of the default model in the list, and in the panel's parameter node."""
ENVIRONMENT = "MEDMAP_MODEL_DIR"


@dataclass(frozen=True)
class ModelEntry:
    """One model in the list.

    Attributes:
        key: what to store about the choice: ``DEFAULT``, or the folder's name.
        path: the bundle's folder.
        id: name and version; the folder's name if the bundle is damaged.
        error: why it cannot be used; empty if every byte is what was published.
        sha256: hash of ``SHA256SUMS``, as in the provenance of results.
        card: what people should know (``card["dice"]`` for ``expectedPerformance``); empty if
            damaged.
        task: modalities, labels and regions; None if damaged.
        subsets: per network, the modalities that it requires; None for one that takes any subset.
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
    subsets: tuple[tuple[str, ...] | None, ...] = (None,)
    readme: str = ""
    bytes: int = 0

    @property
    def isDefault(self) -> bool:
        """True for the model that came with MedMAP, which cannot be deleted."""
        return self.key == DEFAULT

    @property
    def verified(self) -> bool:
        """True when every file was compared with its published hash and matched."""
        return not self.error

    @property
    def title(self) -> str:
        """As shown in the list: ``medmap-phantom-2.1.0 (default)``."""
        remarks = []
        if self.isDefault:
            remarks.append(_("default"))
        if not self.verified:
            remarks.append(_("damaged"))
        if not remarks:
            return self.id
        return f"{self.id} ({', '.join(remarks)})"

    @property
    def text(self) -> str:
        """The card without its markup, or the error."""
        return self.error or plainText(self.readme) or str(self.card.get("description", ""))


def plainText(markdown: str) -> str:
    """A model card as text for people; its table of all subsets is left out with its heading, since
    the panel shows the figures of the subset that is used.
    """
    paragraphs: list[str] = []
    for paragraph in markdown.split("\n\n"):
        if paragraph.lstrip().startswith("|"):
            paragraphs = paragraphs[:-1]
        else:
            paragraphs.append(re.sub(r"^#+ |\*\*", "", paragraph, flags=re.MULTILINE).strip())
    return "\n\n".join(paragraphs)


def modelFolder(fallback: str | Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Folder of imported models: ``$MEDMAP_MODEL_DIR``, else the fallback."""
    path = environment.get(ENVIRONMENT, "").strip()
    return Path(path).expanduser() if path else Path(fallback)


def listModels(userFolder: str | Path, default: str | Path | None = None) -> tuple[ModelEntry, ...]:
    """List every model, the default one first; damaged ones are listed with their error.

    Args:
        userFolder: see ``modelFolder``; need not exist.
        default: the default model's folder; None looks for it.
    """
    entries = [_defaultEntry(default)]
    folder = Path(userFolder)
    if not folder.is_dir():
        return tuple(entries)
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if (path / METADATA).exists() or (path / SUMS).exists():
            entries.append(readEntry(path, path.name))
    return tuple(entries)


def _defaultEntry(default: str | Path | None) -> ModelEntry:
    if default is not None:
        return readEntry(Path(default), DEFAULT)
    try:
        return readEntry(default_bundle_path(), DEFAULT)
    except MissingInputError:
        message = _(
            "The default model was not found beside this MedMAP. Import a model, or install "
            "MedMAP again."
        )
        return ModelEntry(DEFAULT, Path(), _("no model"), message)


def readEntry(path: Path, key: str) -> ModelEntry:
    """Read the entry of one bundle; never raises for a damaged one.

    Files are hashed again only when they changed.
    """
    try:
        signature = _signature(path)
        files = _verified(path, signature)
        return ModelEntry(
            key=key,
            path=path,
            id=files.metadata.id,
            sha256=files.sha256,
            card=files.metadata.card,
            task=files.metadata.task,
            subsets=files.metadata.subsets,
            readme=files.card_text,
            bytes=sum(size for _name, size, _time in signature),
        )
    except MedMAPError as error:
        return ModelEntry(key, path, path.name, errorText(error))
    except OSError as error:
        message = _("{folder} cannot be read: {reason}. Check its permissions.")
        message = message.format(folder=path.name, reason=error.strerror)
        return ModelEntry(key, path, path.name, message)


def loaderOf(entry: ModelEntry) -> Callable[[], Any]:
    """Function that verifies and loads an entry's bundle, for ``SegmentationLogic``."""

    def load() -> Bundle:
        from medmap.bundle.loading import load_bundle  # imports torch, so not before Apply

        return load_bundle(entry.path)

    return load


def deleteModel(entry: ModelEntry, userFolder: str | Path) -> None:
    """Delete an imported model.

    It disappears from the list in one step, even if removing its files takes a while.

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
    # Without resolving links: a link in the folder is deleted, not the folder that it leads to.
    parent = Path(os.path.abspath(entry.path)).parent
    if parent != Path(os.path.abspath(folder)) or entry.path.name.startswith("."):
        raise UsageError(
            f"{entry.id} does not lie in the folder of imported models.", "Delete it by hand."
        )
    trash = folder / f".tmp-deleted-{secrets.token_hex(6)}"
    try:
        os.rename(entry.path, trash)
        if trash.is_symlink():
            trash.unlink()
        else:
            shutil.rmtree(trash)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{entry.id} could not be deleted: {reason}.", "Close programs that use it."
        ) from error


@lru_cache(maxsize=64)
def _verified(path: Path, signature: tuple) -> VerifiedFiles:
    """The verified texts; the signature is part of the cache's key, nothing else."""
    return read_bundle_texts(path)


def _signature(path: Path) -> tuple[tuple[str, int, int], ...]:
    """(name, size, time) of every file: changes when a file does."""
    signature = []
    for file in sorted(path.iterdir()):
        if not file.name.startswith("."):
            status = file.stat()
            signature.append((file.name, status.st_size, status.st_mtime_ns))
    return tuple(signature)
