"""timm's `VisionTransformer`: ViT, DeiT, DeiT-III, distilled DeiT, DINO, DINOv2, CLIP, SigLIP, hybrids.

Layers are found by their class, not by their place, so fused and separate projections, q/k norms,
output norms, gates, register tokens, parallel blocks and models without a class token need no cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, AttentionRope, LayerScale, PatchDropout
from timm.models.vision_transformer import Block, ParallelThingsBlock, VisionTransformer
from torch import Tensor, nn

from ..attention import Projections, Reader, TokenGrid
from ..errors import ModelError
from .base import AttentionLayer, Family, Size, set_input_size_
from .half import NORMS, Float32Norm
from .positions import cubic_weights
from .vit_readers import READERS

_REASONS: dict[type[nn.Module], str] = {
    AttentionPoolLatent: "attention pooling has a single query and is already linear in the tokens",
}


class VisionTransformerFamily(Family):
    kinds: tuple[type[nn.Module], ...] = (Attention, AttentionRope)
    """Of attention whose weights are read; subclasses of them are not."""
    readers: Mapping[type[nn.Module], type[Reader]] = READERS
    """Of other attention, by its exact class."""
    title = "timm VisionTransformer"
    timm_modules: tuple[str, ...] = ("vision_transformer", "deit", "vision_transformer_hybrid", "vitamin")

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, VisionTransformer)

    def layers(self, model: nn.Module, image_size: Size | None = None) -> list[AttentionLayer]:
        height, width = _grid(model, image_size or self.image_size(model))
        prefix: int = model.num_prefix_tokens  # type: ignore[assignment]
        tokens = prefix + height * width
        found = []
        for name, module in model.named_modules():
            if type(module) in self.kinds:
                grouped = getattr(module, "num_kv_groups", 1) > 1
                reason = "grouped-query attention shares keys between heads" if grouped else None
            elif type(module) in self.readers:
                reason = None
            elif type(module) in _REASONS:
                reason = _REASONS[type(module)]
            elif isinstance(module, self.kinds):
                reason = f"{type(module).__name__} changes timm's attention in a way that is not known here"
            else:
                continue
            parts = name.split(".")
            layer = AttentionLayer(
                name=name,
                block=int(parts[1]) if parts[0] == "blocks" else None,
                kind=type(module).__name__,
                num_heads=module.num_heads,
                head_dim=module.head_dim,
                tokens=tokens,
                grid=(height, width),
                prefix=prefix,
                dim=model.embed_dim,  # type: ignore[arg-type]
                keys=tokens,
                reason=reason,
            )
            found.append(self._as_read(layer, module) if type(module) in self.readers else layer)
        return found

    def _as_read(self, layer: AttentionLayer, module: nn.Module) -> AttentionLayer:
        """With the heads that its reader makes, and the MACs of all its weights."""
        reader = self.readers[type(module)](module)  # type: ignore[arg-type]
        weights = sum(part.weight.numel() for part in reader.modules() if isinstance(part, nn.Linear))
        return replace(
            layer,
            num_heads=reader.num_heads,
            head_dim=reader.head_dim,
            value_dim=reader.value_dim,
            projections=layer.tokens * weights,
        )

    def projections(self, model: nn.Module, layer: AttentionLayer) -> Projections | Reader:
        attention: Any = model.get_submodule(layer.name)
        if type(attention) in self.readers:
            return self.readers[type(attention)](attention)
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

    def grids(self, model: Any, layers: Sequence[AttentionLayer]) -> dict[str, TokenGrid]:
        height, width = model.patch_embed.grid_size
        grid = TokenGrid(height, width, model.num_prefix_tokens)
        model.patch_embed.register_forward_pre_hook(_Follow(grid))
        return {layer.name: grid for layer in layers}

    def block_names(self, model: Any) -> list[str]:
        return [f"blocks.{name}" for name, _ in model.blocks.named_children()]

    def has_token_dropout(self, model: nn.Module) -> bool:
        return isinstance(model.patch_drop, PatchDropout)

    def absorb_layer_scale_(self, model: nn.Module) -> int:
        absorbed = 0
        for owner, name, linear in _layer_scales(model):
            scale = getattr(owner, name)
            if isinstance(scale, LayerScale) and isinstance(linear, nn.Linear):
                scale_outputs_(linear, scale.gamma)
                setattr(owner, name, nn.Identity())
                absorbed += 1
        return absorbed

    def image_size(self, model: Any) -> Size:
        height, width = model.patch_embed.img_size
        return height, width

    def patch_size(self, model: Any) -> Size:
        height, width = model.patch_embed.patch_size
        return height, width

    def resize_(self, model: Any, image_size: Size) -> None:
        set_input_size_(model, image_size)

    def see_(self, model: Any, image_size: Size) -> None:
        for hook in model.patch_embed._forward_pre_hooks.values():
            if isinstance(hook, _Follow):
                hook.see(model.patch_embed, image_size)

    def any_size_(self, model: Any) -> None:
        """Let a plain ViT take any image size; its position embeddings are resampled to each.

        timm's `dynamic_img_size` does the same by Resize with antialiased cubic filters, which TensorRT does not
        have and OpenVINO computes differently; two small products with the filters' weights run everywhere.
        """
        embed = model.patch_embed
        embed.strict_img_size = False
        if model.pos_embed is None:
            return
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        tokens, positions = model.pos_embed.detach().split([prefix, model.pos_embed.shape[1] - prefix], dim=1)
        first = 0
        for name in ("cls_token", "dist_token", "reg_token"):  # in the order of the sequence
            token = getattr(model, name, None)
            if token is not None and prefix:
                token.data = token.data + tokens[:, first : first + token.shape[1]]
                first += token.shape[1]
        model.pos_embed = nn.Parameter(torch.zeros_like(positions[:, :1]), requires_grad=False)
        grid = positions[0].unflatten(0, embed.grid_size).transpose(1, 2).contiguous()  # height, C, width
        embed.register_buffer("positions", grid, persistent=False)
        embed.register_forward_hook(_add_positions)

    def to_half_(self, model: Any, dtype: torch.dtype) -> None:
        for name in ("patch_embed", "norm_pre", "blocks"):
            getattr(model, name).to(dtype)
        for parameter in model.parameters(recurse=False):  # tokens and position embeddings
            parameter.data = parameter.data.to(dtype)
        features = [(name, module) for name, module in model.named_modules() if isinstance(module, NORMS)]
        for name, module in features:
            if name.startswith(("patch_embed.", "blocks.")) or name in ("norm_pre", "norm"):
                model.set_submodule(name, Float32Norm(module))


def _layer_scales(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module | None]]:
    """Where a LayerScale can be: its owner, its name there, and the projection right before it."""
    block: Any
    for block in model.modules():
        if type(block) is Block:
            yield block, "ls1", (getattr(block.attn, "reader", None) or block.attn).proj
            yield block, "ls2", getattr(block.mlp, "fc2", None)
        elif type(block) is ParallelThingsBlock:
            for branch in block.attns:
                yield branch, "ls", branch.attn.proj
            for branch in block.ffns:
                yield branch, "ls", getattr(branch.mlp, "fc2", None)


def _grid(model: Any, image_size: Size) -> Size:
    """Height and width of the patch grid of such images."""
    height, width = model.patch_embed.dynamic_feat_size(image_size)
    if 0 in (height, width):
        raise ModelError(
            f"images of {'x'.join(map(str, image_size))} hold no patch of this model; give a larger --image-size"
        )
    return height, width


class _Follow:
    """Forward pre-hook of a patch embedding: `grid` becomes that of the images that come, [B, C, H, W]. A copy of the
    model has a copy of the grid, in the hook as in the layers."""

    def __init__(self, grid: TokenGrid) -> None:
        self.grid = grid

    def __call__(self, patch_embed: Any, images: tuple[torch.Tensor, ...]) -> None:
        self.see(patch_embed, tuple(images[0].shape[-2:]))

    def see(self, patch_embed: Any, image_size: tuple[int, ...]) -> None:
        self.grid.height, self.grid.width = patch_embed.dynamic_feat_size(image_size)


def _add_positions(embed: Any, inputs: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
    """Forward hook of a patch embedding: tokens [B, N, C] with the positions of this image's grid."""
    height, width = embed.dynamic_feat_size(tuple(inputs[0].shape[-2:]))
    grid = embed.positions.float()  # old height, C, old width
    rows, columns = cubic_weights(grid.shape[0], height), cubic_weights(grid.shape[2], width)
    # Products of matrices alone: OpenVINO's CPU plugin fails on other ranks.
    wide = (grid.flatten(0, 1) @ columns.T).reshape(grid.shape[0], -1)  # old height, C·width
    resampled = (rows @ wide).reshape(height, grid.shape[1], width).transpose(1, 2)  # height, width, C
    return tokens + resampled.reshape(1, height * width, -1).to(tokens.dtype)


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
def scale_outputs_(linear: nn.Linear, gamma: torch.Tensor) -> None:
    linear.weight.mul_(gamma[:, None])
    if linear.bias is not None:
        linear.bias.mul_(gamma)
