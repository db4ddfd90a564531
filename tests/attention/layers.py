"""Attention layers and configs for the tests of this folder."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import nn

from castling_convert.attention import AttentionConfig, CastledAttention, Projections, TokenGrid

HEADS, D = 3, 8

_FORMS: tuple[dict[str, Any], ...] = (
    {"constant": "mean", "normalization": "row_sum"},
    {"constant": "mean", "normalization": "l2"},
    {"constant": "mean", "normalization": "gain"},
    {"constant": "mean", "normalization": "gain", "center": True},
    {"constant": "token", "normalization": "l2"},
    {"constant": "token", "normalization": "gain"},
)


def config(**values: Any) -> AttentionConfig:
    full = {"constant": "mean", "normalization": "row_sum", "center": False, "depthwise": "grid"}
    return AttentionConfig(**{**full, "kernel_size": 3, "eps": 1e-6, **values})


FORMS = [config(**form) for form in _FORMS]
"""Every valid combination of constant, normalisation and centring, with the depthwise grid."""
ALL = [config(**form, depthwise=dw) for form, dw in product(_FORMS, ("grid", "tokens", "none"))]
"""Every valid config."""


def label(value: AttentionConfig) -> str:
    center = "-center" if value.center else ""
    return f"{value.constant}-{value.normalization}{center}-{value.depthwise}"


def layer(config: AttentionConfig, height: int = 4, width: int = 3, prefix: int = 2, seed: int = 0) -> CastledAttention:
    """A float64 training-form layer of 3 heads of 8, gains between 0.3 and 1.5, nothing trivially zero."""
    torch.manual_seed(seed)
    source = Projections(
        qkv=nn.Linear(HEADS * D, 3 * HEADS * D),
        proj=nn.Linear(HEADS * D, HEADS * D),
        num_heads=HEADS,
        head_dim=D,
        softmax_scale=D**-0.5,
        q_norm=nn.Identity(),
        k_norm=nn.Identity(),
        norm=nn.Identity(),
    )
    made = CastledAttention(source, config, TokenGrid(height, width, prefix))
    with torch.no_grad():
        made.qkv.weight.mul_(3)
        if made.gain is not None:
            made.gain.uniform_(0.3, 1.5)
        if made.depthwise is not None:
            made.depthwise.weight.normal_(std=0.3)
    return made.double().eval()


def tokens(count: int = 14, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, HEADS * D, dtype=torch.float64, generator=generator)
