"""Tokens, learned positions and the transformer layer that mmFormer and M2FTrans use.

Tokens are [B, N, C], volumes [B, C, *G] with two or three spatial axes G and N their product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medmap.errors import BundleError
from medmap.networks.blocks import LINEAR_MODE


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, *G] -> [B, N, C]."""
    return x.flatten(2).transpose(1, 2)


def to_volume(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """[B, N, C] -> [B, C, *grid]."""
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))


class LearnedPositions(nn.Module):
    """One learned vector per position on the grid of the training window, zero at the start.

    Another window has another grid: the vectors are then interpolated linearly, so that a network
    trained on windows of one size runs on any.
    """

    def __init__(self, dims: int, channels: int, grid: int):
        super().__init__()
        self.grid = (grid,) * dims
        self.weight = nn.Parameter(torch.zeros(1, channels, *self.grid))

    def at(self, grid: Sequence[int]) -> Tensor:
        """Positions on that grid, [1, N, C]."""
        weight: Tensor = self.weight
        if tuple(grid) != self.grid:
            mode = LINEAR_MODE[len(self.grid)]
            weight = nn.functional.interpolate(
                weight, size=tuple(grid), mode=mode, align_corners=False
            )
        return to_tokens(weight)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., NeurIPS 2017) without biases on queries, keys and
    values.

    Raises:
        BundleError: the channels cannot be split evenly between the heads.
    """

    def __init__(self, channels: int, heads: int, dropout: float):
        super().__init__()
        if channels % heads:
            raise BundleError(
                f"{channels} token channels cannot be split evenly "
                f"between {heads} attention heads.",
                "Choose a token width that is a multiple of the number of heads.",
            )
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(channels, 2 * channels, bias=False)
        self.project = nn.Linear(channels, channels)
        self.drop_output = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, context: Tensor, allowed: Tensor | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Let x look at the context.

        Args:
            x: queries [B, N, C].
            context: [B, K, C].
            allowed: bool, broadcasts to [B, heads, N, K], False = not looked at; at least one True
                in every row.
            weights: also return the attention weights after their dropout, [B, heads, N, K].
        """
        query = self._split(self.query(x))
        key, value = self.key_value(context).chunk(2, -1)
        key = self._split(key)
        value = self._split(value)
        attention = None
        if weights:
            # The fused kernel does not hand its weights out, so they are computed here.
            attention = self._weights(query, key, allowed)
            mixed = attention.to(value.dtype) @ value
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, allowed, dropout)
        merged = mixed.transpose(1, 2).flatten(2)
        projected = self.project(merged)
        return self.drop_output(projected), attention

    def _weights(self, query: Tensor, key: Tensor, allowed: Tensor | None) -> Tensor:
        """Attention weights after their dropout, [B, heads, N, K] (Vaswani et al., Eq. 1)."""
        similarity = query @ key.transpose(-2, -1)
        head_width = query.shape[-1]
        scores = similarity / math.sqrt(head_width)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        return nn.functional.dropout(scores.softmax(-1), self.dropout, self.training)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Pre-norm layer: ``x + attention(norm(x))``, then ``x + mlp(norm(x))`` with GELU.

    Dropout as this family has it: on the attention weights, after the projection, once more before
    the sum, and twice in the MLP.
    """

    def __init__(self, channels: int, heads: int, mlp: int, dropout: float):
        super().__init__()
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads, dropout)
        self.drop = nn.Dropout(dropout)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp, channels),
            nn.Dropout(dropout),
        )

    def forward(
        self,
        x: Tensor,
        others: Sequence[Tensor] = (),
        allowed: Tensor | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, N, C] -> [B, N, C], and the attention weights if asked for.

        Args:
            x: tokens that are updated; they also look at themselves.
            others: further tokens [B, K, C] that x looks at, in front of x among the keys.
            allowed: which keys may be looked at; see ``Attention.forward``.
            weights: whether to return the attention weights.
        """
        context = x
        if others:
            context = torch.cat([*others, x], 1)
        # Pre-norm (Xiong et al., ICML 2020). Keys and queries share it, so it is computed once.
        normed = self.norm_attention(context)
        number = x.shape[1]
        queries = normed[:, -number:]
        mixed, attention = self.attention(queries, normed, allowed, weights)
        x = x + self.drop(mixed)
        refined = self.mlp(self.norm_mlp(x))
        return x + refined, attention


def transformer_layers(
    depth: int, width: int, heads: int, mlp: int, dropout: float
) -> nn.ModuleList:
    """``depth`` layers, each a ``TransformerLayer`` of the same size."""
    layers = nn.ModuleList()
    for _ in range(depth):
        layers.append(TransformerLayer(width, heads, mlp, dropout))
    return layers
