"""timm's `NextViT`: convolutions, and attention at the end of a stage whose keys are means of runs of tokens.

N queries see N / R² keys, which is still quadratic. In the last stage keys are not reduced.

Source: Li et al., "Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial
Scenarios", arXiv 2207.05501.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.nextvit import EfficientAttention, NextViT
from torch import Tensor, nn

from ..attention import Reader, Reading
from .called import follow
from .plain import MapsFamily


class NextVitReader(Reader):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = attention.q, attention.k, attention.v, attention.proj
        self.sr, self.norm, self.proj_drop = attention.sr, attention.norm, attention.proj_drop
        self.num_heads, self.softmax_scale, self.dim = attention.num_heads, attention.scale, attention.dim
        self.head_dim = self.value_dim = attention.head_dim
        self.on_grid = attention.sr is None

    def read(self, x: Tensor) -> Reading:
        q = self.q(x)
        if self.sr is not None and self.norm is not None:
            x = self.norm(self.sr(x.transpose(1, 2))).transpose(1, 2)
            self.grid.height, self.grid.width = 1, x.shape[1]
        return Reading(*(y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, self.k(x), self.v(x))))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))


class NextVitFamily(MapsFamily):
    title = "timm Next-ViT"
    timm_modules = ("nextvit",)
    models = (NextViT,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {EfficientAttention: NextVitReader}

    def reader(self, model: Any, name: str) -> Reader:
        reader = NextVitReader(model.get_submodule(name))
        if reader.on_grid:
            follow(reader.grid, model.get_submodule(name.rpartition(".")[0]).patch_embed)
        return reader
