"""timm's `VisionTransformerRelPos`: global attention with a bias of relative places, from a table or a small network,
of every block or one for all.

The bias enters the linear form as RANK factors for each head that start from its singular values and are trained, in
every layer its own. Where one bias is shared, the model still makes it in eager mode; no graph that is exported has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from timm.models.vision_transformer_relpos import RelPosAttention, VisionTransformerRelPos
from torch import Tensor, nn

from ..attention import Reader, Reading
from ..attention.reader import low_rank, split_heads
from .called import CalledFamily
from .windows import bias_of

RANK = 32
"""Of a bias in the linear form."""


class RelPosReader(Reader):
    def __init__(self, attention: Any, shared: Any, prefix: int) -> None:
        """
        Args:
            shared: the module that makes the bias of all blocks, None where they have their own.
        """
        super().__init__(prefix)
        self.qkv, self.proj, self.proj_drop = attention.qkv, attention.proj, attention.proj_drop
        self.q_norm, self.k_norm, self.rel_pos = attention.q_norm, attention.k_norm, attention.rel_pos
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.head_dim
        self.dim = attention.qkv.in_features
        self.with_bias = True
        places = shared if attention.rel_pos is None else attention.rel_pos
        self.grid.height, self.grid.width = places.window_size
        self.learn_places(*low_rank(bias_of(places), RANK, attention.scale))

    def read(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Reading:
        """Tokens x, [B, N, C], and the bias of all blocks, [1, heads, N, N]."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        bias = None
        if self.with_bias:
            bias = shared_rel_pos if self.rel_pos is None else self.rel_pos.get_bias()
        return Reading(self.q_norm(q), self.k_norm(k), v, self.learned_places, bias)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))

    def fold_(self) -> None:
        self.rel_pos, self.with_bias = None, False


class RelPosFamily(CalledFamily):
    title = "timm VisionTransformerRelPos"
    timm_modules = ("vision_transformer_relpos",)
    models = (VisionTransformerRelPos,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {RelPosAttention: RelPosReader}

    def reader(self, model: Any, name: str) -> Reader:
        return RelPosReader(model.get_submodule(name), model.shared_rel_pos, model.num_prefix_tokens)

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features, model.num_prefix_tokens
