"""Nothing is ever half written, and nothing that was there is lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import medmap
from medmap.errors import InternalError, IOFailure, OutputError, UsageError
from medmap.io import atomic


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def failing(function, at: int, code: int = errno.ENOSPC):
    """``function``, but call number ``at`` (0 = first) raises OSError instead."""
    calls = iter(range(10**6))

    def wrapped(*args, **kwargs):
        if next(calls) == at:
            raise OSError(code, os.strerror(code))
        return function(*args, **kwargs)

    return wrapped


def test_writes_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "Müller scan.json"
    atomic.write_text(target, "one")
    atomic.write_json(target, {"b": 1, "a": "ä"})
    assert target.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "ä"\n}\n'
    assert names(tmp_path) == ["Müller scan.json"]


def test_an_error_while_writing_keeps_the_previous_file(tmp_path):
    target = tmp_path / "a.txt"
    atomic.write_text(target, "old")
    with pytest.raises(ValueError, match=r"NaN|Out of range"):
        atomic.write_json(target, {"x": float("nan")})

    def write_half_and_stop():
        with atomic.atomic_path(target) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half_and_stop()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_name_lies_beside_and_keeps_the_suffix(tmp_path):
    with atomic.atomic_path(tmp_path / "a.nii.gz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"x")


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    target = tmp_path / ("n" * 251 + ".txt")
    atomic.write_text(target, "x")
    assert target.read_text() == "x"


def test_new_files_get_the_usual_permissions(tmp_path):
    atomic.write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_transaction_publishes_all_files_at_its_end(tmp_path, overwrite):
    with atomic.Transaction(overwrite=overwrite) as out:
        out.path(tmp_path / "a").write_text("1")
        out.path(tmp_path / "b").write_text("2")
        assert out.path(tmp_path / "a") == out.path(str(tmp_path / "a"))
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a", "b"]


def write_all(targets: dict[Path, str], overwrite: bool = False, never: Path | None = None) -> None:
    with atomic.Transaction(overwrite=overwrite) as out:
        for target, text in targets.items():
            out.path(target).write_text(text)
        if never:
            out.path(never)


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


@pytest.mark.parametrize(
    ("call", "at"),
    [*(("replace", n) for n in range(3)), *(("fsync", n) for n in range(4))],
)
def test_a_transaction_that_fails_at_any_step_changes_nothing(tmp_path, monkeypatch, call, at):
    (tmp_path / "a").write_text("old a")
    (tmp_path / "c").write_text("old c")
    monkeypatch.setattr(atomic.os, call, failing(getattr(os, call), at))
    with pytest.raises(IOFailure, match="free") as caught:
        write_all({tmp_path / n: f"new {n}" for n in "abc"}, overwrite=True)
    assert caught.value.exit_code == 74
    assert contents(tmp_path) == {"a": "old a", "c": "old c"}


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old a")
    monkeypatch.setattr(atomic.os, "link", failing(os.link, 0, errno.EPERM))
    write_all({tmp_path / "a": "new a"}, overwrite=True)
    assert contents(tmp_path) == {"a": "new a"}


def test_a_transaction_refuses_what_exists_and_what_was_never_written(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OutputError, match="exists"):
        write_all({tmp_path / "b": "x"}, never=tmp_path / "a")
    with pytest.raises(InternalError, match="not written"):
        write_all({tmp_path / "b": "x"}, never=tmp_path / "c")
    assert names(tmp_path) == ["a"]


def test_a_file_that_appeared_meanwhile_is_not_overwritten(tmp_path):
    out = atomic.Transaction()
    out.path(tmp_path / "a").write_text("mine")
    (tmp_path / "a").write_text("theirs")
    with pytest.raises(OutputError, match="exists"):
        out.__exit__(None, None, None)
    assert contents(tmp_path) == {"a": "theirs"}


def test_errors_about_other_files_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic.Transaction() as out:
        out.path(tmp_path / "a").write_text((tmp_path / "missing").read_text())


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "bundle"
    with atomic.atomic_folder(final) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not final.exists()
    assert (final / "sub" / "a").read_text() == "1"
    with pytest.raises(OutputError, match="exists"), atomic.atomic_folder(final):
        pass
    with pytest.raises(FileNotFoundError), atomic.atomic_folder(final, overwrite=True) as folder:
        (folder / "b").write_text((tmp_path / "missing").read_text())
    assert (final / "sub" / "a").read_text() == "1"
    with atomic.atomic_folder(final, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert names(final) == ["b"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize(("call", "at"), [("rename", 0), ("rename", 1), ("fsync", 0), ("fsync", 1)])
def test_a_folder_that_cannot_be_swapped_stays_as_it_was(tmp_path, monkeypatch, call, at):
    final = tmp_path / "bundle"
    with atomic.atomic_folder(final) as folder:
        (folder / "a").write_text("old")
    monkeypatch.setattr(atomic.os, call, failing(getattr(os, call), at))
    with pytest.raises(IOFailure), atomic.atomic_folder(final, overwrite=True) as folder:
        (folder / "a").write_text("new")
    assert (final / "a").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_a_real_size_limit_reads_as_a_full_disk(tmp_path):
    code = (
        "import resource, sys; from medmap.io import atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: atomic.write_bytes(sys.argv[1], bytes(200_000))\n"
        "except atomic.IOFailure as error: print(error.cause)\n"
    )
    target = tmp_path / "a"
    target.write_text("old")
    done = run_python(code, str(target))
    assert "Writing a broke off: File too large" in done.communicate(timeout=60)[0]
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_an_appended_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    code = (
        "import resource, sys; from medmap.io import atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "atomic.append_bytes(sys.argv[1], b'first\\n')\n"
        "try: atomic.append_bytes(sys.argv[1], bytes(200_000))\n"
        "except atomic.IOFailure as error: print(error.cause)\n"
        "atomic.append_bytes(sys.argv[1], b'second\\n')\n"
    )
    target = tmp_path / "a"
    done = run_python(code, str(target))
    assert "Writing a broke off: File too large" in done.communicate(timeout=60)[0]
    assert target.read_bytes() == b"first\nsecond\n"


def test_a_kill_leaves_the_old_or_the_new_content(tmp_path):
    code = (
        "import sys; from medmap.io import atomic\nfor n in range(10**6): "
        "atomic.write_bytes(sys.argv[1], bytes([65 + n % 26]) * 3_000_000); print(n, flush=True)"
    )
    target = tmp_path / "a"
    for attempt in range(5):
        child = run_python(code, str(target))
        child.stdout.readline()
        time.sleep(0.013 * attempt)
        child.kill()
        child.communicate()
        content = target.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1


def run_python(code: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(medmap.__file__).parents[1])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_check_output_refuses_what_exists_unless_told(tmp_path):
    target = tmp_path / "a"
    assert atomic.check_output(target) == target
    target.write_text("x")
    with pytest.raises(OutputError, match="exists") as caught:
        atomic.check_output(target)
    assert caught.value.exit_code == 73
    atomic.check_output(target, overwrite=True)


@pytest.mark.parametrize("how", ["same", "dots", "symlink", "hard link", "linked folder"])
def test_check_output_always_refuses_an_input(tmp_path, how):
    scan = tmp_path / "scan.nii"
    scan.write_text("x")
    (tmp_path / "sub").mkdir()
    output = {
        "same": scan,
        "dots": tmp_path / "sub" / ".." / "scan.nii",
        "symlink": tmp_path / "sym.nii",
        "hard link": tmp_path / "hard.nii",
        "linked folder": tmp_path / "link" / "scan.nii",
    }[how]
    if how == "symlink":
        output.symlink_to(scan)
    elif how == "hard link":
        os.link(scan, output)
    elif how == "linked folder":
        (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(OutputError, match="same file as an input"):
        atomic.check_output(output, inputs=[scan], overwrite=True)


def test_check_output_says_what_is_wrong_with_the_place(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"folder for .* does not exist"):
        atomic.check_output(tmp_path / "no" / "a")
    with pytest.raises(OutputError, match="is a folder"):
        atomic.check_output(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="cannot be a file name"):
        atomic.check_output(tmp_path / "a\0b")
    monkeypatch.setattr(atomic.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="read-only"):
        atomic.check_output(tmp_path / "a")


@pytest.mark.parametrize(
    "writer", [lambda p: atomic.write_text(p, "x"), lambda p: atomic.atomic_folder(p).__enter__()]
)
def test_writing_into_a_missing_folder_is_refused_in_words(tmp_path, writer):
    with pytest.raises(OutputError, match="does not exist"):
        writer(tmp_path / "no" / "a")


def test_too_long_a_name_is_refused_in_words(tmp_path):
    with pytest.raises(OutputError, match="Cannot write"):
        atomic.write_text(tmp_path / ("n" * 300), "x")


def test_make_folder_creates_one_level_only(tmp_path):
    assert atomic.make_folder(tmp_path / "a").is_dir()
    atomic.make_folder(tmp_path / "a")
    with pytest.raises(OutputError, match="does not exist"):
        atomic.make_folder(tmp_path / "b" / "c")
    (tmp_path / "f").write_text("x")
    with pytest.raises(OutputError, match="exists"):
        atomic.make_folder(tmp_path / "f")
