"""timm's `Levit`, of tokens or of maps ("conv"): softmax with a bias of places, and with fewer queries than keys where
it makes the grid smaller.

The bias, a table of distances for each head, enters the linear form as RANK factors that start from its singular values
and are trained. Folding multiplies the batch norms of castled layers into their projections.

Source: Graham et al., "LeViT", ICCV 2021, arXiv 2104.01136.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models.levit import Attention, AttentionDownsample, Levit
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import RANK, low_rank
from .base import Size
from .called import CalledFamily


class LevitReader(Reader):
    index: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.maps = attention.use_conv
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim, self.value_dim = attention.key_dim, attention.val_dim
        self.grid.height, self.grid.width = attention.resolution
        self.proj = attention.proj
        self._keep(attention)
        self.table: nn.Parameter | None = attention.attention_biases
        self.register_buffer("index", attention.attention_bias_idxs, persistent=False)
        bias = attention.attention_biases[:, attention.attention_bias_idxs]
        self.learn_places(*low_rank(bias, RANK, attention.scale))

    def _keep(self, attention: Any) -> None:
        """What makes q, k and v."""
        self.qkv = attention.qkv
        self.dim = attention.qkv.linear.weight.shape[1]

    def read(self, x: Tensor) -> Reading:
        """Tokens x, [B, N, C], or a map, [B, C, H, W]."""
        q, k, v = self.heads(self.qkv(x)).split([self.head_dim, self.head_dim, self.value_dim], -1)
        return self.with_places(q, k, v)

    def with_places(self, q: Tensor, k: Tensor, v: Tensor) -> Reading:
        bias = None if self.table is None else self.table[:, self.index][None]
        return Reading(q, k, v, self.learned_places, bias)

    def heads(self, x: Tensor) -> Tensor:
        """A projection's outputs, tokens or a map, as [B, heads, N, d]."""
        if self.maps:
            return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(-2, -1)
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        if self.maps:
            y = y.transpose(1, 2).unflatten(2, self.places())
        return self.proj(y)

    def places(self) -> Size:
        """Height and width of what it returns."""
        return self.grid.height, self.grid.width

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(2).transpose(1, 2) if self.maps else output

    def fold_(self) -> None:
        self.table = None
        del self.index
        self.qkv = fused(self.qkv)
        self.proj.ln = fused(self.proj.ln)


class LevitDownsampleReader(LevitReader):
    on_grid = False

    def _keep(self, attention: Any) -> None:
        self.q, self.kv = attention.q, attention.kv
        self.stride = attention.stride
        self.dim = attention.kv.linear.weight.shape[1]

    def read(self, x: Tensor) -> Reading:
        """Tokens x, [B, N, C], or a map, [B, C, H, W]; queries are those of every `stride`th place."""
        k, v = self.heads(self.kv(x)).split([self.head_dim, self.value_dim], -1)
        return self.with_places(self.heads(self.q(x)), k, v)

    def places(self) -> Size:
        return -(-self.grid.height // self.stride), -(-self.grid.width // self.stride)

    def fold_(self) -> None:
        self.table = None
        del self.index
        self.q.ln, self.kv, self.proj.ln = fused(self.q.ln), fused(self.kv), fused(self.proj.ln)


@torch.no_grad()
def fused(projection: Any) -> nn.Module:
    """A linear layer or convolution with the batch norm behind it multiplied in, in its own type; the very layer
    where that is done already."""
    if isinstance(projection, nn.Linear | nn.Conv2d):
        return projection
    linear, norm = projection.linear, projection.bn
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    linear.weight.mul_(scale.view(-1, *[1] * (linear.weight.ndim - 1)))
    linear.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
    return linear


class LevitFamily(CalledFamily):
    title = "timm LeViT"
    timm_modules = ("levit",)
    models = (Levit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        Attention: LevitReader,
        AttentionDownsample: LevitDownsampleReader,
    }

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return (features.flatten(2).transpose(1, 2) if model.use_conv else features), 0
