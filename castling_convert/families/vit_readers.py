"""Attention of timm's `VisionTransformer` that is more than projections of tokens.

Differential attention subtracts one softmax map from another. Each is attention of a head of its own, of the values
that the two share, so it is castled as twice the heads, and what is subtracted are their outputs. Blocks whose
attention and MLP share a projection are read whole: what the MLP has of it waits until the heads come back.

Sources: Ye et al., "Differential Transformer", ICLR 2025, arXiv 2410.05258; Dehghani et al., "Scaling Vision
Transformers to 22 Billion Parameters", ICML 2023, arXiv 2302.05442.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DiffAttention
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import refuse_mask


class Difference(nn.Module):
    """What differential attention makes of the outputs of its two maps, y1 - λ·y2, normalised for each head."""

    lambda_a: Tensor
    lambda_b: Tensor
    lambda_q1: Tensor
    lambda_k1: Tensor
    lambda_q2: Tensor
    lambda_k2: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.sub_norm, self.start = attention.sub_norm, attention.lambda_init
        self.scalars, self.value_dim = attention.dual_lambda, 2 * attention.head_dim
        names = ("lambda_a", "lambda_b") if self.scalars else ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
        for name in names:
            self.register_parameter(name, getattr(attention, name))

    def forward(self, y: Tensor) -> Tensor:
        """Merged heads, [B, N, heads·2·2d], to [B, N, heads·2d]."""
        first, second = y.reshape(*y.shape[:2], -1, 2, self.value_dim).unbind(3)
        return (self.sub_norm(first - self.share().to(y.dtype) * second) * (1 - self.start)).flatten(2)

    def share(self) -> Tensor:
        """λ."""
        if self.scalars:
            return self.lambda_a.exp() - self.lambda_b.exp() + self.start
        first = (self.lambda_q1 * self.lambda_k1).sum().float().exp()
        return first - (self.lambda_q2 * self.lambda_k2).sum().float().exp() + self.start


class _OneProjection(Reader):
    """q, k and v of one projection, of plain heads or of those of two maps."""

    def __init__(self, attention: Any, difference: Difference | None) -> None:
        super().__init__()
        self.q_norm, self.k_norm, self.difference = attention.q_norm, attention.k_norm, difference
        self.softmax_scale, self.head_dim = attention.scale, attention.head_dim
        maps = 1 if difference is None else 2
        self.num_heads, self.value_dim = maps * attention.num_heads, maps * attention.head_dim
        self.dim = attention.num_heads * self.value_dim

    def split(self, q: Tensor, k: Tensor, v: Tensor, rest: Any = None) -> Reading:
        """Of q, k and v, [B, N, C] each."""
        q, k = (x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k))
        v = v.unflatten(2, (-1, self.value_dim)).transpose(1, 2)
        if self.difference is not None:
            v = v[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)
        return Reading(self.q_norm(q), self.k_norm(k), v, rest=rest)

    def merged(self, y: Tensor) -> Tensor:
        """Merged heads as the softmax layer has them, [B, N, C]."""
        return y if self.difference is None else self.difference(y)


class DifferentialReader(_OneProjection):
    def __init__(self, attention: Any) -> None:
        super().__init__(attention, Difference(attention))
        self.qkv, self.norm = attention.qkv, attention.norm
        self.proj, self.proj_drop = attention.proj, attention.proj_drop

    def read(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Reading:
        """Tokens x, [B, N, C]."""
        refuse_mask(attn_mask, is_causal)
        q, k, v = self.qkv(x).chunk(3, 2)
        return self.split(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(self.norm(self.merged(y))))


class ParallelScalingReader(_OneProjection):
    """Of a block, its MLP and its residual included; so the error of a layer is one of a block's output."""

    def __init__(self, block: Any) -> None:
        super().__init__(block, Difference(block) if isinstance(block, DiffParallelScalingBlock) else None)
        self.in_norm, self.in_proj, self.in_split = block.in_norm, block.in_proj, block.in_split
        self.mlp_bias, self.mlp_act, self.mlp_drop = block.mlp_bias, block.mlp_act, block.mlp_drop
        self.out_proj, self.ls, self.drop_path = block.out_proj, block.ls, block.drop_path
        self.attn_out_proj = getattr(block, "attn_out_proj", None)
        self.mlp_out_proj = getattr(block, "mlp_out_proj", None)

    def read(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Reading:
        """Tokens x, [B, N, C], as the block takes them."""
        refuse_mask(attn_mask, is_causal)
        hidden, q, k, v = self.in_proj(self.in_norm(x)).split(self.in_split, -1)
        return self.split(q, k, v, rest=(x, hidden if self.mlp_bias is None else hidden + self.mlp_bias))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        x, hidden = reading.rest
        y, hidden = self.merged(y), self.mlp_drop(self.mlp_act(hidden))
        if self.out_proj is not None:
            y = self.out_proj(torch.cat([y, hidden], -1))
        else:
            y = self.attn_out_proj(y) + self.mlp_out_proj(hidden)  # type: ignore[misc]
        return x + self.drop_path(self.ls(y))


READERS: Mapping[type[nn.Module], type[Reader]] = {
    DiffAttention: DifferentialReader,
    ParallelScalingBlock: ParallelScalingReader,
    DiffParallelScalingBlock: ParallelScalingReader,
}
"""By the exact class of an attention module, or of a block that has none."""
