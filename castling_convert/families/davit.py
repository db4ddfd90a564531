"""timm's `DaVit`: softmax within windows in turn with attention of channels to channels, which is linear in the tokens.

Windows at the border are padded, and padding takes part, as it does in the model.

Source: Ding et al., "DaViT", ECCV 2022, arXiv 2204.03645.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.davit import ChannelAttention, ChannelAttentionV2, DaVit, WindowAttention
from torch import Tensor, nn

from ..attention import Reader
from .called import CalledFamily
from .windows import WindowReader

CHANNELS = "channels attend to channels, which is linear in the tokens already"


class DaVitReader(WindowReader):
    def __init__(self, attention: Any) -> None:
        super().__init__(attention, None, attention.scale)


class DaVitFamily(CalledFamily):
    title = "timm DaViT"
    timm_modules = ("davit",)
    models = (DaVit,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {WindowAttention: DaVitReader}
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {ChannelAttention: CHANNELS, ChannelAttentionV2: CHANNELS}

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0
