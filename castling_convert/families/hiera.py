"""timm's `Hiera`: attention within mask units, later over all tokens, and queries pooled between stages.

Its tokens are not in the order of the image: units come last, and before them every halving of the grid that is still
to come, the finest first, so that pooling is a maximum over the first axis. Where queries are the tokens themselves,
the reader puts them in rows and back, so that a depthwise residual and windows mean what they say. Pooled queries are
not the keys, and their layers have neither. It adds no bias to its logits.

Source: Ryali et al., "Hiera", ICML 2023, arXiv 2306.00989; the order is timm's `Unroll`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models.hiera import Hiera, MaskUnitAttention
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from ..errors import ModelError
from .base import AttentionLayer, Size
from .called import CalledFamily


def places(units: Size, stride: Size, halvings: int) -> Tensor:
    """Where Hiera has the tokens of each mask unit, [height, width, rows of a unit, columns of one].

    Args:
        units: height and width of the grid of units.
        stride: of one halving, and `halvings`: how many of them a unit still has before it.
    """
    rows, columns = stride[0] ** halvings, stride[1] ** halvings
    found = torch.arange(units[0] * units[1] * rows * columns).reshape(*(stride * halvings), *units)
    coarsest_first = range(2 * halvings - 2, -1, -2)
    order = [2 * halvings, 2 * halvings + 1, *coarsest_first, *(axis + 1 for axis in coarsest_first)]
    return found.permute(order).reshape(*units, rows, columns)


class MaskUnitReader(Reader):
    order: Tensor | None
    back: Tensor | None

    def __init__(self, attention: Any, units: Size, stride: Size) -> None:
        """
        Args:
            units: height and width of the image's grid of mask units.
            stride: of a pooling.
        """
        super().__init__()
        self.qkv, self.proj, self.q_stride = attention.qkv, attention.proj, attention.q_stride
        self.num_heads, self.softmax_scale = attention.heads, attention.scale
        self.head_dim = self.value_dim = attention.head_dim
        self.dim = attention.dim
        self.asked = {"q_stride": attention.q_stride}  # the block pools what goes around attention by it
        self.on_grid = attention.q_stride == 1
        self.takes_windows = not attention.use_mask_unit_attn
        self.parts = units[0] * units[1] if attention.use_mask_unit_attn else 1
        halvings, left = 0, attention.window_size * attention.q_stride
        while left > 1:
            halvings, left = halvings + 1, left // (stride[0] * stride[1])
        tokens = places(units, stride, halvings)
        rows, columns = tokens.shape[2:]
        self.grid.height, self.grid.width = rows, columns
        if self.parts == 1:
            self.grid.height, self.grid.width = units[0] * rows, units[1] * columns
            tokens = tokens.transpose(1, 2)
        if self.on_grid:
            order = tokens.flatten()
            back = order.argsort()
        else:  # units apart, and the order that pooling takes within them
            order = torch.arange(len(tokens.flatten())).reshape(-1, self.parts).T.flatten()
            back = torch.arange(len(order) // self.q_stride).reshape(self.parts, -1).T.flatten()
        moves = not torch.equal(order, torch.arange(len(order)))
        for name, index in (("order", order), ("back", back)):
            self.register_buffer(name, index.to(self.weight.device) if moves else None, persistent=False)

    def read(self, x: Tensor) -> Reading:
        """Tokens in Hiera's order, [B, N, C]."""
        x = x if self.order is None else x[:, self.order]
        x = x.reshape(-1, x.shape[1] // self.parts, self.dim)
        B = x.shape[0]  # units apart
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        if self.q_stride > 1:
            q = q.reshape(B, self.num_heads, self.q_stride, -1, self.head_dim).amax(2)
        return Reading(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        y = self.proj(y)
        y = y.reshape(-1, self.parts * y.shape[1], y.shape[2])
        return y if self.back is None else y[:, self.back]


class HieraFamily(CalledFamily):
    title = "timm Hiera"
    timm_modules = ("hiera",)
    models = (Hiera,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {MaskUnitAttention: MaskUnitReader}

    def reader(self, model: Any, name: str) -> Reader:
        return MaskUnitReader(model.get_submodule(name), tuple(model.mask_spatial_shape), tuple(model.q_stride))

    def layers(self, model: Any, image_size: Size | None = None) -> list[AttentionLayer]:
        if model.patch_drop_rate > 0:
            raise ModelError("patch dropout drops mask units that are counted on; create it without patch_drop_rate")
        unit = tuple(stride ** (len(model.stage_ends) - 1) for stride in model.q_stride)
        if len(unit) != 2 or tuple(model.mask_unit_size) != unit:
            raise ModelError(
                f"mask units of {tuple(model.mask_unit_size)} are not what pooling by {tuple(model.q_stride)} between "
                f"{len(model.stage_ends)} stages leaves one token of, {unit}; such a Hiera can't be castled"
            )
        return super().layers(model, image_size)
