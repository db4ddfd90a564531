"""timm's `PoolingVisionTransformer`: three stages of plain attention, the class and distillation tokens first.

Source: Heo et al., "Rethinking Spatial Dimensions of Vision Transformers", ICCV 2021, arXiv 2103.16302.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.layers import Attention
from timm.models.pit import PoolingVisionTransformer
from torch import Tensor, nn

from ..attention import Reader
from .called import CalledFamily, follow
from .plain import TokensReader


class PitFamily(CalledFamily):
    title = "timm PiT"
    timm_modules = ("pit",)
    models = (PoolingVisionTransformer,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: TokensReader}

    def reader(self, model: Any, name: str) -> Reader:
        reader = TokensReader(model.get_submodule(name), model.num_tokens)
        pool = model.get_submodule(".".join(name.split(".")[:2])).pool  # transformers.1.blocks.0.attn: transformers.1
        follow(reader.grid, model.patch_embed if pool is None else pool.conv)
        return reader

    def head_modules(self, model: Any) -> set[str]:
        return {"head", "head_dist"}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        """The features are of class and distillation tokens alone."""
        return features, features.shape[1]
