"""timm's `MultiScaleVit` (MViTv2): q, k and v pooled by convolutions, with relative positions that depend on q.

What softmax adds to the logit of a query at i and a key at row h and column w is q_i·H[i, h] + q_i·W[i, w], with tables
of the distances of rows and of columns. As a product of factors it is exact: the query's are its products with all rows
and all columns, the key's are ones at its own row and column. A class token has neither. The sum behind attention, of
its output and q, stays.

Source: Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection", CVPR 2022, arXiv
2112.01526.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models.mvitv2 import MultiScaleAttention, MultiScaleVit, reshape_post_pool, reshape_pre_pool
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .base import Size
from .called import CalledFamily


class MultiScaleReader(Reader):
    def __init__(self, attention: Any) -> None:
        super().__init__(prefix=int(attention.has_cls_token))
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.head_dim
        self.dim = attention.qkv.in_features
        self.adds_q = attention.residual_pooling
        self.qkv, self.proj = attention.qkv, attention.proj
        for part in "qkv":
            setattr(self, f"pool_{part}", getattr(attention, f"pool_{part}"))
            setattr(self, f"norm_{part}", getattr(attention, f"norm_{part}"))
        self.on_grid = _stride(self.pool_q) == _stride(self.pool_k)
        self.places = attention.rel_pos_type == "spatial"
        if self.places:
            self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def read(self, x: Tensor, feat_size: Any) -> Reading:
        """Tokens x, [B, N, C], of a grid of `feat_size`, (height, width)."""
        parts = split_heads(self.qkv(x), self.num_heads)
        (q, q_size), (k, k_size), (v, _) = (
            self.pooled(part, name, feat_size) for part, name in zip(parts, "qkv", strict=True)
        )
        self.grid.height, self.grid.width = k_size
        more = None
        if self.places:
            self.extra = sum(k_size)
            more = self.by_place(q, q_size, k_size), self.at_place(q, k_size)
        return Reading(q, k, v, more, rest=(q, q_size))

    def pooled(self, x: Tensor, name: str, size: Any) -> tuple[Tensor, Any]:
        """q, k or v, [B, heads, N, d], pooled and normed, and the grid it is on then."""
        pool, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        if pool is not None:
            x, token = reshape_pre_pool(x, size, self.grid.prefix > 0)
            x, size = reshape_post_pool(pool(x), self.num_heads, token)
        return (x if norm is None else norm(x)), size

    def by_place(self, q: Tensor, q_size: Any, k_size: Any) -> Tensor:
        """The products of q, [B, heads, N_q, d], with the tables, [B, heads, N_q, key rows + key columns]."""
        patches = q[:, :, self.grid.prefix :].unflatten(2, tuple(q_size))  # B, heads, rows, columns, d
        rows = self.rel_pos_h[distances(q_size[0], k_size[0])].to(q.dtype)  # rows, key rows, d
        columns = self.rel_pos_w[distances(q_size[1], k_size[1])].to(q.dtype)
        of_rows = patches @ rows.transpose(-2, -1)
        of_columns = (patches.transpose(2, 3) @ columns.transpose(-2, -1)).transpose(2, 3)
        # The tables' products are with q that is not scaled; the linear form scales them.
        found = torch.cat([of_rows, of_columns], -1).flatten(2, 3) / self.softmax_scale
        return F.pad(found, (0, 0, self.grid.prefix, 0))

    def at_place(self, like: Tensor, k_size: Any) -> Tensor:
        """Ones at the row and at the column of every key, [1, heads, N_k, key rows + key columns]."""
        height, width = k_size
        rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
        columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
        ones = F.pad(torch.cat([rows, columns], -1), (0, 0, self.grid.prefix, 0))
        return ones.expand(1, self.num_heads, -1, -1)

    @property
    def tokens_in(self) -> int:
        height, width = _stride(self.pool_k)
        return self.grid.prefix + self.grid.height * height * self.grid.width * width

    def write(self, y: Tensor, reading: Reading) -> tuple[Tensor, Any]:
        q, size = reading.rest
        return self.proj(y + q.transpose(1, 2).flatten(2) if self.adds_q else y), size

    def tokens(self, output: tuple[Tensor, Any]) -> Tensor:
        return output[0]


def _stride(pool: Any) -> Size:
    if pool is None:
        return 1, 1
    return to_2tuple(pool.stride)


def distances(queries: int, keys: int) -> Tensor:
    """Where in a table the distances of queries and keys along one axis are, [queries, keys], as timm has them."""
    of_query, of_key = max(keys / queries, 1.0), max(queries / keys, 1.0)
    apart = torch.arange(queries)[:, None] * of_query - torch.arange(keys)[None] * of_key
    return (apart + (keys - 1) * of_key).long()


class MultiScaleFamily(CalledFamily):
    title = "timm MViTv2"
    timm_modules = ("mvitv2",)
    models = (MultiScaleVit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {MultiScaleAttention: MultiScaleReader}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features, model.num_prefix_tokens
