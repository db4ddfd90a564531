"""timm's `Twins`: softmax within windows in turn with softmax over keys that are fewer, one for each patch of tokens.

Neither has a bias of places. A layer is called with the whole image: it makes the windows itself, and pads them where
the image ends, and padding takes part, as it does in the model.

Source: Chu et al., "Twins", NeurIPS 2021, arXiv 2104.13840.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn, Twins
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .base import Size
from .called import CalledFamily


class TwinsReader(Reader):
    """What both kinds share; they are called with tokens [B, N, C] and the height and width they lie on."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.proj, self.proj_drop = attention.proj, attention.proj_drop
        self.num_heads, self.dim, self.softmax_scale = attention.num_heads, attention.dim, attention.scale
        self.head_dim = self.value_dim = attention.dim // attention.num_heads

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))


class LocalReader(TwinsReader):
    takes_windows = False

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self.qkv, self.side = attention.qkv, attention.ws
        self.grid.height = self.grid.width = attention.ws

    def read(self, x: Tensor, size: Size) -> Reading:
        (height, width), side = size, self.side
        rows, columns = -(-height // side), -(-width // side)
        x = x.unflatten(1, (height, width))
        x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
        x = (
            x.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        )  # B, rows, columns, side, side, C
        x = x.reshape(-1, side * side, self.dim)
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return Reading(q, k, v, rest=(height, width, rows, columns))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        height, width, rows, columns = reading.rest
        y = y.reshape(-1, rows, columns, self.side, self.side, self.dim).transpose(2, 3)
        y = y.reshape(-1, rows * self.side, columns * self.side, self.dim)[:, :height, :width]
        return super().write(y.flatten(1, 2), reading)


class SubSampleReader(TwinsReader):
    on_grid = False

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self.q, self.kv, self.sr, self.norm = attention.q, attention.kv, attention.sr, attention.norm
        self.on_grid = attention.sr is None

    def read(self, x: Tensor, size: Size) -> Reading:
        (q,) = split_heads(self.q(x), self.num_heads, 1)
        self.grid.height, self.grid.width = size
        if self.sr is not None:
            x = self.sr(x.transpose(1, 2).unflatten(2, size))
            self.grid.height, self.grid.width = x.shape[2:]
            x = self.norm(x.flatten(2).transpose(1, 2))
        k, v = split_heads(self.kv(x), self.num_heads, 2)
        return Reading(q, k, v)


class TwinsFamily(CalledFamily):
    title = "timm Twins"
    timm_modules = ("twins",)
    models = (Twins,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        LocallyGroupedAttn: LocalReader,
        GlobalSubSampleAttn: SubSampleReader,
    }

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features, 0
