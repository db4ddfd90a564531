"""timm's `VisionTransformerSAM`, the image encoder of Segment Anything: windows, and four blocks that see all.

Its decomposed relative positions are exact in the linear form, as factors of rows and columns. Windows that reach over
the border hold padding that takes part, as it does in the softmax model.

Source: Kirillov et al., "Segment Anything", ICCV 2023, arXiv 2304.02643; Li et al., "Exploring Plain Vision Transformer
Backbones for Object Detection", ECCV 2022, arXiv 2203.16527.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.layers import apply_rot_embed_cat
from timm.models.vision_transformer_sam import Attention, VisionTransformerSAM
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .called import CalledFamily
from .places import bias_of_rows_and_columns, distances, one_hot_places


class PlacesReader(Reader):
    """One projection to q, k and v of a map [B, H, W, C], and decomposed relative positions where it is `relative`."""

    row_distances: Tensor
    column_distances: Tensor
    places: Tensor

    def __init__(self, attention: Any, num_heads: int, relative: bool) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, self.softmax_scale, self.relative = num_heads, attention.scale, relative
        self.dim = attention.qkv.in_features
        self.head_dim = self.value_dim = self.dim // num_heads
        if relative:
            self.rows, self.columns = attention.rel_pos_h, attention.rel_pos_w
            height, width = ((table.shape[0] + 1) // 2 for table in (self.rows, self.columns))
            self.extra = height + width
            device = self.rows.device
            self.register_buffer("row_distances", distances(height, device), persistent=False)
            self.register_buffer("column_distances", distances(width, device), persistent=False)
            places = one_hot_places(height, width, device).to(self.rows) / self.softmax_scale**0.5
            self.register_buffer("places", places, persistent=False)

    @property
    def takes_windows(self) -> bool:  # type: ignore[override]
        return self.windows == 1

    def read(self, x: Tensor) -> Reading:
        """Tokens of images or of windows, [B, H, W, C]."""
        self.grid.height, self.grid.width = x.shape[1:3]
        q, k, v = split_heads(self.qkv(x).flatten(1, 2), self.num_heads)
        q, k = self.normed(q, k)
        more = None
        if self.relative:
            of_rows, of_columns = self.rows[self.row_distances], self.columns[self.column_distances]
            bias = bias_of_rows_and_columns(q, of_rows, of_columns)
            more = bias / self.softmax_scale**0.5, self.places[None, None].expand(-1, self.num_heads, -1, -1)
        return Reading(q, k, v, more, rest=tuple(x.shape[1:3]))

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Both, [B, heads, N, d], before anything is said of places."""
        return q, k

    def write(self, y: Tensor, reading: Reading) -> Any:
        y = self.proj(y)
        return y.reshape(-1, *reading.rest, y.shape[-1])

    def tokens(self, output: Any) -> Tensor:
        return output.flatten(1, 2)


class SamReader(PlacesReader):
    def __init__(self, attention: Any) -> None:
        super().__init__(attention, attention.num_heads, attention.use_rel_pos)
        self.proj_drop = attention.proj_drop
        self.q_norm, self.k_norm, self.rope = attention.q_norm, attention.k_norm, attention.rope

    def read(self, x: Tensor) -> Reading:
        reading = super().read(x)
        if self.rope is not None and not self.relative:
            angles = self.rope.get_embed()
            q, k = (apply_rot_embed_cat(each, angles) for each in (reading.q, reading.k))
            reading.q, reading.k = q.type_as(reading.v), k.type_as(reading.v)
        return reading

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(super().write(y, reading))


class SamFamily(CalledFamily):
    title = "timm SAM"
    timm_modules = ("vision_transformer_sam",)
    models = (VisionTransformerSAM,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: SamReader}

    def has_token_dropout(self, model: Any) -> bool:
        return not isinstance(model.patch_drop, nn.Identity)

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0
