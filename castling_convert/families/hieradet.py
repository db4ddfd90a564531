"""timm's `HieraDet`, the image encoder of SAM 2: windows, a few blocks that see all, and queries pooled between stages.

It adds no bias to its logits. Windows that reach over the border hold padding that takes part, as it does in the
softmax model. Pooled queries are not the keys, so their layers have no depthwise residual.

Source: Ravi et al., "SAM 2", arXiv 2408.00714.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.hieradet_sam2 import HieraDet, MultiScaleAttention
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .called import CalledFamily


class MultiScaleReader(Reader):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.q_pool = attention.qkv, attention.proj, attention.q_pool
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.dim_out // attention.num_heads
        self.dim = attention.dim
        self.on_grid = attention.q_pool is None

    @property
    def takes_windows(self) -> bool:  # type: ignore[override]
        return self.windows == 1

    def read(self, x: Tensor) -> Reading:
        """Tokens of images or of windows, [B, H, W, C]."""
        B, H, W, _ = x.shape
        self.grid.height, self.grid.width = H, W
        q, k, v = split_heads(self.qkv(x).flatten(1, 2), self.num_heads)
        if self.q_pool is not None:
            q = self.q_pool(q.transpose(2, 3).reshape(B, -1, H, W))
            H, W = q.shape[2:]
            q = q.reshape(B, self.num_heads, self.head_dim, H * W).transpose(2, 3)
        return Reading(q, k, v, rest=(H, W))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        H, W = reading.rest
        y = self.proj(y)
        return y.reshape(-1, H, W, y.shape[-1])

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(1, 2)


class HieraDetFamily(CalledFamily):
    title = "timm HieraDet"
    timm_modules = ("hieradet_sam2",)
    models = (HieraDet,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {MultiScaleAttention: MultiScaleReader}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(1, 2), 0
