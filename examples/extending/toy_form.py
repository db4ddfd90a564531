"""A linear attention form from outside the package: one file and one line in a registry.

`mean`: every token receives the mean of all values, scaled by a learned gain a head. It could hardly be simpler, and is
linear in the number of tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from castling_convert.attention import (
    FORMS,
    AttentionConfig,
    CastledAttention,
    FoldedAttention,
    Form,
    FormLayers,
    Projections,
    Shape,
    TokenGrid,
)


class MeanConfig(AttentionConfig):
    """`attention.form: mean`; it has no keys of its own."""

    form: Literal["mean"] = "mean"


class MeanAttention(CastledAttention):
    """What is trained."""

    def __init__(self, source: Projections, config: MeanConfig, grid: TokenGrid) -> None:
        super().__init__(source, config, grid)
        self.gain = nn.Parameter(torch.ones(source.num_heads, 1, 1).to(source.qkv.weight))

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.gain * v.mean(2, keepdim=True).expand_as(v)


class FoldedMean(FoldedAttention):
    """What is deployed: the same, without a parameter to train."""

    def __init__(self, trained: MeanAttention) -> None:
        super().__init__(trained)
        self.register_buffer("gain", trained.gain.detach().clone())

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.gain * v.mean(2, keepdim=True).expand_as(v)


def mean_cost(shape: Shape, config: MeanConfig) -> tuple[int, int]:
    """No products of matrices; a mean a channel."""
    return 0, shape.size


LAYERS = FormLayers(MeanAttention, FoldedMean, mean_cost)
FORMS["mean"] = Form(MeanConfig, __name__)
