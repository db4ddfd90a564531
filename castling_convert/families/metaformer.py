"""timm's `MetaFormer`: of its kinds CAFormer has attention, in the last two stages, without biases.

Source: Yu et al., "MetaFormer Baselines for Vision", TPAMI 2024, arXiv 2210.13452.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.metaformer import Attention, MetaFormer
from torch import nn

from ..attention import Reader
from .called import follow
from .plain import MapsFamily, TokensReader

_CONVOLUTIONS = ("convformer_s18", "convformer_s36", "convformer_m36", "convformer_b36")
_POOLING = (
    "poolformer_s12", "poolformer_s24", "poolformer_s36", "poolformer_m36", "poolformer_m48",
    "poolformerv2_s12", "poolformerv2_s24", "poolformerv2_s36", "poolformerv2_m36", "poolformerv2_m48",
)  # fmt: skip


class MetaFormerFamily(MapsFamily):
    title = "timm CAFormer"
    timm_modules = ("metaformer",)
    models = (MetaFormer,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: TokensReader}
    excluded: Mapping[str, str] = {
        **dict.fromkeys(_CONVOLUTIONS, "no attention between tokens: convolutions mix them"),
        **dict.fromkeys(_POOLING, "no attention between tokens: pooling mixes them"),
    }

    def reader(self, model: Any, name: str) -> Reader:
        reader = TokensReader(model.get_submodule(name))
        stage = model.get_submodule(".".join(name.split(".")[:2]))  # stages.2.blocks.0.token_mixer: stages.2
        follow(reader.grid, stage.downsample)
        return reader
