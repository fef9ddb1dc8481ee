"""Our sliding window against MONAI's: the same network, windows, overlap and weights, hence the same output."""

from __future__ import annotations

import torch

from medmap.bench.measure import Cost, isolated, timed
from medmap.bench.peer import load_peer
from medmap.devices import resolve_device
from medmap.errors import UsageError
from medmap.inference import gaussian_weight, window_boxes
from medmap.networks import NETWORKS, Backbone, build_network


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
    """Slide a window over a cube of noise, once our way and once with ``monai.inferers.sliding_window_inference``.

    Ours encodes each present modality of a window and keeps its sums on the CPU; MONAI calls
    ``network(image, present)`` as any network is called there, which encodes every channel it is given. ``MONAI,
    present only`` gives it a predictor that skips absent modalities, so that only the sliding differs. The rows' note
    is the largest difference of the logits from ours.

    Args:
        network, options: a backbone.
        size: side of the cube, in voxels.
        window: side of the windows.
        overlap: share of a window that neighbors have in common.
        present: number of modalities present.
        against: a peer's way over the same cube (``load_peer``): ``callable(image)`` gets [1, M, size, size, size] with
            absent channels 0; what it returns is not looked at.
        device: torch device, or ``auto``.
        repeats: timed runs a row.

    Raises:
        UsageError: the network is unknown or does not fit the sizes.
    """
    if network not in NETWORKS:
        raise UsageError(
            f"The network '{network}' is unknown.", f"Use some of {', '.join(sorted(NETWORKS))}."
        )
    place, arguments = (
        str(resolve_device(device)),
        (network, options or {}, size, window, overlap, present),
    )
    names = ("ours", "MONAI, present only", "MONAI, as it is called")
    costs = [isolated(name, _measure, name, *arguments, place, repeats) for name in names]
    if against:
        costs.append(
            isolated(against, _peer, against, network, options or {}, size, present, place, repeats)
        )
    return costs


def _measure(
    name: str,
    network: str,
    options: dict,
    size,
    window,
    overlap,
    present,
    device: str,
    repeats: int,
) -> Cost:
    torch.manual_seed(0)
    built = build_network(network, options).eval().to(device)
    if size % built.stride or window % built.stride:
        raise UsageError(f"{network} needs sizes divisible by {built.stride}.", "Choose others.")
    image = torch.randn(
        1, built.modalities, size, size, size, generator=torch.Generator().manual_seed(1)
    )
    ways = {"ours": _ours, "MONAI, present only": _monai_skipping, "MONAI, as it is called": _monai}
    kept = {}

    def work() -> None:
        kept["logits"] = ways[name](built, image, window, overlap, present, torch.device(device))

    cost = timed(name, work, device, repeats, warm_up=repeats > 1)
    if name == "ours":
        return cost
    difference = (
        (kept["logits"] - _ours(built, image, window, overlap, present, torch.device(device)))
        .abs()
        .max()
    )
    return Cost(
        **{**cost.__dict__, "note": f"differs from ours by at most {float(difference):.1g}"}
    )


def _peer(
    target: str, network: str, options: dict, size: int, present: int, device: str, repeats: int
) -> Cost:
    peer, modalities = load_peer(target), build_network(network, options).modalities
    image = torch.randn(1, modalities, size, size, size, generator=torch.Generator().manual_seed(1))
    image[:, present:] = 0

    def work() -> str:
        peer(image.to(device))
        return "a peer's way"

    return timed(target, work, device, repeats, warm_up=repeats > 1)


@torch.inference_mode()
def _ours(
    network: Backbone, image, window: int, overlap: float, present: int, device
) -> torch.Tensor:
    """The loop of ``inference.Run`` on a bare network."""
    total, weights = torch.zeros((network.classes, *image.shape[2:])), torch.zeros(image.shape[2:])
    weight = gaussian_weight((window,) * 3)
    for box in window_boxes(image.shape[2:], (window,) * 3, overlap, network.stride):
        part = image[(slice(None), slice(None), *box)]
        logits = _predict(network, part.to(device), present)
        total[(slice(None), *box)] += weight * logits[0].float().cpu()
        weights[box] += weight
    return total / weights


def _predict(network: Backbone, part, present: int) -> torch.Tensor:
    features = [
        network.encode(part[:, m : m + 1], m) if m < present else None
        for m in range(network.modalities)
    ]
    mask = torch.arange(network.modalities, device=part.device)[None] < present
    return network.decode(features, mask.expand(len(part), -1)).logits


def _monai_skipping(
    network: Backbone, image, window: int, overlap: float, present: int, device
) -> torch.Tensor:
    return _slide(lambda part: _predict(network, part, present), image, window, overlap, device)


def _monai(
    network: Backbone, image, window: int, overlap: float, present: int, device
) -> torch.Tensor:
    mask = torch.arange(network.modalities, device=device)[None] < present
    return _slide(
        lambda part: network(part, mask.expand(len(part), -1)).logits,
        image,
        window,
        overlap,
        device,
    )


@torch.inference_mode()
def _slide(predictor, image, window: int, overlap: float, device) -> torch.Tensor:
    from monai.inferers import sliding_window_inference

    return sliding_window_inference(
        image,
        (window,) * 3,
        1,
        predictor,
        overlap=overlap,
        mode="gaussian",
        sigma_scale=0.125,
        sw_device=device,
        device="cpu",
    )[0]
