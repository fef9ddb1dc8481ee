"""The table of a cohort grows by a row, whatever happens to it meanwhile."""

from __future__ import annotations

import csv

import pytest

from medmap.commands.cohort_rows import RESULTS, RowFile
from medmap.errors import OutputError
from medmap.task import BRATS


def row(number: int, **columns) -> dict:
    return {"case": f"case-{number:03}", "state": "done", "findings": 'a "b", c', **columns}


def rows_in(path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_rows_are_appended_and_nothing_is_written_twice(tmp_path):
    path = tmp_path / RESULTS
    file = RowFile(path, BRATS)
    file.add(row(0))
    inode = path.stat().st_ino
    for number in range(1, 50):
        before = path.read_bytes()
        file.add(row(number))
        assert path.read_bytes().startswith(before)
    # A file that is written anew has another inode: with 100,000 cases that takes a terabyte.
    assert path.stat().st_ino == inode
    assert [entry["case"] for entry in rows_in(path)] == [f"case-{n:03}" for n in range(50)]


def test_the_finished_table_has_the_order_of_the_cases(tmp_path):
    path = tmp_path / RESULTS
    file = RowFile(path, BRATS)
    for number in (2, 0, 1):
        file.add(row(number))
    file.finish([row(number) for number in range(3)])
    assert [entry["case"] for entry in rows_in(path)] == ["case-000", "case-001", "case-002"]


def test_a_row_that_a_kill_has_torn_is_gone_in_the_next_run(tmp_path):
    path = tmp_path / RESULTS
    file = RowFile(path, BRATS)
    file.add(row(0))
    file.add(row(1))
    path.write_bytes(path.read_bytes()[:-7])
    again = RowFile(path, BRATS)
    again.add(row(0))
    again.add(row(1))
    assert [entry["findings"] for entry in rows_in(path)] == ['a "b", c'] * 2


@pytest.mark.parametrize("change", ["removed", "shortened", "extended"])
def test_a_table_that_another_program_changed_is_complete_with_the_next_row(tmp_path, change):
    path = tmp_path / RESULTS
    file = RowFile(path, BRATS)
    file.add(row(0))
    file.add(row(1))
    if change == "removed":
        path.unlink()
    elif change == "shortened":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.write_bytes(path.read_bytes() + b"case-9")
    file.add(row(2))
    assert [entry["case"] for entry in rows_in(path)] == ["case-000", "case-001", "case-002"]


def test_a_column_that_appears_later_is_there_for_all_rows(tmp_path):
    path = tmp_path / RESULTS
    file = RowFile(path, BRATS)
    file.add(row(0))
    file.add(row(1, RC_ml=2.5))
    file.add(row(2))
    assert [entry["RC_ml"] for entry in rows_in(path)] == ["", "2.5", ""]


def test_names_that_are_no_text_are_written_as_escapes(tmp_path):
    path = tmp_path / RESULTS
    file = RowFile(path, BRATS)
    file.add(row(0))
    file.add(row(1, error="\udcfc.nii is damaged"))
    assert rows_in(path)[1]["error"] == "\\udcfc.nii is damaged"


def test_a_folder_in_the_way_is_an_output_error(tmp_path):
    (tmp_path / RESULTS).mkdir()
    with pytest.raises(OutputError):
        RowFile(tmp_path / RESULTS, BRATS).add(row(0))
