"""Attention layers that are no plain projections of tokens: how castled attention reads their q, k and v.

A plain layer is known by its `Projections`, and castled attention computes with them itself. Any other keeps its own
modules inside a `Reader`, which a family writes: it makes q, k and v of whatever the layer is called with, says what
the softmax adds to its logits, and makes what the layer returns of the merged heads. The linear forms see q, k and v
alone.

A bias of places cannot live in a linear form as a matrix of N x N. As a product of factors it can:

    q·k + Σ_r f_r(i) g_r(j) = [q, f(i)]·[k, g(j)]

exactly, for r more dimensions of q and of k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .grid import TokenGrid

LARGE = 256
"""Rows and columns of a bias from which on its singular values are iterated for: all of them take N³ steps a head."""
ROUNDS = 4


RANK = 16
"""Of a bias of places in the linear form, unless its family says otherwise."""


@dataclass
class Regions:
    """Tokens that see each other alone: windows that hold parts of different places, images with padding.

    `queries`, [B or 1, N_q], and `keys`, [B or 1, N_k], number the region of every token from 0 to `count` - 1; keys of
    any other number are seen by none.
    """

    queries: Tensor
    keys: Tensor
    count: int

    def bias(self, dtype: torch.dtype) -> Tensor:
        """What softmax adds to its logits so that nobody sees another region: 0 or -inf, [B or 1, 1, N_q, N_k]."""
        apart = self.queries[:, None, :, None] != self.keys[:, None, None, :]
        return torch.zeros_like(apart, dtype=dtype).masked_fill(apart, -torch.inf)


@dataclass
class Reading:
    """What one call of a layer makes of its inputs.

    Attributes:
        q: [B, heads, N_q, d_k]. k: [B, heads, N_k, d_k]. v: [B, heads, N_k, d_v]. B counts windows where a layer is
            called with windows. Softmax is of `softmax_scale`·q·k.
        more: f and g of above, divided by the root of the softmax's scale each: [B or 1, heads, N_q, r] and [B or 1,
            heads, N_k, r]; the linear form has them behind q and k.
        bias: what softmax adds to its logits, [B or 1, heads or 1, N_q, N_k], the mask included; left out, `more` is
            all there is.
        regions: who may see whom, where that is not everybody.
        rest: whatever `write` needs.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    more: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    regions: Regions | None = None
    rest: Any = None

    def extended(self) -> tuple[Tensor, Tensor]:
        """q and k with `more` behind them, [B, heads, N, d_k + r]."""
        if self.more is None:
            return self.q, self.k
        return _beside(self.q, self.more[0]), _beside(self.k, self.more[1])

    def for_softmax(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """q, k and bias of the softmax layer itself."""
        if self.bias is None and self.more is not None:
            return *self.extended(), None
        return self.q, self.k, self.bias


def _beside(x: Tensor, more: Tensor) -> Tensor:
    return torch.cat([x, more.to(x.dtype).expand(*x.shape[:-1], -1)], -1)


class Reader(nn.Module):
    """One attention layer of a family, its trained modules inside. It is made of the softmax layer alone.

    Attributes:
        grid: of its keys, which lie on it in rows; `read` keeps it up to date.
        num_heads, head_dim: of q and k. value_dim: of v. extra: r of `Reading.more`.
        dim: channels of a token that comes in.
        on_grid: whether queries and keys are the same tokens, on `grid`, so that windows and a depthwise residual on v
            have a meaning. takes_windows: whether more windows have one, too.
        windows: how many of them it is called with for one image.
        asked: attributes of the softmax layer that the model around it looks at.
    """

    query_places: nn.Parameter | None
    key_places: nn.Parameter | None
    num_heads: int
    head_dim: int
    value_dim: int
    softmax_scale: float
    dim: int
    extra: int = 0
    on_grid: bool = True
    takes_windows: bool = True
    windows: int = 1

    def __init__(self, prefix: int = 0) -> None:
        super().__init__()
        self.grid = TokenGrid(0, 0, prefix)
        self.asked: dict[str, Any] = {}
        self.register_parameter("query_places", None)
        self.register_parameter("key_places", None)

    def read(self, *inputs: Any, **more: Any) -> Reading:
        """What the layer is called with, as q, k and v."""
        raise NotImplementedError

    def refuses(self, *inputs: Any, **more: Any) -> str | None:
        """Why a layer that is called so can't be castled; None where it can."""
        return None

    def write(self, y: Tensor, reading: Reading) -> Any:
        """What the layer returns, of merged heads y, [B, N_q, heads·d_v]."""
        raise NotImplementedError

    def tokens(self, output: Any) -> Tensor:
        """What `write` has made, or the softmax layer, as tokens [B, N, C]; losses are of them."""
        return output

    def learn_places(self, f: Tensor, g: Tensor) -> None:
        """Start the factors of a bias of places from these, as `Reading.more` has them, [heads, N, r] each."""
        self.query_places, self.key_places = nn.Parameter(f), nn.Parameter(g)
        self.extra = f.shape[-1]

    @property
    def learned_places(self) -> tuple[Tensor, Tensor] | None:
        """`Reading.more` of a layer that learns its bias of places; None where there is none to learn."""
        if self.query_places is None or self.key_places is None:
            return None
        return self.query_places[None], self.key_places[None]

    def started(self) -> list[nn.Parameter]:
        """Parameters that the softmax layer did not have."""
        return [places for places in (self.query_places, self.key_places) if places is not None]

    def fold_(self) -> None:
        """Drop what the softmax alone needs, in place."""

    @property
    def tokens_in(self) -> int:
        """How many tokens of `dim` channels it is called with for one image; more than its keys where these are
        pooled."""
        return self.windows * self.grid.tokens

    @property
    def weight(self) -> Tensor:
        """Any of its parameters: their type and their device."""
        return next(self.parameters())


def split_heads(x: Tensor, num_heads: int, parts: int = 3) -> tuple[Tensor, ...]:
    """[B, N, parts·heads·d], such as q, k and v in this order, as each of these, [B, heads, N, d]."""
    B, N, _ = x.shape
    return x.reshape(B, N, parts, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def refuse_mask(attn_mask: Tensor | None, is_causal: bool = False) -> None:
    """Raise ValueError for a mask, where a layer may be called with one."""
    if attn_mask is not None or is_causal:
        raise ValueError("castled attention takes no attention mask: the linear form has no entries to mask")


@torch.no_grad()
def low_rank(bias: Tensor, rank: int, softmax_scale: float) -> tuple[Tensor, Tensor]:
    """The factors of `Reading.more` that come closest to a bias, [heads, N_q, N_k], by its singular values:
    [heads, N_q, rank] and [heads, N_k, rank]."""
    u, s, vh = _leading(bias.double() / softmax_scale, rank)
    root = s[:, None, :rank].sqrt()
    f, g = u[..., :rank] * root, vh.transpose(-2, -1)[..., :rank] * root
    missing = rank - f.shape[-1]  # of a bias with fewer rows than that
    return tuple(nn.functional.pad(x, (0, missing)).to(bias) for x in (f, g))  # type: ignore[return-value]


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of [heads, N, M], as far as its first `rank` values need it: of a large one by
    subspace iteration from directions that are the same every time.

    Source: Halko et al., SIAM Review 53 (2011), arXiv 0909.4061, algorithm 4.4.
    """
    if min(matrix.shape[-2:]) <= LARGE:
        return torch.linalg.svd(matrix, full_matrices=False)
    directions = torch.randn(matrix.shape[-1], 2 * rank, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ directions.to(matrix.device)).Q  # heads, N, 2·rank
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.transpose(-2, -1) @ basis).Q).Q
    u, s, vh = torch.linalg.svd(basis.transpose(-2, -1) @ matrix, full_matrices=False)
    return basis @ u, s, vh


def regions_of_mask(mask: Tensor, count: int) -> Tensor:
    """The number of each token's region, [W, N], of masks of windows, [W, N, N], that are zero within regions.

    Args:
        count: the most regions that a window has.
    """
    together = mask == 0
    first = (together.to(torch.int32).cumsum(-1) == 0).sum(-1)  # each region's first token stands for it
    places = torch.arange(mask.shape[-1], device=mask.device)
    before = (first == places).to(torch.int32).cumsum(-1)
    return (before.gather(-1, first) - 1).clamp(max=count - 1)
