"""The auxiliary softmax branch, masked by a threshold that training drives up to one.

Source: arXiv 2211.10526, section 3.3, and its public snippet: softmax(QKᵀ/√d) with every entry at or
below a threshold set to zero, times V.
"""

from __future__ import annotations

from torch import Tensor

CLOSED = 1.0
"""A softmax weight never exceeds one, so at this threshold no entry is left: the mask is exactly zero."""


def masked_softmax(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, threshold: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention over the entries above `threshold`.

    Args:
        q, k, v: [B, heads, N, d].
        softmax_scale: 1/√d for a standard transformer.
        threshold: scalar; entries at or below it are dropped.
        bias: what is added to the logits, [B or 1, heads or 1, N, N].

    Returns:
        The output [B, heads, N, d]; the softmax mass that was kept, [B, heads, N, 1] in 0..1; and the
        density of the mask, a scalar in 0..1.
    """
    logits = (q * softmax_scale) @ k.transpose(-2, -1)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)  # B, heads, N, N
    mask = weights > threshold
    masked = weights * mask
    return masked @ v, masked.sum(-1, keepdim=True), mask.detach().float().mean()
