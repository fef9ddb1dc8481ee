"""Writing so that a name never holds half a file.

The way: a temporary name in the same folder, flush, fsync, rename.

A rename within one folder is atomic on POSIX and NTFS, so whoever opens the final name sees the old
content or the new one. Several files cannot be renamed in one step: ``Transaction`` undoes what it
published when a later file fails, so only a kill or a power cut between two renames can leave a
mixture; one folder can be renamed in one step (``atomic_folder``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from medmap.errors import InternalError, IOFailure, OutputError, UsageError

_WRITE_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def make_folder(path: str | os.PathLike) -> Path:
    """Create the last level of a folder path if need be.

    Only that level: a typing error makes no tree of folders.

    Raises OutputError when the level above is missing, a file is in the way,
    or writing is not allowed.
    """
    path = Path(path)
    with translate_os_errors(path):  # also asking may fail: a name may be too long
        if not path.is_dir():
            path.mkdir()
    return path


def check_output(
    path: str | os.PathLike, *, inputs: Iterable[str | os.PathLike] = (), overwrite: bool = False
) -> Path:
    """Refuse an output name before any work is done for it.

    Raises:
        OutputError: its folder is missing or read-only, the name is a folder, a file is there and
            ``overwrite`` is False, or the name leads to an input (also through links, ``..`` or
            upper and lower case) - that one always, whatever ``overwrite`` says.
        UsageError: it can be no file name at all.
    """
    path = Path(path)
    with translate_os_errors(path):
        if "\0" in str(path):
            raise ValueError("NUL")
        if not path.parent.is_dir():
            raise OutputError(f"The folder for {path} does not exist.", "Create it first.")
        if path.is_dir():
            raise OutputError(f"{path} is a folder.", "Give a file name.")
        for source in inputs:
            if _is_same_file(path, Path(source)):
                raise OutputError(
                    f"The output {path.name} is the same file as an input.",
                    "Choose another name: inputs are never changed.",
                )
        _refuse_existing(path, overwrite)
        if not os.access(path.parent, os.W_OK):
            raise OutputError(
                f"The folder of {path} is read-only.", "Choose a folder that you may write to."
            )
    return path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name to write to; it becomes ``path`` when the block ends without an error.

    The temporary name ends as ``path`` does, for writers that look at the suffix. An
    existing file is replaced. Raises OutputError or IOFailure; the previous file is then
    intact and the temporary one gone.
    """
    with Transaction(overwrite=True) as transaction:
        yield transaction.path(path)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically. Raises OutputError or IOFailure."""
    with atomic_path(path) as temporary, translate_os_errors(Path(path), needed=len(data)):
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text with the line ends given, atomically. Raises OutputError or IOFailure."""
    write_bytes(path, encoded(text))


def append_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Append to a file without rewriting it. Raises OutputError or IOFailure.

    After an error the file is as it was. Only a kill or a power cut while this writes can leave a
    part of the data.
    """
    path = Path(path)
    # Without a buffer: what one still holds would be written when the file is closed.
    with translate_os_errors(path, needed=len(data)), open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[file.write(remaining) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def encoded(text: str) -> bytes:
    r"""Text as UTF-8, also where it holds names of files that are not.

    Python reads the byte 0xFC of such a name as the lone surrogate U+DCFC; it becomes ``\udcfc``,
    which JSON reads back as the same name.
    """
    return text.encode("utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write JSON (indented, keys in the order given, NaN refused by ValueError) atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


class Transaction:
    """Several output files, published together or not at all.

    ::

        with Transaction(overwrite=False) as out:
            write_labels(out.path("case/seg.nii.gz"), labels, grid)
            out.path("case/seg.medmap.json").write_text(report)

    Leaving the block by an error (Ctrl-C included) removes everything written and keeps what was
    there before. Raises OutputError (exists, no folder, read-only), IOFailure (disk full, device
    gone) or InternalError (a name was asked for but never written).
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._publish()
            elif isinstance(error, OSError) and self._concerns_outputs(error):
                raise _translated(error, self._final_name(error)) from error
        finally:
            for temporary in self._files.values():
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _concerns_outputs(self, error: OSError) -> bool:
        # An error over an input has its own message; only those over the outputs are translated.
        return error.errno in _WRITE_FAILURES or self._final_name(error) is not None

    def _final_name(self, error: OSError) -> Path | None:
        """The output whose temporary file the error names."""
        for final, temporary in self._files.items():
            if str(temporary) == error.filename:
                return final
        return None

    def _publish(self) -> None:
        for final, temporary in self._files.items():
            if not temporary.is_file():
                raise InternalError(
                    f"{final.name} was announced but not written.", "Please report this."
                )
            with translate_os_errors(final):
                _sync(temporary)
            _refuse_existing(final, self._overwrite)
        with _undo_on_error() as undo:
            for final, temporary in self._files.items():
                with translate_os_errors(final):
                    undo.append((final, _backup(final)))
                    os.replace(temporary, final)
            for folder in {final.parent for final in self._files}:
                with translate_os_errors(folder):
                    _sync_folder(folder)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty temporary folder beside ``path``.

    It is renamed to ``path`` when the block ends without an error.

    With ``overwrite`` an existing folder is renamed aside first and removed last; a power cut
    between the two renames leaves it beside, under a name that begins with ``.tmp-``. Raises
    OutputError or IOFailure.
    """
    final = Path(os.path.abspath(path))
    if not final.parent.is_dir():
        raise OutputError(f"The folder for {path} does not exist.", "Create it first.")
    _refuse_existing(final, overwrite)
    staging = _temporary(final)
    previous = _temporary(final)
    try:
        with translate_os_errors(final):
            staging.mkdir()
        try:
            yield staging
        except OSError as error:
            if error.errno in _WRITE_FAILURES or str(error.filename).startswith(str(staging)):
                raise _translated(error, final) from error
            raise
        with translate_os_errors(final):
            for file in sorted(staging.rglob("*")):
                if file.is_dir():
                    _sync_folder(file)
                else:
                    _sync(file)
            _sync_folder(staging)
            _swap_folder(staging, final, previous, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if final.exists():
            shutil.rmtree(previous, ignore_errors=True)


@contextlib.contextmanager
def exclusive_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Exclusive lock on a run's folder; the operating system releases it however this program ends.

    Raises:
        OutputError: another program has the lock; the message names computer, process and time.
    """
    path = Path(folder) / ".lock"
    with translate_os_errors(path):
        # Closed below, where errors are no longer about opening the file.
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
            f"process {os.getpid()} on {platform.node()} since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        file.flush()
        yield


