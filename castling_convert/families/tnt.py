"""timm's `TNT`: attention of patches, and within each patch of its pixels.

Source: Han et al., "Transformer in Transformer", NeurIPS 2021, arXiv 2103.00112.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.tnt import TNT, Attention
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .base import Size
from .called import CalledFamily


class TntReader(Reader):
    """The inner one is called with the patches as windows."""

    def __init__(self, attention: Any, prefix: int = 0, takes_windows: bool = True) -> None:
        super().__init__(prefix)
        self.qk, self.v, self.proj, self.proj_drop = attention.qk, attention.v, attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale, self.dim = attention.num_heads, attention.scale, attention.v.in_features
        self.head_dim, self.value_dim = attention.head_dim, attention.v.out_features // attention.num_heads
        self.takes_windows = takes_windows

    def read(self, x: Tensor) -> Reading:
        q, k = split_heads(self.qk(x), self.num_heads, 2)
        return Reading(q, k, self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))


class TntFamily(CalledFamily):
    title = "timm TNT"
    timm_modules = ("tnt",)
    models = (TNT,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: TntReader}

    def reader(self, model: Any, name: str) -> Reader:
        module, embed = model.get_submodule(name), model.pixel_embed
        inner = name.endswith("attn_in")
        reader = TntReader(module, takes_windows=False) if inner else TntReader(module, model.num_prefix_tokens)
        reader.grid.height, reader.grid.width = embed.new_patch_size if inner else embed.grid_size
        return reader

    def patch_size(self, model: Any) -> Size:
        height, width = model.pixel_embed.patch_size
        return height, width

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features, model.num_prefix_tokens
