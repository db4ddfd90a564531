"""Rotary positions: queries and keys turned by angles of their places on the grid.

A rotation keeps lengths, and products of turned q and k depend on their distance alone. It acts before any linear form
looks at q and k, so a form with rotations is still linear in the tokens; what pools keys pools turned ones.

Source: Su et al., "RoFormer", arXiv 2104.09864; on two axes Heo et al., "Rotary Position Embedding for Vision
Transformer", ECCV 2024, arXiv 2403.13298.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from ..attention import TokenGrid


class Rotation:
    """The rotation of one layer.

    Args:
        rope: timm's module, the model's own, which stays there: a copy of the model has a copy of it.
        half: whether pairs of channels are d/2 apart, and not next to each other.
        index: of the layer in what `rope` gives, where every layer has its own angles.
    """

    def __init__(self, rope: Any, half: bool, index: int | None) -> None:
        self.rope, self.half, self.index = rope, half, index

    def __call__(self, q: Tensor, k: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor]:
        """q and k, [B, heads, N, d], turned; prefix tokens are not."""
        table = self.table(grid.height, grid.width)
        return self.turned(q, k, table if self.index is None else table[self.index], grid.prefix)

    def table(self, height: int, width: int) -> Tensor:
        """Sines and cosines of a grid, [N - prefix, 2·d], before them an axis for layers and one for heads where these
        have their own."""
        fixed = getattr(self.rope, "feat_shape", None)
        if fixed is None:
            return self.rope.get_embed(shape=[height, width])
        if tuple(fixed) == (height, width):
            return self.rope.get_embed()
        other = copy.deepcopy(self.rope)
        other.update_feat_shape([height, width])
        return other.get_embed()

    def turned(self, q: Tensor, k: Tensor, table: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """By a table of the grid, which prefix tokens are not on."""
        if prefix:
            sines, cosines = table.chunk(2, -1)
            stay = (0, 0, prefix, 0)
            table = torch.cat([F.pad(sines, stay), F.pad(cosines, stay, value=1.0)], -1)
        q, k = (apply_rot_embed_cat(x, table, half=self.half).type_as(x) for x in (q, k))
        return q, k
