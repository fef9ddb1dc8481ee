"""Writing so that a name never holds half a file: temporary name in the same folder, flush, fsync, rename.

A rename within one folder is atomic on POSIX and NTFS, so whoever opens the final name sees the old content or the
new one. Several files cannot be renamed in one step: ``Transaction`` undoes what it published when a later file
fails, so only a kill or a power cut between two renames can leave a mixture; one folder can be renamed in one step
(``atomic_folder``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from medmap.errors import InternalError, IOFailure, OutputError, UsageError

_BROKE_OFF = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def make_folder(path: str | os.PathLike) -> Path:
    """Create the last level of a folder path if need be, and only that: a typing error makes no tree of folders.

    Raises OutputError when the level above is missing, a file is in the way, or writing is not allowed.
    """
    path = Path(path)
    with _in_words(path):  # also asking may fail: a name may be too long
        if not path.is_dir():
            path.mkdir()
    return path


def check_output(
    path: str | os.PathLike, *, inputs: Iterable[str | os.PathLike] = (), overwrite: bool = False
) -> Path:
    """Refuse an output name before any work is done for it.

    Raises:
        OutputError: its folder is missing or read-only, the name is a folder, a file is there and ``overwrite`` is
            False, or the name leads to an input (also through links, ``..`` or upper and lower case) - that one
            always, whatever ``overwrite`` says.
        UsageError: it can be no file name at all.
    """
    path = Path(path)
    with _in_words(path):
        if "\0" in str(path):
            raise ValueError("NUL")
        if not path.parent.is_dir():
            raise OutputError(f"The folder for {path} does not exist.", "Create it first.")
        if path.is_dir():
            raise OutputError(f"{path} is a folder.", "Give a file name.")
        for given in inputs:
            if _same_file(path, Path(given)):
                raise OutputError(
                    f"The output {path.name} is the same file as an input.",
                    "Choose another name: inputs stay as is.",
                )
        _refuse_existing(path, overwrite)
        if not os.access(path.parent, os.W_OK):
            raise OutputError(
                f"The folder of {path} is read-only.", "Choose a folder that you may write to."
            )
    return path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name to write to; publish it under ``path`` when the block ends without an error.

    The temporary name ends as ``path`` does, for writers that look at the suffix. An existing file is replaced.
    Raises OutputError or IOFailure; the previous file is then intact and the temporary one gone.
    """
    with Transaction(overwrite=True) as transaction:
        yield transaction.path(path)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically. Raises OutputError or IOFailure."""
    with atomic_path(path) as temporary, _in_words(Path(path), needed=len(data)):
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text with the line ends given, atomically. Raises OutputError or IOFailure."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write JSON (indented, keys in the order given, NaN refused by ValueError) atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


class Transaction:
    """Several output files, published together or not at all.

    ::

        with Transaction(overwrite=False) as out:
            write_labels(out.path("case/seg.nii.gz"), labels, grid)
            out.path("case/seg.medmap.json").write_text(report)

    Leaving the block by an error (Ctrl-C included) removes everything written and keeps what was there before.
    Raises OutputError (exists, no folder, read-only), IOFailure (disk full, device gone) or InternalError (a name
    was asked for but never written).
    """

    def __init__(self, *, overwrite: bool = False):
        self._overwrite = overwrite
        self._files: dict[Path, Path] = {}

    def path(self, final: str | os.PathLike) -> Path:
        """The temporary name to write to for ``final``; the same one when asked again."""
        final = Path(os.path.abspath(final))
        if final not in self._files:
            check_output(final, overwrite=self._overwrite)
            self._files[final] = _temporary(final)
        return self._files[final]

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if error is None:
                self._publish()
            elif isinstance(error, OSError) and self._is_ours(error):
                raise _worded(error, self._named(error)) from error
        finally:
            for temporary in self._files.values():
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _is_ours(self, error: OSError) -> bool:
        return error.errno in _BROKE_OFF or self._named(error) is not None

    def _named(self, error: OSError) -> Path | None:
        return next(
            (final for final, temporary in self._files.items() if str(temporary) == error.filename),
            None,
        )

    def _publish(self) -> None:
        for final, temporary in self._files.items():
            if not temporary.is_file():
                raise InternalError(
                    f"{final.name} was announced but not written.", "Please report this."
                )
            with _in_words(final):
                _sync(temporary)
            _refuse_existing(final, self._overwrite)
        with _undo_on_error() as undo:
            for final, temporary in self._files.items():
                with _in_words(final):
                    undo.append((final, _set_aside(final)))
                    os.replace(temporary, final)
            for folder in {final.parent for final in self._files}:
                with _in_words(folder):
                    _sync_folder(folder)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty temporary folder beside ``path``; rename it to ``path`` when the block ends without an error.

    With ``overwrite`` an existing folder is renamed aside first and removed last; a power cut between the two renames
    leaves it beside, under a name that begins with ``.tmp-``. Raises OutputError or IOFailure.
    """
    final = Path(os.path.abspath(path))
    if not final.parent.is_dir():
        raise OutputError(f"The folder for {path} does not exist.", "Create it first.")
    _refuse_existing(final, overwrite)
    staging, aside = _temporary(final), _temporary(final)
    try:
        with _in_words(final):
            staging.mkdir()
        try:
            yield staging
        except OSError as error:
            if error.errno in _BROKE_OFF or str(error.filename).startswith(str(staging)):
                raise _worded(error, final) from error
            raise
        with _in_words(final):
            for file in sorted(staging.rglob("*")):
                _sync_folder(file) if file.is_dir() else _sync(file)
            _sync_folder(staging)
            _swap_folder(staging, final, aside, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def only_one(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a run's folder against a second program; the system lets go of it when this one ends, however it ends.

    Raises OutputError that names who holds it: computer, process and since when.
    """
    path = Path(folder) / ".lock"
    with _in_words(path):
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    with file:
        try:
            _lock(file.fileno())
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another program"
            raise OutputError(
                f"The folder {Path(folder).name} is in use by {holder}.",
                "Wait for it, or choose another folder.",
            ) from None
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        file.flush()
        yield


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        # Far behind the text, which Windows would otherwise keep others from reading.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _swap_folder(staging: Path, final: Path, aside: Path, overwrite: bool) -> None:
    _refuse_existing(final, overwrite)
    existed = final.exists()
    if existed:
        os.rename(final, aside)
    try:
        os.rename(staging, final)
    except BaseException:
        if existed:
            os.rename(aside, final)
        raise
    _sync_folder(final.parent)


@contextlib.contextmanager
def _undo_on_error() -> Iterator[list[tuple[Path, Path | None]]]:
    """Collect (final, copy of what was there) pairs; put everything back when the block fails."""
    done: list[tuple[Path, Path | None]] = []
    try:
        yield done
    except BaseException:
        for final, backup in reversed(done):
            with contextlib.suppress(OSError):
                os.replace(backup, final) if backup else final.unlink(missing_ok=True)
        raise
    finally:
        for _, backup in done:
            if backup:
                with contextlib.suppress(OSError):
                    backup.unlink(missing_ok=True)


def _set_aside(final: Path) -> Path | None:
    """A second name for the file that is about to be replaced: a hard link, or a copy where there are none."""
    if not os.path.lexists(final):
        return None
    backup = _temporary(final)
    try:
        os.link(final, backup)
    except OSError:
        shutil.copy2(final, backup)
    return backup


def _temporary(final: Path) -> Path:
    # Short, so that a long final name still works; the suffix stays, because some writers decide by it.
    suffix = ".nii.gz" if final.name.lower().endswith(".nii.gz") else final.suffix
    return final.parent / f".tmp-{secrets.token_hex(6)}{suffix}"


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists.", "Choose another name, or allow overwriting.")


def _same_file(output: Path, given: Path) -> bool:
    try:
        return os.path.samefile(output, given)
    except OSError:
        return os.path.realpath(output) == os.path.realpath(given)


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_words(path: Path, needed: int | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _worded(error, path, needed) from error
    except ValueError as error:  # a NUL byte in the name
        raise UsageError(
            f"The name {str(path)!r} cannot be a file name.", "Choose another name."
        ) from error


def _worded(
    error: OSError, path: Path | None, needed: int | None = None
) -> IOFailure | OutputError:
    reason = error.strerror or str(error)
    name = path.name if path else "the output"
    if error.errno in _BROKE_OFF:
        cause = f"Writing {name} broke off: {reason}{_space(path, needed)}. Nothing was changed."
        return IOFailure(cause, "Make room and try again.")
    if error.errno == errno.ENOENT:
        return OutputError(f"The folder for {path} does not exist.", "Create it first.")
    return OutputError(f"Cannot write {path}: {reason}.", "Choose another place or name.")


def _space(path: Path | None, needed: int | None) -> str:
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB free"
    except (OSError, AttributeError):
        return ""
    return f" ({free}, {needed / 1e6:.1f} MB needed)" if needed is not None else f" ({free})"
