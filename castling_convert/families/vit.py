"""timm's `VisionTransformer`: ViT, DeiT, DeiT-III, distilled DeiT, DINO, DINOv2, CLIP, SigLIP, hybrids.

Layers are found by their class, not by their place, so fused and separate projections, q/k norms,
output norms, gates, register tokens, parallel blocks and models without a class token need no cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, AttentionRope, DiffAttention, LayerScale, PatchDropout
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)
from torch import nn

from ..attention import Projections, TokenGrid
from .base import AttentionLayer, Family

_REASONS: dict[type[nn.Module], str] = {
    DiffAttention: "differential attention subtracts two softmax maps and has no angular form",
    ParallelScalingBlock: "attention and MLP share one projection in this block",
    DiffParallelScalingBlock: "attention and MLP share one projection in this block",
    AttentionPoolLatent: "attention pooling has a single query and is already linear in the tokens",
}


class VisionTransformerFamily(Family):
    title = "timm VisionTransformer"
    timm_modules = ("vision_transformer", "deit", "vision_transformer_hybrid")
    # Every block of these is one of the classes in _REASONS.
    excluded_names = frozenset(
        {
            "vit_base_patch16_xp_224",
            "vit_large_patch14_xp_224",
            "vit_huge_patch14_xp_224",
            "vit_dlittle_patch16_reg1_gap_256",
            "vit_pwee_patch16_reg1_gap_256",
            "vit_dpwee_patch16_reg1_gap_256",
            "vit_dwee_patch16_reg1_gap_256",
        }
    )

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, VisionTransformer)

    def layers(self, model: nn.Module) -> list[AttentionLayer]:
        tokens = _tokens(model)
        found = []
        for name, module in model.named_modules():
            if type(module) in (Attention, AttentionRope):
                grouped = getattr(module, "num_kv_groups", 1) > 1
                reason = "grouped-query attention shares keys between heads" if grouped else None
            elif type(module) in _REASONS:
                reason = _REASONS[type(module)]
            elif isinstance(module, Attention | AttentionRope):
                reason = f"{type(module).__name__} changes timm's attention in a way that is not known here"
            else:
                continue
            parts = name.split(".")
            found.append(
                AttentionLayer(
                    name=name,
                    block=int(parts[1]) if parts[0] == "blocks" else None,
                    kind=type(module).__name__,
                    num_heads=module.num_heads,
                    head_dim=module.head_dim,
                    tokens=tokens,
                    reason=reason,
                )
            )
        return found

    def projections(self, model: nn.Module, layer: AttentionLayer) -> Projections:
        attention: Any = model.get_submodule(layer.name)
        return Projections(
            qkv=attention.qkv if attention.qkv is not None else _fuse_qkv(attention),
            proj=attention.proj,
            num_heads=attention.num_heads,
            head_dim=attention.head_dim,
            softmax_scale=attention.scale,
            q_norm=attention.q_norm,
            k_norm=attention.k_norm,
            norm=attention.norm,
            gate=attention.gate,
            proj_drop=attention.proj_drop.p,
        )

    def token_grid(self, model: Any) -> TokenGrid:
        height, width = model.patch_embed.grid_size
        grid = TokenGrid(height, width, model.num_prefix_tokens)
        model.patch_embed.register_forward_pre_hook(grid.follow)
        return grid

    def has_token_dropout(self, model: nn.Module) -> bool:
        return isinstance(model.patch_drop, PatchDropout)

    def absorb_layer_scale_(self, model: nn.Module) -> int:
        absorbed = 0
        for owner, name, linear in _layer_scales(model):
            scale = getattr(owner, name)
            if isinstance(scale, LayerScale) and isinstance(linear, nn.Linear):
                _scale_outputs_(linear, scale.gamma)
                setattr(owner, name, nn.Identity())
                absorbed += 1
        return absorbed


def _layer_scales(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module | None]]:
    """Where a LayerScale can be: its owner, its name there, and the projection right before it."""
    block: Any
    for block in model.modules():
        if type(block) is Block:
            yield block, "ls1", block.attn.proj
            yield block, "ls2", getattr(block.mlp, "fc2", None)
        elif type(block) is ParallelThingsBlock:
            for branch in block.attns:
                yield branch, "ls", branch.attn.proj
            for branch in block.ffns:
                yield branch, "ls", getattr(branch.mlp, "fc2", None)


def _tokens(model: Any) -> int:
    height, width = model.patch_embed.grid_size
    return height * width + model.num_prefix_tokens


def _fuse_qkv(attention: Any) -> nn.Linear:
    """Separate q, k and v projections as one, exactly; a missing bias among present ones becomes zeros."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    has_bias = any(part.bias is not None for part in parts)
    weight = torch.cat([part.weight.detach() for part in parts])
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias).to(weight)
    with torch.no_grad():
        fused.weight.copy_(weight)
        if has_bias:
            zeros = [weight.new_zeros(part.out_features) for part in parts]
            biases = [zero if part.bias is None else part.bias for part, zero in zip(parts, zeros, strict=True)]
            fused.bias.copy_(torch.cat(biases))
    return fused


@torch.no_grad()
def _scale_outputs_(linear: nn.Linear, gamma: torch.Tensor) -> None:
    linear.weight.mul_(gamma[:, None])
    if linear.bias is not None:
        linear.bias.mul_(gamma)
