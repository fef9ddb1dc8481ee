"""Ways to run the same training faster.

On a CPU narrow convolutions are always laid out as their backward pass likes them. What helps a
GPU is off by default: what it gains depends on network and card.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medmap.networks import Backbone

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

VECTOR_CHANNELS = 16
"""Numbers of float32 in an AVX-512 register. oneDNN computes wider convolutions in blocks of so
many channels; narrower ones fall back to code that is two to four times slower backward."""


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


def narrow_channels_last(module: nn.Module) -> None:
    """Lay the weights of convolutions with few output channels out channels-last, in place.

    oneDNN takes the layout of a whole convolution from its weights. In bf16 on one AVX512-BF16 core
    a 3-wide convolution of 8 channels at 80³ takes 65 instead of 146 ms, forward and backward, and
    a 1-wide one 12 instead of 48. Wider ones gain nothing, and normalization loses: therefore only
    these, and not images.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d | nn.Conv3d) or layer.out_channels >= VECTOR_CHANNELS:
            continue
        with torch.no_grad():
            weight = layer.weight
            # Not ``contiguous``: a 1-wide kernel has both layouts at once, and would stay.
            rearranged = torch.empty_like(weight, memory_format=FORMATS[weight.ndim])
            weight.data = rearranged.copy_(weight)


def compile_backbone(network: Backbone, backend: str = "inductor") -> None:
    """Compile ``encode`` and ``decode``, in place; names and weights stay as they are.

    Every modality and every subset has a graph of its own, compiled on first use.

    Args:
        network: to be compiled.
        backend: of ``torch.compile``; ``eager`` traces graphs without compiling them.
    """
    config = torch._dynamo.config
    # Beyond its limit, dynamo silently runs uncompiled; 15 subsets exceed the default of 8.
    config.recompile_limit = max(64, config.recompile_limit)
    # On the instance, in front of the class: a compiled module around it would rename the weights.
    for name in ("encode", "decode"):
        compiled = torch.compile(getattr(network, name), backend=backend)
        setattr(network, name, compiled)
