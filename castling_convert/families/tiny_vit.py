"""timm's `TinyVit`: softmax within windows with a bias of distances, a norm inside.

The bias is that of `windows`. Windows at the border are padded, and padding takes part, as it does in the model.

Source: Wu et al., "TinyViT", ECCV 2022, arXiv 2207.10666.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.tiny_vit import Attention, TinyVit
from torch import Tensor, nn

from ..attention import Reader, Reading
from .called import CalledFamily
from .windows import BiasedReader


class TinyVitReader(BiasedReader):
    """Of windows [B·W, N, C], whose heads have q, k and v side by side."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = attention.norm, attention.qkv, attention.proj
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim, self.value_dim, self.dim = attention.key_dim, attention.val_dim, attention.qkv.in_features
        self.grid.height, self.grid.width = attention.resolution
        self.start_(attention.attention_biases[:, attention.attention_bias_idxs])

    def read(self, x: Tensor) -> Reading:
        heads = self.qkv(self.norm(x)).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return self.reading(*heads.split([self.head_dim, self.head_dim, self.value_dim], -1))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj(y)


class TinyVitFamily(CalledFamily):
    title = "timm TinyViT"
    timm_modules = ("tiny_vit",)
    models = (TinyVit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: TinyVitReader}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0
