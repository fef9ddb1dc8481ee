"""Inference: the default model's ways, beside mmFormer as published."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from gpu.setup import (
    MODALITIES,
    Row,
    Setup,
    autocast,
    default_network,
    peak_note,
    release,
    seconds_of,
)
from medmap.networks import Backbone, build_network
from medmap.sliding_window import window_boxes
from medmap.task import BRATS
from medmap.training.acceleration import as_channels_last, channels_last, compile_backbone


def inference_rows(setup: Setup) -> Iterator[Row]:
    """The default model's ways, and mmFormer as published, whose ratio counts."""
    published = published_seconds(setup)
    note = f"eager fp32, all encoders, windows of {setup.sizes.window}³ that overlap by half"
    yield Row("inference", "mmFormer as published", f"{1000 * published:.0f} ms", note)
    ways = ["fp32"]
    if setup.has_bf16:
        ways += ["bf16", "bf16 channels-last", "bf16 compiled"]
    for way in ways:
        release(setup.device)
        yield from default_model_rows(setup, way, published)


def default_model_rows(setup: Setup, way: str, published: float) -> Iterator[Row]:
    """One way of the default model: with one and four modalities, and all subsets of one case."""
    network = default_network(setup).eval()
    image = torch.randn(1, 1, *setup.sizes.box, device=setup.device)
    if way.endswith("channels-last"):
        channels_last(network)
        image = as_channels_last(image)
    if way.endswith("compiled"):
        compile_backbone(network, backend=setup.sizes.backend)
    for count in (1, 4):
        work = partial(segment_once, network, image, count, way, setup)
        seconds = seconds_of(work, setup.device, setup.sizes.repeats)
        ratio = f"published / this: {published / seconds:.0f}"
        title = f"default model, {count} of 4 modalities, {way}"
        yield Row("inference", title, f"{1000 * seconds:.1f} ms", ratio)
    if way.endswith("compiled"):
        # Each subset has a graph of its own: fifteen take minutes to compile.
        return
    work_on_all = partial(segment_all, network, image, way, setup)
    seconds = seconds_of(work_on_all, setup.device, setup.sizes.repeats)
    title = f"default model, all 15 subsets, {way}"
    yield Row("inference", title, f"{1000 * seconds:.1f} ms", peak_note(setup.device))


@torch.inference_mode()
def segment_once(network: Backbone, image: Tensor, count: int, way: str, setup: Setup) -> Tensor:
    """Encode so many modalities and decode once."""
    precision = way.split()[0]
    positions = torch.arange(len(MODALITIES), device=setup.device)
    present = positions[None] < count
    with autocast(setup.device, precision):
        features = [network.encode(image, m) if m < count else None for m in MODALITIES]
        output = network.decode(features, present)
    return output.logits


@torch.inference_mode()
def segment_all(network: Backbone, image: Tensor, way: str, setup: Setup) -> None:
    """Encode every modality once and decode every subset."""
    precision = way.split()[0]
    with autocast(setup.device, precision):
        features = [network.encode(image, m) for m in MODALITIES]
        for subset in BRATS.subsets():
            mask = BRATS.presence(subset)
            chosen = [features[m] if mask[m] else None for m in MODALITIES]
            present = torch.tensor([mask], device=setup.device)
            network.decode(chosen, present)


def published_seconds(setup: Setup) -> float:
    """mmFormer as released: every encoder, float32, windows that overlap by half."""
    sizes = setup.sizes
    network = build_network("mmFormer", {"window": sizes.window}).to(setup.device).eval()
    image = torch.randn(1, len(MODALITIES), *sizes.volume, device=setup.device)
    present = torch.ones(1, len(MODALITIES), dtype=torch.bool, device=setup.device)
    boxes = window_boxes(sizes.volume, (sizes.window,) * 3, 0.5, 1)

    @torch.inference_mode()
    def slide() -> None:
        total = torch.zeros((BRATS.num_classes, *sizes.volume), device=setup.device)
        for box in boxes:
            part = image[(slice(None), slice(None), *box)]
            logits = network(part, present).logits
            total[(slice(None), *box)] += torch.softmax(logits[0], 0)

    return seconds_of(slide, setup.device, max(1, sizes.repeats // 5))
