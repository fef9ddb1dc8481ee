"""mmFormer (Zhang et al., MICCAI 2022): transformers within and between modalities on a
convolutional U-Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medmap.networks.base import (
    Features,
    Output,
    encoded_only,
    level_logits,
    level_of_each,
    levels_between,
    modality_taps,
)
from medmap.networks.blocks import CONV
from medmap.networks.rfnet_blocks import (
    LevelFusion,
    LineageBackbone,
    ResidualEncoder,
    SeparateDecoder,
    up_blocks,
)
from medmap.networks.transformer import (
    LearnedPositions,
    to_tokens,
    to_volume,
    transformer_layers,
)


class IntraTransformer(nn.Module):
    """The deepest level of one modality through a transformer of its own; [B, channels, *G] -> [B,
    width, *G].

    Positions are added at the input of every layer. The inter-modal transformer adds the same ones
    again.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        grid: int,
        drop: float,
    ):
        super().__init__()
        self.project = CONV[dims](channels, width, 1)
        self.positions = LearnedPositions(dims, width, grid)
        self.layers = transformer_layers(depth, width, heads, mlp, drop)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[2:]
        tokens = to_tokens(self.project(x))
        positions = self.positions.at(grid)
        for layer in self.layers:
            tokens, _ = layer(tokens + positions)
        return to_volume(tokens, grid)


