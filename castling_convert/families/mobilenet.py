"""timm's `MobileNetV3` with attention, MobileNetV4's hybrids: on maps, keys and values of one head for all queries.

Where a strided convolution makes keys and values, N queries see N / 4 of them.

Source: Qin et al., "MobileNetV4: Universal Models for the Mobile Ecosystem", ECCV 2024, arXiv 2404.10518.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import timm
from timm.layers.attention2d import Attention2d, MultiQueryAttention2d
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import refuse_mask, split_heads
from .plain import MapReader, MapsFamily
from .refused import CONVOLUTIONS


class MultiQueryReader(MapReader):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (
            attention.query, attention.key, attention.value, attention.output,
        )  # fmt: skip
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim, self.value_dim = attention.key_dim, attention.value_dim
        self.dim = attention.query.proj.in_channels
        self.on_grid = attention.kv_stride == 1 and not attention.has_query_strides

    def read(self, x: Tensor, attn_mask: Tensor | None = None) -> Reading:
        refuse_mask(attn_mask)
        queries = self.query(x)
        q = queries.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
        k, v = (self.on_map(one(x))[:, None].expand(-1, self.num_heads, -1, -1) for one in (self.key, self.value))
        return Reading(q, k, v, rest=queries.shape[-2:])

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.output(y.transpose(1, 2).unflatten(2, tuple(reading.rest)))


class Attention2dReader(MapReader):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.head_first = attention.num_heads, attention.head_first
        self.head_dim = self.value_dim = attention.dim_head
        self.softmax_scale, self.dim = attention.dim_head**-0.5, attention.qkv.in_channels

    def read(self, x: Tensor, attn_mask: Tensor | None = None) -> Reading:
        refuse_mask(attn_mask)
        tokens = self.on_map(self.qkv(x))
        if self.head_first:
            q, k, v = tokens.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
            return Reading(q, k, v)
        q, k, v = split_heads(tokens, self.num_heads)
        return Reading(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(self.as_map(y)))


class MobileNetFamily(MapsFamily):
    title = "timm MobileNetV4 hybrids"
    timm_modules = ("mobilenetv3",)
    models = (MobileNetV3,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        MultiQueryAttention2d: MultiQueryReader,
        Attention2d: Attention2dReader,
    }
    excluded: Mapping[str, str] = dict.fromkeys(
        timm.list_models(module="mobilenetv3", exclude_filters="*_hybrid_*"), CONVOLUTIONS
    )
