"""Readers of attention that is plain, in models that are no plain stack of it.

Three shapes go round in timm's hierarchies and hybrids: a projection to q, k and v of tokens [B, N, C], the same of a
feature map [B, C, height, width], and 1 x 1 convolutions on such a map. None of them adds anything to its logits.
"""

from __future__ import annotations

from typing import Any

from timm.models import get_model_input_config
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import refuse_mask, split_heads
from .base import Size
from .called import CalledFamily


class TokensReader(Reader):
    """`qkv` and `proj` on tokens [B, N, C], with the norms of timm's `Attention` where it has them. Its family says
    where on the grid the tokens lie."""

    def __init__(self, attention: Any, prefix: int = 0) -> None:
        super().__init__(prefix)
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.head_dim
        self.dim = attention.qkv.in_features
        nothing = nn.Identity()
        self.q_norm, self.k_norm, self.norm = (
            getattr(attention, name, nothing) for name in ("q_norm", "k_norm", "norm")
        )

    def read(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Reading:
        refuse_mask(attn_mask, is_causal)
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return Reading(self.q_norm(q), self.k_norm(k), v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(self.norm(y)))


class MapReader(Reader):
    """A layer that is called with a feature map [B, C, height, width] and returns one, of other channels perhaps."""

    def on_map(self, x: Tensor) -> Tensor:
        """Its tokens [B, N, C]."""
        self.grid.height, self.grid.width = x.shape[-2:]
        return x.flatten(2).transpose(1, 2)

    def as_map(self, y: Tensor) -> Tensor:
        """Tokens [B, N, C] as a map again."""
        return y.transpose(1, 2).unflatten(2, (self.grid.height, self.grid.width))

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(2).transpose(1, 2)


class LinearMapReader(MapReader):
    """`qkv` and `proj` are linear layers."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.head_dim
        self.dim = attention.qkv.in_features

    def read(self, x: Tensor) -> Reading:
        q, k, v = split_heads(self.qkv(self.on_map(x)), self.num_heads)
        return Reading(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.as_map(self.proj_drop(self.proj(y)))


class ConvMapReader(MapReader):
    """`qkv` and `proj` are 1 x 1 convolutions."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.head_dim
        self.dim = attention.qkv.in_channels

    def read(self, x: Tensor) -> Reading:
        q, k, v = split_heads(self.on_map(self.qkv(x)), self.num_heads)
        return Reading(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(self.as_map(y)))


class MapsFamily(CalledFamily):
    """Models whose features are maps, and that take images of any size as they are."""

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0

    def patch_size(self, model: Any) -> Size:
        """What halving five times is exact for."""
        return 32, 32

    def resize_(self, model: Any, image_size: Size) -> None:
        """Nothing in the model knows a size but what it says of itself."""
        channels = get_model_input_config(model)["input_size"][0]
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (channels, *image_size)}

    def any_size_(self, model: Any) -> None:
        """It does."""
