"""Import a model from a folder or a .zip file: copy, verify, and only then add it to the list.

An archive is read member by member. Nothing is written outside the new folder, whatever names the
archive holds, and nothing larger than a model can be.
"""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from medmap.bundle.format import (
    LARGEST_TEXT,
    METADATA,
    SUMS,
    WEIGHTS,
    parse_metadata,
    read_bundle_texts,
)
from medmap.errors import BundleError, MissingInputError, OutputError, UsageError
from medmap.io.atomic import atomic_folder

from .. import dependencies
from .catalog import ModelEntry, readEntry

LARGEST_WEIGHTS = 2 * 2**30
MAX_FILES = 16
_BLOCK = 1 << 20
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_RESERVED = {"CON", "PRN", "AUX", "NUL"}
_RESERVED |= {f"COM{number}" for number in range(10)}
_RESERVED |= {f"LPT{number}" for number in range(10)}
"""Names that no file can have on Windows."""

Opener = Callable[[], IO[bytes]]


def importModel(
    source: str | Path,
    userFolder: str | Path,
    *,
    overwrite: bool = False,
    verify: Callable[[Path], object] | None = None,
) -> ModelEntry:
    """Import a bundle.

    The source is not changed; the model appears in the list complete and verified, or not at all.

    Args:
        source: a bundle's folder, or a .zip of it (with or without the folder inside).
        userFolder: where imported models lie (``modelFolder``); made if need be.
        overwrite: replace a model of the same name and version.
        verify: raises for an unusable bundle; None takes ``verifyFully``.

    Returns:
        The new entry; the existing one if the very same model has been imported before.

    Raises:
        MissingInputError: there is no such file or folder.
        UsageError: it is neither a folder nor a .zip file.
        BundleError: it is no bundle, is damaged, or holds names or sizes that no bundle has.
        OutputError: another model of that name and version exists, or the folder cannot be
            written.
    """
    source = Path(source)
    userFolder = Path(userFolder)
    with _opened(source) as files:
        name = _folderName(files)
        target = userFolder / name
        try:
            userFolder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The folder {userFolder} cannot be created: {error.strerror}.",
                "Choose another folder.",
            ) from error
        if target.exists() and not overwrite:
            return _existing(files, target)
        with atomic_folder(target, overwrite=overwrite) as staging:
            for file, opener in files.items():
                _copy(opener, staging / file, _limit(file))
            try:
                (verify or verifyFully)(staging)
            except BundleError as error:
                raise BundleError(
                    error.cause.replace(staging.name, source.name), error.remedy
                ) from error
            copiedMetadata: dict[str, Opener] = {METADATA: _opener(staging / METADATA)}
            if _folderName(copiedMetadata) != name:
                raise BundleError(f"{source.name} changed while it was read.", "Import it again.")
    return readEntry(target, name)


def verifyFully(path: Path) -> None:
    """Compare all hashes; with torch, also build the network and load the weights strictly."""
    read_bundle_texts(path)
    if not dependencies.missing():
        from medmap.bundle.loading import load_bundle  # imports torch

        load_bundle(path)


@contextmanager
def _opened(source: Path) -> Iterator[dict[str, Opener]]:
    """File name -> function that opens it, for all files of a folder or archive."""
    if source.is_dir():
        yield _inFolder(source)
    elif not source.exists():
        raise MissingInputError(f"{source.name} does not exist.", "Choose another file or folder.")
    elif zipfile.is_zipfile(source):
        try:
            with zipfile.ZipFile(source) as archive:
                yield _inArchive(archive, source.name)
        except (
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            EOFError,
        ) as error:
            raise BundleError(
                f"{source.name} is damaged or encrypted ({error}).", "Get the file again."
            ) from error
    else:
        raise UsageError(
            f"{source.name} is neither a folder nor a .zip file.",
            "Choose the folder of a model, or its .zip file.",
        )


def _opener(path: Path) -> Opener:
    return lambda: path.open("rb")


def _inFolder(folder: Path) -> dict[str, Opener]:
    files: dict[str, Opener] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_symlink() or not path.is_file():
            raise BundleError(
                f"{path.name} in {folder.name} is not a plain file.",
                "Choose the folder of a model.",
            )
        name = _checkedName(path.name, folder.name)
        _refuseLarge(name, path.stat().st_size)
        files[name] = _opener(path)
    return _complete(files, folder.name)


