from __future__ import annotations

import json

import pytest

from medmap.errors import BundleError, UsageError
from medmap.task import BRATS, Task


def test_brats_has_fifteen_subsets_small_ones_first():
    subsets = BRATS.subsets()
    assert len(subsets) == len(set(subsets)) == 15
    assert [len(s) for s in subsets] == sorted(len(s) for s in subsets)


def test_a_subset_has_one_name_whatever_the_order():
    assert (
        BRATS.subset_key(["flair", "t1ce"]) == BRATS.subset_key(("t1ce", "flair")) == "t1ce+flair"
    )
    assert BRATS.presence(["flair", "t1"]) == (True, False, False, True)


def test_an_unknown_modality_is_refused_by_name():
    with pytest.raises(UsageError, match="pd"):
        BRATS.index("pd")


def test_a_task_survives_json():
    assert Task.from_dict(json.loads(json.dumps(BRATS.to_dict()))) == BRATS


@pytest.mark.parametrize("key", ["name", "modalities", "labels", "regions"])
def test_a_task_without_a_part_is_refused(key):
    data = BRATS.to_dict()
    del data[key]
    with pytest.raises(BundleError):
        Task.from_dict(data)


def test_regions_are_nested_and_values_are_those_of_brats():
    assert BRATS.label_values() == (0, 1, 2, 4)
    whole, core, enhancing = (set(BRATS.region_classes(r)) for r in ("WT", "TC", "ET"))
    assert enhancing < core < whole