class InterTransformer(nn.Module):
    """Tokens of all modalities through one transformer, then side by side in the channels of one
    volume.

    The tokens of an absent modality are zero and stay among the keys, as published: with their
    positions they are constants without data. What the transformer writes at their places comes
    from the present modalities.

    Args:
        scrambled: lay the tokens out as the released code does: [B, M*N, C] read as [B, *G, M*C],
            so that a voxel gets M neighboring tokens of one modality instead of its own tokens of
            all. For comparison only.
    """

    def __init__(
        self,
        modalities: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        drop: float,
        scrambled: bool,
    ):
        super().__init__()
        self.modalities = modalities
        self.scrambled = scrambled
        self.layers = transformer_layers(depth, width, heads, mlp, drop)

    def forward(self, volumes: Sequence[Tensor], positions: Tensor) -> Tensor:
        """volumes: M times [B, C, *G], positions: [1, M*N, C] -> [B, M*C, *G], modality-major
        channels.
        """
        grid = volumes[0].shape[2:]
        sequences = [to_tokens(volume) for volume in volumes]
        tokens = torch.cat(sequences, 1)
        for layer in self.layers:
            # As published, positions are added at the input of every layer, not once.
            tokens, _ = layer(tokens + positions)
        return self.lay_out(tokens, grid)

    def lay_out(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """[B, M*N, C] -> [B, M*C, *grid]."""
        batch, _, channels = tokens.shape
        if self.scrambled:
            # The released reshape mixes neighboring voxels of one modality into a voxel's channels.
            rows = tokens.reshape(batch, -1, self.modalities * channels)
            return to_volume(rows, grid)
        by_modality = tokens.unflatten(1, (self.modalities, -1))
        side_by_side = by_modality.transpose(1, 2).flatten(2)
        return to_volume(side_by_side, grid)


class MMFormer(LineageBackbone):
    """mmFormer as released (its HEAD since 2022, the network that later papers compare with).

    Per modality a residual pre-norm encoder and an intra-modal transformer on its deepest level
    (§2.1 of the paper); an inter-modal transformer over the tokens of all (§2.2); a fusion of the
    masked modalities at every level and a U-Net decoder with deep supervision; in training a
    separate decoder that all modalities share (§2.3).

    36,391,760 parameters with the defaults. The released code has 36.65 M: it also creates a 1-wide
    convolution token_width -> deepest width (65,664) for each of the four modalities that no output
    depends on. PASSION's copy (``window=80``) has 35.60 M.

    Differences from the released code: tokens are put side by side at their own voxel
    (``scrambled_bottleneck=True`` is the released layout); the width of the fusion follows the
    number of modalities, not of classes; positions are interpolated to windows of other sizes. The
    network described in the paper is another one (106.5 M: twice the width, skips summed over
    modalities, convolution over the token axis) and not built here.

    Args:
        modalities: number of modalities M.
        classes: number of classes, background included.
        spatial_dims: 2 or 3.
        widths: channels of the levels at strides 1, 2, 4, ...
        token_width: channels of the tokens.
        mlp_width: hidden channels of the transformers' MLP.
        heads: attention heads.
        depth: layers of every transformer.
        window: size of the training window, which the learned positions belong to; any other works.
        dropout: in the transformers.
        scrambled_bottleneck: the released token layout, see ``InterTransformer``.
        modality_channels: of every modality's input; more than one behind a stem.
    """

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        widths: Sequence[int] = (8, 16, 32, 64, 128),
        token_width: int = 512,
        mlp_width: int = 4096,
        heads: int = 8,
        depth: int = 1,
        window: int = 128,
        dropout: float = 0.1,
        scrambled_bottleneck: bool = False,
        modality_channels: int = 1,
    ):
        super().__init__()
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.stride = 2 ** (len(widths) - 1)
        dims = spatial_dims
        deepest_width = widths[-1]
        self.encoders = nn.ModuleList(
            ResidualEncoder(dims, widths, pre_norm=True, inputs=modality_channels)
            for _ in range(modalities)
        )
        self.intra = nn.ModuleList(
            IntraTransformer(
                dims,
                channels=deepest_width,
                width=token_width,
                depth=depth,
                heads=heads,
                mlp=mlp_width,
                grid=max(window // self.stride, 1),
                drop=dropout,
            )
            for _ in range(modalities)
        )
        self.inter = InterTransformer(
            modalities,
            width=token_width,
            depth=depth,
            heads=heads,
            mlp=mlp_width,
            drop=dropout,
            scrambled=scrambled_bottleneck,
        )
        # A 1-wide convolution back to the encoders' width, so that the deepest level is fused by
        # the same block as the others.
        self.project = CONV[dims](modalities * token_width, modalities * deepest_width, 1)
        self.fusions = nn.ModuleList(
            LevelFusion(dims, modalities, width, pre_norm=True) for width in widths
        )
        self.ups = up_blocks(dims, widths, pre_norm=True)
        self.head = CONV[dims](widths[0], classes, 1)
        self.deep_heads = nn.ModuleList(CONV[dims](width, classes, 1) for width in widths[1:])
        self.separate = SeparateDecoder(dims, classes, widths, pre_norm=True)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> the levels of the encoder, then the output of the intra-modal transformer
        [B, C, *S/stride].
        """
        return self.refine(self.extract(image, modality), modality)

    def extract(self, image: Tensor, modality: int) -> Features:
        """The levels of the encoder."""
        return self.encoders[modality](image)

    def refine(self, features: Features, modality: int) -> Features:
        """The levels, and the intra-modal transformer's view of the deepest."""
        tokens = self.intra[modality](features[-1])
        return [*features, tokens]

    def latent(self, features: Features, tap: str) -> Tensor:
        """A modality's own tap; see ``Backbone.latent``."""
        return super().latent(features[:-1], tap)

    def separately(self, features: Sequence[Features | None]) -> list[Tensor | None]:
        """Segmentations from each modality alone; see ``Backbone.separately``."""
        return self.separate.each(levels_between(features, None, -1))

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Fuse what is present and decode; see ``Backbone.decode``."""
        skips = []
        for level, fusion in enumerate(self.fusions[:-1]):
            skips.append(fusion(level_of_each(features, level)))
        bottleneck = self._bottleneck(level_of_each(features, -1))
        decoded = [bottleneck]
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            finer = up(decoded[0], skip)
            decoded.insert(0, finer)
        deep = []
        if self.training or "deep" in want:
            deep = level_logits(self.deep_heads, decoded[1:])
        taps = {
            # Behind the levels stands the intra-modal transformer's view of the deepest.
            **modality_taps(encoded_only(features), bottleneck=-2),
            "bottleneck": bottleneck,
            "decoder": decoded[0],
        }
        return self.output(self.head(decoded[0]), deep, taps, features, want)

    def _bottleneck(self, volumes: Sequence[Tensor | None]) -> Tensor:
        """The inter-modal transformer (section 2.2) and the fusion of the deepest level."""
        example = next(volume for volume in volumes if volume is not None)
        zeros = torch.zeros_like(example)
        # Absent modalities keep their tokens, as published: with positions they are constants.
        filled = [zeros if volume is None else volume for volume in volumes]
        grid = zeros.shape[2:]
        positions = []
        for intra in self.intra:
            learned = cast(LearnedPositions, intra.positions)
            positions.append(learned.at(grid))
        tokens = self.inter(filled, torch.cat(positions, 1))
        by_modality = self.project(tokens).chunk(self.modalities, 1)
        return self.fusions[-1](by_modality)
