"""Softmax where it stays linear in the tokens: of few queries, and within windows of the patch grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import TokenGrid


def attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention; in a graph that is exported as products and a softmax, which every runtime takes, fuses, and
    can take apart, and not as one operator."""
    if not torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=softmax_scale)
    logits = (q * softmax_scale) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(-1) @ v


def window_softmax(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, grid: TokenGrid, side: int) -> Tensor:
    """Softmax attention of every patch to the patches of its window.

    Windows of `side` x `side` patches tile the grid without overlap, from its upper left corner on; those at the
    other borders hold what is left. N·side² weights a head, where softmax over all patches has N².

    Args:
        q, k, v: [B, heads, N, d], prefix tokens included.

    Returns:
        [B, heads, N - prefix, d].
    """
    B, heads, N, d = v.shape
    height, width = grid.shape_for(N)
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    # While a graph of any size is traced, sizes are symbols, and nothing may depend on what they are.
    known = isinstance(height, int) and isinstance(width, int)
    padded = not known or (rows * side, columns * side) != (height, width)

    def windows(x: Tensor) -> Tensor:
        x = x.reshape(B, heads, height, width, d)
        if padded:
            x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
        x = x.reshape(B, heads * rows, side, columns, side, d).transpose(2, 3)
        return x.reshape(B, heads * rows * columns, side * side, d)

    outside = None
    if padded:
        inside_row = torch.arange(rows * side, device=v.device) < height
        inside_column = torch.arange(columns * side, device=v.device) < width
        inside = (inside_row[:, None] & inside_column).reshape(rows, side, columns, side).transpose(1, 2)
        inside = inside.reshape(1, rows * columns, 1, side * side)
        outside = torch.zeros_like(inside, dtype=q.dtype).masked_fill(~inside, -torch.inf).repeat(1, heads, 1, 1)
    q, k, v = (windows(x[:, :, grid.num_prefix_tokens :]) for x in (q, k, v))
    y = attention(q, k, v, softmax_scale, outside)
    y = y.reshape(B, heads * rows, columns, side, side, d).transpose(2, 3)
    y = y.reshape(B, heads, rows * side, columns * side, d)[:, :, :height, :width]
    return y.reshape(B, heads, height * width, d)
