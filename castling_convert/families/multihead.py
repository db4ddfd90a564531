"""torch's `nn.MultiheadAttention`, wherever a model calls it on one image's tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Reader, Reading, Regions


class MultiheadReader(Reader):
    """Self-attention alone, in either order of axes. Keys that a padding mask hides are a region that nobody sees.

    What it returns for the weights is None, as with `need_weights=False`: a linear form has none.
    """

    in_proj_bias: nn.Parameter | None

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.out_proj = attention.in_proj_weight, attention.out_proj
        self.register_parameter("in_proj_bias", attention.in_proj_bias)
        self.num_heads, self.head_dim, self.dim = attention.num_heads, attention.head_dim, attention.embed_dim
        self.value_dim, self.softmax_scale = self.head_dim, self.head_dim**-0.5
        self.batch_first = attention.batch_first
        self.unlike = _unlike(attention)
        # nn.TransformerEncoderLayer has a kernel for softmax layers; without biases it takes none.
        self.asked = {"batch_first": False, "in_proj_bias": None, "num_heads": self.num_heads}

    def refuses(
        self, query: Tensor, key: Tensor, value: Tensor, *others: Any, attn_mask: Any = None, **more: Any
    ) -> str | None:
        if self.unlike is not None:
            return self.unlike
        if key is not query:
            return "its keys are not its queries' tokens: cross-attention"
        if query.ndim != 3:
            return "it is called without a batch axis"
        if attn_mask is not None or more.get("is_causal") or any(other is not None for other in others[2:3]):
            return "it is called with a mask of pairs of tokens, which a linear form has no entries for"
        return None

    def read(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Reading:
        """Tokens [B, N, C], or [N, B, C] without `batch_first`, and who of them is hidden, [B, N]: True or -inf."""
        if key is query and value is query:
            parts = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            bias = self.in_proj_bias
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            weights = self.in_proj_weight.chunk(3)
            parts = tuple(F.linear(*each) for each in zip((query, key, value), weights, biases, strict=True))
        q, k, v = (self._heads(part) for part in parts)
        if key_padding_mask is None:
            return Reading(q, k, v)
        hidden = key_padding_mask if key_padding_mask.dtype == torch.bool else torch.isneginf(key_padding_mask)
        regions = Regions(torch.zeros_like(hidden, dtype=torch.long), hidden.long(), 1)
        return Reading(q, k, v, bias=regions.bias(q.dtype), regions=regions)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, heads, N, d]."""
        x = x if self.batch_first else x.transpose(0, 1)
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def write(self, y: Tensor, reading: Reading) -> tuple[Tensor, None]:
        out = self.out_proj(y)
        return (out if self.batch_first else out.transpose(0, 1)), None

    def tokens(self, output: tuple[Tensor, Any]) -> Tensor:
        return output[0] if self.batch_first else output[0].transpose(0, 1)


def _unlike(attention: nn.MultiheadAttention) -> str | None:
    """Why it can't be castled, by what it is made with."""
    if not attention._qkv_same_embed_dim:
        return "its keys or values are of another width than its queries: cross-attention"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "it looks at keys that are no tokens (add_bias_kv or add_zero_attn)"
    return None
