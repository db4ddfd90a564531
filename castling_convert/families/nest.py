"""timm's `Nest`: softmax within the blocks that an image is cut into, without a bias of places.

Source: Zhang et al., "Nested Hierarchical Transformer", AAAI 2022, arXiv 2105.12723.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.nest import Attention, Nest
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .called import CalledFamily


class NestReader(Reader):
    """Of blocks [B, T, N, C], squares of tokens. Their heads' channels are put back in another order than usual."""

    takes_windows = False

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.dim, self.softmax_scale = attention.num_heads, attention.qkv.in_features, attention.scale
        self.head_dim = self.value_dim = self.dim // self.num_heads

    def read(self, x: Tensor) -> Reading:
        T, N = x.shape[1:3]
        self.grid.height = self.grid.width = math.isqrt(N)
        q, k, v = split_heads(self.qkv(x.flatten(0, 1)), self.num_heads)
        return Reading(q, k, v, rest=T)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        y = y.unflatten(2, (self.num_heads, self.head_dim)).transpose(2, 3).flatten(2)
        return self.proj_drop(self.proj(y.unflatten(0, (-1, reading.rest))))

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(1, 2)


class NestFamily(CalledFamily):
    title = "timm NesT"
    timm_modules = ("nest",)
    models = (Nest,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: NestReader}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0