def _lock(descriptor: int) -> None:
    # mypy knows the modules of a platform by ``sys.platform`` only.
    if sys.platform == "win32":
        import msvcrt

        # Far behind the text, which Windows would otherwise keep others from reading.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _swap_folder(staging: Path, final: Path, previous: Path, overwrite: bool) -> None:
    _refuse_existing(final, overwrite)
    existed = final.exists()
    if existed:
        os.rename(final, previous)
    try:
        os.rename(staging, final)
    except BaseException:
        if existed:
            os.rename(previous, final)
        raise
    _sync_folder(final.parent)


@contextlib.contextmanager
def _undo_on_error() -> Iterator[list[tuple[Path, Path | None]]]:
    """Collect (final, copy of what was there) pairs; put everything back when the block fails."""
    replaced: list[tuple[Path, Path | None]] = []
    try:
        yield replaced
    except BaseException:
        for final, backup in reversed(replaced):
            with contextlib.suppress(OSError):
                if backup:
                    os.replace(backup, final)
                else:
                    final.unlink(missing_ok=True)
        raise
    finally:
        for _, backup in replaced:
            if backup:
                with contextlib.suppress(OSError):
                    backup.unlink(missing_ok=True)


def _backup(final: Path) -> Path | None:
    """A second name for the file that is about to be replaced.

    A hard link, or a copy where the file system has none.
    """
    if not os.path.lexists(final):
        return None
    backup = _temporary(final)
    try:
        os.link(final, backup)
    except OSError:
        shutil.copy2(final, backup)
    return backup


def _temporary(final: Path) -> Path:
    # Short, so that a long final name still works; the suffix stays, because
    # some writers decide by it.
    suffix = ".nii.gz" if final.name.lower().endswith(".nii.gz") else final.suffix
    return final.parent / f".tmp-{secrets.token_hex(6)}{suffix}"


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise OutputError(
            f"{path} exists.", "Choose another name, or allow overwriting.", option="overwrite"
        )


def _is_same_file(output: Path, source: Path) -> bool:
    try:
        return os.path.samefile(output, source)
    except OSError:
        return os.path.realpath(output) == os.path.realpath(source)


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
def translate_os_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn errors of the operating system into MedMAP's, with cause and remedy.

    Args:
        path: what is being written; named in the message.
        needed: bytes that were to be written, for the message about a full disk.

    Raises:
        OutputError: the path cannot be written.
        IOFailure: writing broke off.
        UsageError: the path cannot be a file name.
    """
    try:
        yield
    except OSError as error:
        raise _translated(error, path, needed) from error
    except ValueError as error:  # a NUL byte in the name
        raise UsageError(
            f"The name {str(path)!r} cannot be a file name.", "Choose another name."
        ) from error


def _translated(
    error: OSError, path: Path | None, needed: int | None = None
) -> IOFailure | OutputError:
    reason = error.strerror or str(error)
    name = "the output"
    if path:
        name = path.name
    if error.errno in _WRITE_FAILURES:
        space = _free_space(path, needed)
        cause = f"Writing {name} broke off: {reason}{space}. Nothing was changed."
        return IOFailure(cause, "Make room and try again.")
    if error.errno == errno.ENOENT:
        return OutputError(f"The folder for {path} does not exist.", "Create it first.")
    return OutputError(f"Cannot write {path}: {reason}.", "Choose another folder or name.")


def _free_space(path: Path | None, needed: int | None) -> str:
    if path is None:
        return ""
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB free"
    except OSError:
        return ""
    if needed is None:
        return f" ({free})"
    return f" ({free}, {needed / 1e6:.1f} MB needed)"
