"""timm's `SwinTransformer`: softmax within windows, every second time within shifted ones, with a bias of places.

Source: Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.swin_transformer import SwinTransformer, WindowAttention
from torch import Tensor, nn

from ..attention import Reader
from .called import CalledFamily
from .windows import WindowReader


class SwinReader(WindowReader):
    def __init__(self, attention: Any) -> None:
        super().__init__(attention, attention._get_rel_pos_bias()[0], attention.scale)


class SwinFamily(CalledFamily):
    title = "timm Swin"
    timm_modules = ("swin_transformer",)
    models = (SwinTransformer,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {WindowAttention: SwinReader}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(1, 2), 0
