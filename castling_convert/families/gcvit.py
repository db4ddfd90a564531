"""timm's `GlobalContextVit`: softmax within windows, every second time with queries that all windows share.

Those are pooled from the whole image, one for each place in a window, so an output still belongs to the place of a key,
and a depthwise residual on v has its meaning. The bias of places is that of `windows`.

Source: Hatamizadeh et al., "Global Context Vision Transformers", ICML 2023, arXiv 2206.09959.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.gcvit import GlobalContextVit, WindowAttentionGlobal
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .called import CalledFamily
from .windows import BiasedReader, bias_of


class GcVitReader(BiasedReader):
    """Of windows [B·W, N, C] and, where queries are shared, those, [B, height, width, C]."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.head_dim
        self.shared, self.dim = attention.use_global, attention.qkv.in_features
        self.grid.height, self.grid.width = attention.window_size
        self.start_(bias_of(attention.rel_pos))

    def read(self, x: Tensor, q_global: Tensor | None = None) -> Reading:
        if not self.shared or q_global is None:
            return self.reading(*split_heads(self.qkv(x), self.num_heads))
        k, v = split_heads(self.qkv(x), self.num_heads, 2)
        q = q_global.flatten(1, 2).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        images, windows = q.shape[0], x.shape[0] // q.shape[0]
        q = q.unsqueeze(1).expand(-1, windows, -1, -1, -1).reshape(images * windows, *q.shape[1:])
        return self.reading(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))


class GcVitFamily(CalledFamily):
    title = "timm GC-ViT"
    timm_modules = ("gcvit",)
    models = (GlobalContextVit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {WindowAttentionGlobal: GcVitReader}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0
