"""The paper's public snippet: a sum over the tokens beside each token's own value, divided by its own length.

Source: GATECH-EIC/Castling-ViT, the code released with arXiv 2211.10526. Written relative to the constant term,
with s = 2/π, E the mean over the N tokens and z ↦ z / |z| over a head's d channels:

    constant token   z_i = (v_i + s·N·q̂_i E[k̂ vᵀ]) / √N
    constant mean    z_i = E[v] + s·q̂_i E[k̂ vᵀ]

The length of z drops out, and without the root half precision would not hold it. Shapes as in `angular`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .angular import GAIN_TO_SCALE
from .castled import CastledAttention
from .config import SnippetConfig
from .cost import Shape
from .folded import FoldedAttention
from .form import FormLayers
from .norms import l2_normalize, unit, wide


def linear_snippet(q: Tensor, k: Tensor, v: Tensor, config: SnippetConfig) -> Tensor:
    """The z of above."""
    root = k.shape[-2] ** -0.5
    values = wide(v)
    q_hat = unit(wide(q), config.eps).to(v.dtype)
    k_hat = unit(wide(k), config.eps, root)
    context = GAIN_TO_SCALE * (k_hat.transpose(-2, -1) @ values)  # √N·s·E[k̂ vᵀ]
    if config.constant == "token":
        return (values * root).to(v.dtype) + q_hat @ context.to(v.dtype)
    return values.mean(-2, keepdim=True).to(v.dtype) + q_hat @ (context * root).to(v.dtype)


def snippet_cost(shape: Shape, config: SnippetConfig) -> tuple[int, int]:
    """MACs of K̂ᵀV and its product with Q̂; held are q̂, k̂ and K̂ᵀV."""
    macs = (shape.tokens + shape.key_tokens) * (shape.head_dim + shape.extra) * shape.value_size
    return macs, (2 * shape.tokens + shape.head_dim) * shape.size


class SnippetAttention(CastledAttention):
    """Training form. The masked softmax branch is added before the norm, as in the snippet, so an open mask is not
    the teacher."""

    config: SnippetConfig

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return l2_normalize(linear_snippet(q, k, v, self.config))

    def attend(self, x: Tensor) -> Tensor:
        if self.is_linear:
            return super().attend(x)
        q, k, v = self.heads(x)
        masked, _ = self.branch(q, k, v)
        # The linear form is written relative to a constant term of 1/2, hence the factor of two.
        weight = 2 * (v.shape[-2] ** -0.5 if self.config.constant == "token" else 1.0)
        return self.finish(l2_normalize(linear_snippet(q, k, v, self.config) + weight * masked), x, q, k, v)


class FoldedSnippet(FoldedAttention):
    """Inference form."""

    config: SnippetConfig

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}head_scale", None)  # bundles of format 1 held a constant
        super()._load_from_state_dict(state_dict, prefix, *args)

    def linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return l2_normalize(linear_snippet(q, k, v, self.config))


LAYERS = FormLayers(SnippetAttention, FoldedSnippet, snippet_cost)
