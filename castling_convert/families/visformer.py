"""timm's `Visformer`: attention on maps, by 1 x 1 convolutions.

Source: Chen et al., "Visformer: The Vision-friendly Transformer", ICCV 2021, arXiv 2104.12533.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.visformer import Attention, Visformer
from torch import Tensor, nn

from ..attention import Reader
from .called import CalledFamily
from .plain import ConvMapReader


class VisformerFamily(CalledFamily):
    title = "timm Visformer"
    timm_modules = ("visformer",)
    models = (Visformer,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {Attention: ConvMapReader}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0
