"""The bench of data: three ways to the same patches, and a training step to compare them with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medmap.bench import data as bench
from medmap.bench.peer import load_peer
from medmap.errors import UsageError
from medmap.io.cohorts import find_cases
from medmap.io.nifti import write_labels, write_volume
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import cache_case

SPEC = PreprocessSpec(spacing=2.0)


@pytest.fixture
def cases(tmp_path, make_case):
    """Two small patients, and the folders of their prepared arrays."""
    for n in range(2):
        folder, volumes = tmp_path / f"cases/Case_{n}", make_case((28, 32, 26), seed=n)
        folder.mkdir(parents=True)
        for name, volume in volumes.items():
            write_volume(
                folder / f"Case_{n}_{name}.nii.gz", volume.array.astype(np.int16), volume.affine
            )
        label = np.zeros(volume.array.shape, np.uint8)
        label[12:20, 12:20, 8:16] = 2
        write_labels(folder / f"Case_{n}_seg.nii.gz", label, volume.grid)
    (tmp_path / "cache").mkdir()
    found = find_cases(tmp_path / "cases", BRATS)
    return found, [cache_case(case, BRATS, SPEC, tmp_path / "cache") for case in found]


def test_every_way_gives_the_same_patches(cases):
    first, *others = [
        bench.sampler_of(way, *cases, SPEC).batch(3, 2, (16, 16, 16)) for way in bench.WAYS
    ]
    assert first.image.abs().sum() > 0
    for other in others:
        assert other.case_id == first.case_id
        assert torch.equal(other.label, first.label)
        assert torch.equal(other.present, first.present)
        torch.testing.assert_close(
            other.image, first.image, atol=5e-3, rtol=0
        )  # the cache keeps half precision


def test_a_batch_and_a_step_take_time_and_the_share_is_told(cases):
    rows = [bench._batches(way, *cases, 16, 1, 1, SPEC) for way in bench.WAYS]
    step = bench._step("SubsetUNet", {"widths": [4, 8]}, cases[1], 16, 1, "cpu", 1)
    assert all(row.seconds > 0 for row in [*rows, step])
    told = [bench._with_share(row, step) for row in rows]
    assert all(row.note.endswith("% of the step") for row in told)
    assert bench._with_share(bench.replace(rows[0], failure="x", cpu_seconds=None), step).note == ""


def test_a_peers_loader_gets_paths_and_runs_beside_ours(cases, tmp_path):
    (tmp_path / "their loader.py").write_text(
        "def patch(scans, label, size):\n"
        "    assert label.exists() and len(scans) == 4 and size == 16\n"
    )
    assert bench._peer(f"{tmp_path}/their loader.py:patch", cases[0], 16, 2, 1).seconds > 0


@pytest.mark.parametrize(
    "target", ["no_such_module:f", "/nowhere/peer.py:f", "/nowhere/peer.py", "json:nothing"]
)
def test_a_peer_that_is_not_there_is_refused(target):
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_peer(target)


def test_a_peer_is_found_by_its_file_with_its_neighbors(tmp_path):
    (tmp_path / "neighbor_of_mine.py").write_text("ANSWER = 7\n")
    (tmp_path / "peer_model.py").write_text(
        "from neighbor_of_mine import ANSWER\n\n"
        "def segment(scans, affine):\n    return ANSWER\n\n"
        "value = 3\n"
    )
    assert load_peer(str(tmp_path / "peer_model.py"))({}, None) == 7
    with pytest.raises(UsageError, match="cannot be called"):
        load_peer(f"{tmp_path}/peer_model.py:value")
