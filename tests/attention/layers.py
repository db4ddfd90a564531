"""Attention layers and configs for the tests of this folder."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import nn

from castling_convert.attention import (
    AttentionConfig,
    CastledAttention,
    Projections,
    TokenGrid,
    config_of,
    training_form,
)

HEADS, D = 3, 8

_FORMS: tuple[dict[str, Any], ...] = (
    {"form": "angular", "constant": "mean", "normalization": "row_sum"},
    {"form": "snippet", "constant": "mean"},
    {"form": "angular", "constant": "mean", "normalization": "gain", "center": False},
    {"form": "angular", "constant": "mean", "normalization": "gain", "center": True},
    {"form": "angular", "constant": "mean", "normalization": "gain", "prefix_rows": True, "window": 2},
    {"form": "snippet", "constant": "token"},
    {"form": "angular", "constant": "token", "normalization": "gain"},
    {"form": "features", "power": 2},
    {"form": "features", "power": 3, "prefix_rows": False},
    {"form": "features", "power": 3, "window": 3},
    {"form": "features", "power": 2, "window": 2},
    {"form": "landmarks", "landmarks": 3},
    {"form": "landmarks", "landmarks": 5, "prefix_rows": False},
    {"form": "landmarks", "landmarks": 3, "window": 3},
    {"form": "landmarks", "landmarks": 4, "prefix_rows": False, "window": 2},
)


def config(**values: Any) -> AttentionConfig:
    full = {"form": "angular"} if {"form"} <= values.keys() else {"form": "angular", "normalization": "row_sum"}
    return config_of({**full, "depthwise": "grid", "kernel_size": 3, "eps": 1e-6, **values})


FORMS = [config(**form) for form in _FORMS]
"""Every valid combination of what linear forms differ in, with the depthwise grid."""
ALL = [config(**form, depthwise=dw) for form, dw in product(_FORMS, ("grid", "tokens", "none"))]
"""The same with every residual."""


def label(value: AttentionConfig) -> str:
    own = [f"{key}={v}" for key, v in value.model_dump().items() if key not in ("form", "kernel_size", "eps")]
    return "-".join([value.form, *own])


def layer(config: AttentionConfig, height: int = 4, width: int = 3, prefix: int = 2, seed: int = 0) -> CastledAttention:
    """A float64 training-form layer of 3 heads of 8, nothing trivially zero."""
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
    made = training_form(source, config, TokenGrid(height, width, prefix))
    with torch.no_grad():
        made.qkv.weight.mul_(3)
        if config.form == "angular":
            made.gain.uniform_(0.3, 1.5)
        if config.form == "features":
            for parameter in (made.rotate_q, made.rotate_k, made.key_direction):
                parameter.add_(0.3 * torch.randn_like(parameter))
        if config.form == "landmarks":
            made.bias.add_(torch.randn_like(made.bias))
            made.gain.uniform_(0.3, 1.5)
        if made.window_share is not None:
            made.window_share.uniform_(0.2, 0.8)
        if made.depthwise is not None:
            made.depthwise.weight.normal_(std=0.3)
    return made.double().eval()


def tokens(count: int = 14, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, HEADS * D, dtype=torch.float64, generator=generator)
