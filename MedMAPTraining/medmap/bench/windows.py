"""Our sliding window against MONAI's: equal network, windows, overlap, weights, hence output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medmap.bench.measure import Cost, isolated, timed
from medmap.bench.peer import load_peer
from medmap.bundle.format import InferenceSpec
from medmap.devices import resolve_device
from medmap.errors import UsageError
from medmap.networks import NETWORKS, Backbone, build_network
from medmap.networks.base import Features
from medmap.preprocess import prepared_on_own_grid
from medmap.sliding_window import SlidingWindow
from medmap.task import BRATS


@dataclass(frozen=True)
class WindowSetup:
    """A network that slides over a cube of noise.

    Attributes:
        network, options: a backbone of the four modalities and four classes of BraTS.
        size: side of the cube, in voxels.
        window: side of the windows.
        overlap: share of a window that neighbors have in common.
        present: number of modalities present, the first ones of the task.
        device: where the network runs; the cube and the sums stay on the CPU.
    """

    network: str = "SubsetUNet"
    options: dict = field(default_factory=dict)
    size: int = 128
    window: int = 96
    overlap: float = 0.5
    present: int = 2
    device: str = "cpu"

    def cube(self) -> Tensor:
        """[1, M, size, size, size] of noise, equal for all ways."""
        generator = torch.Generator().manual_seed(1)
        sides = (self.size,) * 3
        return torch.randn(1, len(BRATS.modalities), *sides, generator=generator)

    def presence(self) -> Tensor:
        """[M] bool, True = present."""
        return torch.arange(len(BRATS.modalities)) < self.present

    def build(self) -> Backbone:
        """The network with seeded weights, on its device.

        Raises:
            UsageError: the network does not fit the sizes.
        """
        torch.manual_seed(0)
        backbone = build_network(self.network, self.options).eval()
        if self.size % backbone.stride or self.window % backbone.stride:
            raise UsageError(
                f"{self.network} needs sizes divisible by {backbone.stride}.",
                f"Choose multiples of {backbone.stride} for the cube and the windows.",
            )
        return backbone.to(torch.device(self.device))


def bench_window(
    setup: WindowSetup | None = None, *, against: str | None = None, repeats: int = 1
) -> list[Cost]:
    """Slide a window over a cube of noise, our way and with MONAI's ``sliding_window_inference``.

    Ours encodes each present modality of a window and keeps its sums on the CPU. MONAI calls
    ``network(image, present)``, which encodes every channel it is given. ``MONAI, present only``
    gives it a predictor that skips absent modalities, so that only the sliding differs. The rows'
    note is the largest difference of the logits from ours.

    Args:
        setup: what slides over what.
        against: a peer's way over the same cube (``load_peer``): ``callable(image)`` gets
            [1, M, size, size, size] with absent channels 0; what it returns is not used.
        repeats: timed runs for each row.

    Raises:
        UsageError: the network is unknown.
    """
    setup = setup or WindowSetup()
    if setup.network not in NETWORKS:
        raise UsageError(
            f"The network '{setup.network}' is unknown.",
            f"Use some of {', '.join(sorted(NETWORKS))}.",
        )
    setup = replace(setup, device=str(resolve_device(setup.device)))
    costs = []
    for name in WAYS:
        costs.append(isolated(name, _measure, name, setup, repeats))
    if against:
        costs.append(isolated(against, _peer, against, setup, repeats))
    return costs


def _measure(name: str, setup: WindowSetup, repeats: int) -> Cost:
    network = setup.build()
    image = setup.cube()
    logits = torch.empty(0)

    def work() -> None:
        nonlocal logits
        logits = WAYS[name](network, image, setup)

    cost = timed(name, work, setup.device, repeats, warm_up=repeats > 1)
    if name == OURS:
        return cost
    difference = float((logits - _ours(network, image, setup)).abs().max())
    return replace(cost, note=f"differs from ours by at most {difference:.1g}")


def _peer(target: str, setup: WindowSetup, repeats: int) -> Cost:
    peer = load_peer(target)
    image = setup.cube()
    image[:, setup.present :] = 0

    def work() -> str:
        peer(image.to(setup.device))
        return "a peer's way"

    return timed(target, work, setup.device, repeats, warm_up=repeats > 1)


def _ours(network: Backbone, image: Tensor, setup: WindowSetup) -> Tensor:
    """Logits [C, S, S, S] as inference computes them."""
    brain = torch.ones(image.shape[2:], dtype=torch.bool)
    prepared = prepared_on_own_grid(image[0], setup.presence(), brain, spacing=1.0)
    spec = InferenceSpec((setup.window,) * 3, setup.overlap)
    windows = SlidingWindow(BRATS, spec, network.stride, torch.device(setup.device))
    subset = BRATS.modality_names[: setup.present]
    return next(windows.logits(network, prepared, [subset]))


def _monai_skipping(network: Backbone, image: Tensor, setup: WindowSetup) -> Tensor:
    presence = setup.presence().to(setup.device)

    def predict(part: Tensor) -> Tensor:
        features: list[Features | None] = [None] * network.modalities
        for m in range(setup.present):
            features[m] = network.encode(part[:, m : m + 1], m)
        return network.decode(features, presence.expand(len(part), -1)).logits

    return _slide(predict, image, setup)


def _monai(network: Backbone, image: Tensor, setup: WindowSetup) -> Tensor:
    presence = setup.presence().to(setup.device)

    def predict(part: Tensor) -> Tensor:
        return network(part, presence.expand(len(part), -1)).logits

    return _slide(predict, image, setup)


@torch.inference_mode()
def _slide(predict: Callable[[Tensor], Tensor], image: Tensor, setup: WindowSetup) -> Tensor:
    from monai.inferers import sliding_window_inference

    logits = sliding_window_inference(
        image,
        (setup.window,) * 3,
        1,
        predict,
        overlap=setup.overlap,
        mode="gaussian",
        sigma_scale=0.125,
        sw_device=torch.device(setup.device),
        device="cpu",
    )
    return logits[0]


OURS = "ours"
WAYS: dict[str, Callable[[Backbone, Tensor, WindowSetup], Tensor]] = {
    OURS: _ours,
    "MONAI, present only": _monai_skipping,
    "MONAI, as it is called": _monai,
}
"""Ways to slide a window, by the title of their row."""
