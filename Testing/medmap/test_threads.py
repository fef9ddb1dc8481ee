"""Scans of a case side by side: the same results as one after the other."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from Testing.conftest import head

from medmap.checks import check_inputs
from medmap.commands.segment import Options, segment_files
from medmap.errors import InputDataError
from medmap.inference import segment
from medmap.io.nifti import write_volume
from medmap.preprocess import PreprocessSpec, prepare
from medmap.task import BRATS
from medmap.threads import in_threads, thread_count


@pytest.fixture(params=[1, 2])
def threads(request):
    """PyTorch, and so the package, limited to a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_after_the_other(tiny_bundle):
    """Findings, network input, and result with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        findings = check_inputs(head(), BRATS)
        prepared = prepare(head(), BRATS, PreprocessSpec(spacing=1.5), multiple=8)
        result = segment(head(), tiny_bundle)
    finally:
        torch.set_num_threads(before)
    return findings, prepared, result


def test_threads_are_those_of_pytorch(threads):
    assert thread_count() == threads


def test_results_come_in_the_order_of_the_items(threads):
    assert in_threads(lambda number: number**2, range(20)) == [n**2 for n in range(20)]


def test_at_most_as_many_items_are_under_way_as_there_are_threads(threads):
    lock = threading.Lock()
    under_way = 0
    most = 0

    def work(number: int) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        np.sort(np.random.default_rng(number).random(200_000))
        with lock:
            under_way -= 1

    in_threads(work, range(12))
    assert 1 <= most <= threads


def test_of_several_errors_that_of_the_first_item_is_raised(threads):
    def work(number: int) -> None:
        if number:
            raise ValueError(number)

    with pytest.raises(ValueError, match="1"):
        in_threads(work, [0, 1, 2, 3])


def test_a_case_is_the_same_with_any_number_of_threads(threads, tiny_bundle, one_after_the_other):
    findings, prepared, result = one_after_the_other
    assert check_inputs(head(), BRATS) == findings
    again = prepare(head(), BRATS, PreprocessSpec(spacing=1.5), multiple=8)
    assert torch.equal(again.image, prepared.image)
    assert torch.equal(again.brain, prepared.brain)
    labels = segment(head(), tiny_bundle).labels
    assert labels.any()
    assert np.array_equal(labels, result.labels)


def test_files_are_refused_alike_with_any_number_of_threads(
    threads, tmp_path, volumes, tiny_bundle
):
    files = {}
    for name, volume in volumes.items():
        files[name] = tmp_path / f"{name}.nii.gz"
        write_volume(files[name], volume.array, volume.affine)
    for name in ("t2", "flair"):
        content = files[name].read_bytes()
        files[name].write_bytes(content[: len(content) // 2])
    with pytest.raises(InputDataError, match=r"t2 .*truncated"):
        segment_files(
            files,
            tmp_path / "out",
            tiny_bundle,
            Options(device="cpu"),
            progress=lambda fraction, text: None,
            cancel=lambda: False,
        )
    assert not (tmp_path / "out").exists()
