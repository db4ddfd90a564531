"""timm's `SwinTransformerV2` and `SwinTransformerV2Cr`: Swin with cosines and a bias that a small network makes.

The learned scale of the cosines is in q. Shifted windows are masked with -100 as in Swin, but cosines are multiplied by
up to 100: their softmax can see a little through a mask, the linear form nothing.

Source: Liu et al., "Swin Transformer V2", CVPR 2022, arXiv 2111.09883.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2, WindowAttention
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr, WindowMultiHeadAttention
from torch import Tensor, nn

from ..attention import Reader
from ..attention.reader import split_heads
from .called import CalledFamily
from .windows import WindowReader, cosine


class CosineReader(WindowReader):
    def __init__(self, attention: Any, bias: Tensor) -> None:
        super().__init__(attention, bias, softmax_scale=1.0)
        self.logit_scale = attention.logit_scale

    def projected(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = split_heads(self.projected(x), self.num_heads)
        return *cosine(q, k, self.logit_scale), v


class SwinV2Reader(CosineReader):
    """Its keys have no bias, so q and v have theirs outside the projection."""

    def __init__(self, attention: Any) -> None:
        super().__init__(attention, _bias_of(attention))
        self.q_bias, self.v_bias = attention.q_bias, attention.v_bias

    def projected(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        if self.q_bias is None:
            return qkv
        return qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])


class SwinV2CrReader(CosineReader):
    def __init__(self, attention: Any) -> None:
        network = copy.deepcopy(attention).eval()
        super().__init__(attention, network._relative_positional_encodings()[0])


def _bias_of(attention: Any) -> Tensor:
    """What a `WindowAttention` adds to its logits, [heads, N, N]."""
    table = 16 * attention.cpb_mlp(attention.relative_coords_table).flatten(0, -2).sigmoid()
    return table[attention.relative_position_index].permute(2, 0, 1)


class SwinV2Family(CalledFamily):
    title = "timm Swin V2"
    timm_modules = ("swin_transformer_v2", "swin_transformer_v2_cr")
    models = (SwinTransformerV2, SwinTransformerV2Cr)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        WindowAttention: SwinV2Reader,
        WindowMultiHeadAttention: SwinV2CrReader,
    }

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        """V2-CR has its channels first."""
        if isinstance(model, SwinTransformerV2Cr):
            return features.flatten(2).transpose(1, 2), 0
        return features.flatten(1, 2), 0
