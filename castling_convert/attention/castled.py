"""The two modules: the training form and the folded form of a castled attention layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .angular import GAIN_TO_SCALE, bounded_gain, l2_normalize, linear_angular
from .config import AttentionConfig
from .depthwise import depthwise_conv, depthwise_residual
from .grid import TokenGrid
from .masked_softmax import CLOSED, masked_softmax

Layout = Literal["product", "transpose"]
"""How `FoldedAttention.channels` puts channels before tokens."""


@dataclass
class Projections:
    """What a castled layer keeps of the softmax layer it replaces: the trained modules themselves.

    `qkv` maps [B, N, C] to [B, N, 3·heads·d], ordered q, k, v; `proj` maps [B, N, heads·d] back.
    `norm` acts on the merged heads and `gate` multiplies them by a sigmoid, where the model has them.
    """

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    head_dim: int
    softmax_scale: float
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    gate: nn.Linear | None = None
    proj_drop: float = 0.0


def merge_heads(y: Tensor) -> Tensor:
    """[B, heads, N, d] to [B, N, heads·d]."""
    return y.transpose(1, 2).flatten(2)


class _Castled(nn.Module):
    """What both forms share: projections, depthwise residual, and the road from tokens to tokens."""

    def __init__(self, source: Projections, config: AttentionConfig, grid: TokenGrid) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        self.num_heads = source.num_heads
        self.head_dim = source.head_dim
        self.qkv = source.qkv
        self.q_norm = source.q_norm
        self.k_norm = source.k_norm
        self.norm = source.norm
        self.gate = source.gate
        self.proj = source.proj
        self.depthwise = depthwise_conv(config, source.num_heads, source.head_dim)
        if self.depthwise is not None:
            self.depthwise.to(source.qkv.weight)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens [B, N, C] to tokens [B, N, C]. Attention masks have no linear form and are refused."""
        if attn_mask is not None or is_causal:
            raise ValueError("castled attention takes no attention mask: the linear form has no entries to mask")
        y = self.norm(self.attend(*self.heads(x)))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        return self.project(y)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of the tokens x, each [B, heads, N, d]."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v, [B, heads, N, d], to merged heads, [B, N, heads·d]."""
        raise NotImplementedError

    def linear(self, y: Tensor, v: Tensor) -> Tensor:
        """The linear form from its angular part y: normalised where asked, residual added, heads merged."""
        y = merge_heads(l2_normalize(y) if self.config.normalization == "l2" else y)
        if self.depthwise is None:
            return y
        return y + depthwise_residual(self.depthwise, v, self.config, self.grid)

    def project(self, y: Tensor) -> Tensor:
        return self.proj(y)


class CastledAttention(_Castled):
    """Training form: linear-angular attention, depthwise residual, masked softmax branch.

    Against the public snippet: a pretrained softmax layer's projections are kept, and for `row_sum` and
    `gain` the linear part takes exactly the softmax mass that the mask releases,

        y = (S∘M) v + (1 - rowsum(S∘M)) · linear,

    so a fully open mask (threshold 0) is the teacher's own attention and a closed one the linear form,
    where linear is the angular part and the depthwise residual. For `l2` the branch is added before the
    norm and the residual after it, as in the snippet.

    The mask M is gate · [S > threshold], two scalar buffers set by `set_mask`; at a threshold of 1 or a
    gate of 0 the layer is closed and skips the branch. `density` holds the share of softmax entries kept
    in the last forward, times the gate.
    """

    threshold: Tensor
    mask_gate: Tensor
    density: Tensor

    def __init__(self, source: Projections, config: AttentionConfig, grid: TokenGrid) -> None:
        super().__init__(source, config, grid)
        weight = source.qkv.weight
        self.softmax_scale = source.softmax_scale
        self.gain = nn.Parameter(weight.new_ones(source.num_heads, 1, 1)) if config.normalization != "l2" else None
        self.proj_drop = nn.Dropout(source.proj_drop)
        self.register_buffer("threshold", torch.zeros((), device=weight.device), persistent=False)
        self.register_buffer("mask_gate", torch.ones((), device=weight.device), persistent=False)
        self.register_buffer("density", torch.ones((), device=weight.device), persistent=False)
        self.closed = False
        self.whole = True  # no entry is dropped: the threshold is zero

    def set_mask(self, threshold: float, gate: float = 1.0) -> None:
        """Drop softmax weights at or below `threshold` and multiply the others by `gate`.

        A threshold of 1 or more, or a gate of 0, closes the mask exactly.
        """
        self.closed = threshold >= CLOSED or gate <= 0
        self.whole = threshold <= 0
        self.threshold.fill_(threshold)
        self.mask_gate.fill_(gate)
        if self.closed:
            self.density.zero_()

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set each head's gain to the least-squares fit of the linear form to softmax on tokens x, [B, N, C].

        For `gain` only; with y = c + gain·u the best gain is <softmax - c, u> / <u, u>.
        """
        if self.config.normalization != "gain" or self.gain is None:
            return
        q, k, v = self.heads(x)
        softmax = F.scaled_dot_product_attention(q, k, v, scale=self.softmax_scale)
        zero = torch.zeros_like(self.gain)
        constant = linear_angular(q, k, v, zero, self.config)
        linear = linear_angular(q, k, v, zero + GAIN_TO_SCALE, self.config) - constant
        fit = ((softmax - constant) * linear).sum((0, 2, 3)) / linear.square().sum((0, 2, 3)).clamp_min(1e-12)
        self.gain.copy_(fit[:, None, None])

    def scale(self) -> Tensor:
        """s of `attention.angular`, [heads, 1, 1]."""
        if self.gain is None:
            return self.qkv.weight.new_full((self.num_heads, 1, 1), GAIN_TO_SCALE)
        return bounded_gain(self.gain, self.config) * GAIN_TO_SCALE

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = linear_angular(q, k, v, self.scale(), self.config)
        if self.closed:
            return self.linear(y, v)
        kept, mass, density = self.softmax(q, k, v)
        kept, mass, self.density = kept * self.mask_gate, mass * self.mask_gate, density * self.mask_gate
        if self.config.normalization == "l2":
            # The linear form is written relative to a constant term of 1/2, hence the factor of two.
            weight = 2 * (v.shape[-2] ** -0.5 if self.config.sums_over_tokens else 1.0)
            return self.linear(y + weight * kept, v)
        released = merge_heads((1 - mass).expand_as(kept))
        return merge_heads(kept) + released * self.linear(y, v)

    def softmax(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`masked_softmax`; with nothing to drop the fused kernel, which never holds N x N entries."""
        if self.whole:
            one = torch.ones_like(self.density)
            return F.scaled_dot_product_attention(q, k, v, scale=self.softmax_scale), one, one
        return masked_softmax(q, k, v, self.softmax_scale, self.threshold)

    def project(self, y: Tensor) -> Tensor:
        return self.proj_drop(self.proj(y))


