"""Modality comparison: scans are encoded once; Dice and uncertainty agree with the metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medmap import metrics
from medmap.agreement import heaviest_slices
from medmap.comparison_names import DISAGREEMENT, ENTROPY, REGION_DISAGREEMENT
from medmap.errors import Cancelled, UsageError
from medmap.inference import segment, segment_subsets
from medmap.metrics import region_masks
from medmap.subset_comparison import normalized_entropy, subsets_of, what_if
from medmap.task import BRATS
from medmap.volume import Volume

NAMES = BRATS.modality_names


_once: dict = {}


@pytest.fixture
def found(volumes, tiny_bundle):
    """All subsets of the four scans, computed once for the whole file."""
    if not _once:
        _once["found"] = what_if(volumes, tiny_bundle)
    return _once["found"]


def test_fifteen_subsets_the_current_one_first(found):
    assert len(found.variants) == len({v.key for v in found.variants}) == 15
    assert found.variants[0].modalities == found.current == NAMES
    kinds = [v.kind for v in found.variants]
    assert (kinds.count("current"), kinds.count("leave-one-out"), kinds.count("other")) == (
        1,
        4,
        10,
    )


def test_each_scan_is_encoded_once_for_fifteen_subsets(volumes, tiny_bundle, monkeypatch):
    calls = []
    encode, decode = tiny_bundle.network.encode, tiny_bundle.network.decode
    monkeypatch.setattr(tiny_bundle.network, "encode", lambda x, m: calls.append(m) or encode(x, m))
    monkeypatch.setattr(
        tiny_bundle.network, "decode", lambda *a: calls.append("decode") or decode(*a)
    )
    what_if(volumes, tiny_bundle)
    assert sorted(c for c in calls if c != "decode") == [0, 1, 2, 3]
    assert calls.count("decode") == 15


def test_the_current_labels_are_those_of_segment(found, volumes, tiny_bundle):
    alone = segment(volumes, tiny_bundle)
    assert np.array_equal(found.labels, alone.labels)
    assert found.variants[0].volumes_ml == pytest.approx(alone.volumes_ml)
    assert np.array_equal(found.grid.affine, alone.grid.affine)
    assert found.reference == alone.reference


def test_volumes_changes_and_dice_are_those_of_the_metrics(found, volumes, tiny_bundle):
    every = segment_subsets(volumes, tiny_bundle, subsets_of(NAMES, BRATS))
    before = metrics.region_volumes_ml(every[BRATS.subset_key(NAMES)], BRATS, found.grid.voxel_ml)
    for variant in found.variants:
        labels = every[variant.key]
        volumes = metrics.region_volumes_ml(labels, BRATS, found.grid.voxel_ml)
        assert variant.volumes_ml == pytest.approx(volumes)
        for name, mask in region_masks(labels, BRATS).items():
            assert variant.change_ml[name] == pytest.approx(volumes[name] - before[name])
            assert variant.dice[name] == metrics.dice(mask, region_masks(found.labels, BRATS)[name])
    assert any(v.dice["WT"] < 1 for v in found.variants)


def test_disagreement_is_the_share_of_other_subsets_that_differ(found, volumes, tiny_bundle):
    every = segment_subsets(volumes, tiny_bundle, subsets_of(NAMES, BRATS))
    others = [labels for key, labels in every.items() if key != BRATS.subset_key(NAMES)]
    differing = np.mean([labels != found.labels for labels in others], 0)
    np.testing.assert_allclose(found.maps[DISAGREEMENT], differing, atol=1e-6)
    whole = np.mean([(labels > 0) != (found.labels > 0) for labels in others], 0)
    np.testing.assert_allclose(found.maps[REGION_DISAGREEMENT], whole, atol=1e-6)


def test_entropy_lies_on_the_reference_grid_and_is_zero_outside_the_head(found, volumes):
    entropy = found.maps[ENTROPY]
    assert entropy.shape == found.labels.shape
    assert entropy.dtype == np.float32
    assert 0 <= entropy.min() <= entropy.max() <= 1
    assert not entropy[volumes["t1"].array == 0].any()
    assert entropy[volumes["t1"].array != 0].mean() > 0.01
    for name, mask in region_masks(found.labels, BRATS).items():
        assert found.region_entropy[name] == pytest.approx(entropy[mask].mean())


@pytest.mark.parametrize(
    ("probability", "expected"),
    [((1, 0, 0, 0), 0.0), ((0.25,) * 4, 1.0), ((0.5, 0.5, 0, 0), 0.5), ((0, 0, 0, 1), 0.0)],
)
def test_entropy_of_known_distributions(probability, expected):
    assert normalized_entropy(torch.tensor(probability).float()[:, None]).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_the_map_is_where_the_scan_is_whatever_its_orientation(volumes, tiny_bundle, found):
    def turned(volume):
        change = np.array(
            [[0, -1, 0, volume.array.shape[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]
        )
        array = np.ascontiguousarray(volume.array.transpose(2, 0, 1)[:, ::-1])
        return Volume(array, volume.affine @ change, volume.name)

    other = what_if(
        {n: turned(v) for n, v in volumes.items()}, tiny_bundle, subsets=[NAMES, NAMES[:2]]
    )
    back = turned(Volume(found.maps[ENTROPY], found.grid.affine)).array
    np.testing.assert_allclose(other.maps[ENTROPY], back, atol=2e-4)


def test_a_coarser_reference_gets_its_own_grid(make_case, tiny_bundle):
    scans = {
        "t1ce": make_case()["t1ce"],
        "flair": make_case(shape=(30, 36, 14), spacing=2.7)["flair"],
    }
    result = what_if(scans, tiny_bundle, reference="flair")
    assert result.maps[ENTROPY].shape == result.labels.shape == (30, 36, 14)
    assert [v.key for v in result.variants] == ["t1ce+flair", "t1ce", "flair"]


def test_add_back_tells_what_a_left_out_scan_would_change(volumes, tiny_bundle):
    current = ("t1ce", "flair")
    result = what_if(
        volumes,
        tiny_bundle,
        current=current,
        subsets=[current, ("t1ce",), ("flair",), ("t1", *current), ("t1ce", "t2", "flair")],
        reference="t1ce",
    )
    kinds = {v.key: v.kind for v in result.variants}
    assert kinds == {
        "t1ce+flair": "current",
        "t1+t1ce+flair": "add-back",
        "t1ce+t2+flair": "add-back",
        "t1ce": "leave-one-out",
        "flair": "leave-one-out",
    }
    assert set(result.variants[0].dice.values()) == {1.0}


def test_one_scan_alone_has_an_entropy_but_nothing_to_disagree_with(volumes, tiny_bundle):
    result = what_if({"t2": volumes["t2"]}, tiny_bundle)
    assert list(result.maps) == [ENTROPY]
    assert heaviest_slices(result.maps[ENTROPY], 2)


def test_subsets_that_the_network_is_not_made_for_are_left_out(volumes, tiny_bundle, monkeypatch):
    monkeypatch.setattr(tiny_bundle.network, "needs", frozenset({BRATS.index("t1ce")}))
    result = what_if(volumes, tiny_bundle)
    assert len(result.variants) == 8
    assert all("t1ce" in v.modalities for v in result.variants)


@pytest.mark.parametrize(
    "options",
    [
        {"subsets": [("t1", "flair")]},
        {"current": ("flair",)},
        {"subsets": [()]},
        {"subsets": [("pd",)]},
    ],
)
def test_scans_that_are_not_there_are_refused(volumes, tiny_bundle, options):
    with pytest.raises(UsageError):
        what_if({"t1": volumes["t1"], "t2": volumes["t2"]}, tiny_bundle, **options)


def test_progress_rises_to_one(volumes, tiny_bundle):
    told = []
    what_if(volumes, tiny_bundle, progress=lambda fraction, text: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) > 30


@pytest.mark.parametrize("after", [1, 6, 12, 25])
def test_cancelling_stops_at_the_next_step(volumes, tiny_bundle, after):
    told = []
    with pytest.raises(Cancelled):
        what_if(
            volumes,
            tiny_bundle,
            progress=lambda f, t: told.append(f),
            cancel=lambda: len(told) > after,
        )
    assert len(told) <= after + 3


def test_windows_give_the_same_as_segment_with_the_same_windows(volumes, tiny_bundle):
    bundle = replace(tiny_bundle, inference=replace(tiny_bundle.inference, window=(32, 32, 24)))
    assert np.array_equal(
        what_if(volumes, bundle, subsets=[NAMES]).labels, segment(volumes, bundle).labels
    )


def test_inputs_are_never_changed(volumes, tiny_bundle):
    before = {name: volume.array.copy() for name, volume in volumes.items()}
    what_if(volumes, tiny_bundle, subsets=[NAMES])
    assert all(np.array_equal(before[name], volumes[name].array) for name in NAMES)
