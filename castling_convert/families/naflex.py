"""timm's `NaFlexVit`: a ViT for images of any size and shape, which may share a batch, the shorter ones padded.

Plain images are as for any ViT. In a batch of patches with coordinates, padding is seen by nobody: no landmark pools
it, no exact row looks at it, and the depthwise residual runs on each image's own grid. What stands in the padding's own
place is of no meaning, as in the softmax model. Such batches are for torch alone: timm's own loops over them, which no
exporter takes.

Source: Dehghani et al., "Patch n' Pack: NaViT", NeurIPS 2023, arXiv 2307.06304; Tschannen et al., "SigLIP 2", arXiv
2502.14786.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from timm.layers import Attention, AttentionPoolLatent, AttentionRope, apply_rot_embed_cat
from timm.models._input import update_model_input_size
from timm.models.eva import EvaAttention
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn

from ..attention import Reader, Reading, Regions, TokenGrid
from .base import AttentionLayer, Size
from .called import CalledFamily
from .eva import with_bias

PADDING = -1


class NaFlexReader(Reader):
    takes_windows = False

    def __init__(self, attention: Any, grid: Size, prefix: int) -> None:
        super().__init__(prefix)
        self.grid.height, self.grid.width = grid
        self.qkv = attention.qkv if attention.qkv is None else with_bias(attention.qkv, attention)
        if attention.qkv is None:
            self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.rotate_half = getattr(attention, "rotate_half", False)
        self.norm, self.gate = attention.norm, attention.gate
        self.proj, self.proj_drop = attention.proj, attention.proj_drop
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim = self.value_dim = attention.head_dim
        self.dim = attention.proj.out_features
        self.groups = getattr(attention, "num_kv_groups", 1)

    def read(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Reading:
        """Tokens x, [B, N, C]; angles of the patches, [N - prefix, 2d] or [B or 1, heads or 1, N - prefix, 2d]; what
        timm makes of padding, [B, 1, N or 1, N]."""
        if is_causal:
            raise ValueError("castled attention is not causal")
        parts = self.qkv(x).chunk(3, 2) if self.qkv is not None else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = self.turned(q, rope).type_as(v), self.turned(k, rope).type_as(v)
        if self.groups > 1:  # heads of a group share keys and values
            k, v = (each.repeat_interleave(self.groups, 1) for each in (k, v))
        if attn_mask is None:
            return Reading(q, k, v, rest=x)
        seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask == 0
        return Reading(q, k, v, bias=_added(attn_mask, q.dtype), regions=_without_padding(seen), rest=x)

    def turned(self, x: Tensor, rope: Tensor) -> Tensor:
        """q or k, [B, heads, N, d], by angles that prefix tokens have none of."""
        first, patches = x[:, :, : self.grid.prefix], x[:, :, self.grid.prefix :]
        return torch.cat([first, apply_rot_embed_cat(patches, rope, half=self.rotate_half)], 2)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        y = self.norm(y)
        if self.gate is not None:
            y = y * self.gate(reading.rest).sigmoid()
        return self.proj_drop(self.proj(y))


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to logits."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask


def _without_padding(seen: Tensor) -> Regions:
    """One region, of the keys that are no padding.

    Args:
        seen: [B, 1, N or 1, N]; the first token is no padding.

    Raises:
        ValueError: tokens that are no padding see different ones.
    """
    valid = seen[:, 0, 0]  # B, N
    if seen.shape[2] > 1 and not torch.equal(seen[:, 0], valid[:, :, None] & valid[:, None]):
        raise ValueError("castled attention takes masks of padding alone: this one hides some tokens from some others")
    return Regions(torch.zeros_like(valid, dtype=torch.long), torch.where(valid, 0, PADDING), 1)


class NaFlexFamily(CalledFamily):
    title = "timm NaFlexVit"
    timm_modules = ("naflexvit",)
    models = (NaFlexVit,)
    arguments = frozenset(field.name for field in fields(NaFlexVitCfg))
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        Attention: NaFlexReader,
        AttentionRope: NaFlexReader,
        EvaAttention: NaFlexReader,
    }
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {
        AttentionPoolLatent: "attention pooling has a single query and is already linear in the tokens",
    }

    def reader(self, model: Any, name: str) -> Reader:
        grid = model.embeds.dynamic_feat_size(self.image_size(model))
        return NaFlexReader(model.get_submodule(name), grid, model.num_prefix_tokens)

    def grids(self, model: Any, layers: Sequence[AttentionLayer]) -> dict[str, TokenGrid]:
        height, width = model.embeds.dynamic_feat_size(self.image_size(model))
        grid = TokenGrid(height, width, model.num_prefix_tokens)
        model.embeds.register_forward_pre_hook(_Follow(grid), with_kwargs=True)
        return {layer.name: grid for layer in layers}

    def see_(self, model: Any, image_size: Size) -> None:
        for hook in model.embeds._forward_pre_hooks.values():
            if isinstance(hook, _Follow):
                hook.see(model.embeds, image_size)

    def has_token_dropout(self, model: Any) -> bool:
        return model.patch_drop is not None

    def patch_size(self, model: Any) -> Size:
        height, width = model.embeds.patch_size
        return height, width

    def resize_(self, model: Any, image_size: Size) -> None:
        """Nothing in it is of one size."""
        if image_size != self.image_size(model):
            update_model_input_size(model, image_size)

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features, model.num_prefix_tokens


class _Follow:
    """Forward pre-hook of the embedding: `grid` becomes that of the images that come, [B, C, H, W], or of the patches,
    with their coordinates, [B, N, 2]."""

    def __init__(self, grid: TokenGrid) -> None:
        self.grid = grid

    def __call__(self, embeds: Any, inputs: tuple[Tensor, ...], more: dict[str, Any]) -> None:
        coordinates = more.get("patch_coord")
        if coordinates is None:
            self.see(embeds, tuple(inputs[0].shape[-2:]))
        else:
            self.grid.height, self.grid.width = (coordinates.amax((0, 1)) + 1).tolist()
            self.grid.places = coordinates[..., 0] * self.grid.width + coordinates[..., 1]

    def see(self, embeds: Any, image_size: tuple[int, ...]) -> None:
        self.grid.places = None
        self.grid.height, self.grid.width = embeds.dynamic_feat_size(image_size)
