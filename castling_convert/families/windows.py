"""Readers of attention within windows: a bias of places that all windows share, and masks of shifted windows.

The bias, whatever the model makes it of, is one matrix a head. The softmax has it as a constant until its mask closes;
the linear form has RANK factors of it, which start from its singular values and are trained. The masks of shifted
windows are regions, each with landmarks of its own, so nothing crosses them.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor, nn

from ..attention import Reader, Reading, Regions
from ..attention.norms import wide
from ..attention.reader import RANK, low_rank, regions_of_mask, split_heads

REGIONS = 4
"""A shifted window holds two parts of the image along each axis at most."""
LARGEST = math.log(100)
"""What a learned logarithm of a scale of cosines is clamped to."""


class BiasedReader(Reader):
    """One that may have a bias of places; `start_` ends its making."""

    places: Tensor | None
    takes_windows = False

    def start_(self, bias: Tensor | None) -> None:
        """Take what the softmax adds to its logits, [heads, N_q, N_k], if it does."""
        places = None if bias is None else bias.detach()[None].clone()
        self.register_buffer("places", places, persistent=False)
        if bias is not None:
            self.learn_places(*low_rank(bias, RANK, self.softmax_scale))

    def reading(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, rest: Any = None) -> Reading:
        """Of heads, [B·W, heads, N, d], and the mask of the W windows of an image, [W, N, N], beside a bias."""
        more = self.learned_places
        if mask is None:
            return Reading(q, k, v, more, self.places, rest=rest)
        images = q.shape[0] // mask.shape[0]
        of_window = regions_of_mask(mask, REGIONS).repeat(images, 1)
        bias = None if self.places is None else self.places + mask[:, None].repeat(images, 1, 1, 1)
        return Reading(q, k, v, more, bias, Regions(of_window, of_window, REGIONS), rest)

    def fold_(self) -> None:
        self.places = None


class WindowReader(BiasedReader):
    """Of windows [B·W, N, C], whose q, k and v are one `nn.Linear`."""

    def __init__(self, attention: Any, bias: Tensor | None, softmax_scale: float) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.proj_drop = getattr(attention, "proj_drop", nn.Identity())
        self.num_heads, self.dim, self.softmax_scale = attention.num_heads, attention.qkv.in_features, softmax_scale
        self.head_dim = self.value_dim = attention.qkv.out_features // 3 // attention.num_heads
        self.grid.height, self.grid.width = attention.window_size
        self.start_(bias)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k and v, each [B·W, heads, N, d]."""
        return split_heads(self.qkv(x), self.num_heads)

    def read(self, x: Tensor, mask: Tensor | None = None) -> Reading:
        q, k, v = self.heads(x)
        return self.reading(q, k, v, mask)

    def write(self, y: Tensor, reading: Reading) -> Tensor:
        return self.proj_drop(self.proj(y))


def cosine(q: Tensor, k: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """q and k, [B, heads, N, d], of cosine attention: of unit length, q times the exponential of a learned scale,
    [heads] or [heads, 1, 1], of 100 at most. float32: what is zero, such as padding, is divided by 1e-12."""
    scale = logit_scale.clamp(max=LARGEST).exp().reshape(-1, 1, 1)
    q, k = (nn.functional.normalize(wide(x), dim=-1).to(x.dtype) for x in (q, k))
    return q * scale.to(q.dtype), k


def bias_of(places: nn.Module) -> Tensor:
    """What one of timm's modules of relative positions adds to logits, [heads, N, N], without its dropout."""
    module: Any = copy.deepcopy(places).eval()
    return module.get_bias().flatten(0, -3)
