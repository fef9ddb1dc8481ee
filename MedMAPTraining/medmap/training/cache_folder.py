"""Where prepared cases lie, how large they may grow, and what is removed when they grow larger.

All runs of a user share one folder. Its budget counts prepared cases only; cases that no training
has opened for two weeks make room for new ones, the oldest first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import OutputError, UsageError
from medmap.io.atomic import translate_os_errors, write_json
from medmap.io.content import file_record
from medmap.training.cache import RECORD

FOLDER_VARIABLE = "MEDMAP_CACHE"
BUDGET_VARIABLE = "MEDMAP_CACHE_GB"
DEFAULT_BUDGET_GB = 200.0
"""Enough for BraTS 2023 (1,251 cases of 34 MB at 1 mm, 43 GB) under several preprocessings."""

UNUSED_DAYS = 14
"""Longer than a training; what was opened more recently may be in use, and is never removed."""

_INDEX = "files"
_DAY_S = 86400.0
_GB = 1e9


def default_cache_folder() -> Path:
    """``$MEDMAP_CACHE``, else ``medmap`` in the user's folder for caches."""
    stated = os.environ.get(FOLDER_VARIABLE)
    if stated:
        return Path(stated).expanduser()
    home = Path.home()
    if os.name == "nt":
        parent = Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"))
    elif sys.platform == "darwin":
        parent = home / "Library/Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return parent / "medmap"


def default_budget_gb() -> float:
    """``$MEDMAP_CACHE_GB``, else 200. Raises UsageError for what is no positive number."""
    text = os.environ.get(BUDGET_VARIABLE)
    if not text:
        return DEFAULT_BUDGET_GB
    try:
        budget_gb = float(text)
    except ValueError:
        budget_gb = 0.0
    if not budget_gb > 0:
        raise UsageError(
            f"{BUDGET_VARIABLE} is {text!r}.", "Set it to a positive number of gigabytes."
        )
    return budget_gb


@dataclass(frozen=True)
class CacheFolder:
    """A folder of prepared cases with a limited size.

    Attributes:
        path: ``<path>/<content hash>/<case id>`` holds a case.
        budget_gb: how many gigabytes (1e9 bytes) of prepared cases it may hold.
    """

    path: Path
    budget_gb: float

    @staticmethod
    def at(path: Path | None = None, budget_gb: float | None = None) -> CacheFolder:
        """A cache with the defaults for what is not stated."""
        if budget_gb is None:
            budget_gb = default_budget_gb()
        return CacheFolder(path or default_cache_folder(), budget_gb)

    def create(self) -> None:
        """Create the folder, for this user alone. Raises OutputError or IOFailure."""
        with translate_os_errors(self.path):
            # Patients' images: whoever shares them with a group creates the folder beforehand.
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def case_folders(self) -> list[Path]:
        """Folders of all complete cases."""
        return [record.parent for record in self.path.glob(f"*/*/{RECORD}")]

    def used_bytes(self) -> int:
        """Size of all prepared cases."""
        return sum(_bytes_in(folder) for folder in self.case_folders())

    def hash_files(self, paths: Sequence[Path]) -> dict[Path, str]:
        """SHA-256 of the files of one case; files that did not change are not read again."""
        absolute = [Path(os.path.abspath(path)) for path in paths]
        listing = "\n".join(map(str, absolute))
        # Names on Linux may hold any bytes, which Python carries as surrogates.
        key = hashlib.sha256(listing.encode(errors="surrogateescape"))
        index = self.path / _INDEX / f"{key.hexdigest()[:32]}.json"
        try:
            earlier = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = {}
        records = {}
        for path in absolute:
            name = str(path)
            records[name] = file_record(path, earlier.get(name))
        if records != earlier:
            index.parent.mkdir(parents=True, exist_ok=True)
            write_json(index, records)
        hashes = {}
        for path, absolute_path in zip(paths, absolute, strict=True):
            record = records[str(absolute_path)]
            hashes[path] = str(record["sha256"])
        return hashes

    def mark_used(self, folders: Iterable[Path]) -> None:
        """Note that a training opens these cases now."""
        for folder in folders:
            # Another user's cache may be read-only: it then stays as it is.
            with contextlib.suppress(OSError):
                os.utime(folder / RECORD)

    def make_room(self, needed_bytes: int, keep: Iterable[Path]) -> int:
        """Remove cases that were not used lately until as many bytes fit into the budget.

        Args:
            needed_bytes: size of the cases about to be prepared.
            keep: folders that are needed.

        Returns:
            Number of cases that were removed.

        Raises:
            OutputError: budget or disk are too small; nothing was removed.
        """
        self._require_disk(needed_bytes)
        excess = self.used_bytes() + needed_bytes - self.budget_gb * _GB
        if excess <= 0:
            return 0
        needed = set(keep)
        last_use = {}
        for folder in self.case_folders():
            opened = (folder / RECORD).stat().st_mtime
            if folder not in needed and time.time() - opened > UNUSED_DAYS * _DAY_S:
                last_use[folder] = opened
        unused = sorted(last_use, key=lambda folder: last_use[folder])
        removed: list[Path] = []
        while excess > 0 and unused:
            removed.append(unused.pop(0))
            excess -= _bytes_in(removed[-1])
        if excess > 0:
            used_gb = self.used_bytes() / _GB
            raise OutputError(
                f"The cases to prepare take {needed_bytes / _GB:.1f} GB, and the cache {self.path} "
                f"holds {used_gb:.1f} of the {self.budget_gb:g} GB that it may.",
                "Allow more, choose another folder, or delete the cache while nothing trains.",
                option="cache-gb",
            )
        for folder in removed:
            remove_case(folder)
        return len(removed)

    def _require_disk(self, needed_bytes: int) -> None:
        free = shutil.disk_usage(self.path).free
        if needed_bytes > free:
            raise OutputError(
                f"The cases to prepare take {needed_bytes / _GB:.1f} GB, and the disk of "
                f"{self.path} has {free / _GB:.1f} GB free.",
                "Choose a cache on another disk.",
                option="cache",
            )


def remove_case(folder: Path) -> None:
    """Remove a prepared case and its hash's folder, the record first: half a case is none."""
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def _bytes_in(folder: Path) -> int:
    """Size of the files of a case; 0 where another program is removing it."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:
        return 0