class FoldedAttention(_Castled):
    """Inference form of a `CastledAttention` whose mask is closed: no softmax branch, gains and kernel
    constants in one buffer `head_scale`, [heads, 1, 1], that multiplies the small KᵀV product."""

    head_scale: Tensor
    channels_first: Layout | None = None
    """Compute `attend_channels_first` where it can be; set at export for runtimes that are faster so."""

    def __init__(self, trained: CastledAttention) -> None:
        source = Projections(
            trained.qkv, trained.proj, trained.num_heads, trained.head_dim, trained.softmax_scale,
            trained.q_norm, trained.k_norm, trained.norm, trained.gate,
        )  # fmt: skip
        super().__init__(source, trained.config, trained.grid)
        self.depthwise = trained.depthwise
        self.register_buffer("head_scale", trained.scale().detach().clone())

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As in training form."""
        if self.channels_first and attn_mask is None and not is_causal and self.can_be_channels_first:
            return self.project(self.attend_channels_first(x))
        return super().forward(x, attn_mask, is_causal)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.linear(linear_angular(q, k, v, self.head_scale, self.config, center_values=True), v)

    @property
    def can_be_channels_first(self) -> bool:
        """Whether nothing in this layer works on the last axis of a head: norms of q and k, a norm or gate behind,
        a normalisation of its rows, a residual along the sequence."""
        plain = all(isinstance(module, nn.Identity) for module in (self.q_norm, self.k_norm, self.norm))
        config = self.config
        linear = config.normalization == "gain" and config.constant == "mean" and config.depthwise != "tokens"
        return plain and linear and self.gate is None

    def channels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and k together, [B, 2·heads·d, N], and v, [B, heads·d, N], of tokens x, [B, N, C]: as W xᵀ, which moves
        nothing, or by one transposition of x Wᵀ."""
        size = self.num_heads * self.head_dim
        if self.channels_first == "transpose":
            joint, v = self.qkv(x).transpose(1, 2).split((2 * size, size), 1)
            return joint, v
        tokens = x.transpose(1, 2)
        bias = self.qkv.bias if self.qkv.bias is not None else x.new_zeros(3 * size)
        joint = self.qkv.weight[: 2 * size] @ tokens + bias[: 2 * size, None]
        return joint, self.qkv.weight[2 * size :] @ tokens + bias[2 * size :, None]

    def attend_channels_first(self, x: Tensor) -> Tensor:
        """`attend` on tokens x, [B, N, C], with the heads merged, [B, N, heads·d], and q, k and v never taken apart
        into heads of tokens: as [heads·d, N] they are what the products and the convolution take."""
        B, N, _ = x.shape
        heads, d, size = self.num_heads, self.head_dim, self.num_heads * self.head_dim
        joint, v = self.channels(x)
        joint = joint.reshape(B, 2 * heads, d, N)
        joint = joint / ((joint * joint).sum(2, keepdim=True) + d * self.config.eps).sqrt()
        q, k = joint.split(heads, 1)
        v = v.reshape(B, heads, d, N)
        constant = v.mean(-1, keepdim=True)
        context = (v - constant if self.config.center else v) @ k.transpose(-1, -2)
        y = ((context * (self.head_scale / N)) @ q + constant).reshape(B, size, N)
        if self.depthwise is not None:
            prefix = self.grid.num_prefix_tokens
            height, width = self.grid.shape_for(N)
            patches = v.reshape(B, size, N)[:, :, prefix:].reshape(B, size, height, width)
            y = y + F.pad(self.depthwise(patches).flatten(2), (prefix, 0))
        return y.transpose(1, 2)
