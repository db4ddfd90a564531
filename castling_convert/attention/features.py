"""Learned angular features: a sharp kernel of the angle between queries and keys, linear in the tokens.

With z = W x for a learned d x d matrix W a head, one for the queries and one for the keys, u = z / |z| and powers taken
coordinate by coordinate,

    k(q, k) = Σ_c relu(u_q)ᵖ relu(u_k)ᵖ + relu(-u_q)ᵖ relu(-u_k)ᵖ
    y_i = Σ_j w_j k(q_i, k_j) v_j / Σ_j w_j k(q_i, k_j)

where w = softmax over the tokens of a·k, a learned direction a head: what the length and the place of a key say of how
much it is looked at, which the angle leaves out. W starts as the identity, times the root of the softmax's scale, and a
as zero.

The kernel is half the product of the features [s, |s|] with s = sign(u) |u|ᵖ, which have no comparison in them, and
which is how it is computed: 2·N·2d·d multiply-accumulates a head, 2·N·2d for the sum of a row.

The softmax that stands beside it (prefix rows, windows, the masked branch) takes q and k as they are: W learns fast,
and what they know of the teacher would be lost with it.

Sources: powers of relu features from Han et al., "FLatten Transformer", ICCV 2023, arXiv 2308.00442; a learned map a
head that starts from the identity from Zhang et al., "The Hedgehog & the Porcupine", arXiv 2402.04347. That the angle
carries them, and the key weights, are our own; what they reach is in `benchmarks/pretrained.md`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .castled import CastledAttention, Projections
from .config import FeaturesConfig
from .cost import Shape
from .folded import FoldedAttention
from .form import FormLayers
from .grid import TokenGrid
from .norms import unit, wide
from .reader import Reader

LENGTH = 4.0
"""Of u. It drops out of y; at this length powers and their sums stay within half precision."""
SMALLEST = 1e-30
"""Added to the sum of a row, which a zero vector makes zero: its output is zero."""


def feature_map(z: Tensor, config: FeaturesConfig) -> Tensor:
    """The features [s, |s|] of z, [B, heads, N, d] to [B, heads, N, 2·d]."""
    u = unit(z, config.eps, LENGTH)
    s = u * u * u if config.power == 3 else u * u.abs()
    return torch.cat([s, s.abs()], -1)


def linear_features(z_q: Tensor, z_k: Tensor, v: Tensor, key_logits: Tensor, config: FeaturesConfig) -> Tensor:
    """The y of above for z_q, z_k and v, [B, heads, N, d], and a·k, [B, heads, N, 1]."""
    # What is summed over tokens is float32; the weights of the keys sum to one, so the sums stay small at any N.
    keys = feature_map(wide(z_k), config) * wide(key_logits).softmax(-2)
    queries = feature_map(wide(z_q), config).to(v.dtype)
    context = (keys.transpose(-2, -1) @ wide(v)).to(v.dtype)  # B, heads, 2·d, d
    total = keys.sum(-2).unsqueeze(-1).to(v.dtype)  # B, heads, 2·d, 1
    return queries @ context / (queries @ total + smallest(v.dtype))


def smallest(dtype: torch.dtype) -> float:
    """SMALLEST, or what `dtype` has in its place."""
    return max(SMALLEST, torch.finfo(dtype).tiny)


class FeaturesAttention(CastledAttention):
    """Training form, W as `rotate_q` and `rotate_k`, [heads, d, d], and a as `key_direction`, [heads, d, 1]."""

    config: FeaturesConfig

    def __init__(self, source: Projections | Reader, config: FeaturesConfig, grid: TokenGrid) -> None:
        super().__init__(source, config, grid)
        weight, d = source.weight, self.key_dim
        identity = torch.eye(d, dtype=weight.dtype, device=weight.device).repeat(source.num_heads, 1, 1)
        # Adam's steps have one size, so this says how fast W turns beside the projections.
        self.rotate_q = nn.Parameter(identity * source.softmax_scale**0.5)
        self.rotate_k = nn.Parameter(identity * source.softmax_scale**0.5)
        self.key_direction = nn.Parameter(weight.new_zeros(source.num_heads, d, 1))

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_features(q @ self.rotate_q, k @ self.rotate_k, v, k @ self.key_direction, self.config)


class FoldedFeatures(FoldedAttention):
    """Inference form.

    Where nothing needs q and k but the linear form, the projections give z_q, z_k and a·k at once, in `qkv`, and
    softmax rows of prefix tokens take their keys from the tokens themselves: q·(W_k x) = (W_kᵀ q)·x, and a constant
    drops out of a softmax. Where a norm or rotation of q and k or a window stands between, W and a stay apart.
    """

    config: FeaturesConfig
    rotate_q: Tensor
    rotate_k: Tensor
    key_direction: Tensor
    row_query: Tensor
    row_bias: Tensor | None
    row_key: Tensor

    def __init__(self, trained: FeaturesAttention) -> None:
        super().__init__(trained)
        self.merged = self.reader is None and not self.config.window and self.rotation is None
        self.merged = self.merged and isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity)
        for name in ("rotate_q", "rotate_k", "key_direction"):
            self.register_buffer(name, None if self.merged else getattr(trained, name).detach().clone())
        with_rows = self.merged and self.has_rows
        weights = _row_weights(trained) if with_rows else (None, None, None)
        for name, value in zip(("row_query", "row_key", "row_bias"), weights, strict=True):
            self.register_buffer(name, value)
        if self.merged:
            self.qkv = _merged(trained)

    def attend(self, x: Tensor) -> Tensor:
        if not self.merged:
            return super().attend(x)
        joint, key_logits = self.qkv(x).split((3 * self.num_heads * self.head_dim, self.num_heads), -1)
        z_q, z_k, v = self.apart(joint)
        y = linear_features(z_q, z_k, v, key_logits.transpose(1, 2).unsqueeze(-1), self.config)
        return self.finish(y, x, z_q, z_k, v)

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_features(q @ self.rotate_q, k @ self.rotate_k, v, k @ self.key_direction, self.config)

    def rows(self, x: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.row_key is None or x is None:
            return super().rows(x, q, k, v)
        return self.row_weights(x).to(v.dtype) @ v

    def row_weights(self, x: Tensor) -> Tensor:
        """Softmax weights of the prefix tokens of x, [B, N, C], on all tokens, [B, heads, prefix, N]."""
        x = wide(x).transpose(1, 2)
        prefix = self.grid.prefix
        # The weights on the left: on the right they would be a linear layer, and be quantised. Each head's query by
        # itself in a column, zeros above and below: products of [heads, d, C] with a batch of as many images as there
        # are heads are mistaken for a batch of products by the exporter's simplifier.
        query = wide(self.row_query) @ x[:, :, :prefix]  # B, heads·d, prefix
        if self.row_bias is not None:
            query = query + wide(self.row_bias)
        head_of = torch.eye(self.num_heads, dtype=x.dtype, device=x.device).repeat_interleave(self.head_dim, 0)
        apart = (query.unsqueeze(2) * head_of.unsqueeze(2)).flatten(2)  # B, heads·d, heads·prefix
        keys = wide(self.row_key) @ apart  # B, C, heads·prefix
        return (keys.transpose(1, 2) @ x).unflatten(1, (self.num_heads, prefix)).softmax(-1)

    @property
    def can_be_channels_first(self) -> bool:
        """Whether the projections give all that is needed, and nothing works on the last axis of a head."""
        return self.merged and self.is_plain and self.config.depthwise != "tokens"

    def attend_channels_first(self, x: Tensor) -> Tensor:
        """`attend` on tokens x, [B, N, C], as [heads·d, N] throughout. Float32 alone: queries are not normalised,
        because their length drops out, and powers of them are large."""
        B, N, _ = x.shape
        heads, d, size = self.num_heads, self.head_dim, self.num_heads * self.head_dim
        z_q, z_k, v, key_logits = self.channels(x, size, size, size, heads)
        z_q, z_k, values = (z.reshape(B, heads, d, N) for z in (z_q, z_k, v))
        s_q = z_q**3 if self.config.power == 3 else z_q * z_q.abs()
        s_k = z_k**3 if self.config.power == 3 else z_k * z_k.abs()
        length = ((z_k * z_k).sum(2, keepdim=True) + d * self.config.eps) ** (self.config.power / 2)
        s_k = s_k * (key_logits.softmax(-1).unsqueeze(2) / length)
        queries, keys = torch.cat([s_q, s_q.abs()], 2), torch.cat([s_k, s_k.abs()], 2)  # B, heads, 2·d, N
        context = values @ keys.transpose(-1, -2)  # B, heads, d, 2·d
        total = keys.sum(-1).unsqueeze(2)  # B, heads, 1, 2·d
        y = (context @ queries / (total @ queries + SMALLEST)).reshape(B, size, N)
        rows = None
        if self.row_key is not None:
            prefix = self.grid.prefix
            # Beside y, as the convolution is: y is not taken apart, and what it has there is taken off.
            rows = (values @ self.row_weights(x).transpose(-1, -2)).reshape(B, size, prefix) - y[:, :, :prefix]
        residual = self.residual(v, rows)
        return (y if residual is None else y + residual).transpose(1, 2)


@torch.no_grad()
def _row_weights(trained: FeaturesAttention) -> tuple[Tensor, Tensor, Tensor | None]:
    """For the rows of prefix tokens: the projection to q, [heads·d, C], the transpose of W_k with the softmax's scale,
    [C, heads·d], and the bias of q, [heads·d, 1]."""
    q, k, _ = trained.qkv.weight.chunk(3)
    bias = None if trained.qkv.bias is None else trained.qkv.bias.chunk(3)[0][:, None].clone()
    return q.clone(), k.T * trained.softmax_scale, bias


@torch.no_grad()
def _merged(trained: FeaturesAttention) -> nn.Linear:
    """From tokens to z_q, z_k, v and, one a head, a·k."""
    source, heads, d = trained.qkv, trained.num_heads, trained.head_dim
    merged = nn.Linear(source.in_features, 3 * heads * d + heads, source.bias is not None).to(source.weight)
    for old, new in ((source.weight, merged.weight), (source.bias, merged.bias)):
        if old is None:
            continue
        q, k, v = old.unflatten(0, (3, heads, d))
        z_q, z_k, logits = (
            torch.einsum("hdm,hd...->hm...", turned, part).flatten(0, 1)
            for turned, part in ((trained.rotate_q, q), (trained.rotate_k, k), (trained.key_direction, k))
        )
        new.copy_(torch.cat([z_q, z_k, v.flatten(0, 1), logits]))
    return merged


def features_cost(shape: Shape, config: FeaturesConfig) -> tuple[int, int]:
    """MACs of a·k, of the two products and of the sum of a row; with windows those of W, without them what rows of
    prefix tokens take in place of their keys. Held are the features of q and k and the context."""
    size, features = shape.size, 2 * (shape.head_dim + shape.extra)
    macs = (shape.key_tokens + shape.tokens) * features * shape.value_size + shape.tokens * features * shape.num_heads
    if config.window or shape.projections is not None:  # W stays apart
        macs += (shape.tokens + shape.key_tokens) * (features // 2) ** 2 * shape.num_heads
        macs += shape.key_tokens * features // 2 * shape.num_heads
    else:
        macs += shape.tokens * shape.dim * shape.num_heads
        if config.prefix_rows:
            macs += shape.prefix * shape.dim * size * (1 + shape.num_heads)
            macs += shape.prefix * shape.tokens * (shape.dim * shape.num_heads - size)
    return macs, 2 * shape.tokens * 2 * size + features * size


LAYERS = FormLayers(FeaturesAttention, FoldedFeatures, features_cost)
