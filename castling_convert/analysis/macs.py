"""Multiply-accumulates and parameters of a model, by torch's own counter."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..families import input_size_of


def count_macs(model: nn.Module) -> int:
    """MACs of one forward of one image at the model's own input size, matrix products and convolutions.

    Counted on the meta device, so nothing is computed; a multiply-accumulate is two of torch's FLOPs.
    """
    skeleton = copy.deepcopy(model).eval().requires_grad_(False).to("meta")
    images = torch.empty(1, *input_size_of(model), device="meta")
    dtype = next(model.parameters()).dtype
    # Attention as plain products: not every torch counts its fused kernels.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        skeleton(images.to(dtype))
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
