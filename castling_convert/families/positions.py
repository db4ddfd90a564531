"""Position embeddings of any grid, by products that every runtime has."""

from __future__ import annotations

import torch
from torch import Tensor


def cubic_weights(old: int, new: int) -> Tensor:
    """The matrix [new, old] that resamples `old` samples to `new` by an antialiased cubic filter, as
    `F.interpolate(mode="bicubic", antialias=True)` does along one axis.

    Source: Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 1981, a = -1/2;
    for new < old the filter is stretched by old / new, and weights are normalised over the samples there are.
    """
    scale = old / torch.full((), new, dtype=torch.float32)  # a tensor: Python's max would freeze a traced size
    centres = (torch.arange(new) + 0.5) * scale
    x = ((torch.arange(old) + 0.5) - centres[:, None]).abs() / scale.clamp_min(1)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(1, keepdim=True)
