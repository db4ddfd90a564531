"""The folded form: what is deployed."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .castled import CastledAttention, CastledBase, Projections

ChannelsFirst = Literal["from_weights", "transposed"]
"""How a folded layer puts channels before tokens, see `FoldedAttention.channels`."""


class FoldedAttention(CastledBase):
    """Inference form of a `CastledAttention` whose mask is closed: no softmax branch, no parameter that could be
    multiplied into another."""

    wide_buffers: tuple[str, ...] = ()
    """Buffers that are used in float32 alone, and are that in a model of half precision too."""
    channels_first: ChannelsFirst | None = None
    """Compute with channels before tokens where that can be; set at export for runtimes that are faster so."""

    def __init__(self, trained: CastledAttention) -> None:
        source = trained.reader or Projections(
            qkv=trained.qkv, proj=trained.proj, num_heads=trained.num_heads, head_dim=trained.head_dim,
            softmax_scale=trained.softmax_scale, q_norm=trained.q_norm, k_norm=trained.k_norm, norm=trained.norm,
            gate=trained.gate, rotation=trained.rotation,
        )  # fmt: skip
        super().__init__(source, trained.config, trained.grid)
        if self.reader is not None:
            self.reader.fold_()
        self.depthwise = trained.depthwise
        share = trained.window_share
        self.register_buffer("window_share", None if share is None else share.detach().clone())

    def of_tokens(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rope: Tensor | None = None
    ) -> Tensor:
        """As in training form."""
        if self.channels_first and attn_mask is None and not is_causal and self.can_be_channels_first:
            return self.project(self.attend_channels_first(x))
        return super().of_tokens(x, attn_mask, is_causal)

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.channels_first != "from_weights":
            return super().projected(x)
        # Where products may be taken apart, three of them save the copies that taking their output apart is.
        weights = self.qkv.weight.chunk(3)
        biases = (None, None, None) if self.qkv.bias is None else self.qkv.bias.chunk(3)
        parts = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        return tuple(part.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts)

    @property
    def can_be_channels_first(self) -> bool:
        """Whether `attend_channels_first` computes what this layer computes."""
        return False

    @property
    def is_plain(self) -> bool:
        """Whether there is neither a norm or rotation of q and k nor a norm or gate behind."""
        if self.reader is not None:
            return False
        identities = all(isinstance(module, nn.Identity) for module in (self.q_norm, self.k_norm, self.norm))
        return identities and self.gate is None and self.rotation is None

    def attend_channels_first(self, x: Tensor) -> Tensor:
        """`attend` on tokens x, [B, N, C], with q, k and v never taken apart into heads of tokens."""
        raise NotImplementedError

    def channels(self, x: Tensor, *sizes: int) -> list[Tensor]:
        """The outputs of `qkv` on tokens x, [B, N, C], in parts of these sizes, each [B, size, N]: as W xᵀ, which moves
        nothing, or by one transposition of x Wᵀ."""
        if self.channels_first == "transposed":
            return list(self.qkv(x).transpose(1, 2).split(sizes, 1))
        tokens = x.transpose(1, 2)
        bias = self.qkv.bias if self.qkv.bias is not None else x.new_zeros(sum(sizes))
        parts = zip(self.qkv.weight.split(sizes), bias.split(sizes), strict=True)
        return [weight @ tokens + part[:, None] for weight, part in parts]

    def residual(self, v: Tensor, prefix: Tensor | None = None) -> Tensor | None:
        """The depthwise convolution of v, [B, heads·d, N], on the grid, with zeros or `prefix`, [B, heads·d, prefix],
        before it; None where there is neither."""
        B, size, N = v.shape
        count = self.grid.prefix
        if self.depthwise is None:
            return None if prefix is None else F.pad(prefix, (0, N - count))
        height, width = self.grid.shape_for(N)
        convolved = self.depthwise(v[:, :, count:].reshape(B, size, height, width)).flatten(2)
        return F.pad(convolved, (count, 0)) if prefix is None else torch.cat([prefix, convolved], 2)
