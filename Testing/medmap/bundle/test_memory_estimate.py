"""Memory is estimated before it is used: larger windows need more, windows shrink, or an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medmap.bundle.memory_estimate import bytes_per_voxel
from medmap.devices import available_bytes
from medmap.errors import UnavailableError
from medmap.inference import segment
from medmap.networks import build_network


def test_this_computer_says_what_it_has():
    free = available_bytes()
    assert free is None or 2**26 < free < 2**50


def test_wider_networks_need_more():
    narrow = bytes_per_voxel(build_network("SubsetUNet", {"widths": [16, 32]}))
    wide = bytes_per_voxel(build_network("SubsetUNet", {"widths": [32, 64]}))
    assert 1.3 * narrow < wide < 2.5 * narrow


def test_the_count_is_not_below_what_the_features_alone_take():
    network = build_network("SubsetUNet", {"widths": [8, 8, 8]}).eval()
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        features = [network.encode(image, m) for m in range(4)]
    kept = sum(level.numel() * 4 for levels in features for level in levels) / 32**3
    assert bytes_per_voxel(network) > kept


def small_memory(monkeypatch, free):
    monkeypatch.setattr("medmap.sliding_window.available_bytes", lambda: free)


def test_little_memory_means_smaller_windows_and_is_said(volumes, tiny_bundle, monkeypatch):
    bundle = replace(tiny_bundle, inference=replace(tiny_bundle.inference, bytes_per_voxel=1000))
    small_memory(monkeypatch, 45_000_000)
    result = segment(volumes, bundle)
    assert any(f.check == "memory" for f in result.findings)
    assert result.provenance.run.window != result.provenance.run.working_shape


def test_far_too_little_memory_is_refused_before_anything_is_computed(
    volumes, tiny_bundle, monkeypatch
):
    bundle = replace(tiny_bundle, inference=replace(tiny_bundle.inference, bytes_per_voxel=1000))
    small_memory(monkeypatch, 1000)
    monkeypatch.setattr(type(bundle.network), "encode", lambda *_: pytest.fail("computed"))
    with pytest.raises(UnavailableError, match="Out of memory"):
        segment(volumes, bundle)
