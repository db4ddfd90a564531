"""The depthwise residual on v, the only auxiliary branch that stays at inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AttentionConfig
from .grid import TokenGrid


def depthwise_conv(config: AttentionConfig, num_heads: int, head_dim: int) -> nn.Conv2d | None:
    """The convolution for `config`, zero-initialised: a castled layer starts without its residual."""
    if config.depthwise == "none":
        return None
    k = config.kernel_size
    if config.depthwise == "tokens":
        kernel, channels = (k, 1), num_heads
    else:
        kernel, channels = (k, k), num_heads * head_dim
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(channels, channels, kernel, padding=padding, groups=channels, bias=False)
    nn.init.zeros_(conv.weight)
    return conv


def depthwise_residual(conv: nn.Conv2d, v: Tensor, config: AttentionConfig, grid: TokenGrid) -> Tensor:
    """Convolve v, [B, heads, N, d], and return it with heads merged, [B, N, heads·d].

    `tokens` runs along the flattened sequence, prefix tokens included, as the public snippet does.
    `grid` runs over the patch grid; prefix tokens get zero.
    """
    if config.depthwise == "tokens":
        return conv(v).transpose(1, 2).flatten(2)
    out = patches_residual(conv, v, grid)
    return F.pad(out, (0, 0, grid.prefix, 0)) if grid.prefix else out


def patches_residual(conv: nn.Conv2d, v: Tensor, grid: TokenGrid) -> Tensor:
    """Convolve v, [B, heads, N, d], over the patch grid: its patches with heads merged, [B, N - prefix, heads·d]."""
    B, heads, N, d = v.shape
    height, width = grid.shape_for(N)
    if grid.places is None:
        patches = v[:, :, grid.prefix :].transpose(2, 3).reshape(B, heads * d, height, width)
        return conv(patches).flatten(2).transpose(1, 2)
    patches = v.transpose(1, 2).reshape(B, N, heads * d)[:, grid.prefix :]
    places = grid.places[..., None].expand_as(patches)
    laid = patches.new_zeros(B, height * width, heads * d).scatter_add(1, places, patches)
    out = conv(laid.transpose(1, 2).reshape(B, heads * d, height, width))
    return out.flatten(2).transpose(1, 2).gather(1, places)


def depthwise_matrix(conv: nn.Conv2d, n: int) -> Tensor:
    """The `tokens` convolution as explicit banded matrices, [heads, n, n]. For checks only."""
    kernel = conv.weight[:, 0, :, 0]  # heads, k
    half = kernel.shape[1] // 2
    matrix = kernel.new_zeros(kernel.shape[0], n, n)
    for offset in range(-half, half + 1):
        if abs(offset) < n:
            matrix += kernel[:, offset + half, None, None] * torch.diag(kernel.new_ones(n - abs(offset)), offset)
    return matrix
