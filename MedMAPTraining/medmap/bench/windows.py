"""Our sliding window against MONAI's: equal network, windows, overlap, weights, hence output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from medmap.bench.measure import Cost, isolated, timed
from medmap.bench.peer import load_peer
from medmap.devices import resolve_device
from medmap.errors import UsageError
from medmap.networks import NETWORKS, Backbone, build_network
from medmap.sliding_window import gaussian_weight, window_boxes


def bench_window(
    network: str = "SubsetUNet",
    options: dict | None = None,
    *,
    size: int = 128,
    window: int = 96,
    overlap: float = 0.5,
    present: int = 2,
    against: str | None = None,
    device: str = "cpu",
    repeats: int = 1,
) -> list[Cost]:
    """Slide a window over a cube of noise, our way and with MONAI's ``sliding_window_inference``.

    Ours encodes each present modality of a window and keeps its sums on the CPU. MONAI calls
    ``network(image, present)``, which encodes every channel it is given. ``MONAI, present only``
    gives it a predictor that skips absent modalities, so that only the sliding differs. The rows'
    note is the largest difference of the logits from ours.

    Args:
        network, options: a backbone.
        size: side of the cube, in voxels.
        window: side of the windows.
        overlap: share of a window that neighbors have in common.
        present: number of modalities present.
        against: a peer's way over the same cube (``load_peer``): ``callable(image)`` gets
            [1, M, size, size, size] with absent channels 0; what it returns is not used.
        device: torch device, or ``auto``.
        repeats: timed runs for each row.

    Raises:
        UsageError: the network is unknown or does not fit the sizes.
    """
    if network not in NETWORKS:
        raise UsageError(
            f"The network '{network}' is unknown.", f"Use some of {', '.join(sorted(NETWORKS))}."
        )
    resolved = str(resolve_device(device))
    options = options or {}
    costs = []
    for name in WAYS:
        costs.append(
            isolated(
                name,
                _measure,
                name,
                network,
                options,
                size,
                window,
                overlap,
                present,
                resolved,
                repeats,
            )
        )
    if against:
        costs.append(
            isolated(against, _peer, against, network, options, size, present, resolved, repeats)
        )
    return costs


def _measure(
    name: str,
    network: str,
    options: dict,
    size: int,
    window: int,
    overlap: float,
    present: int,
    device: str,
    repeats: int,
) -> Cost:
    torch.manual_seed(0)
    backbone = build_network(network, options).eval().to(device)
    if size % backbone.stride or window % backbone.stride:
        raise UsageError(
            f"{network} needs sizes divisible by {backbone.stride}.",
            f"Choose multiples of {backbone.stride} for the cube and the windows.",
        )
    image = _cube(backbone.modalities, size)
    arguments = (backbone, image, window, overlap, present, torch.device(device))
    logits = torch.empty(0)

    def work() -> None:
        nonlocal logits
        logits = WAYS[name](*arguments)

    cost = timed(name, work, device, repeats, warm_up=repeats > 1)
    if name == OURS:
        return cost
    difference = float((logits - _ours(*arguments)).abs().max())
    return replace(cost, note=f"differs from ours by at most {difference:.1g}")


def _cube(modalities: int, size: int) -> Tensor:
    """[1, M, size, size, size] of noise, equal for all ways."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, modalities, size, size, size, generator=generator)


def _peer(
    target: str, network: str, options: dict, size: int, present: int, device: str, repeats: int
) -> Cost:
    peer = load_peer(target)
    image = _cube(build_network(network, options).modalities, size)
    image[:, present:] = 0

    def work() -> str:
        peer(image.to(device))
        return "a peer's way"

    return timed(target, work, device, repeats, warm_up=repeats > 1)


@torch.inference_mode()
def _ours(
    network: Backbone,
    image: Tensor,
    window: int,
    overlap: float,
    present: int,
    device: torch.device,
) -> Tensor:
    """The loop of the sliding window in ``inference`` on a bare network: logits [C, S, S, S]."""
    sides = (window,) * 3
    weight = gaussian_weight(sides)
    total = torch.zeros((network.classes, *image.shape[2:]))
    weights = torch.zeros(image.shape[2:])
    for box in window_boxes(image.shape[2:], sides, overlap, network.stride):
        part = image[(slice(None), slice(None), *box)]
        logits = _predict(network, part.to(device), present)
        total[(slice(None), *box)] += weight * logits[0].float().cpu()
        weights[box] += weight
    return total / weights


def _predict(network: Backbone, part: Tensor, present: int) -> Tensor:
    """Logits of the first ``present`` modalities; the encoders of the others are not run."""
    features = []
    for m in range(network.modalities):
        if m < present:
            features.append(network.encode(part[:, m : m + 1], m))
        else:
            features.append(None)
    mask = torch.arange(network.modalities, device=part.device)[None] < present
    return network.decode(features, mask.expand(len(part), -1)).logits


def _monai_skipping(
    network: Backbone,
    image: Tensor,
    window: int,
    overlap: float,
    present: int,
    device: torch.device,
) -> Tensor:
    def predictor(part: Tensor) -> Tensor:
        return _predict(network, part, present)

    return _slide(predictor, image, window, overlap, device)


def _monai(
    network: Backbone,
    image: Tensor,
    window: int,
    overlap: float,
    present: int,
    device: torch.device,
) -> Tensor:
    mask = torch.arange(network.modalities, device=device)[None] < present

    def predictor(part: Tensor) -> Tensor:
        return network(part, mask.expand(len(part), -1)).logits

    return _slide(predictor, image, window, overlap, device)


@torch.inference_mode()
def _slide(
    predictor: Callable[[Tensor], Tensor],
    image: Tensor,
    window: int,
    overlap: float,
    device: torch.device,
) -> Tensor:
    from monai.inferers import sliding_window_inference

    logits = sliding_window_inference(
        image,
        (window,) * 3,
        1,
        predictor,
        overlap=overlap,
        mode="gaussian",
        sigma_scale=0.125,
        sw_device=device,
        device="cpu",
    )
    return logits[0]


OURS = "ours"
WAYS = {OURS: _ours, "MONAI, present only": _monai_skipping, "MONAI, as it is called": _monai}
"""Ways to slide a window, by the title of their row."""
