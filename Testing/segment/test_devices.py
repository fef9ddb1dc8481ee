"""The list of devices, without one and with a make-believe torch."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from medmap.errors import UsageError
from MedMAPSegmentLib.devices import cardsAreKnown, checkDevice, listDevices


def pretend(monkeypatch, cards=(), mps=False):
    cuda = SimpleNamespace(
        is_available=lambda: bool(cards),
        device_count=lambda: len(cards),
        get_device_name=lambda n: cards[n][0],
        mem_get_info=lambda n: (cards[n][1] * 2**30, cards[n][2] * 2**30),
    )
    backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, backends=backends))


def test_before_torch_is_loaded_nothing_is_claimed(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert [device.name for device in listDevices()] == ["auto", "cpu"]
    assert listDevices()[0].text == "Automatic"
    assert not cardsAreKnown()


def test_every_card_is_listed_with_its_free_memory(monkeypatch):
    pretend(monkeypatch, [("Card A", 7.5, 8), ("Card B", 20, 24)])
    devices = listDevices()
    assert [device.name for device in devices] == ["auto", "cuda:0", "cuda:1", "cpu"]
    assert devices[1].text == "Card A, 7.5 of 8.0 GB free"
    assert devices[0].text == "Automatic (Card A, 7.5 of 8.0 GB free)"


def test_a_card_that_does_not_answer_is_listed_without_its_memory(monkeypatch):
    def fail(n):
        raise RuntimeError("CUDA error: out of memory")

    pretend(monkeypatch, [("Card A", 7.5, 8)])
    monkeypatch.setattr(sys.modules["torch"].cuda, "mem_get_info", fail)
    assert listDevices()[1].text == "Card A, does not answer"


def test_without_a_card_automatic_means_the_processor(monkeypatch):
    pretend(monkeypatch)
    assert listDevices()[0].text == "Automatic (CPU)"


def test_apple_graphics_are_offered_but_not_taken_by_themselves(monkeypatch):
    pretend(monkeypatch, mps=True)
    assert [device.name for device in listDevices()] == ["auto", "mps", "cpu"]
    assert listDevices()[0].text == "Automatic (CPU)"


@pytest.mark.parametrize("name", ["auto", "cpu", "mps", "cuda", "cuda:3"])
def test_names_of_devices(name):
    checkDevice(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cpu; rm"])
def test_other_names_are_refused(name):
    with pytest.raises(UsageError):
        checkDevice(name)
