"""The training bench: both ways learn the same, and its table tells ratios."""

from __future__ import annotations

import pytest
import torch

from medmap.bench.training import bench_training, training_table

SMALL = {"widths": [4, 8, 8], "token_width": 16, "mlp_width": 32, "heads": 2, "window": 16}


def test_both_ways_give_the_same_losses_and_a_ratio(tmp_path):
    peer = tmp_path / "peer_step.py"
    peer.write_text(
        "def step(image, label):\n    assert image.shape[2:] == label.shape[1:] == (16, 16, 16)\n"
    )
    methods, ours = (
        ["plain", "PASSION"],
        {"batch": 2, "precision": "fp32", "workers": 0, "device": "cpu"},
    )
    rows = bench_training(
        methods,
        network_options=SMALL,
        patch=16,
        **ours,
        steps=2,
        case=(24, 24, 24),
        against=f"{peer}:step",
    )
    *rows, theirs = rows
    assert (theirs.way, theirs.loss_difference) == (f"{peer}:step", None)
    assert 0 <= theirs.waiting <= 1
    assert training_table([rows[0], theirs])[2][4].endswith("x")
    assert [(row.method, row.way) for row in rows] == [
        (m, way) for m in methods for way in ("published", "ours")
    ]
    assert all(row.loss_difference < 1e-4 for row in rows)
    assert all(row.seconds > 0 and 0 <= row.waiting <= 1 for row in rows)
    header, first, second, *_ = training_table(rows)
    assert first[header.index("speed-up")] == "1.00x"
    assert second[header.index("speed-up")].endswith("x")


@pytest.mark.gpu
def test_on_a_gpu_training_is_three_times_the_published_way():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows = {
        (row.method, row.way): row
        for row in bench_training(["plain", "PASSION"], device="cuda", batch=8)
    }
    for method in ("plain", "PASSION"):
        ours = rows[method, "ours"]
        assert ours.loss_difference < 1e-3
        assert ours.waiting <= 0.05
        assert ours.samples >= 3 * rows[method, "published"].samples
