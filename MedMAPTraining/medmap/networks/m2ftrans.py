"""M2FTrans: fusion tokens that look at whatever modalities are present, and channel-wise fusion of
the deep levels.

Shi, Yu, Cheng, Yang, Cheng, Yan: "M2FTrans: Modality-Masked Fusion Transformer for Incomplete
Multi-Modality Brain Tumor Segmentation", IEEE JBHI 28(1), 2024. The first of the two released
frameworks (that of RFNet's lineage).
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
    UpBlock,
    up_blocks,
)
from medmap.networks.transformer import LearnedPositions, TransformerLayer, to_tokens, to_volume

Level = Sequence[Tensor | None]
"""One level of the encoders: one [B, C, *S] per modality, zero for samples without it, None where
no sample has it.
"""

CHANNEL_LEVELS = 2
"""So many levels, from the deepest up, are fused by channel-wise attention; the finer ones by
convolution.
"""


class MaskedTransformer(nn.Module):
    """Masked self-attention over the tokens of all modalities and as many learned fusion tokens.

    A modality's tokens look only at their own modality, fusion tokens at every present modality and
    themselves. So the stream of a modality is the same whatever else is present: ``encode``
    computes it once, layer by layer, and ``fuse`` runs the fusion tokens for a subset. Both
    together are the one masked transformer of the paper.
    """

    def __init__(
        self,
        dims: int,
        modalities: int,
        channels: int,
        depth: int,
        heads: int,
        mlp: int,
        grid: int,
        drop: float,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(channels, heads, mlp, drop) for _ in range(depth)
        )
        self.positions = nn.ModuleList(
            LearnedPositions(dims, channels, grid) for _ in range(modalities + 1)
        )
        self.fusion_tokens = LearnedPositions(dims, channels, grid)
        nn.init.normal_(self.fusion_tokens.weight)

    def encode(self, x: Tensor, modality: int) -> Features:
        """The deepest level of one modality [B, C, *G] -> its tokens at the input of every layer,
        each [B, N, C].
        """
        embedding = cast(LearnedPositions, self.positions[modality])
        positions = embedding.at(x.shape[2:])
        tokens = to_tokens(x)
        inputs = [tokens + positions]
        # The last layer's output is not needed: fusion tokens look at the inputs of the layers.
        for layer in self.layers[:-1]:
            tokens, _ = layer(inputs[-1])
            inputs.append(tokens + positions)
        return inputs

    def fuse(
        self, inputs: Sequence[Features], present: Tensor, grid: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Fusion tokens as a volume, and where in every modality they looked.

        Args:
            inputs: ``encode`` of every modality; anything finite for what is absent.
            present: [B, M] bool.
            grid: G.

        Returns:
            [B, C, *G], and spatial weights [B, M, *G]: attention of the first layer (after its
            dropout) from the fusion tokens to a token, summed over heads and fusion tokens; no
            gradient; 0 where absent.
        """
        modalities = present.shape[1]
        embedding = cast(LearnedPositions, self.positions[-1])
        positions = embedding.at(grid)
        tokens = self.fusion_tokens.at(grid).expand(len(present), -1, -1)
        number = tokens.shape[1]
        allowed = self._visible_tokens(present, number)
        queries = tokens + positions
        first_layer, *later_layers = self.layers
        tokens, weights = first_layer(queries, _inputs_of(inputs, 0), allowed, weights=True)
        # Attention says where a modality helps; detached, so that it weights the features without
        # being trained through them.
        summed = weights.detach().sum((1, 2))
        of_modalities = summed[:, : modalities * number]
        spatial = of_modalities.reshape(-1, modalities, *grid)
        for n, layer in enumerate(later_layers, 1):
            queries = tokens + positions
            tokens, _ = layer(queries, _inputs_of(inputs, n), allowed)
        return to_volume(tokens, grid), spatial

    @staticmethod
    def _visible_tokens(present: Tensor, number: int) -> Tensor:
        """Which tokens a fusion token looks at: [B, 1, 1, (M+1)*N].

        Those of the present modalities and the fusion tokens themselves; the same for every head
        and every fusion token.
        """
        fusion_group = present.new_ones(len(present), 1)
        groups = torch.cat([present, fusion_group], 1)
        return groups.repeat_interleave(number, 1)[:, None, None]


