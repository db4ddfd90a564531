"""timm's `ConVit`: softmax of contents and softmax of places, weighed by a gate for each head.

The softmax of places stays as it is, exactly, without its N x N weights: logits a·Δx + b·Δy + c·(Δx² + Δy²) are a sum
of one part for columns and one for rows, so their softmax is the product of one over columns and one over rows,

    P_ij = P_x[x_i, x_j] P_y[y_i, y_j]        P v = P_y v P_xᵀ on the grid,

N·(height + width)·d multiply-accumulates a head in place of N²·d. The softmax of contents is castled.

Source: d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases", ICML 2021,
arXiv 2103.10697. The separation is our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models.convit import GPSA, MHSA, ConVit
from torch import Tensor, nn

from ..attention import Reader, Reading
from .base import Size
from .called import CalledFamily


class PlainReader(Reader):
    def __init__(self, attention: Any, grid: Size, prefix: int) -> None:
        super().__init__(prefix)
        self.proj, self.proj_drop = attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.dim = attention.proj.in_features
        self.head_dim = self.value_dim = self.dim // attention.num_heads
        self.grid.height, self.grid.width = grid
        self._keep(attention)

    def _keep(self, attention: Any) -> None:
        """What makes q, k and v."""
        self.qkv = attention.qkv

    def read(self, x: Tensor) -> Reading:
        """Tokens x, [B, N, C]."""
        q, k, v = self.heads(self.qkv(x))
        return Reading(q, k, v)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, N, parts·heads·d] as parts, [B, heads, N, d]."""
        return x.unflatten(2, (-1, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))


class GatedReader(PlainReader):
    share: Tensor
    columns: Tensor
    rows: Tensor

    def _keep(self, attention: Any) -> None:
        self.qk, self.v = attention.qk, attention.v
        self.pos_proj: nn.Linear | None = attention.pos_proj
        self.gate: nn.Parameter | None = attention.gating_param

    def read(self, x: Tensor) -> Reading:
        """Tokens x, [B, N, C]."""
        q, k = self.heads(self.qk(x))
        (v,) = self.heads(self.v(x))
        return Reading(q, k, v, rest=v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        share, columns, rows = self.places()
        v = reading.rest.unflatten(2, (self.grid.height, self.grid.width))  # B, heads, height, width, d
        v = columns[:, None] @ v  # over columns
        v = (rows @ v.flatten(3)).flatten(2).unflatten(2, (-1, self.head_dim))  # over rows; B, heads, N, d
        shares = share.repeat_interleave(self.head_dim)
        return super().write(y + shares * (v.transpose(1, 2).flatten(2) - y), reading)

    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """The share of places, [heads], and their weights P_x, [heads, width, width], and P_y, [heads, height,
        height]."""
        if self.pos_proj is None or self.gate is None:
            return self.share, self.columns, self.rows
        across, down, far = self.pos_proj.weight.unbind(1)
        return (
            self.gate.sigmoid(),
            _weights(self.grid.width, across, far),
            _weights(self.grid.height, down, far),
        )

    @torch.no_grad()
    def fold_(self) -> None:
        for name, value in zip(("share", "columns", "rows"), self.places(), strict=True):
            self.register_buffer(name, value.detach().clone())
        self.pos_proj = self.gate = None


def _weights(size: int, near: Tensor, far: Tensor) -> Tensor:
    """Softmax of near·Δ + far·Δ² along one axis, [heads, size, size], of two factors a head, [heads]."""
    places = torch.arange(size, dtype=near.dtype, device=near.device)
    apart = places - places[:, None]
    return (near[:, None, None] * apart + far[:, None, None] * apart.square()).softmax(-1)


class ConvitFamily(CalledFamily):
    title = "timm ConViT"
    timm_modules = ("convit",)
    models = (ConVit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Any]]] = {GPSA: GatedReader, MHSA: PlainReader}

    def reader(self, model: Any, name: str) -> Reader:
        attention = model.get_submodule(name)
        gated = type(attention) is GPSA  # these come before the class token
        kind = self.readers[type(attention)]
        return kind(attention, model.patch_embed.grid_size, 0 if gated else model.num_prefix_tokens)

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features, model.num_prefix_tokens
