"""Softmax where it stays linear in the tokens: of few queries, and within windows of the patch grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .grid import TokenGrid


def attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention. As products and a softmax every runtime takes, fuses, and can take it apart, and on a CPU
    that is faster where queries or keys are few; in half precision torch's fused operator is exacter, because it keeps
    the logits in float32."""
    if _is_half(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=softmax_scale)
    logits = (q * softmax_scale) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(-1) @ v


def _is_half(x: Tensor) -> bool:
    return x.dtype.itemsize < 4 and not torch.compiler.is_exporting()


def window_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float,
    grid: TokenGrid,
    side: int,
    beside: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Softmax attention of every patch to the patches of its window.

    Windows of `side` x `side` patches tile the grid without overlap, from its upper left corner on; those at the
    other borders hold what is left. N·side² weights a head, where softmax over all patches has N².

    Args:
        q, k, v: [B, heads, N, d], prefix tokens included.
        beside: more keys and values, [B, heads, M, d], in every window's softmax, and what is added to their logits,
            [B, heads, 1, M].

    Returns:
        [B, N - prefix, heads·d].
    """
    B, heads, N, d = v.shape
    height, width = grid.shape_for(N)
    rows, columns = (height + side - 1) // side, (width + side - 1) // side
    # While a graph of any size is traced, sizes are symbols, and nothing may depend on what they are.
    known = isinstance(height, int) and isinstance(width, int)
    padded = not known or (rows * side, columns * side) != (height, width)

    def windows(x: Tensor) -> Tensor:
        d = x.shape[-1]
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
    q, k, v = (windows(x[:, :, grid.prefix :]) for x in (q, k, v))
    if beside is None:
        y = attention(q, k, v, softmax_scale, outside)
    else:
        y = _with_others(q, k, v, softmax_scale, outside, *beside)
    y = y.reshape(B, heads, rows, columns, side, side, d).permute(0, 2, 4, 3, 5, 1, 6)
    y = y.reshape(B, rows * side, columns * side, heads * d)[:, :height, :width]
    return y.reshape(B, height * width, heads * d)


def _with_others(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float,
    bias: Tensor | None,
    keys: Tensor,
    values: Tensor,
    added: Tensor,
) -> Tensor:
    """Softmax within windows, [B, heads·windows, side², d], and over `keys`, [B, heads, M, d], that all windows of an
    image share."""
    (B, heads, M, d), (_, groups, size, _) = keys.shape, q.shape
    windows = groups // heads
    if _is_half(q):

        def for_each(x: Tensor) -> Tensor:
            return x.unsqueeze(2).expand(-1, -1, windows, -1, -1).reshape(B, groups, *x.shape[2:])

        bias = k.new_zeros(1, 1, 1, 1) if bias is None else bias
        bias = torch.cat([bias.expand(B, groups, -1, size), for_each(added)], -1)
        return attention(q, torch.cat([k, for_each(keys)], 2), torch.cat([v, for_each(values)], 2), softmax_scale, bias)
    # Keys and values that are shared are not copied for every window.
    q = q * softmax_scale
    near = q @ k.transpose(-2, -1)
    near = near if bias is None else near + bias
    far = q.reshape(B, heads, windows * size, d) @ keys.transpose(-2, -1) + added
    weights = torch.cat([near, far.reshape(B, groups, size, M)], -1).softmax(-1)
    near, far = weights.split((size, M), -1)
    return near @ v + (far.reshape(B, heads, windows * size, M) @ values).reshape(v.shape)