def _inputs_of(streams: Sequence[Features], layer: int) -> list[Tensor]:
    """Every modality's tokens at the input of one layer."""
    return [stream[layer] for stream in streams]


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of every voxel; [B, C, *S] -> same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class DepthwiseBlock(nn.Sequential):
    """1-wide, depth-wise 3-wide, 1-wide convolution, then layer normalization and GELU; [B, C, *S]
    -> same.
    """

    def __init__(self, dims: int, channels: int, expansion: int = 3):
        conv = CONV[dims]
        hidden = expansion * channels
        super().__init__(
            conv(channels, hidden, 1),
            conv(hidden, hidden, 3, padding=1, padding_mode="reflect", groups=hidden),
            conv(hidden, channels, 1),
            ChannelNorm(channels),
            nn.GELU(),
        )


class ChannelFeedForward(nn.Sequential):
    """Feed-forward layer of channel tokens: convolutions of which every group is one channel; [B,
    C, *S] -> same.
    """

    def __init__(self, dims: int, channels: int, expansion: int = 4):
        conv = CONV[dims]
        hidden = expansion * channels
        super().__init__(
            conv(channels, hidden, 3, padding=1, padding_mode="reflect", groups=channels),
            nn.GELU(),
            conv(hidden, hidden, 1, groups=channels),
            nn.GELU(),
            conv(hidden, channels, 3, padding=1, padding_mode="reflect", groups=channels),
        )


class ChannelAttention(nn.Module):
    """Cross-attention whose tokens are channels: those of the decoder look at those of the present
    modalities.

    Queries are the C channels of the decoder's map, keys and values the M*C channels of the
    modalities, each a token of L voxels; scores are scaled by L**-0.5. Then a feed-forward layer.
    Both are added to the map.
    """

    def __init__(self, dims: int, modalities: int, channels: int):
        super().__init__()
        self.norm_query = ChannelNorm(channels)
        self.norm_feed = ChannelNorm(channels)
        self.query = DepthwiseBlock(dims, channels)
        # One projection per modality: inferred from the published number of parameters.
        self.keys = self._projections(dims, modalities, channels)
        self.values = self._projections(dims, modalities, channels)
        self.feed = ChannelFeedForward(dims, channels)

    @staticmethod
    def _projections(dims: int, modalities: int, channels: int) -> nn.ModuleList:
        return nn.ModuleList(DepthwiseBlock(dims, channels) for _ in range(modalities))

    def forward(self, x: Tensor, level: Level, present: Tensor) -> Tensor:
        """x [B, C, *S], the level, present [B, M] bool -> [B, C, *S]."""
        query = self.query(self.norm_query(x)).flatten(2)
        key = self._tokens(self.keys, level, query)
        value = self._tokens(self.values, level, query)
        channels = x.shape[1]
        allowed = present.repeat_interleave(channels, 1)[:, None]
        # A token is a channel of L voxels, so scores are products over the window (L**-0.5).
        voxels = query.shape[-1]
        similarity = query @ key.transpose(1, 2)
        scores = similarity * voxels**-0.5
        visible = scores.masked_fill(~allowed, -torch.inf)
        attention = visible.softmax(-1).to(value.dtype)
        mixed = attention @ value
        x = x + mixed.reshape(x.shape)
        fed = self.feed(self.norm_feed(x))
        return x + fed

    @staticmethod
    def _tokens(blocks: nn.ModuleList, level: Level, like: Tensor) -> Tensor:
        """[B, M*C, L]; what is absent is masked afterwards, so zeros stand for what was not
        encoded.
        """
        tokens = []
        for block, feature in zip(blocks, level, strict=True):
            if feature is None:
                tokens.append(torch.zeros_like(like))
            else:
                tokens.append(block(feature).flatten(2))
        return torch.cat(tokens, 1)


