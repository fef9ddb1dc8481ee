"""A cohort is segmented to its end despite faulty cases, and resumed without repeating work."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from Testing.medmap.preparation.conftest import head_scan

from medmap.commands import cohort
from medmap.commands.cohort import CohortOptions, segment_cohort
from medmap.commands.cohort_rows import RESULTS
from medmap.errors import OutputError
from medmap.io.nifti import read_nifti, write_volume


def quiet(fraction, text):
    pass


@pytest.fixture
def bids(tmp_path, make_case):
    """Three subjects: T1w and FLAIR; a damaged file; contrast-enhanced T1w in a session."""
    root = tmp_path / "bids"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.10.0"}')
    volumes = make_case(shape=(32, 36, 28))

    def put(name, modality):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, volumes[modality].array.astype(np.int16), volumes[modality].affine)

    put("sub-01/anat/sub-01_T1w.nii.gz", "t1")
    put("sub-01/anat/sub-01_FLAIR.nii.gz", "flair")
    (root / "sub-02/anat").mkdir(parents=True)
    (root / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(b"not a scan")
    put("sub-03/ses-1/anat/sub-03_ses-1_ce-gd_T1w.nii.gz", "t1ce")
    return root


def run(source, output, bundle, **options):
    return segment_cohort(source, output, CohortOptions(bundle, "cpu", **options), quiet).rows


@pytest.fixture
def in_process(monkeypatch):
    """Cases are segmented here, so that the test pays for no second Python."""
    done = []

    def here(jobs, options):
        for job in jobs:
            done.append(job.case.case_id)
            yield cohort.segment_job(job)

    monkeypatch.setattr(cohort, "_by_processes", here)
    return done


def test_bids_gives_bids_derivatives_and_a_failed_case_stops_nothing(
    bids, tmp_path, tiny_bundle_path, in_process
):
    before = {path: path.read_bytes() for path in bids.rglob("*") if path.is_file()}
    output = tmp_path / "derivatives"
    rows = run(bids, output, tiny_bundle_path)
    assert [(row["case"], row["state"]) for row in rows] == [
        ("sub-01", "done"), ("sub-02", "failed"), ("sub-03_ses-1", "done"),
    ]  # fmt: skip
    assert rows[1]["exit_code"] == 65
    assert "sub-02_T2w.nii.gz" in rows[1]["error"]
    assert not (output / "sub-02").exists(), "no empty folder of a failed case"
    first = output / "sub-01/anat/sub-01_space-orig_desc-medmap_dseg.nii.gz"
    labels, scan = read_nifti(first), read_nifti(bids / "sub-01/anat/sub-01_T1w.nii.gz")
    assert labels.grid.distance(scan.grid) == 0
    note = json.loads(first.with_name(first.name.replace(".nii.gz", ".json")).read_text())
    assert set(note["Sources"]) == {
        "bids::sub-01/anat/sub-01_T1w.nii.gz",
        "bids::sub-01/anat/sub-01_FLAIR.nii.gz",
    }
    assert note["SpatialReference"]["orig"] in note["Sources"]
    assert (output / "sub-03/ses-1/anat/sub-03_ses-1_space-orig_desc-medmap_dseg.nii.gz").exists()
    described = json.loads((output / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "MedMAP"
    table = (output / "desc-medmap_dseg.tsv").read_text().splitlines()
    assert table[0].split("\t") == ["index", "name", "abbreviation", "color"]
    assert [line.split("\t")[0] for line in table[1:]] == ["0", "1", "2", "4"]
    with (output / RESULTS).open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["state"] for row in written] == ["done", "failed", "done"]
    assert written[0]["scans"] == "t1+flair"
    assert float(written[0]["WT_ml"]) >= float(written[0]["ET_ml"]) >= 0
    assert before == {path: path.read_bytes() for path in bids.rglob("*") if path.is_file()}, (
        "inputs stay as they are"
    )


def test_what_is_finished_is_kept_and_what_is_not_is_done_again(
    bids, tmp_path, tiny_bundle_path, in_process
):
    output = tmp_path / "out"
    run(bids, output, tiny_bundle_path)
    first = output / "sub-01/anat/sub-01_space-orig_desc-medmap_dseg.nii.gz"
    stamp = first.stat().st_mtime_ns
    rows = run(bids, output, tiny_bundle_path)
    assert [row["state"] for row in rows] == ["kept", "failed", "kept"]
    assert first.stat().st_mtime_ns == stamp
    content = first.read_bytes()
    first.write_bytes(content[:-1])  # damaged
    good = bids / "sub-01/anat/sub-01_T1w.nii.gz"
    (bids / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(good.read_bytes())  # mended
    (bids / "sub-03/ses-1/anat/sub-03_ses-1_ce-gd_T1w.nii.gz").write_bytes(
        good.read_bytes()
    )  # another scan
    assert [row["state"] for row in run(bids, output, tiny_bundle_path)] == ["done", "done", "done"]
    assert first.read_bytes() == content
    assert [row["state"] for row in run(bids, output, tiny_bundle_path, again=True)] == ["done"] * 3


def test_another_preparation_is_another_result(bids, tmp_path, tiny_bundle_path, in_process):
    output = tmp_path / "out"
    first = run(bids, output, tiny_bundle_path, prepare="never")
    assert [row["state"] for row in first] == ["done", "failed", "done"]
    report = json.loads(next((output / "sub-01/anat").glob("*_dseg.json")).read_text())
    assert report["preparation"]["mode"] == "never"
    again = run(bids, output, tiny_bundle_path, prepare="never")
    assert [row["state"] for row in again] == ["kept", "failed", "kept"]
    other = run(bids, output, tiny_bundle_path, prepare="auto")
    assert [row["state"] for row in other] == ["done", "failed", "done"]


def test_prepared_scans_of_a_cohort_are_named_as_bids_wants_them(
    tmp_path, tiny_bundle_path, in_process
):
    root = tmp_path / "bids"
    anat = root / "sub-01/anat"
    anat.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "heads", "BIDSVersion": "1.10.0"}')
    head = head_scan("t1")
    write_volume(anat / "sub-01_T1w.nii.gz", head.array, head.affine)
    output = tmp_path / "out"
    results = output / "sub-01/anat"
    assert [row["state"] for row in run(root, output, tiny_bundle_path)] == ["done"]
    prepared = results / "sub-01_desc-prepared_T1w.nii.gz"
    mask = results / "sub-01_desc-T1wbrain_mask.nii.gz"
    assert not prepared.exists()
    # A result without the prepared scans is not what is asked for now; with them, it is kept.
    for state in ("done", "kept"):
        rows = run(root, output, tiny_bundle_path, keep_prepared=True)
        assert [row["state"] for row in rows] == [state]
        is_brain = read_nifti(mask, modality="labels").array > 0
        assert not read_nifti(prepared).array[~is_brain].any()


def test_a_table_gives_a_folder_a_case(bids, tmp_path, tiny_bundle_path, in_process):
    table = tmp_path / "cohort.csv"
    table.write_text(
        "case,t1,flair\na,bids/sub-01/anat/sub-01_T1w.nii.gz,\nb,nowhere.nii,\n../c,x.nii,\n"
    )
    rows = run(table, tmp_path / "out", tiny_bundle_path)
    assert [(row["state"], row["exit_code"]) for row in rows] == [
        ("done", 0),
        ("failed", 66),
        ("failed", 65),
    ]
    assert sorted(path.name for path in (tmp_path / "out/a").iterdir()) == [
        "overlay.png", "report.json", "segmentation.nii.gz",
    ]  # fmt: skip
    assert not (tmp_path / "c").exists()


def test_an_unforeseen_fault_is_a_row_too(
    bids, tmp_path, tiny_bundle_path, in_process, monkeypatch
):
    monkeypatch.setattr(cohort, "segment_files", lambda *a, **k: 1 / 0)
    rows = run(bids, tmp_path / "out", tiny_bundle_path)
    assert [row["exit_code"] for row in rows] == [70, 70, 70]
    assert "ZeroDivisionError" in rows[0]["error"]


def die_over_the_second(job):
    """Stands in for ``segment_job``: the process is killed over one case, as for want of memory."""
    if job.case.case_id == "sub-02":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"case": job.case.case_id, "state": "done", "error": "", "process": os.getpid()}


def test_a_worker_that_dies_takes_only_its_own_case_along(monkeypatch, tmp_path):
    from concurrent.futures import ProcessPoolExecutor

    from medmap.io.cohorts import Case

    class Forked(ProcessPoolExecutor):  # a fork knows this test's stand-in without importing it
        def __init__(self, workers, **begins):
            import multiprocessing

            super().__init__(workers, mp_context=multiprocessing.get_context("fork"))

    monkeypatch.setattr(cohort, "ProcessPoolExecutor", Forked)
    monkeypatch.setattr(cohort, "segment_job", die_over_the_second)
    here = tmp_path.resolve()
    jobs = [
        cohort.Job(
            Case(f"sub-0{n}", {}, None), here, cohort.OutputLayout(), here, here, "cpu", False
        )
        for n in range(1, 5)
    ]
    rows = {row["case"]: row for row in cohort._by_processes(jobs, CohortOptions(device="cpu"))}
    assert [rows[f"sub-0{n}"]["state"] for n in range(1, 5)] == ["done", "failed", "done", "done"]
    assert "died" in rows["sub-02"]["error"]
    assert rows["sub-01"]["process"] != rows["sub-03"]["process"], "a new process took over"


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_loses_nothing_when_a_worker_is_killed(
    make_case, tmp_path, tiny_bundle_path, monkeypatch
):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine nice workers would starve
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    volumes = make_case(shape=(32, 36, 28))
    lines = ["case,t1"]
    for n in range(8):
        write_volume(
            tmp_path / f"{n}.nii.gz",
            (volumes["t1"].array + n).astype(np.int16),
            volumes["t1"].affine,
        )
        lines.append(f"case-{n},{n}.nii.gz")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20, "num_gpus": 0},
    )
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20, num_gpus=0)
        killed = []

        def kill_one(fraction, text):
            if not killed:  # one case is done: its neighbors are being worked on
                killed.extend(_kill_a_worker())

        options = CohortOptions(tiny_bundle_path, "cpu", ray=cluster.address)
        rows = segment_cohort(tmp_path / "cohort.csv", tmp_path / "out", options, kill_one).rows
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed, "a worker was killed in the middle"
    assert [row["state"] for row in rows] == ["done"] * 8
    assert all((tmp_path / "out" / row["label_map"]).exists() for row in rows)


def _kill_a_worker() -> list[int]:
    """Kill -9 one Ray worker that is segmenting, by its title.

    Only descendants of this process are looked at.
    """
    for _ in range(100):
        listed = subprocess.run(
            ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
        ).stdout
        found = [int(line.split()[0]) for line in listed.splitlines() if "ray::segment_job" in line]
        mine = [pid for pid in found if _descends(pid, os.getpid())]
        if mine:
            os.kill(mine[0], signal.SIGKILL)
            return mine[:1]
        time.sleep(0.05)
    return []


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False


def test_another_cohort_with_equal_names_does_not_replace_results(
    tmp_path, volumes, tiny_bundle_path, in_process
):
    for number, folder in enumerate(("first", "second")):
        (tmp_path / folder / "A").mkdir(parents=True)
        array = volumes["t1"].array.astype(np.int16) + number
        write_volume(tmp_path / folder / "A/A_t1.nii.gz", array, volumes["t1"].affine)
    output = tmp_path / "out"
    run(tmp_path / "first", output, tiny_bundle_path)
    before = (output / "A/report.json").read_bytes()
    with pytest.raises(OutputError, match="other scans of A"):
        run(tmp_path / "second", output, tiny_bundle_path)
    assert (output / "A/report.json").read_bytes() == before
    # The same scans under another path are the same cohort.
    (tmp_path / "first").rename(tmp_path / "moved")
    (row,) = run(tmp_path / "moved", output, tiny_bundle_path)
    assert row["state"] == "kept"
    (row,) = run(tmp_path / "second", output, tiny_bundle_path, again=True)
    assert row["state"] == "done"


def test_scans_that_are_links_out_of_a_data_set_keep_their_names(
    tmp_path, volumes, tiny_bundle_path, in_process
):
    """As git-annex and the hub of Hugging Face store them: keys without an ending, elsewhere."""
    root = tmp_path / "bids"
    (root / "sub-1/anat").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    write_volume(
        tmp_path / "store/x.nii.gz", volumes["t1"].array.astype(np.int16), volumes["t1"].affine
    )
    (tmp_path / "store/x.nii.gz").rename(tmp_path / "store/MD5-s1--0")
    (root / "sub-1/anat/sub-1_T1w.nii.gz").symlink_to(tmp_path / "store/MD5-s1--0")
    output = root / "derivatives/medmap"
    (row,) = run(root, output, tiny_bundle_path)
    assert row["state"] == "done", row["error"]
    report = json.loads(next((output / "sub-1/anat").glob("*.json")).read_text())
    assert report["Sources"] == ["bids::sub-1/anat/sub-1_T1w.nii.gz"]
