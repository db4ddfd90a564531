"""Learned angular features: a sharp kernel of the angle between rotated queries and keys, linear in the tokens.

With z = W x for a learned d x d matrix W a head, one for the queries and one for the keys, u = z / |z| and powers taken
coordinate by coordinate,

    k(q, k) = Σ_c relu(u_q)ᵖ relu(u_k)ᵖ + relu(-u_q)ᵖ relu(-u_k)ᵖ            y_i = Σ_j w_j k(q_i, k_j) v_j / Σ_j w_j k(q_i, k_j)

where w = softmax over the tokens of a·z_k, a learned direction a head: what the length and the place of a key say of how
much it is looked at, which the angle leaves out. W starts as the identity, a as zero.

The kernel is half the product of the features [s, |s|] with s = sign(u) |u|ᵖ, which have no comparison in them, and
which is how it is computed: 2·N·2d·d multiply-accumulates a head, 2·N·2d for the sum of a row.

Sources: powers of relu features from Han et al., "FLatten Transformer", ICCV 2023, arXiv 2308.00442; a learned map a
head that starts from the identity from Zhang et al., "The Hedgehog & the Porcupine", arXiv 2402.04347. That the angle
carries them, and the key weights, were chosen in `benchmarks/pretrained.md`.

Queries and keys are rotated once, for the features, for the softmax of prefix tokens and windows and for the masked
branch alike, so that W folds into the projections where nothing stands between (`FoldedFeatures`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .castled import CastledAttention, FoldedAttention, Projections
from .config import AttentionConfig
from .cost import Shape
from .grid import TokenGrid
from .norms import unit, wide

LENGTH = 4.0
"""Of u. It drops out of y; at this length powers and their sums stay within half precision."""
FLOOR = 2e-4
"""Added to |s|, over LENGTHᵖ: no row of weights sums to zero."""


class FeaturesConfig(AttentionConfig):
    """`attention.form: features`.

    Attributes:
        power: p; the higher, the sharper.
        prefix_rows: as for every form, but on unless it is turned off.
    """

    form: Literal["features"] = "features"
    prefix_rows: bool = True
    power: Literal[2, 3, 4] = 3


def feature_map(z: Tensor, config: FeaturesConfig) -> Tensor:
    """The features [s, |s| + floor] of z, [B, heads, N, d] to [B, heads, N, 2·d]."""
    u = unit(z, config.eps, LENGTH)
    if config.power == 2:
        s = u * u.abs()
    elif config.power == 3:
        s = u * u * u
    else:
        s = u * u * (u * u.abs())
    return torch.cat([s, s.abs() + FLOOR * LENGTH**config.power], -1)


def linear_features(q: Tensor, k: Tensor, v: Tensor, key_logits: Tensor, config: FeaturesConfig) -> Tensor:
    """The y of above for rotated q and k, [B, heads, N, d], and a·z_k, [B, heads, N, 1]."""
    values = wide(v)
    # What is summed over tokens is float32; the weights of the keys sum to one, so the sums stay small at any N.
    keys = feature_map(wide(k), config) * wide(key_logits).softmax(-2)
    queries = feature_map(wide(q), config).to(v.dtype)
    context = (keys.transpose(-2, -1) @ values).to(v.dtype)  # B, heads, 2·d, d
    total = keys.sum(-2).unsqueeze(-1).to(v.dtype)  # B, heads, 2·d, 1
    return queries @ context / (queries @ total)


def features_matrix(q: Tensor, k: Tensor, key_logits: Tensor, config: FeaturesConfig) -> Tensor:
    """The explicit weights, [B, heads, N, N]. For checks only."""
    weights = feature_map(q, config) @ (feature_map(k, config) * key_logits.softmax(-2)).transpose(-2, -1)
    return weights / weights.sum(-1, keepdim=True)


def features_cost(shape: Shape, config: FeaturesConfig) -> tuple[int, int]:
    """MACs of the two products and the sum of a row, and of a·z_k; held are the features of q and k and the context."""
    size, features = shape.size, 2 * shape.head_dim
    macs = 2 * shape.tokens * features * size + shape.tokens * features * shape.num_heads + shape.tokens * size
    return macs, 2 * shape.tokens * 2 * size + features * size


class FeaturesAttention(CastledAttention):
    """Training form, W as `rotate_q` and `rotate_k`, [heads, d, d], and a as `key_direction`, [heads, d, 1]."""

    config: FeaturesConfig

    def __init__(self, source: Projections, config: FeaturesConfig, grid: TokenGrid) -> None:
        super().__init__(source, config, grid)
        weight, d = source.qkv.weight, source.head_dim
        identity = torch.eye(d, dtype=weight.dtype, device=weight.device).repeat(source.num_heads, 1, 1)
        identity = identity * source.softmax_scale**0.5
        self.softmax_scale = 1.0  # z_q·z_k is the logit
        self.rotate_q = nn.Parameter(identity.clone())
        self.rotate_k = nn.Parameter(identity.clone())
        self.key_direction = nn.Parameter(weight.new_zeros(source.num_heads, d, 1))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q and k, and v."""
        q, k, v = super().heads(x)
        return q @ self.rotate_q, k @ self.rotate_k, v

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_features(q, k, v, k @ self.key_direction, self.config)


class FoldedFeatures(FoldedAttention):
    """Inference form: W multiplied into the projections, unless a norm of q and k stands between them."""

    config: FeaturesConfig
    rotate_q: Tensor | None
    rotate_k: Tensor | None
    key_direction: Tensor

    def __init__(self, trained: FeaturesAttention) -> None:
        super().__init__(trained)
        plain = isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity)
        if plain:
            self.qkv = _rotated(trained.qkv, trained.rotate_q, trained.rotate_k)
        for name in ("rotate_q", "rotate_k"):
            self.register_buffer(name, None if plain else getattr(trained, name).detach().clone())
        self.register_buffer("key_direction", trained.key_direction.detach().clone())

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q and k, and v."""
        q, k, v = super().heads(x)
        if self.rotate_q is None or self.rotate_k is None:
            return q, k, v
        return q @ self.rotate_q, k @ self.rotate_k, v

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_features(q, k, v, k @ self.key_direction, self.config)


@torch.no_grad()
def _rotated(qkv: nn.Linear, *rotations: Tensor) -> nn.Linear:
    """`qkv` with the rotations of q and of k, [heads, d, d], multiplied in."""
    folded = nn.Linear(qkv.in_features, qkv.out_features, qkv.bias is not None).to(qkv.weight)
    for source, target in ((qkv.weight, folded.weight), (qkv.bias, folded.bias)):
        if source is None:
            continue
        parts = [part.unflatten(0, rotations[0].shape[:2]) for part in source.detach().chunk(3)]
        for index, rotation in enumerate(rotations):
            parts[index] = torch.einsum("hdm,hd...->hm...", rotation, parts[index])
        target.copy_(torch.cat([part.flatten(0, 1) for part in parts]))
    return folded