class ChannelFusion(nn.Module):
    """Fuse a deep level: ``blocks`` times ``ChannelAttention``, starting from the decoder's map."""

    def __init__(self, dims: int, modalities: int, channels: int, blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            ChannelAttention(dims, modalities, channels) for _ in range(blocks)
        )

    def forward(self, x: Tensor, level: Level, present: Tensor) -> Tensor:
        """x [B, C, *S], the level, present [B, M] bool -> [B, C, *S]."""
        for block in self.blocks:
            x = block(x, level, present)
        return x


class M2FTrans(LineageBackbone):
    """M2FTrans v1, 45.43 M parameters as released (45,427,788 here).

    Per modality a residual post-norm encoder; at the bottleneck fusion tokens and masked
    self-attention; the attention of its first layer weights every modality in space, at all levels;
    the two deepest levels are fused by channel-wise attention, the others by convolution; in
    training a separate decoder that all modalities share. ``widths=(8, 16, 32, 64, 128)`` is the
    narrower variant of PASSION (Shi et al., MM 2024): 13.19 M (13,193,652).

    Inferred, since no text states it: the inner widths of the channel-wise blocks (3 in the
    projections, one projection per modality; 3-1-3-wide grouped feed-forward layer), the place of
    their norms, and that a deep head stands on the decoder's map of every level. They were chosen
    so that both published counts come out (to their two decimals, which other choices could meet
    too: 53.9 GFLOP for PASSION's variant against a measured 56); released weights are not expected
    to fit. The channel scores grow with the square root of the window's volume (L voxels of
    products over L**0.5, as published): windows much larger than the training window sharpen them.

    Args:
        modalities: number of modalities M.
        classes: number of classes, background included.
        spatial_dims: 2 or 3.
        widths: channels of the levels at strides 1, 2, 4, ...
        depth: layers of the masked transformer.
        heads: its attention heads.
        mlp_width: hidden channels of its MLP.
        blocks: channel-wise attention blocks per level.
        window: size of the training window, which the learned positions and fusion tokens belong
            to; any other works.
        dropout: in the masked transformer.
    """

    def __init__(
        self,
        modalities: int = 4,
        classes: int = 4,
        spatial_dims: int = 3,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        depth: int = 3,
        heads: int = 8,
        mlp_width: int = 4096,
        blocks: int = 2,
        window: int = 80,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.modalities = modalities
        self.classes = classes
        self.spatial_dims = spatial_dims
        self.levels = len(widths)
        self.stride = 2 ** (len(widths) - 1)
        dims = spatial_dims
        self.encoders = nn.ModuleList(ResidualEncoder(dims, widths) for _ in range(modalities))
        self.transformer = MaskedTransformer(
            dims,
            modalities,
            channels=widths[-1],
            depth=depth,
            heads=heads,
            mlp=mlp_width,
            grid=max(window // self.stride, 1),
            drop=dropout,
        )
        fine = widths[:-CHANNEL_LEVELS]
        deep = widths[-CHANNEL_LEVELS:]
        self.fusions = nn.ModuleList(LevelFusion(dims, modalities, width) for width in fine)
        self.channel_fusions = nn.ModuleList(
            ChannelFusion(dims, modalities, width, blocks) for width in deep
        )
        self.ups = up_blocks(dims, widths)
        self.head = CONV[dims](widths[0], classes, 1)
        self.deep_heads = nn.ModuleList(CONV[dims](width, classes, 1) for width in widths)
        self.separate = SeparateDecoder(dims, classes, widths)

    def encode(self, image: Tensor, modality: int) -> Features:
        """[B, 1, *S] -> the levels, then the tokens [B, N, C] at the input of every layer of the
        transformer.
        """
        return self.refine(self.extract(image, modality), modality)

    def extract(self, image: Tensor, modality: int) -> Features:
        """The levels of the encoder."""
        return self.encoders[modality](image)

    def refine(self, features: Features, modality: int) -> Features:
        """The levels, and the tokens of the deepest at the input of every layer."""
        tokens = self.transformer.encode(features[-1], modality)
        return [*features, *tokens]

    def latent(self, features: Features, tap: str) -> Tensor:
        """A modality's own tap; see ``Backbone.latent``."""
        return super().latent(features[: self.levels], tap)

    def separately(self, features: Sequence[Features | None]) -> list[Tensor | None]:
        """Segmentations from each modality alone; see ``Backbone.separately``."""
        return self.separate.each(levels_between(features, None, self.levels))

    def decode(
        self, features: Sequence[Features | None], present: Tensor, want: Sequence[str] = ()
    ) -> Output:
        """Fuse what is present and decode; see ``Backbone.decode``."""
        encoded = encoded_only(features)
        spatial, x = self._fuse_bottleneck(features, encoded[0], present)
        weighted = self._weighted(features, encoded[0], spatial)
        bottleneck = self.channel_fusions[-1](x, weighted[-1], present)
        decoded = self._decode_levels(bottleneck, weighted, present)
        deep = []
        if self.training or "deep" in want:
            deep = level_logits(self.deep_heads, decoded)
        taps = {
            **modality_taps(encoded, self.levels - 1),
            "bottleneck": bottleneck,
            "decoder": decoded[0],
        }
        return self.output(self.head(decoded[0]), deep, taps, features, want)

    def _decode_levels(
        self, bottleneck: Tensor, weighted: Sequence[Level], present: Tensor
    ) -> list[Tensor]:
        """The decoder's feature at every level, fine to coarse."""
        x = bottleneck
        decoded = [bottleneck]
        for level in reversed(range(self.levels - 1)):
            up = cast(UpBlock, self.ups[level])
            x = up.raise_(x)
            if level < len(self.fusions):
                skip = self.fusions[level](weighted[level])
            else:
                channel_fusion = self.channel_fusions[level - len(self.fusions)]
                skip = channel_fusion(x, weighted[level], present)
            x = up.merge(x, skip)
            decoded.insert(0, x)
        return decoded

    def _fuse_bottleneck(
        self, features: Sequence[Features | None], example: Features, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The spatial weights [B, M, *G] of the modalities, and the fused bottleneck [B, C, *G].

        Args:
            features: what ``encode`` gave for every modality.
            example: the features of one modality that was encoded.
            present: [B, M] bool.
        """
        # Absent tokens are masked by the transformer; zeros only give them a shape.
        zeros = [torch.zeros_like(tokens) for tokens in example[self.levels :]]
        inputs = []
        for levels in features:
            if levels is None:
                inputs.append(zeros)
            else:
                inputs.append(levels[self.levels :])
        grid = example[self.levels - 1].shape[2:]
        fused, spatial = self.transformer.fuse(inputs, present, grid)
        return spatial, fused

    def _weighted(
        self, features: Sequence[Features | None], example: Features, spatial: Tensor
    ) -> list[list[Tensor | None]]:
        """Every level of every modality times its spatial weight.

        Weights are brought to a level's size by nearest up-sampling.
        """
        weighted = []
        for level in range(self.levels):
            like = example[level]
            size = like.shape[2:]
            weight = nn.functional.interpolate(spatial, size=size, mode="nearest").to(like.dtype)
            maps: list[Tensor | None] = []
            for modality, feature in enumerate(level_of_each(features, level)):
                if feature is None:
                    maps.append(None)
                else:
                    own_weight = weight[:, modality : modality + 1]
                    maps.append(feature * own_weight)
            weighted.append(maps)
        return weighted
