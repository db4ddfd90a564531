"""timm's `VOLO`: outlook attention on a fine map, which stays, then softmax on a coarse one, which is castled.

No layer has a bias of places. Maps come in and go out with channels last.

Source: Yuan et al., "VOLO: Vision Outlooker for Visual Recognition", arXiv 2106.13112.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.volo import VOLO, Attention, ClassAttention, OutlookAttention
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .called import CalledFamily


class VoloReader(Reader):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.dim = attention.qkv.in_features
        self.head_dim = self.value_dim = self.dim // attention.num_heads

    def read(self, x: Tensor) -> Reading:
        """A map x, [B, H, W, C]."""
        self.grid.height, self.grid.width = x.shape[1:3]
        q, k, v = split_heads(self.qkv(x).flatten(1, 2), self.num_heads)
        return Reading(q, k, v, rest=tuple(x.shape[1:3]))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y.unflatten(1, reading.rest)))

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(1, 2)


class VoloFamily(CalledFamily):
    title = "timm VOLO"
    timm_modules = ("volo",)
    models = (VOLO,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: VoloReader}
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {
        OutlookAttention: "outlook attention weighs a few neighbours without keys and is already linear in the tokens",
        ClassAttention: "class attention has a single query and is already linear in the tokens",
    }

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features, 0 if model.post_network is None else 1
