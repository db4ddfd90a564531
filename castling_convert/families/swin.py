"""timm's `SwinTransformer`: softmax within windows, every second time within shifted ones, with a bias of places.

The bias, a table for each head, enters the linear form as RANK factors that start from its singular values and are
trained. The masks of shifted windows are regions, each with landmarks of its own, so nothing crosses them.

Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.swin_transformer import SwinTransformer, WindowAttention
from torch import Tensor, nn

from ..attention import Reader, Reading, Regions
from ..attention.reader import low_rank, regions_of_mask
from .base import Size
from .called import CalledFamily

RANK = 16
"""Of a bias in the linear form."""
REGIONS = 4
"""A shifted window holds two parts of the image along each axis at most."""


class SwinReader(Reader):
    index: Tensor
    takes_windows = False
    masked = True
    extra = RANK

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.qkv.out_features // 3 // attention.num_heads
        self.dim = attention.dim
        self.grid.height, self.grid.width = attention.window_size
        self.table: nn.Parameter | None = attention.relative_position_bias_table
        self.register_buffer("index", attention.relative_position_index, persistent=False)
        f, g = low_rank(attention._get_rel_pos_bias()[0], RANK, attention.scale)
        self.query_places, self.key_places = nn.Parameter(f), nn.Parameter(g)

    def started(self) -> list[nn.Parameter]:
        return [self.query_places, self.key_places]

    def read(self, x: Tensor, mask: Tensor | None = None) -> Reading:
        """Windows x, [B·W, N, C], and the mask of the W windows of an image, [W, N, N]."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        more = self.query_places[None], self.key_places[None]
        bias = None
        if self.table is not None:
            bias = self.table[self.index.flatten()].view(N, N, -1).permute(2, 0, 1)[None]
        if mask is None:
            return Reading(q, k, v, more, bias)
        of_window = regions_of_mask(mask, REGIONS).repeat(B // mask.shape[0], 1)
        if bias is not None:
            bias = bias + mask[:, None].repeat(B // mask.shape[0], 1, 1, 1)
        return Reading(q, k, v, more, bias, Regions(of_window, of_window, REGIONS))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))

    def fold_(self) -> None:
        self.table = None
        del self.index


class SwinFamily(CalledFamily):
    title = "timm Swin"
    timm_modules = ("swin_transformer",)
    models = (SwinTransformer,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {WindowAttention: SwinReader}

    def patch_size(self, model: Any) -> Size:
        height, width = model.patch_embed.patch_size
        return height, width

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(1, 2), 0
