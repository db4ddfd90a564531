"""timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, Sapiens and the ViTs with rotary positions.

As `VisionTransformer`, with q and k turned by rotary positions, biases of q, k and v that may stand apart, and scales
of the branches that are parameters of the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import nn

from ..attention import Projections, Reader
from .base import AttentionLayer, Family
from .rotation import Rotation
from .vit import VisionTransformerFamily, scale_outputs_


class EvaFamily(VisionTransformerFamily):
    kinds = (EvaAttention, AttentionRope)
    readers: Mapping[type[nn.Module], type[Reader]] = {}
    title = "timm Eva"
    timm_modules = ("eva",)

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, Eva)

    def projections(self, model: Any, layer: AttentionLayer) -> Projections:
        attention: Any = model.get_submodule(layer.name)
        rotation = None
        if model.rope is not None:
            rotation = Rotation(model.rope, attention.rotate_half, layer.block if model.rope_mixed else None)
        plain = super().projections(model, layer)
        assert isinstance(plain, Projections)
        return replace(plain, qkv=with_bias(plain.qkv, attention), rotation=rotation)

    def has_token_dropout(self, model: Any) -> bool:
        return model.patch_drop is not None

    def absorb_layer_scale_(self, model: nn.Module) -> int:
        absorbed = 0
        for block in model.modules():
            if isinstance(block, EvaBlock):
                for name, linear in (("gamma_1", block.attn.proj), ("gamma_2", block.mlp.fc2)):
                    scale = getattr(block, name)
                    if scale is not None:
                        scale_outputs_(linear, scale)
                        setattr(block, name, None)
                        absorbed += 1
        return absorbed

    def not_of_one_size(self, model: Any) -> list[tuple[Any, str, Any]]:
        changes = super().not_of_one_size(model)
        if getattr(model.rope, "_use_cached_embed", False):  # angles of one grid; those of the grid that comes
            changes.append((model.rope, "_use_cached_embed", False))
        return changes

    def any_size_(self, model: nn.Module) -> None:
        Family.any_size_(self, model)


def with_bias(qkv: nn.Linear, attention: Any) -> nn.Linear:
    """`qkv` with the biases that `attention` has beside it inside, if it has any."""
    if getattr(attention, "q_bias", None) is None:
        return qkv
    weight = qkv.weight.detach()
    joined = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        joined.weight.copy_(weight)
        joined.bias.copy_(torch.cat((attention.q_bias, attention.k_bias, attention.v_bias)))
    return joined
