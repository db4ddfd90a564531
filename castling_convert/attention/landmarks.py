"""Learned landmarks: tokens attend to a few summaries of all tokens, by softmax, linear in the tokens.

M learned directions a head, a_m, pool the keys and the values of all N tokens, and every token attends to what they
have pooled:

    p_mj = softmax_j(a_m·k_j)        k̃_m = Σ_j p_mj k_j        ṽ_m = Σ_j p_mj v_j
    y_i = softmax_m(s q_i·k̃_m + c H_m + b_m) ṽ        H_m = -Σ_j p_mj log p_mj = log Σ_j exp(a_m·k_j) - a_m·k̃_m

with the softmax's own scale s. exp(H_m) is the number of tokens that a landmark stands for: of n equal keys softmax
has n terms, a landmark one, n times as large. How far that is believed is learned, c a head from one, b a landmark
from zero. That are 5·N·M·d multiply-accumulates a head, where softmax has 2·N²·d, and nothing in it is flatter than
softmax is: where M tokens matter, M landmarks can be these tokens. The directions are learned, so a layer finds what
its keys can be summed up by: places, where keys say them, and contents.

With a window, its tokens and the landmarks share one softmax: near tokens one by one, all of them in sum.

Sources: softmax through a few learned queries from Lee et al., "Set Transformer" (inducing points), ICML 2019, arXiv
1810.00825; through pooled ones from Xiong et al., "Nyströmformer" (landmarks), AAAI 2021, arXiv 2102.03902, and Han et
al., "Agent Attention", ECCV 2024, arXiv 2312.08874. One row sum over a window and what stands for the rest from Zhang
et al., "LoLCATs", arXiv 2410.10254. Pooling a pretrained layer's own keys by learned directions, so that the layer
keeps its queries, its keys and its scale, is our own; what it reaches is in `benchmarks/pretrained.md`.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .castled import CastledAttention, CastledBase, Projections
from .config import LandmarksConfig
from .cost import Shape
from .folded import FoldedAttention
from .form import FormLayers
from .grid import TokenGrid
from .local import attention, window_softmax
from .norms import wide
from .reader import Reader, Regions

OUTSIDE = -1e4
"""The logit of a key that is not seen: its weight is zero, and where none is seen all stays finite."""


def pooling(logits: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """p of above and log Σ exp(a·k), [B, heads, M, 1], of a·k, [B, heads, M, N]; of the tokens that are `inside` alone,
    [B, N]."""
    if inside is not None:
        logits = logits.masked_fill(~inside[:, None, None], OUTSIDE)
    weights = logits.softmax(-1)
    # The largest weight is exp(largest logit) / Σ exp, which tells the sum without another one.
    return weights, logits.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()


class _Landmarks(CastledBase):
    """What both forms share, on the directions a, [heads, M, d], b, [heads, M, 1], and c, [heads, 1, 1]."""

    config: LandmarksConfig
    windows_apart = False
    directions: Tensor
    bias: Tensor
    gain: Tensor

    def patches(self, y: Tensor) -> Tensor:
        return y if self.has_rows else super().patches(y)

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v, [B, heads, N, d], to the outputs of all tokens, or, where prefix tokens have exact rows, of the
        patches alone; without windows."""
        return self.to_landmarks(q[:, :, self.grid.prefix :] if self.has_rows else q, *self.pool(k, v))

    def pool(self, k: Tensor, v: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What landmarks make of k and v, [B, heads, N, d], where these are `inside`, [B, N]: keys and values,
        [B, heads, M, d], and what is added to their logits, [B, heads, 1, M]."""
        # What is summed over tokens is float32: at 4,096 of them a weight is below what float16 holds well.
        directions = wide(self.directions)
        weights, total = pooling(directions @ wide(k).transpose(-2, -1), inside)
        keys, values = weights @ wide(k), weights @ wide(v)
        mass = self.mass(total, (directions * keys).sum(-1, keepdim=True))
        return keys.to(v.dtype), values.to(v.dtype), mass.to(v.dtype)

    def mass(self, total: Tensor, own: Tensor) -> Tensor:
        """c H + b, [B, heads, 1, M], of log Σ exp(a·k) and a·k̃, [B, heads, M, 1]."""
        return (self.gain * (total - own) + self.bias).transpose(-2, -1)

    def to_landmarks(self, q: Tensor, keys: Tensor, values: Tensor, mass: Tensor) -> Tensor:
        return attention(q, keys, values, self.softmax_scale, mass)

    def linear_within(self, q: Tensor, k: Tensor, v: Tensor, regions: Regions) -> Tensor:
        """Every region has landmarks of its own."""
        keys, values, masses = zip(
            *(self.pool(k, v, regions.keys == number) for number in range(regions.count)), strict=True
        )
        own = torch.stack([regions.queries == number for number in range(regions.count)], -1)  # B, N, regions
        others = torch.zeros_like(own, dtype=q.dtype).masked_fill(~own, -torch.inf)
        far = others.repeat_interleave(self.config.landmarks, -1)[:, None]  # B, 1, N, regions·M
        return self.to_landmarks(q, torch.cat(keys, 2), torch.cat(values, 2), torch.cat(masses, -1) + far)

    def attend_linearly(self, x: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.config.window:
            return super().attend_linearly(x, q, k, v)
        landmarks = self.pool(k, v)
        patches = window_softmax(q, k, v, self.softmax_scale, self.grid, self.config.window, landmarks)
        first = q[:, :, : self.grid.prefix]
        rows = self.rows(x, q, k, v) if self.has_rows else self.to_landmarks(first, *landmarks)
        return self.joined(rows, patches, v)


class LandmarksAttention(_Landmarks, CastledAttention):
    """Training form. Directions start at chance, the same for every layer, so that castling is repeatable."""

    config: LandmarksConfig

    def __init__(self, source: Projections | Reader, config: LandmarksConfig, grid: TokenGrid) -> None:
        super().__init__(source, config, grid)
        weight, shape = source.weight, (source.num_heads, config.landmarks, source.head_dim)
        chance = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        chance = F.pad(chance * source.softmax_scale, (0, self.key_dim - source.head_dim))
        self.directions = nn.Parameter(chance.to(weight))
        self.bias = nn.Parameter(weight.new_zeros(source.num_heads, config.landmarks, 1))
        self.gain = nn.Parameter(weight.new_ones(source.num_heads, 1, 1))


class FoldedLandmarks(_Landmarks, FoldedAttention):
    """Inference form. Where no norm stands between, the softmax's scale is in the projection to q, and the projection
    to k, where no rotation does either, has no bias: it adds the same to all logits of a softmax, and is large in
    pretrained models."""

    config: LandmarksConfig
    wide_buffers = ("directions",)

    def __init__(self, trained: LandmarksAttention) -> None:
        super().__init__(trained)
        for name in ("directions", "bias", "gain"):
            self.register_buffer(name, getattr(trained, name).detach().clone())
        if self.reader is not None:
            return
        plain_q, plain_k = (isinstance(norm, nn.Identity) for norm in (self.q_norm, self.k_norm))
        self.qkv = copy.deepcopy(self.qkv)
        parameters = [p for p in (self.qkv.weight, self.qkv.bias) if p is not None]
        with torch.no_grad():
            if plain_q:
                for parameter in parameters:
                    parameter.chunk(3)[0].mul_(self.softmax_scale)
                self.softmax_scale = 1.0
            if plain_k and self.rotation is None and self.qkv.bias is not None:
                self.qkv.bias.chunk(3)[1].zero_()

    @property
    def can_be_channels_first(self) -> bool:
        """Whether nothing but the landmarks works on the last axis of a head."""
        return self.is_plain and not self.config.window and self.config.depthwise != "tokens"

    def attend_channels_first(self, x: Tensor) -> Tensor:
        """`attend` on tokens x, [B, N, C], as [heads·d, N] throughout. Float32 alone."""
        B, N, _ = x.shape
        heads, d, size = self.num_heads, self.head_dim, self.num_heads * self.head_dim
        q, k, v = self.channels(x, size, size, size)
        queries, tokens, each = (z.reshape(B, heads, d, N) for z in (q, k, v))
        weights, total = pooling(self.directions @ tokens)
        keys, values = (z @ weights.transpose(-2, -1) for z in (tokens, each))  # B, heads, d, M
        mass = self.mass(total, (self.directions * keys.transpose(-2, -1)).sum(-1, keepdim=True))
        weights = (queries.transpose(-2, -1) @ keys + mass).softmax(-1)  # B, heads, N, M
        y = (values @ weights.transpose(-2, -1)).reshape(B, size, N)
        rows = None
        if self.has_rows:
            prefix = self.grid.prefix
            shares = (queries[..., :prefix].transpose(-2, -1) @ tokens).softmax(-1)  # B, heads, prefix, N
            # Beside y, as the convolution is: y is not taken apart, and what it has there is taken off.
            rows = (each @ shares.transpose(-2, -1)).reshape(B, size, prefix) - y[:, :, :prefix]
        residual = self.residual(v, rows)
        return (y if residual is None else y + residual).transpose(1, 2)


def landmarks_cost(shape: Shape, config: LandmarksConfig) -> tuple[int, int]:
    """MACs of a·k, of two sums over the tokens, and of q·k̃ and its product with ṽ: N·M·d a head each. Held are the
    weights of both softmaxes and what is pooled."""
    rows_apart = config.prefix_rows and shape.prefix > 0
    queries = shape.tokens - shape.prefix if rows_apart else shape.tokens
    landmarks = config.landmarks * shape.regions * shape.num_heads
    keys, values = shape.head_dim + shape.extra, shape.head_dim if shape.value_dim is None else shape.value_dim
    macs = landmarks * (shape.key_tokens * (2 * keys + values) + queries * (keys + values))
    return macs, landmarks * (shape.key_tokens + queries + keys + values)


LAYERS = FormLayers(LandmarksAttention, FoldedLandmarks, landmarks_cost, within_regions=True)
