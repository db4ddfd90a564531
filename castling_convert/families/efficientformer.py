"""timm's `EfficientFormer` and `EfficientFormerV2`: attention in the last stages, a bias of places and wide values.

The bias, a table for each head of the distances along both axes, enters the linear form as RANK factors that start from
its singular values and are trained. In the second version queries may be those of every second place, and what stands
beside attention, a depthwise convolution of v, is the residual that castled layers else have. Its other layers, whose
heads mix with each other, stay softmax.

Sources: Li et al., "EfficientFormer: Vision Transformers at MobileNet Speed", NeurIPS 2022, arXiv 2206.01191;
"Rethinking Vision Transformers for MobileNet Size and Speed", ICCV 2023, arXiv 2212.08059.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.efficientformer import Attention, EfficientFormer
from timm.models.efficientformer_v2 import Attention2d, Attention2dDownsample, EfficientFormerV2
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import RANK, low_rank
from .called import CalledFamily, follow


class _BiasedReader(Reader):
    """What both versions share: q and k of `key_dim`, and the bias."""

    index: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = attention.key_dim
        self.table: nn.Parameter | None = attention.attention_biases
        self.register_buffer("index", attention.attention_bias_idxs, persistent=False)
        bias = attention.attention_biases[:, attention.attention_bias_idxs]
        self.learn_places(*low_rank(bias, RANK, attention.scale))

    def reading(self, q: Tensor, k: Tensor, v: Tensor, rest: Any = None) -> Reading:
        bias = None if self.table is None else self.table[:, self.index][None]
        return Reading(q, k, v, self.learned_places, bias, rest=rest)

    def fold_(self) -> None:
        self.table = None
        del self.index


class EfficientFormerReader(_BiasedReader):
    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self.qkv, self.proj = attention.qkv, attention.proj
        self.value_dim, self.dim = attention.val_dim, attention.qkv.in_features

    def read(self, x: Tensor) -> Reading:
        """Tokens x, [B, N, C]; q, k and v lie side by side in every head."""
        heads = self.qkv(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.reading(*heads.split([self.head_dim, self.head_dim, self.value_dim], -1))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj(y)


class DownsampleReader(_BiasedReader):
    """Maps [B, C, height, width] to maps of half the height and width."""

    on_grid = False

    def __init__(self, attention: Any) -> None:
        super().__init__(attention)
        self.q, self.k, self.v, self.v_local = attention.q, attention.k, attention.v, attention.v_local
        self.act, self.proj = attention.act, attention.proj
        self.value_dim, self.dim = attention.d, attention.k.conv.in_channels

    def read(self, x: Tensor) -> Reading:
        self.grid.height, self.grid.width = x.shape[-2:]
        v = self.v(x)
        q, k, values = (
            y.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3) for y in (self.q(x), self.k(x), v)
        )
        return self.reading(q, k, values, self.v_local(v))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        local: Tensor = reading.rest
        return self.proj(self.act(y.transpose(1, 2).unflatten(2, tuple(local.shape[-2:])) + local))

    def tokens(self, output: Tensor) -> Tensor:
        return output.flatten(2).transpose(1, 2)


class EfficientFormerFamily(CalledFamily):
    title = "timm EfficientFormer"
    timm_modules = ("efficientformer", "efficientformer_v2")
    models = (EfficientFormer, EfficientFormerV2)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        Attention: EfficientFormerReader,
        Attention2dDownsample: DownsampleReader,
    }
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {
        Attention2d: "its heads mix their weights after softmax, and a linear form of that is as many times as wide"
    }
    on_maps = (Attention2d,)

    def reader(self, model: Any, name: str) -> Reader:
        reader = super().reader(model, name)
        if isinstance(reader, EfficientFormerReader):
            # Maps become tokens within the last stage, after its convolutional blocks, which do not change their size.
            follow(reader.grid, model.get_submodule(".".join(name.split(".")[:2])).downsample)
        return reader

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return (features, 0) if features.ndim == 3 else (features.flatten(2).transpose(1, 2), 0)
