"""SubsetUNet: MedMAP's own small backbone for any subset of modalities, made for two CPU cores.

One encoder per modality, a presence-aware fusion per level, one decoder of about the cost of one
encoder, so that all 15 subsets of four scans cost little more than one. Encoders start at half
resolution and the head returns to full resolution by sub-pixel convolution: a whole brain at 1 mm
goes through in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from medmap.networks.base import (
    Backbone,
    Features,
    Output,
    encoded_only,
    level_logits,
    level_of_encoded,
    modality_taps,
    requested,
)
from medmap.networks.blocks import (
    CONV,
    NORM,
    ConvNormAct,
    ResidualBlock,
    modulated_norm,
    pixel_shuffle,
    upsample,
)


class Encoder(nn.Module):
    """One modality: [B, 1, *S] -> levels at strides 2, 4, 8, 16 with ``widths`` channels, projected
    for fusion.

    The projection belongs to the fusion: a 1-wide convolution over concatenated modalities is the
    sum of one term per modality. Computed here, each term is computed once however many subsets are
    decoded; without a bias, the term of an absent (zero) modality is zero.
    """

    def __init__(self, dims: int, widths: Sequence[int]):
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = 1
        for level, width in enumerate(widths):
            # An even kernel at full resolution: every voxel is seen equally often by stride 2.
            kernel = 4 if level == 0 else 3
            down = ConvNormAct(dims, inputs, width, kernel=kernel, stride=2)
            self.stages.append(nn.Sequential(down, ResidualBlock(dims, width)))
            inputs = width
        self.project = nn.ModuleList(CONV[dims](width, width, 1, bias=False) for width in widths)

    def forward(self, x: Tensor) -> Features:
        levels = []
        for stage, project in zip(self.stages, self.project, strict=True):
            x = stage(x)
            levels.append(project(x))
        return levels


class SubsetFusion(nn.Module):
    """Fuse one level: sum what is present; the presence mask then scales and shifts the sum.

    The sum is normalized (its scale would otherwise tell the number of modalities) and modulated by
    the mask (FiLM, Perez et al., AAAI 2018, Eq. 2), which starts as the identity.
    """

    def __init__(self, dims: int, modalities: int, channels: int):
        super().__init__()
        self.norm = NORM[dims](channels, affine=True)
        # In this order, in which seeded weights are drawn.
        embedding = nn.Linear(modalities, 32)
        scale_and_shift = nn.Linear(32, 2 * channels)
        self.film = nn.Sequential(embedding, nn.LeakyReLU(0.01), scale_and_shift)
        nn.init.zeros_(scale_and_shift.weight)
        nn.init.zeros_(scale_and_shift.bias)
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, features: Sequence[Tensor], present: Tensor) -> Tensor:
        """At least one [B, C, *S], zero where absent; present [B, M] bool -> [B, C, *S]."""
        total = features[0]
        for term in features[1:]:
            total = total + term
        modulation = self.film(present.to(total.dtype))
        scale, shift = modulation.chunk(2, 1)
        return self.act(modulated_norm(total, self.norm, scale, shift))


class SubsetUNet(Backbone):
    """Per-modality encoders, presence-aware fusion at every level, one light decoder.

    Args:
        modalities: number of modalities M.
        classes: number of classes, background included.
        spatial_dims: 2 or 3.
        widths: channels of the levels at strides 2, 4, 8, ...
    """

    provides: frozenset[str] = frozenset(
        {"stem", "mod_bottleneck", "bottleneck", "decoder", "deep"}
    )

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        widths: Sequence[int] = (32, 48, 64, 96),
    ):
        super().__init__()
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.stride = 2 ** len(widths)
        dims = spatial_dims
        conv = CONV[dims]
        self.encoders = nn.ModuleList(Encoder(dims, widths) for _ in range(modalities))
        self.fusions = nn.ModuleList(SubsetFusion(dims, modalities, width) for width in widths)
        self.reduce = nn.ModuleList()
        for fine, coarse in pairwise(widths):
            self.reduce.append(conv(coarse, fine, 1, bias=False))
        self.merge = nn.ModuleList(ResidualBlock(dims, width) for width in widths[:-1])
        # Logits of the 2**dims sub-voxels of every voxel at half resolution.
        sub_voxels = 2**dims
        self.head = conv(widths[0], classes * sub_voxels, 1)
        self.deep_heads = nn.ModuleList(conv(width, classes, 1) for width in widths[1:-1])

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> levels at strides 2, 4, 8, 16."""
        return self.encoders[modality](image)

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Fuse what is present and decode; see ``Backbone.decode``."""
        encoded = encoded_only(features)
        fused = []
        for level, fusion in enumerate(self.fusions):
            maps = level_of_encoded(encoded, level)
            fused.append(fusion(maps, present))
        decoded = self._decode_levels(fused)
        x = decoded[0] if decoded else fused[-1]
        logits = pixel_shuffle(self.head(x), 2)
        deep = []
        if self.training or "deep" in want:
            deep = level_logits(self.deep_heads, decoded[1:])
        taps = {
            **modality_taps(encoded),
            "bottleneck": fused[-1],
            "decoder": x,
            "deep": deep,
        }
        aux: dict[str, list[Tensor | None]] = {}
        if self.training:
            aux = {"deep": list(deep)}
        return Output(logits, requested(taps, want), aux)

    def _decode_levels(self, fused: Sequence[Tensor]) -> list[Tensor]:
        """The decoder's feature at every level but the deepest, fine to coarse."""
        x = fused[-1]
        decoded: list[Tensor] = []
        for level in reversed(range(len(self.merge))):
            raised = upsample(self.reduce[level](x))
            # Added, not concatenated: half the cost of the convolution that follows.
            x = self.merge[level](raised + fused[level])
            decoded.insert(0, x)
        return decoded
