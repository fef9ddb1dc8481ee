"""Costs of backbones: arithmetic is exact and tested; seconds and memory need only be present."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from Testing.medmap.small_networks import SMALL

from medmap.bench.networks import (
    NetworkRow,
    bench_networks,
    count_gflop,
    measure_network,
    networks_table,
)
from medmap.errors import UsageError


def test_one_convolution_is_counted_by_hand():
    options = {"widths": [4], "depths": [1]}
    by_hand = (
        2 * 8**3 * (27 * 4 * 4 + 4 * 4) / 1e9
    )  # VNet of one level: a 3-wide convolution and the head, 4 channels
    assert count_gflop("VNet", options, 8, 4) == pytest.approx((by_hand, 0.0, None))


@pytest.mark.parametrize("name", ["SubsetUNet", "GatedUNet"])
def test_encoding_one_modality_costs_a_quarter_of_four(name):
    one, four = (count_gflop(name, SMALL[name], 32, present) for present in (1, 4))
    assert one[1] / four[1] == pytest.approx(0.25, abs=0.01)
    assert one[2] == pytest.approx(0.25, abs=0.01)
    assert one[0] < four[0]


def test_a_network_that_stacks_its_inputs_costs_the_same_for_every_subset():
    assert count_gflop("UNet", SMALL["UNet"], 32, 1) == count_gflop("UNet", SMALL["UNet"], 32, 4)


def test_a_row_says_what_a_pass_takes():
    row = measure_network("SubsetUNet", SMALL["SubsetUNet"], 20, 2, repeats=2)
    assert (row.network, row.size, row.present, row.failure) == ("SubsetUNet", 24, 2, "")
    assert 0 < row.encoder_seconds < row.seconds
    assert row.fastest <= row.seconds <= row.slowest
    assert row.parameters > 1000
    assert row.peak_mib is None or row.peak_mib > 50


def test_a_row_measured_apart_has_memory_of_its_own():
    ballast = bytearray(600 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])  # touched, hence resident here
    (row,) = bench_networks(["UNet"], [16], [1], repeats=1, options=SMALL)
    assert row.seconds > 0
    assert row.peak_mib is None or 50 < row.peak_mib < 900


def test_one_failure_does_not_end_the_table():
    seen = []
    rows = bench_networks(
        ["UNet"], [16], [5, 1], repeats=1, options=SMALL, isolate=False, progress=seen.append
    )
    assert seen == ["UNet, 16³, 5 present", "UNet, 16³, 1 present"]
    assert rows[0].seconds is None
    assert rows[0].failure == "UNet has 4 modalities, not 5."
    assert rows[1].seconds > 0


def test_a_peers_network_is_a_row_beside_ours(tmp_path):
    path = tmp_path / "peer_network.py"
    path.write_text(
        "def net(image):\n"
        "    assert image.shape == (1, 4, 16, 16, 16)\n"
        "    assert image[:, 1:].sum() == 0\n"
    )
    ours, peers, missing = (
        *bench_networks(
            ["UNet"], [16], [1], repeats=1, options=SMALL, isolate=False, against=f"{path}:net"
        ),
        *bench_networks([], [16], [1], repeats=1, isolate=False, against=f"{path}:nothing"),
    )
    assert (peers.network, peers.failure, ours.failure) == (f"{path}:net", "", "")
    assert peers.seconds > 0
    assert "cannot be loaded" in missing.failure
    console = Console(file=StringIO(), width=300)
    console.print(networks_table([ours, peers]))
    assert f"{path}:net" in console.file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["Nothing"],), "unknown"),
        ((["UNet"], [0]), "positive"),
        ((["UNet"], [16], [-1]), "positive"),
    ],
)
def test_refuses_what_cannot_be_measured(arguments, message):
    with pytest.raises(UsageError, match=message):
        bench_networks(*arguments)


def test_the_table_shows_every_row_and_how_to_read_it():
    rows = [
        NetworkRow("A", 80, 1, 2_060_000, 81.5, 3.2, 0.25, 1.23, 1.2, 1.5, 0.4, 678.0),
        NetworkRow("A", 80, 4, 2_060_000, 812.5, 12.8, 1.0, 1.23, 1.2, 1.5, 1.4, None),
        NetworkRow("B", 128, 1, failure="out of memory"),
    ]
    console = Console(file=StringIO(), width=200)
    console.print(networks_table(rows))
    text = console.file.getvalue()
    for part in (
        "2.06",
        "81.5",
        "3.2 (25%)",
        "812",
        "1.23 (1.2 to 1.5)",
        "678",
        "out of memory",
        "idle machine",
    ):
        assert part in text
