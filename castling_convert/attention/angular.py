"""The linear part of the angular kernel, as pure functions of tensors.

Source: You et al., "Castling-ViT: Compressing Self-Attention via Switching Towards Linear-Angular
Attention at Vision Transformer Inference", CVPR 2023, arXiv 2211.10526, eq. 4 to 6. With unit vectors
q̂, k̂ and the angle θ between them

    sim(q, k) = 1 - θ/π = 1/2 + (1/π)·arcsin(q̂·k̂) = 1/2 + (1/π)·q̂·k̂ + residual,

of which the first two terms are kept. All forms here are written relative to the constant term, that
is, multiplied by two, with s = (2/π)·gain for each head and E the mean over the N tokens:

    row_sum   y_i = (E[v] + s·q̂_i E[k̂ vᵀ]) / (1 + s·q̂_i·E[k̂])
    gain      y_i = c_i + s·q̂_i (E[k̂ vᵀ] - E[k̂] E[v]ᵀ if center)        c_i = E[v] or v_i
    l2        y_i = z_i / |z_i|,   z_i = c_i + s·q̂_i E[k̂ vᵀ]                        c_i = E[v]
                                   z_i = (v_i + s·N·q̂_i E[k̂ vᵀ]) / √N

The last is the public snippet's; its length drops out, and without the root half precision would not
hold it.

Shapes: q, k, v are [B, heads, N, d]; s is [heads, 1, 1]; results are [B, heads, N, d]. Costs
2·N·d² multiply-accumulates a head instead of softmax's 2·N²·d.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import AttentionConfig

GAIN_TO_SCALE = 2 / math.pi
# Above this gain a row_sum weight 1 + (2/π)·gain·cos θ could be negative and the row sum zero.
MAX_ROW_SUM_GAIN = 0.99 * math.pi / 2


def unit(x: Tensor, eps: float, length: float = 1.0) -> Tensor:
    """x / |x| · length over the last axis, zero for zero vectors.

    Written as `rms_norm` with weight length/√d: one RMSNormalization node in ONNX, computed in float32
    for half-precision inputs, where a sum of squares would overflow.
    """
    d = x.shape[-1]
    return F.rms_norm(x, (d,), weight=x.new_full((d,), length * d**-0.5), eps=eps)


def bounded_gain(gain: Tensor, config: AttentionConfig) -> Tensor:
    """The gain that is used: for `row_sum` kept where every weight is positive."""
    return gain.clamp(0.0, MAX_ROW_SUM_GAIN) if config.normalization == "row_sum" else gain


def linear_angular(
    q: Tensor, k: Tensor, v: Tensor, scale: Tensor, config: AttentionConfig, *, center_values: bool = False
) -> Tensor:
    """Linear-angular attention before any L2 norm: the y of `row_sum` and `gain`, the z of `l2`.

    Where keys are centred, `center_values` takes E[v] off the values instead, which is the same sum in fewer
    nodes of a graph, E[k̂ (v - E[v])ᵀ].
    """
    # In half precision what is summed over tokens is float32: at 4,096 tokens float16 sums overflow.
    wide = torch.promote_types(v.dtype, torch.float32)
    # k̂/√N on both sides of the sum keeps KᵀV in range and in precision at any N.
    root = k.shape[-2] ** -0.5
    scale = scale.to(wide) * root
    q_hat = unit(q.to(wide), config.eps).to(v.dtype)
    k_hat = unit(k.to(wide), config.eps, root)
    values = v.to(wide)
    constant = values.mean(-2, keepdim=True) if config.constant == "mean" else values
    center_values = center_values and config.center
    context = k_hat.transpose(-2, -1) @ (values - constant if center_values else values)  # B, heads, d, d: √N·E[k̂ vᵀ]
    if config.center and not center_values:
        context = context - k_hat.sum(-2).unsqueeze(-1) @ constant
    if config.sums_over_tokens:
        constant, scale = constant * root, scale / root
    y = constant.to(v.dtype) + q_hat @ (context * scale).to(v.dtype)
    if config.normalization == "row_sum":
        k_mean = k_hat.sum(-2).unsqueeze(-1)  # B, heads, d, 1: √N·E[k̂]
        y = y / (1 + q_hat @ (k_mean * scale).to(v.dtype))
    return y


def l2_normalize(z: Tensor) -> Tensor:
    """z / |z| over the last axis; zero where the public snippet divides zero by zero."""
    wide = torch.promote_types(z.dtype, torch.float32)
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True, dtype=wide)
    return (z / torch.where(norm > 0, norm, torch.ones_like(norm))).to(z.dtype)


def angular_matrix(q: Tensor, k: Tensor, scale: Tensor, config: AttentionConfig) -> Tensor:
    """The explicit weights W, [B, heads, N, N], with `linear_angular(q, k, v) = W v`. For checks only."""
    n = k.shape[-2]
    cosine = unit(q, config.eps) @ unit(k, config.eps).transpose(-2, -1)
    if config.center:
        cosine = cosine - cosine.mean(-1, keepdim=True)
    identity = torch.eye(n, dtype=q.dtype, device=q.device)
    if config.sums_over_tokens:
        return (identity + scale * cosine) * n**-0.5
    weights = (identity if config.constant == "token" else 1 / n) + scale * cosine / n
    return weights / weights.sum(-1, keepdim=True) if config.normalization == "row_sum" else weights
