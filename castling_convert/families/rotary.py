"""timm's vision encoders of language models, Qwen3, DeepSeek and Gemma 4, with or without a classifier behind them.

Their queries and keys are turned by rotary positions, which the model hands its layers. Turned q and k are all that
softmax and the linear form see, so there is no bias of places. The encoders' own projectors stay. Gemma's layers whose
inputs and outputs are clamped (its 167m models) can't be exported as ONNX, castled or not: torch.onnx makes of clamps
with bounds that are tensors a graph that onnx's checker refuses.

Sources: timm's modules of these names. Su et al., "RoFormer", arXiv 2104.09864.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models._input import update_model_input_size
from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder
from timm.models.gemma4_vit import (
    Gemma4Attention,
    Gemma4VitClassifier,
    Gemma4VitEncoder,
    apply_multidimensional_rope,
)
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import split_heads
from .base import Size
from .called import CalledFamily

ENCODERS = (Qwen3VitEncoder, DeepseekVitEncoder, Gemma4VitEncoder)


class RotaryReader(Reader):
    def __init__(self, attention: Any, grid: Size) -> None:
        super().__init__()
        self.grid.height, self.grid.width = grid
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.value_dim = attention.head_dim
        self.proj_drop = attention.proj_drop
        self._keep(attention)

    def _keep(self, attention: Any) -> None:
        """The trained modules."""
        self.softmax_scale = attention.scale
        self.dim = attention.qkv.in_features
        self.qkv, self.proj = attention.qkv, attention.proj
        self.rotates_halves = attention.rotate_half

    def read(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Reading:
        """Tokens x, [B, N, C], and the sines and cosines of their places, [N, 2·d]."""
        _refuse(attn_mask is not None or is_causal)
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        if rope is not None:
            q, k = (apply_rot_embed_cat(part, rope, half=self.rotates_halves).type_as(v) for part in (q, k))
        return Reading(q, k, v)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))


class GemmaReader(RotaryReader):
    """Keys and values of fewer heads than queries are repeated, as softmax does; q, k and v have norms."""

    softmax_scale = 1.0

    def _keep(self, attention: Any) -> None:
        self.groups = attention.num_kv_groups
        self.dim = attention.q_proj.linear.in_features
        self.proj = attention.o_proj
        for part in "qkv":
            setattr(self, f"{part}_proj", getattr(attention, f"{part}_proj"))
            setattr(self, f"{part}_norm", getattr(attention, f"{part}_norm"))

    def read(self, x: Tensor, rope_cos: Tensor, rope_sin: Tensor, attn_mask: Tensor | None = None) -> Reading:  # type: ignore[override]
        """Tokens x, [B, N, C], and the cosines and sines of their places, [B, N, d]."""
        _refuse(attn_mask is not None)
        q, k, v = (self.normed(x, part) for part in "qkv")
        q, k = (apply_multidimensional_rope(part, rope_cos, rope_sin) for part in (q, k))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.groups > 1:
            k, v = (part.repeat_interleave(self.groups, 1) for part in (k, v))
        return Reading(q, k, v)

    def normed(self, x: Tensor, part: str) -> Tensor:
        """q, k or v of x, [B, N, heads, d]."""
        heads = getattr(self, f"{part}_proj")(x).unflatten(2, (-1, self.head_dim))
        return getattr(self, f"{part}_norm")(heads)


def _refuse(masked: bool) -> None:
    if masked:
        raise ValueError("castled attention takes no attention mask here: give whole images, without padding")


class RotaryFamily(CalledFamily):
    title = "timm Qwen3, DeepSeek and Gemma 4 ViT"
    timm_modules = ("qwen3_vit", "deepseek_vit", "gemma4_vit")
    models = (*ENCODERS, Qwen3VitClassifier, DeepseekVitClassifier, Gemma4VitClassifier)
    readers: ClassVar[Mapping[type[nn.Module], type[Any]]] = {
        AttentionRope: RotaryReader,
        Gemma4Attention: GemmaReader,
    }

    def reader(self, model: Any, name: str) -> Reader:
        attention = model.get_submodule(name)
        return self.readers[type(attention)](attention, self.grid(model))

    def grid(self, model: Any) -> Size:
        """Of the patches of its images; what hangs over is padded, where the model takes it."""
        (height, width), (down, across) = self.image_size(model), self.patch_size(model)
        return -(-height // down), -(-width // across)

    def resize_(self, model: Any, image_size: Size) -> None:
        """These models take any image size; they are told what theirs is, and the layers where their tokens lie."""
        update_model_input_size(model, image_size)
        for module in model.modules():
            if isinstance(module, Reader):
                module.grid.height, module.grid.width = self.grid(model)

    def patch_size(self, model: Any) -> Size:
        size = _encoder(model).patch_embed.patch_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def classes(self, model: Any) -> int | None:
        return 0 if isinstance(model, ENCODERS) else None

    def features(self, model: Any, images: Tensor) -> Tensor:
        return model(images) if isinstance(model, ENCODERS) else super().features(model, images)

    def head(self, model: Any, features: Tensor) -> Tensor:
        return features if isinstance(model, ENCODERS) else super().head(model, features)

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(1, -2), 0

    def head_modules(self, model: Any) -> set[str]:
        return set() if isinstance(model, ENCODERS) else super().head_modules(model)


def _encoder(model: Any) -> Any:
    return model if isinstance(model, ENCODERS) else model.encoder
