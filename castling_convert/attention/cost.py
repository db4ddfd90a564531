"""What a layer costs, by formula."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One attention layer on one image: N `tokens`, of which `prefix` are no patches, of `dim` channels.

    Where a layer is not that plain: how many `keys` there are, `value_dim` channels of v for each head, `extra` ones of
    q and k in the linear form, as many `windows` of N tokens each in an image, `regions` in them; and the MACs of its
    own `projections`, of all windows.
    """

    tokens: int
    dim: int
    num_heads: int
    head_dim: int
    prefix: int = 1
    keys: int | None = None
    value_dim: int | None = None
    extra: int = 0
    windows: int = 1
    regions: int = 1
    projections: int | None = None

    @property
    def key_tokens(self) -> int:
        return self.tokens if self.keys is None else self.keys

    @property
    def value_size(self) -> int:
        """Channels of v."""
        return self.size if self.value_dim is None else self.num_heads * self.value_dim

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