def _inArchive(archive: zipfile.ZipFile, source: str) -> dict[str, Opener]:
    files: dict[str, Opener] = {}
    folders = set()
    for info in archive.infolist():
        *parents, name = info.filename.split("/")
        _refusePath(info.filename, source)
        # Folders, and files that file managers add.
        if not name or name.startswith(".") or "__MACOSX" in parents:
            continue
        if stat.S_ISLNK(info.external_attr >> 16) or len(parents) > 1:
            raise _foreignMember(info.filename, source)
        if parents:
            _checkedName(parents[0], source)
        folders.add(tuple(parents))
        _checkedName(name, source)
        # Windows and macOS do not tell A.txt from a.txt.
        if name.casefold() in {other.casefold() for other in files}:
            raise BundleError(f"{source} contains {name} twice.", "Get the model again.")
        _refuseLarge(name, info.file_size)
        files[name] = partial(archive.open, info)
    if len(folders) > 1:
        raise BundleError(f"{source} contains several folders.", "Import one model at a time.")
    return _complete(files, source)


def _refusePath(path: str, source: str) -> None:
    """Refuse a member that could lead out of the folder on any system."""
    if "\\" in path or ":" in path or ".." in path.split("/"):
        raise _foreignMember(path, source)


def _foreignMember(path: str, source: str) -> BundleError:
    return BundleError(
        f"{source} contains '{path}', which does not belong to a model.", "Get the model again."
    )


def _complete(files: dict[str, Opener], source: str) -> dict[str, Opener]:
    missing = [name for name in (METADATA, WEIGHTS, SUMS) if name not in files]
    if missing:
        raise BundleError(
            f"{source} is not a MedMAP model: {', '.join(missing)} missing.", "Choose another one."
        )
    if len(files) > MAX_FILES:
        raise BundleError(
            f"{source} contains {len(files)} files, too many for a model.", "Choose another one."
        )
    return files


def _checkedName(name: str, source: str) -> str:
    """A name that is safe on every system. Raises BundleError for any other."""
    isPlain = _SAFE_NAME.fullmatch(name) is not None and not name.endswith(".")
    isReserved = name.split(".")[0].upper() in _RESERVED
    if not isPlain or isReserved:
        raise BundleError(
            f"{source} contains the name {name[:60]!r}, which no model can have.",
            "Get the model again.",
        )
    return name


def _folderName(files: dict[str, Opener]) -> str:
    """Name of the folder for a bundle: its name and version."""
    with files[METADATA]() as file:
        data = _read(file, LARGEST_TEXT, METADATA)
    return _checkedName(parse_metadata(data).id, METADATA)


def _existing(files: dict[str, Opener], target: Path) -> ModelEntry:
    """The existing entry, if it is intact and the same model. Raises OutputError otherwise."""
    entry = readEntry(target, target.name)
    with files[SUMS]() as file:
        sums = _read(file, LARGEST_TEXT, SUMS)
    sumsFile = target / SUMS
    isSame = sumsFile.is_file() and sums == sumsFile.read_bytes()
    if entry.verified and isSame:
        return entry
    state = "another model of that name" if entry.verified else "a damaged copy of it"
    raise OutputError(f"There is {state} already: {target.name}.", "Delete it first.")


def _limit(name: str) -> int:
    return LARGEST_WEIGHTS if name == WEIGHTS else LARGEST_TEXT


def _refuseLarge(name: str, size: int) -> None:
    if size > _limit(name):
        raise BundleError(
            f"{name} is {size / 2**20:.0f} MiB large, too large for a model.",
            "Choose another model.",
        )


def _read(file: IO[bytes], limit: int, name: str) -> bytes:
    data = file.read(limit + 1)
    _refuseLarge(name, len(data))
    return data


def _copy(opener: Opener, target: Path, limit: int) -> None:
    """Copy with the bytes counted: what an archive says about sizes need not be true."""
    written = 0
    with opener() as source, open(target, "xb") as file:
        while block := source.read(_BLOCK):
            written += len(block)
            if written > limit:
                _refuseLarge(target.name, written)
            file.write(block)
