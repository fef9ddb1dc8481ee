"""Arrays become tensors and come back, also with a PyTorch that was built for another NumPy."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch
from Testing.house.test_imports import INSIDE_SLICER, SOURCES, module_of

from medmap import tensors
from medmap.inference import segment


@pytest.fixture
def without_numpy(monkeypatch):
    """PyTorch as on Macs with Slicer: its own conversions raise."""

    def unavailable(*_):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch, "from_numpy", unavailable)
    monkeypatch.setattr(torch.Tensor, "numpy", unavailable)
    tensors.knows_numpy.cache_clear()
    yield
    monkeypatch.undo()
    tensors.knows_numpy.cache_clear()


TYPES = (np.float32, np.float64, np.uint8, np.int16, np.int32, np.int64, np.bool_)
VIEWS = {
    "contiguous": lambda array: array,
    "transposed": lambda array: array.transpose(2, 0, 1),
    "backward": lambda array: array[:, ::-1],
    "empty": lambda array: array[:0],
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_without_numpy_values_shapes_and_types_stay(without_numpy, dtype, view):
    array = view(np.arange(24).reshape(2, 3, 4).astype(dtype))
    tensor = tensors.from_array(array)
    assert tensor.shape == array.shape
    back = tensors.to_array(tensor.transpose(0, 1))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array.swapaxes(0, 1))


def test_without_numpy_a_read_only_array_is_copied(without_numpy):
    array = np.ones(3)
    array.flags.writeable = False
    tensors.from_array(array)[0] = 5
    assert array[0] == 1


def test_a_patient_gets_the_same_labels_without_numpy(volumes, tiny_bundle, request):
    expected = segment(volumes, tiny_bundle, device="cpu").labels
    request.getfixturevalue("without_numpy")
    assert np.array_equal(segment(volumes, tiny_bundle, device="cpu").labels, expected)


def test_code_inside_slicer_converts_in_one_place():
    names = set().union(*INSIDE_SLICER) - {"tensors", "training.alignment"}
    offenders = []
    for path in SOURCES:
        module = module_of(path)
        is_inside = any(module == name or module.startswith(f"{name}.") for name in names)
        if not is_inside:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("from_numpy", "numpy"):
                offenders.append(f"{path.name}:{node.lineno}")
    assert offenders == []
