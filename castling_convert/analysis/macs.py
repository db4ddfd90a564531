"""Multiply-accumulates: of a model by torch's own counter, of one attention layer by formula."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..attention import AttentionConfig


@dataclass(frozen=True)
class AttentionCost:
    """One attention layer and one image: `macs`, projections included, and `values`, how many numbers attention
    holds between q, k, v and its output."""

    macs: int
    values: int


def softmax_cost(tokens: int, dim: int, heads: int, head_dim: int) -> AttentionCost:
    """Softmax: Q Kᵀ and its product with V, N²·d a head each, and N² weights a head between them. A fused kernel
    computes the same and holds a part of the weights at a time."""
    size = heads * head_dim
    return AttentionCost(_projections(tokens, dim, size) + 2 * tokens**2 * size, heads * tokens**2)


def castled_cost(
    tokens: int, dim: int, heads: int, head_dim: int, config: AttentionConfig, prefix: int = 1
) -> AttentionCost:
    """Castled, folded: K̂ᵀV and its product with Q̂, N·d² a head each, a sum of weights N·d; the depthwise
    convolution k² for each channel of a patch, or k for each of a token. Held are q̂ and k̂, centred values,
    what was convolved, and K̂ᵀV."""
    size = heads * head_dim
    macs = _projections(tokens, dim, size) + 2 * tokens * head_dim * size
    macs += tokens * size if config.normalization == "row_sum" else 0
    values = (3 if config.center else 2) * tokens * size + head_dim * size
    if config.depthwise == "grid":
        macs += (tokens - prefix) * config.kernel_size**2 * size
    elif config.depthwise == "tokens":
        macs += tokens * config.kernel_size * size
    return AttentionCost(macs, values + (tokens * size if config.depthwise != "none" else 0))


def _projections(tokens: int, dim: int, size: int) -> int:
    """q, k, v and the output, from and to tokens of `dim`."""
    return 4 * tokens * dim * size


def count_macs(model: nn.Module) -> int:
    """MACs of one forward of one image at the model's own input size, matrix products and convolutions.

    Counted on the meta device, so nothing is computed; a multiply-accumulate is two of torch's FLOPs.
    """
    from timm.models import get_model_input_config

    skeleton = copy.deepcopy(model).eval().requires_grad_(False).to("meta")
    images = torch.empty(1, *get_model_input_config(model)["input_size"], device="meta")
    dtype = next(model.parameters()).dtype
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        skeleton(images.to(dtype))
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
