"""What a layer costs, by formula."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One attention layer on one image: N `tokens`, of which `prefix` are no patches, of `dim` channels."""

    tokens: int
    dim: int
    num_heads: int
    head_dim: int
    prefix: int = 1

    @property
    def size(self) -> int:
        """Channels of q, of k and of v."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True)
class AttentionCost:
    """One attention layer and one image: `macs`, projections included, and `values`, how many numbers attention
    holds between q, k, v and its output."""

    macs: int
    values: int
