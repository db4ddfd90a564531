"""torchvision's `SwinTransformer` (`swin_t`, `swin_v2_t`, ...): shifting and taking windows apart is done inside the
attention, and so by its reader.

The bias of places enters the linear form as in `swin`, by learned factors. The masks of shifted windows are regions,
where torchvision adds -100 to logits: on logits of a usual size that is the same to 1e-43. Windows padded at the border
take part in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2, SwinTransformer

from ..attention import Reader, Reading, Regions
from ..attention.reader import RANK, low_rank, split_heads
from .base import Size
from .called import CalledFamily
from .windows import REGIONS

LARGEST = 16
"""Of a bias in the second version, where the first has no bound."""
TRAINED_STRIDE = 32
"""Pixels that are a token of the last stage."""
STEEPEST = math.log(100.0)
"""torchvision's own limit on the logarithm of the cosines' scale."""


class TorchvisionSwinReader(Reader):
    index: Tensor
    takes_windows = False

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, self.dim = attention.num_heads, attention.qkv.in_features
        self.head_dim = self.value_dim = self.dim // self.num_heads
        self.softmax_scale, self.window = self.scale_of(attention), tuple(attention.window_size)
        self.shift = tuple(attention.shift_size)
        self.grid.height, self.grid.width = self.window
        self.keep_bias(attention)
        self.register_buffer("index", attention.relative_position_index, persistent=False)
        bias = attention.get_relative_position_bias()[0].detach()
        self.learn_places(*low_rank(bias, RANK, self.softmax_scale))

    def scale_of(self, attention: Any) -> float:
        return self.head_dim**-0.5

    def keep_bias(self, attention: Any) -> None:
        """What `table` is made of."""
        self.places: nn.Parameter | nn.Module | None = attention.relative_position_bias_table

    def table(self) -> Tensor:
        """The bias of every distance, [distances, heads]."""
        assert isinstance(self.places, Tensor)
        return self.places

    def bias(self) -> Tensor | None:
        """Of every pair of places, [1, heads, N, N]; None in a folded layer."""
        if self.places is None:
            return None
        N = self.grid.tokens
        return self.table()[self.index].view(N, N, -1).permute(2, 0, 1)[None]

    def queries_and_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def qkv_of(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def read(self, x: Tensor) -> Reading:
        """Tokens on their grid, [B, H, W, C]."""
        B, H, W, _ = x.shape
        (rows, columns), (down, right) = self.window, self._shifts(H, W)
        x = F.pad(x, (0, 0, 0, -W % columns, 0, -H % rows))
        padded = x.shape[1:3]
        if down or right:
            x = torch.roll(x, (-down, -right), (1, 2))
        windows = apart(x, self.window)  # B·W, N, C
        q, k, v = split_heads(self.qkv_of(windows), self.num_heads)
        q, k = self.queries_and_keys(q, k)
        more = self.learned_places
        bias = self.bias()
        rest = (B, H, W, *padded, down, right)
        if not (down or right):
            return Reading(q, k, v, more, bias, rest=rest)
        numbers = self._regions(x.shape[1], x.shape[2], down, right).to(x.device).repeat(B, 1)
        regions = Regions(numbers, numbers, REGIONS)
        bias = None if bias is None else bias + regions.bias(q.dtype)
        return Reading(q, k, v, more, bias, regions, rest)

    def _shifts(self, height: int, width: int) -> tuple[int, int]:
        """How far the windows of such a grid are shifted: not at all where one holds it."""
        down, right = (0 if rows >= side else shift for rows, side, shift in
                       zip(self.window, (height, width), self.shift, strict=True))  # fmt: skip
        return down, right

    def _regions(self, height: int, width: int, down: int, right: int) -> Tensor:
        """The number of every token's region within its window, [W, N]; the last window of an axis that is shifted
        holds two parts of the image."""
        places = []
        for side, shift in ((height, down), (width, right)):
            places.append((torch.arange(side) >= side - shift).long() if shift else torch.zeros(side).long())
        numbers = 2 * places[0][:, None] + places[1]
        return apart(numbers[None, :, :, None], self.window)[..., 0]

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        B, H, W, height, width, down, right = reading.rest
        (rows, columns), x = self.window, self.proj(y)
        x = x.reshape(B, height // rows, width // columns, rows, columns, self.dim)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(B, height, width, self.dim)
        if down or right:
            x = torch.roll(x, (down, right), (1, 2))
        return x[:, :H, :W].contiguous()

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(1, 2)

    def fold_(self) -> None:
        self.places = None
        del self.index


class TorchvisionSwinV2Reader(TorchvisionSwinReader):
    """Softmax of cosines, each head's with a learned scale, which is multiplied into q; keys have no bias. A small
    network makes the bias of distances."""

    distances: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self.logit_scale = attention.logit_scale

    def keep_bias(self, attention: Any) -> None:
        self.places = attention.cpb_mlp
        self.register_buffer("distances", attention.relative_coords_table, persistent=False)

    def table(self) -> Tensor:
        assert isinstance(self.places, nn.Module)
        return LARGEST * self.places(self.distances).flatten(0, 2).sigmoid()

    def scale_of(self, attention: Any) -> float:
        return 1.0

    def qkv_of(self, x: Tensor) -> Tensor:
        bias = self.qkv.bias
        if bias is not None:
            q, k, v = bias.chunk(3)
            bias = torch.cat([q, torch.zeros_like(k), v])
        return F.linear(x, self.qkv.weight, bias)

    def queries_and_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        steepness = self.logit_scale.clamp(max=STEEPEST).exp()
        return F.normalize(q, dim=-1) * steepness, F.normalize(k, dim=-1)


def apart(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """[B, H, W, C] to the tokens of its windows, [B·W, N, C]."""
    B, H, W, C = x.shape
    rows, columns = window
    x = x.reshape(B, H // rows, rows, W // columns, columns, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, C)


class TorchvisionSwinFamily(CalledFamily):
    title = "torchvision SwinTransformer"
    models = (SwinTransformer,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        ShiftedWindowAttention: TorchvisionSwinReader,
        ShiftedWindowAttentionV2: TorchvisionSwinV2Reader,
    }

    def image_size(self, model: Any) -> Size:
        """What `pretrained_cfg` says, if it was given one. It takes any; of the one that it is trained on, 224 or 256,
        the last stage is one window."""
        said = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
        if said is not None:
            return said[1], said[2]
        rows, columns = model.features[1][0].attn.window_size
        return TRAINED_STRIDE * rows, TRAINED_STRIDE * columns

    def resize_(self, model: Any, image_size: Size) -> None:
        said = getattr(model, "pretrained_cfg", None) or {}
        model.pretrained_cfg = {**said, "input_size": (3, *image_size)}

    def features(self, model: Any, images: Tensor) -> Tensor:
        return model.norm(model.features(images))

    def head(self, model: Any, features: Tensor) -> Tensor:
        return model.head(model.flatten(model.avgpool(model.permute(features))))

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(1, 2), 0
