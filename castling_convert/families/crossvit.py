"""timm's `CrossVit`: two branches of plain attention, on small patches and on large ones, whose class tokens look at
the other branch's patches.

Source: Chen et al., "CrossViT: Cross-Attention Multi-Scale Vision Transformer", ICCV 2021, arXiv 2103.14899.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.layers import Attention
from timm.models.crossvit import CrossAttention, CrossVit
from torch import Tensor, nn

from ..attention import Reader
from .called import CalledFamily
from .plain import TokensReader


class CrossVitFamily(CalledFamily):
    title = "timm CrossViT"
    timm_modules = ("crossvit",)
    models = (CrossVit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: TokensReader}
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {
        CrossAttention: "the class token is its single query, which is linear in the tokens already"
    }

    def reader(self, model: Any, name: str) -> Reader:
        reader = TokensReader(model.get_submodule(name), prefix=1)
        embed = model.patch_embed[int(name.split(".")[3])]  # blocks.0.blocks.1.2.attn: of the second branch
        reader.grid.height, reader.grid.width = (
            size // patch for size, patch in zip(embed.img_size, embed.patch_size, strict=True)
        )
        return reader

    def head_modules(self, model: Any) -> set[str]:
        return {"head"}

    def tokens(self, model: Any, features: Any) -> tuple[Tensor, int]:
        """Of two branches with different widths: the class tokens, which the classifiers read, side by side."""
        return torch.cat([x[:, :1] for x in features], -1), 1
