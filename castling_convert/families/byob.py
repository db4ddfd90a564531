"""timm's `ByobNet`: MobileViT, and ResNets whose last stages have attention, such as BoTNet.

MobileViT's tokens are patches of a map, and attention is called with one window for each place within a patch: plain
attention, no biases. In BoTNet softmax adds products of q with a vector for each distance along both axes. These are
factors exactly, with r = height + width:

    q_i·(H_{y(j)-y(i)} + W_{x(j)-x(i)}) = Σ_r f_r(i) g_r(j)      g(j) = one-hot of y(j) and of x(j)

Sources: Mehta and Rastegari, "MobileViT", ICLR 2022, arXiv 2110.02178; Srinivas et al., "Bottleneck Transformers for
Visual Recognition", CVPR 2021, arXiv 2101.11605.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from timm.layers import Attention, AttentionPool2d, RotAttentionPool2d
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from timm.layers.lambda_layer import LambdaLayer
from timm.models.byobnet import ByobNet
from timm.models.mobilevit import LinearSelfAttention
from torch import Tensor, nn

from ..attention import Reader, Reading
from .base import Size
from .called import CalledFamily, follow
from .plain import MapReader, TokensReader

_SEPARABLE = "separable self-attention is linear in the tokens already"
_HALOS = "its softmax is within blocks and their halos, which is linear in the tokens already"
_LAMBDA = "lambda layers have no softmax of queries and keys, and are linear in the queries already"
_WIDTHS = ("050", "075", "100", "125", "150", "175", "200")
_POOLING = "attention pooling has a single query and is already linear in the tokens"


class BottleneckReader(MapReader):
    rows: Tensor
    columns: Tensor
    places: Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.pool = attention.qkv, attention.pool
        self.height_rel, self.width_rel = attention.pos_embed.height_rel, attention.pos_embed.width_rel
        self.num_heads, self.softmax_scale = attention.num_heads, attention.scale
        self.head_dim, self.value_dim = attention.dim_head_qk, attention.dim_head_v
        self.dim = attention.qkv.in_channels
        self.unscaled = 1.0 if attention.scale_pos_embed else 1 / attention.scale
        height, width = attention.pos_embed.height, attention.pos_embed.width
        self.grid.height, self.grid.width, self.extra = height, width, height + width
        device = attention.qkv.weight.device
        for name, size in (("rows", height), ("columns", width)):
            steps = torch.arange(size, device=device)
            self.register_buffer(name, steps - steps[:, None] + size - 1, persistent=False)  # of a query, of a key
        both = torch.cat(
            [torch.eye(height).repeat_interleave(width, 0), torch.eye(width).repeat(height, 1)], -1
        )  # N, height + width
        self.register_buffer("places", both.to(attention.qkv.weight), persistent=False)

    def read(self, x: Tensor) -> Reading:
        sizes = self.num_heads * self.head_dim, self.num_heads * self.head_dim, self.num_heads * self.value_dim
        q, k, v = (
            self.on_map(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in self.qkv(x).split(sizes, 1)
        )
        lain = q.unflatten(2, (self.grid.height, self.grid.width))  # B, heads, height, width, d
        of_rows = lain @ self.height_rel[self.rows].transpose(1, 2)  # B, heads, height, width, height
        of_columns = (lain.transpose(2, 3) @ self.width_rel[self.columns].transpose(1, 2)).transpose(2, 3)
        f = torch.cat([of_rows, of_columns], -1).flatten(2, 3) * self.unscaled
        return Reading(q, k, v, (f, self.places[None, None]))

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.pool(self.as_map(y))


class ByobFamily(CalledFamily):
    title = "timm MobileViT and BoTNet"
    timm_modules = ("mobilevit", "byoanet")
    models = (ByobNet,)
    readers: ClassVar[Mapping[type[nn.Module], type[Reader]]] = {
        Attention: TokensReader,
        BottleneckAttn: BottleneckReader,
    }
    reasons: ClassVar[Mapping[type[nn.Module], str]] = {
        LinearSelfAttention: _SEPARABLE,
        HaloAttn: _HALOS,
        LambdaLayer: _LAMBDA,
        AttentionPool2d: _POOLING,
        RotAttentionPool2d: _POOLING,
    }
    on_maps = (LinearSelfAttention, HaloAttn, LambdaLayer, AttentionPool2d, RotAttentionPool2d)
    excluded: Mapping[str, str] = {
        **dict.fromkeys((f"mobilevitv2_{width}" for width in _WIDTHS), _SEPARABLE),
        **dict.fromkeys(
            ("halonet_h1", "halonet26t", "sehalonet33ts", "halonet50ts", "eca_halonext26ts", "haloregnetz_b"), _HALOS
        ),
        **dict.fromkeys(("lambda_resnet26t", "lambda_resnet50ts", "lambda_resnet26rpt_256"), _LAMBDA),
    }

    def reader(self, model: Any, name: str) -> Reader:
        reader = super().reader(model, name)
        if isinstance(reader, TokensReader):  # stages.2.1.transformer.0.attn
            block = model.get_submodule(name.partition(".transformer.")[0])
            follow(reader.grid, block.conv_1x1, block.patch_size)
        return reader

    def patch_size(self, model: Any) -> Size:
        """What halving five times is exact for."""
        return 32, 32

    def tokens(self, model: Any, features: Tensor) -> tuple[Tensor, int]:
        return features.flatten(2).transpose(1, 2), 0
