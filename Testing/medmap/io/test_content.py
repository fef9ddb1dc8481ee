"""Files known by their content: what is read again, and what is not."""

from __future__ import annotations

import os
import time

import pytest

from medmap.io import content
from medmap.io.content import file_record
from medmap.training.cache_folder import CacheFolder


@pytest.fixture
def scan(tmp_path):
    """A file that is an hour old."""
    path = tmp_path / "scan.nii"
    path.write_bytes(b"one")
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    return path


def test_a_file_that_did_not_change_is_not_read_again(scan, monkeypatch):
    record = file_record(scan)
    monkeypatch.setattr(content, "sha256_of", lambda path: "read again")
    assert file_record(scan, record) == record
    assert file_record(scan, {"size": 3, "sha256": "x"})["sha256"] == "read again"


def test_a_file_that_has_just_changed_is_read_again(scan):
    """Within one tick of the clock a second change leaves size and times as they are."""
    scan.write_bytes(b"two")
    record = file_record(scan)
    assert "mtime_ns" not in record
    # Every time of the record is that of the file, as after a change within the same tick.
    record["sha256"] = "of the bytes before"
    assert file_record(scan, record)["sha256"] != "of the bytes before"


def test_the_cache_reads_a_scan_once(scan, tmp_path, monkeypatch):
    cache = CacheFolder.at(tmp_path / "cache", 1.0)
    hashes = cache.hash_files([scan])
    monkeypatch.setattr(content, "sha256_of", lambda path: "read again")
    assert cache.hash_files([scan]) == hashes
    scan.write_bytes(b"three")
    assert cache.hash_files([scan])[scan] == "read again"


def test_the_index_of_an_earlier_version_is_read_anew(scan, tmp_path):
    """Earlier indexes hold lists of size, time and hash."""
    cache = CacheFolder.at(tmp_path / "cache", 1.0)
    hashes = cache.hash_files([scan])
    index = next((tmp_path / "cache/files").glob("*.json"))
    index.write_text(f'{{"{scan}": [3, 0, "hash of an earlier version"]}}')
    assert cache.hash_files([scan]) == hashes
