"""Multiply-accumulates and parameters of a model, by torch's own counter."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module) -> int:
    """MACs of one forward of one image at the model's own input size, matrix products and convolutions.

    Counted on the meta device, so nothing is computed; a multiply-accumulate is two of torch's FLOPs.
    """
    from timm.models import get_model_input_config

    skeleton = copy.deepcopy(model).eval().requires_grad_(False).to("meta")
    images = torch.empty(1, *get_model_input_config(model)["input_size"], device="meta")
    dtype = next(model.parameters()).dtype
    # Attention as plain products: not every torch counts its fused kernels.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        skeleton(images.to(dtype))
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
