"""The linear part of the angular kernel.

Source: You et al., "Castling-ViT: Compressing Self-Attention via Switching Towards Linear-Angular
Attention at Vision Transformer Inference", CVPR 2023, arXiv 2211.10526, eq. 4 to 6. With unit vectors
q̂, k̂ and the angle θ between them

    sim(q, k) = 1 - θ/π = 1/2 + (1/π)·arcsin(q̂·k̂) = 1/2 + (1/π)·q̂·k̂ + residual,

of which the first two terms are kept. Both forms here are written relative to the constant term, that
is, multiplied by two, with s = (2/π)·gain for each head and E the mean over the N tokens:

    row_sum   y_i = (E[v] + s·q̂_i E[k̂ vᵀ]) / (1 + s·q̂_i·E[k̂])
    gain      y_i = c_i + s·q̂_i (E[k̂ vᵀ] - E[k̂] E[v]ᵀ if center)        c_i = E[v] or v_i

Shapes: q, k, v are [B, heads, N, d]; s is [heads, 1, 1]; results are [B, heads, N, d]. Costs
2·N·d² multiply-accumulates a head instead of softmax's 2·N²·d.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .castled import CastledAttention, Projections
from .config import AngularConfig
from .cost import Shape
from .folded import FoldedAttention
from .form import FormLayers
from .grid import TokenGrid
from .norms import unit, wide
from .reader import Reader

GAIN_TO_SCALE = 2 / math.pi
# Above this gain a row_sum weight 1 + (2/π)·gain·cos θ could be negative and the row sum zero.
MAX_ROW_SUM_GAIN = 0.99 * math.pi / 2


def bounded_gain(gain: Tensor, config: AngularConfig) -> Tensor:
    """The gain that is used: for `row_sum` kept where every weight is positive."""
    return gain.clamp(0.0, MAX_ROW_SUM_GAIN) if config.normalization == "row_sum" else gain


def linear_angular(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, config: AngularConfig, *, center_values: bool = False
) -> Tensor:
    """Linear-angular attention.

    Where keys are centred, `center_values` takes E[v] off the values instead, which is the same sum in fewer
    nodes of a graph, E[k̂ (v - E[v])ᵀ].
    """
    # k̂/√N on both sides of the sum keeps KᵀV in range and in precision at any N.
    root = k.shape[-2] ** -0.5
    values = wide(v)
    scale = scale.to(values) * root
    q_hat = unit(wide(q), config.eps).to(v.dtype)
    k_hat = unit(wide(k), config.eps, root)
    constant = values.mean(-2, keepdim=True) if config.constant == "mean" else values
    center_values = center_values and config.center
    context = k_hat.transpose(-2, -1) @ (values - constant if center_values else values)  # B, heads, d, d: √N·E[k̂ vᵀ]
    if config.center and not center_values:
        context = context - k_hat.sum(-2).unsqueeze(-1) @ constant
    y = constant.to(v.dtype) + q_hat @ (context * scale).to(v.dtype)
    if config.normalization == "row_sum":
        k_mean = k_hat.sum(-2).unsqueeze(-1)  # B, heads, d, 1: √N·E[k̂]
        y = y / (1 + q_hat @ (k_mean * scale).to(v.dtype))
    return y


def angular_matrix(q: Tensor, k: Tensor, scale: Tensor, config: AngularConfig) -> Tensor:
    """The explicit weights W, [B, heads, N, N], with `linear_angular(q, k, v) = W v`. For checks only."""
    n = k.shape[-2]
    cosine = unit(q, config.eps) @ unit(k, config.eps).transpose(-2, -1)
    if config.center:
        cosine = cosine - cosine.mean(-1, keepdim=True)
    identity = torch.eye(n, dtype=q.dtype, device=q.device)
    weights = (identity if config.constant == "token" else 1 / n) + scale * cosine / n
    return weights / weights.sum(-1, keepdim=True) if config.normalization == "row_sum" else weights


def angular_cost(shape: Shape, config: AngularConfig) -> tuple[int, int]:
    """MACs of K̂ᵀV and its product with Q̂, N·d² a head each, and of a sum of weights, N·d; held are q̂ and k̂,
    centred values, and K̂ᵀV."""
    keys = shape.head_dim + shape.extra
    macs = (shape.tokens + shape.key_tokens) * keys * shape.value_size
    macs += shape.tokens * keys * shape.num_heads if config.normalization == "row_sum" else 0
    return macs, (3 if config.center else 2) * shape.tokens * shape.size + shape.head_dim * shape.size


class AngularAttention(CastledAttention):
    """Training form, with one learned gain a head."""

    config: AngularConfig

    def __init__(self, source: Projections | Reader, config: AngularConfig, grid: TokenGrid) -> None:
        super().__init__(source, config, grid)
        self.gain = nn.Parameter(source.weight.new_ones(source.num_heads, 1, 1))

    @torch.no_grad()
    def calibrate(self, *inputs: Any, **more: Any) -> None:
        """Set each head's gain to the least-squares fit of the linear form to softmax.

        For `gain` only; with y = c + gain·u the best gain is <softmax - c, u> / <u, u>.
        """
        if self.config.normalization != "gain":
            return
        q, k, v, softmax = self.with_softmax(*inputs, **more)
        zero = torch.zeros_like(self.gain)
        constant = linear_angular(q, k, v, zero, self.config)
        linear = linear_angular(q, k, v, zero + GAIN_TO_SCALE, self.config) - constant
        fit = ((softmax - constant) * linear).sum((0, 2, 3)) / linear.square().sum((0, 2, 3)).clamp_min(1e-12)
        self.gain.copy_(fit[:, None, None])

    def scale(self) -> Tensor:
        """s, [heads, 1, 1]."""
        return bounded_gain(self.gain, self.config) * GAIN_TO_SCALE

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_angular(q, k, v, self.scale(), self.config)


class FoldedAngular(FoldedAttention):
    """Inference form: gains and kernel constants in one buffer `head_scale`, [heads, 1, 1], that multiplies the
    small KᵀV product."""

    config: AngularConfig
    head_scale: Tensor

    def __init__(self, trained: AngularAttention) -> None:
        super().__init__(trained)
        self.register_buffer("head_scale", trained.scale().detach().clone())

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_angular(q, k, v, self.head_scale, self.config, center_values=True)

    @property
    def can_be_channels_first(self) -> bool:
        """Whether nothing in this layer works on the last axis of a head: norms of q and k, a norm or gate behind,
        a normalisation of its rows, softmax, a residual along the sequence."""
        config = self.config
        linear = config.normalization == "gain" and config.constant == "mean" and config.depthwise != "tokens"
        return self.is_plain and linear and not config.window and not config.prefix_rows

    def attend_channels_first(self, x: Tensor) -> Tensor:
        """`attend` on tokens x, [B, N, C], with the heads merged, [B, N, heads·d], and q, k and v never taken apart
        into heads of tokens: as [heads·d, N] they are what the products and the convolution take."""
        B, N, _ = x.shape
        heads, d, size = self.num_heads, self.head_dim, self.num_heads * self.head_dim
        joint, v = self.channels(x, 2 * size, size)
        joint = joint.reshape(B, 2 * heads, d, N)
        joint = joint / ((joint * joint).sum(2, keepdim=True) + d * self.config.eps).sqrt()
        q, k = joint.split(heads, 1)
        values = v.reshape(B, heads, d, N)
        constant = values.mean(-1, keepdim=True)
        context = (values - constant if self.config.center else values) @ k.transpose(-1, -2)
        y = ((context * (self.head_scale / N)) @ q + constant).reshape(B, size, N)
        residual = self.residual(v)
        return (y if residual is None else y + residual).transpose(1, 2)


LAYERS = FormLayers(AngularAttention, FoldedAngular, angular_cost)
