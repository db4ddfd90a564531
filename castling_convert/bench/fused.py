"""The softmax model as onnxruntime runs it fastest."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Projections
from ..families import family_of
from ..families.rotation import Rotation


class FusedAttention(nn.Module):
    """Softmax attention as onnxruntime's own MultiHeadAttention operator, the fastest it has for it."""

    def __init__(self, source: Projections) -> None:
        super().__init__()
        self.source = source
        self.qkv, self.proj, self.norm, self.gate = source.qkv, source.proj, source.norm, source.gate
        self.q_norm, self.k_norm = source.q_norm, source.k_norm

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rope: Tensor | None = None
    ) -> Tensor:
        """Tokens [B, N, C] to tokens [B, N, C]."""
        heads, d = self.source.num_heads, self.source.head_dim
        q, k, v = self.qkv(x).chunk(3, -1)
        if not isinstance(self.q_norm, nn.Identity):
            q, k = (norm(t.unflatten(-1, (heads, d))).flatten(-2) for norm, t in ((self.q_norm, q), (self.k_norm, k)))
        if rope is not None and isinstance(self.source.rotation, Rotation):
            q, k = (t.unflatten(-1, (heads, d)).transpose(1, 2) for t in (q, k))
            turned = self.source.rotation.turned(q, k, rope, q.shape[2] - rope.shape[-2])
            q, k = (t.transpose(1, 2).flatten(2) for t in turned)
        if torch.compiler.is_exporting():
            y = torch.onnx.ops.symbolic(
                "com.microsoft::MultiHeadAttention", (q, k, v),
                {"num_heads": heads, "scale": self.source.softmax_scale}, dtype=v.dtype, shape=v.shape, version=1,
            )  # fmt: skip
        else:
            q, k, v = (t.unflatten(-1, (heads, d)).transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, scale=self.source.softmax_scale).transpose(1, 2).flatten(2)
        y = self.norm(y)
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.proj(y)


def fuse_attention(softmax: Any) -> Any | None:
    """A copy whose softmax layers are `FusedAttention`; None where none of them can be."""
    fused = copy.deepcopy(softmax)
    family = family_of(fused)
    for layer in family.layers(fused):
        source = family.projections(fused, layer) if layer.castable else None
        if isinstance(source, Projections):
            fused.set_submodule(layer.name, FusedAttention(source))
    return fused if any(isinstance(module, FusedAttention) for module in fused.modules()) else None
