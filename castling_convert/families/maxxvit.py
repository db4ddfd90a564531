"""timm's `MaxxVit`: MaxViT's softmax within windows and within grids of far places, CoAtNet's over the whole image.

A bias of places, by a table or by a small network, is the same for all windows: see `windows`. Most of these models
have the q, k and v of one head side by side, those from TensorFlow all heads' q before all k.

Sources: Tu et al., "MaxViT", ECCV 2022, arXiv 2204.01697; Dai et al., "CoAtNet", NeurIPS 2021, arXiv 2106.04803.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.maxxvit import Attention2d, AttentionCl, MaxxVit
from torch import Tensor, nn

from ..attention import Reader, Reading
from .base import AttentionLayer, Size
from .called import CalledFamily
from .windows import BiasedReader, bias_of


class MaxxVitReader(BiasedReader):
    """Of windows with channels last, [B·W, height, width, C]."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.dim_head
        self.head_first, self.dim = attention.head_first, attention.qkv.weight.shape[1]
        self.start_(None if attention.rel_pos is None else bias_of(attention.rel_pos))

    def read(self, x: Tensor, shared_rel_pos: None = None) -> Reading:
        """timm's models share no bias between layers."""
        return self.of_tokens(self.qkv(x).flatten(1, 2), x.shape[1], x.shape[2])

    def of_tokens(self, qkv: Tensor, height: int, width: int) -> Reading:
        """q, k and v side by side, [B·W, N, 3·heads·d]."""
        self.grid.height, self.grid.width = height, width
        order = (self.num_heads, 3) if self.head_first else (3, self.num_heads)
        parts = qkv.unflatten(2, (*order, self.head_dim)).unbind(3 if self.head_first else 2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        return self.reading(q, k, v, rest=(height, width))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y.unflatten(1, reading.rest)))

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(1, 2)


class MaxxVit2dReader(MaxxVitReader):
    """Of windows with channels first, [B·W, C, height, width]."""

    def read(self, x: Tensor, shared_rel_pos: None = None) -> Reading:
        return self.of_tokens(self.qkv(x).flatten(2).transpose(1, 2), x.shape[2], x.shape[3])

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y.transpose(1, 2).unflatten(2, reading.rest)))

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(2).transpose(1, 2)


class MaxxVitFamily(CalledFamily):
    title = "timm MaxViT and CoAtNet"
    timm_modules = ("maxxvit",)
    models = (MaxxVit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        AttentionCl: MaxxVitReader,
        Attention2d: MaxxVit2dReader,
    }

    def projections(self, model: nn.Module, layer: AttentionLayer) -> Reader:
        reader = super().projections(model, layer)
        reader.takes_windows = layer.windows == 1  # its tokens are the whole image
        return reader

    def patch_size(self, model: Any) -> Size:
        return model.partition_ratio, model.partition_ratio

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0
