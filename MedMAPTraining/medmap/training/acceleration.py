"""Ways to run the same training faster on a GPU.

Off by default: what they gain depends on network and card.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medmap.networks import Backbone

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def as_channels_last(image: Tensor) -> Tensor:
    """The same numbers, channels innermost in memory."""
    if image.ndim not in FORMATS:
        return image
    return image.contiguous(memory_format=FORMATS[image.ndim])


def channels_last(module: nn.Module) -> None:
    """Lay the weights of all convolutions out channels-last, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim in FORMATS:
                parameter.data = as_channels_last(parameter.data)


def compile_backbone(network: Backbone, backend: str = "inductor") -> None:
    """Compile ``encode`` and ``decode``, in place; names and weights stay as they are.

    Every modality and every subset has a graph of its own, compiled on first use.

    Args:
        network: to be compiled.
        backend: of ``torch.compile``; ``eager`` traces graphs without compiling them.
    """
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # On the instance, in front of the class: a compiled module around it would rename the weights.
    for name in ("encode", "decode"):
        compiled = torch.compile(getattr(network, name), backend=backend)
        setattr(network, name, compiled)
