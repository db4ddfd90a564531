"""timm's `PyramidVisionTransformerV2`: queries of every place, keys of a map reduced by a strided convolution.

N queries see N / R² keys, which is still quadratic. In the last stage keys are not reduced.

Source: Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer", arXiv 2106.13797.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.pvt_v2 import Attention, PyramidVisionTransformerV2
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .plain import MapsFamily


class PvtReader(Reader):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q, self.kv, self.sr, self.norm = attention.q, attention.kv, attention.sr, attention.norm
        self.proj, self.proj_drop = attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale, self.dim = attention.num_heads, attention.scale, attention.dim
        self.head_dim = self.value_dim = attention.head_dim
        self.on_grid = attention.sr is None

    def read(self, x: Tensor, feat_size: tuple[int, int]) -> Reading:
        """Tokens x, [B, N, C], of a map of this height and width."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        self.grid.height, self.grid.width = feat_size
        if self.sr is not None and self.norm is not None:
            reduced = self.sr(x.transpose(1, 2).unflatten(2, tuple(feat_size)))
            self.grid.height, self.grid.width = reduced.shape[-2:]
            x = self.norm(reduced.flatten(2).transpose(1, 2))
        k, v = split_heads(self.kv(x), self.num_heads, 2)
        return Reading(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))


POOLED = "its keys are pooled to 7x7 places whatever the image, which is linear in the tokens already"


class PvtFamily(MapsFamily):
    title = "timm PVTv2"
    timm_modules = ("pvt_v2",)
    models = (PyramidVisionTransformerV2,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: PvtReader}
    excluded: Mapping[str, str] = {"pvt_v2_b2_li": POOLED}

    def kept_because(self, module: Any) -> str | None:
        if module.pool is None:
            return None
        return POOLED
